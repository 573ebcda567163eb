"""`compmem ask` and `compmem recall`: questions to an index."""

from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

import compmem
from compmem.as_json import answer_json, recall_json
from compmem.cli import render
from compmem.cli.answer_page import answer_page
from compmem.cli.answer_text import printable
from compmem.cli.app import app, chat_model, parse_filter, stderr_console, stdout_console, without_none, write_json
from compmem.config import RecallConfig, RecallMethod
from compmem.schema import Answer, AnswerToken, Event, ReaderName, Step, WriterName

IndexPath = Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.", show_default=False)]
Filter = Annotated[
    str | None,
    typer.Option(
        "--filter", metavar="JSON", help='Only documents whose metadata match, as in \'{"year": {">=": 2020}}\'.'
    ),
]
QuestionArgument = Annotated[str, typer.Argument(metavar="QUESTION", help="The question.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
AllowDownload = Annotated[
    bool,
    typer.Option("--allow-download", help="Download models that the index names if they are not on this machine."),
]
Device = Annotated[str | None, typer.Option(help="Torch device, such as cuda. Default: the best available.")]
BackboneBase = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Stock model of a backbone that is only adapters: a name, folder or .gguf file. Default: as it names.",
    ),
]


ReaderOption = Annotated[
    ReaderName | None,
    typer.Option(
        help="Who reads in every step: quotes, the chat model, or the index's own backbone. Default: quotes; the "
        "backbone if it was trained for the loop and neither --model nor --writer is given."
    ),
]
WriterOption = Annotated[
    WriterName | None,
    typer.Option(
        help="Who writes the answer from the recalled blocks. Default without --reader: the chat model if --model is "
        "given, else the backbone of KV memory; otherwise the reader, from its notes."
    ),
]
BaseUrl = Annotated[
    str | None, typer.Option(help="Endpoint with the OpenAI API. Default: OPENAI_BASE_URL, else OpenAI's.")
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Environment variable with the endpoint's key. Default: OPENAI_API_KEY, and no key with --base-url.",
    ),
]
TraceOption = Annotated[bool, typer.Option("--trace/--quiet", help="Show steps and sources, or only the answer.")]
PageOption = Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the answer as an HTML page.")]


@app.command()
def ask(
    index: IndexPath,
    question: QuestionArgument,
    filter: Filter = None,
    max_steps: Annotated[int | None, typer.Option(min=1, help="Most steps, each of which reads a block.")] = None,
    max_seconds: Annotated[float | None, typer.Option(help="Seconds after which to answer with what is known.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Gate score below which a block is not read.")] = None,
    reader: ReaderOption = None,
    writer: WriterOption = None,
    rounds: Annotated[int, typer.Option(help="Most times that the chat model may ask for missing facts.")] = 0,
    cite: Annotated[bool, typer.Option("--cite", help="Let the chat model cite its sources, as in [1].")] = False,
    model: Annotated[
        str | None, typer.Option(help="Chat model that writes the answer; its name at the endpoint.")
    ] = None,
    base_url: BaseUrl = None,
    api_key_env: KeyOption = None,
    trace: TraceOption = True,
    page: PageOption = None,
    device: Device = None,
    backbone_base: BackboneBase = None,
    allow_download: AllowDownload = False,
    as_json: AsJson = False,
) -> None:
    """Answer a question from the index, step by step, with sources."""
    if page is not None and not page.absolute().parent.is_dir():
        raise typer.BadParameter(f"there is no folder {str(page.parent)!r}", param_hint="--page")
    config = RecallConfig(
        reader=reader, writer=writer, max_seconds=max_seconds, threshold=threshold, rounds=rounds, cite=cite,
        **without_none(max_steps=max_steps),
    )  # fmt: skip
    chat = chat_model(config, model, base_url, api_key_env)
    with open_index(index, device, backbone_base, allow_download) as opened:
        events = opened.stream(question, config, filter=parse_filter(filter), chat=chat)
        answer = last(events) if as_json else follow(stdout_console(), events, trace=trace)
    if as_json:
        write_json(answer_json(answer))
    if page is not None:
        page.write_text(answer_page(answer), encoding="utf-8")
        stderr_console().print(Text(f"wrote {page}", style="dim"), soft_wrap=True)


@app.command()
def recall(
    index: IndexPath,
    question: QuestionArgument,
    k: Annotated[int, typer.Option("--k", min=1, help="How many blocks.")] = 8,
    filter: Filter = None,
    method: Annotated[
        RecallMethod, typer.Option(help="The loop, or one pass: scored by the gate, or a plain search.")
    ] = "loop",
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Leave out blocks with a lower score.")] = 0.0,
    device: Device = None,
    backbone_base: BackboneBase = None,
    allow_download: AllowDownload = False,
    as_json: AsJson = False,
) -> None:
    """Show the blocks that a question needs, best first; no answer is written."""
    with open_index(index, device, backbone_base, allow_download) as opened:
        found = opened.recall(question, k, method=method, min_score=min_score, filter=parse_filter(filter))
    if as_json:
        write_json([recall_json(r) for r in found])
    elif found:
        stdout_console().print(render.recalls_table(found))
    else:
        stdout_console().print("Nothing was found.")


def open_index(path: Path, device: str | None, backbone_base: str | None, download: bool) -> "compmem.MemoryIndex":
    """The index in a folder."""
    runtime = compmem.RuntimeConfig(device=device, backbone_base=backbone_base)
    return compmem.MemoryIndex.open(path, runtime=runtime, allow_download=download)


def last(events: Iterator[Event]) -> Answer:
    """The answer, which is the last event."""
    *_, answer = events
    assert isinstance(answer, Answer)
    return answer


def follow(console: Console, events: Iterator[Event], *, trace: bool, kept_only: bool = False) -> Answer:
    """Prints the events as they come; returns the answer. With `kept_only`, steps that found nothing are counted."""
    with stderr_console().status("opening the index"):
        first = next(events)
    before = ""
    skipped = 0
    writing = False
    for event in chain([first], events):
        if isinstance(event, Step):
            if trace and (event.updated or not kept_only):
                render.step_trace(console, event, before)
            skipped += not event.updated
            before = event.working_memory
        elif isinstance(event, AnswerToken):
            if trace and kept_only and skipped and not writing:
                console.print(Text(f"{skipped} more steps found nothing", style="dim"))
            if trace and not writing:
                console.print(Text("\nanswer", style="bold cyan"))
            writing = True
            console.print(Text(printable(event.text)), end="", soft_wrap=True)
        else:
            console.print()
            if trace:
                render.sources(console, event)
                render.footer(console, event)
            return event
    raise AssertionError("the events end with the answer")
