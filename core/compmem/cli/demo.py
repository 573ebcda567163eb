"""`compmem demo`: the Python standard library's documentation, and questions that each need two parts of it."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

import compmem
from compmem.as_json import answer_json
from compmem.cli.answer_page import answer_page
from compmem.cli.app import app, stdout_console, write_json
from compmem.cli.demo_docs import documents
from compmem.cli.index_commands import progress_bar
from compmem.cli.query_commands import AsJson, BackboneBase, Device, follow, last
from compmem.schema import Answer


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question whose answer is in one document, which only another document names."""

    text: str
    expected: str
    """Text of a correct answer; compared without case and line breaks."""
    first: tuple[str, str]
    """Document and words that the question refers to."""
    second: tuple[str, str]
    """Document and words that contain the answer."""

    def is_correct(self, answer: str) -> bool:
        """Whether an answer contains the expected text."""
        return self.expected.lower() in " ".join(answer.split()).lower()


QUESTIONS: Final = (
    Question(
        text="What configuration does the ssl context hold that urllib.request.urlopen accepts?",
        expected="certificates and possibly a private key",
        first=("urllib.request.urlopen", "If *context* is specified, it must be a ssl.SSLContext instance"),
        second=("ssl.SSLContext", "such as certificates and possibly a private key."),
    ),
    Question(
        text="How does the mix-in class handle requests on which http.server.ThreadingHTTPServer is based?",
        expected="handle each request in a new thread",
        first=("http.server.ThreadingHTTPServer", "(socketserver.ThreadingMixIn, http.server.HTTPServer)"),
        second=("socketserver.ThreadingMixIn", "handle each request in a new thread."),
    ),
    Question(
        text="Which method of a file object is not simulated by the class on which xmlrpc.client.GzipDecodedResponse "
        "is based?",
        expected="with the exception of the truncate() method",
        first=("xmlrpc.client.GzipDecodedResponse", "class GzipDecodedResponse(gzip.GzipFile)"),
        second=("gzip.GzipFile", "most of the methods of a file object with the exception of the truncate() method."),
    ),
    Question(
        text="When can the actual frequency of switching threads be lower than the interval that "
        "sys.getswitchinterval returns?",
        expected="long sequences of uninterruptible code",
        first=("sys.getswitchinterval", "Return the current thread switch interval; see sys.setswitchinterval()."),
        second=("sys.setswitchinterval", "can be lower if the interpreter executes long sequences of uninterruptible"),
    ),
    Question(
        text="For what are interpreters often useful that are written with the base class of pdb.Pdb?",
        expected="test harnesses, administrative tools",
        first=("pdb.Pdb", "class Pdb(bdb.Bdb, cmd.Cmd)"),
        second=("cmd.Cmd", "These are often useful for test harnesses, administrative tools, and prototypes"),
    ),
    Question(
        text="In which terms should numerator and denominator be in the base class of numbers.Integral?",
        expected="in lowest terms",
        first=("numbers.Integral", "class Integral(numbers.Rational)"),
        second=("numbers.Rational", ".numerator and .denominator should be in lowest terms."),
    ),
)


def add_documents(index: "compmem.MemoryIndex") -> int:
    """Adds the documentation to an index, with a progress bar; returns how many documents were new or changed."""
    found = list(documents())
    with progress_bar() as bar:
        return index.add(bar.track(found, total=len(found), description="compressing"))


@app.command()
def demo(
    index: Annotated[
        Path | None, typer.Option("--index", metavar="FOLDER", help="Keep the index there. Default: a temporary one.")
    ] = None,
    pages: Annotated[
        Path | None, typer.Option("--pages", metavar="FOLDER", help="Write each answer as an HTML page there.")
    ] = None,
    device: Device = None,
    backbone_base: BackboneBase = None,
    as_json: AsJson = False,
) -> None:
    """Index the documentation of the standard library and answer questions that each need two parts of it.

    Then read numbers hidden in the documentation from compressed KV states: with SmolLM2-135M-Instruct if it is on this
    machine, or named; else with the embedded backbone.
    """
    started = time.perf_counter()
    console = stdout_console()
    made, runtime = compmem.MemoryIndex, compmem.RuntimeConfig(device=device)
    with made.create(runtime=runtime) if index is None else made.open_or_create(index, runtime=runtime) as memory:
        if others := {info.id for info in memory.documents()} - {document.id for document in documents()}:
            raise typer.BadParameter(f"it holds other documents, such as {min(others)!r}", param_hint="--index")
        added = add_documents(memory)
        facts = memory.info()
        ready = time.perf_counter() - started
        if not as_json:
            console.print(
                f"{facts.documents:,} documents, {facts.characters:,} characters, {facts.blocks:,} blocks; "
                f"{added} documents compressed in {ready:.1f} s\n"
            )
        answers = [_answer(console, memory, number, as_json) for number in range(len(QUESTIONS))]
        encoder = memory.encoder
    right = [q.is_correct(a.text) for q, a in zip(QUESTIONS, answers, strict=True)]
    if not as_json:
        console.print(f"{sum(right)} of {len(right)} right\n")
    from compmem.cli.demo_needles import read_needles  # imports torch, which --help does not need

    backbone, needles = read_needles(None if as_json else console, encoder, device, backbone_base)
    seconds = time.perf_counter() - started
    if pages is not None:
        pages.mkdir(parents=True, exist_ok=True)
        for number, answer in enumerate(answers, start=1):
            (pages / f"{number}.html").write_text(answer_page(answer), encoding="utf-8")
    if as_json:
        write_json({
            "documents": facts.documents, "characters": facts.characters, "blocks": facts.blocks,
            "questions": [{**answer_json(a), "right": r} for a, r in zip(answers, right, strict=True)],
            "right": sum(right), "backbone": backbone, "needles": needles,
            "seconds_to_compress": ready, "seconds": seconds,
        })  # fmt: skip
    else:
        console.print(
            f"\n{sum(right)} of {len(right)} questions right with the extractive reader; of {len(needles)} needles "
            f"{sum(n['latent'] is True for n in needles)} with the latent one; {seconds:.1f} s in all"
        )


def _answer(console: Console, memory: "compmem.MemoryIndex", number: int, as_json: bool) -> Answer:
    question = QUESTIONS[number]
    events = memory.stream(question.text)
    if as_json:
        return last(events)
    console.print(Rule(Text(f"question {number + 1}"), align="left", style="cyan"))
    console.print(Text(question.text, style="bold"))
    answer = follow(console, events, trace=True, kept_only=True)
    verdict = Text("right", style="green") if question.is_correct(answer.text) else Text("not found", style="red")
    console.print(verdict + Text(f" (expected: {question.expected})\n", style="dim"))
    return answer
