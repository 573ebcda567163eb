"""Commands that measure speed and size."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from compmem.naming import DEFAULT_ENCODER
from compmem_research.bench.command_output import Json, Out, deliver, listed


def encode(
    pages: Annotated[Path, typer.Option(help="Pages to encode: JSONL with `text`.")],
    count: Annotated[int, typer.Option(help="Passages.")] = 1500,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Tokens per second of the encoder and of `SentenceTransformer.encode`, and the similarity of their vectors."""
    from compmem_research.bench.encoding import measure
    from compmem_research.tasks.multihop import leads

    passages = [p.text for _, p in zip(range(count), leads(pages, words=180), strict=False)]
    _deliver_flat(measure(passages), "encoding", out, as_json)


def scale(
    pages: Annotated[Path, typer.Option(help="Pages to add: JSONL with `title` and `text`.")],
    chunks: Annotated[int, typer.Option(help="Final size of the index.")] = 100_000,
    questions: Annotated[int, typer.Option(help="Number of timed questions.")] = 60,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Time of adding, opening, one pass and the loop as an index grows."""
    from compmem_research.bench.scale import measure

    _deliver_flat(measure(pages, chunks=chunks, questions=questions), "an index as it grows", out, as_json)


def latency(
    chunks: Annotated[str, typer.Option(help="Numbers of made-up blocks, by comma.")] = "100000,1000000",
    shards: Annotated[str, typer.Option(help="Numbers of shards, by comma; 1 is one folder.")] = "1,8",
    questions: Annotated[int, typer.Option(help="Timed questions of each kind.")] = 60,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Time of one pass and of four steps of the loop over large indexes, in one folder and in shards."""
    from compmem_research.bench.latency import COLUMNS, cells, measure

    counts, parts = ([int(n) for n in listed(given)] for given in (chunks, shards))
    result = measure(chunks=counts, shards=parts, questions=questions)
    table = Table(*COLUMNS, title="made-up blocks, random vectors")
    for row in result["latency"]:
        table.add_row(*cells(row))
    deliver(result, [table], out, as_json)


def plan(
    scale: Annotated[Path, typer.Option(help="Result of `bench scale`.")] = Path("core/results/scale.json"),
    encode: Annotated[Path, typer.Option(help="Result of `bench encode`.")] = Path("core/results/encode.json"),
    draws: Annotated[int, typer.Option(help="Simulated questions.")] = 20_000,
    seed: Annotated[int, typer.Option(help="Seed of the simulation.")] = 0,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Bytes, shards, simulated latencies, build time and cost of 1e5 to 1e9 chunks."""
    from compmem_research.bench.plan import BUILD_COLUMNS, COLUMNS, build_rows, measure, rows

    result = measure(scale, encode, draws=draws, seed=seed)
    tables = [Table(*COLUMNS), Table(*BUILD_COLUMNS)]
    for table, lines in zip(tables, (rows(result), build_rows(result)), strict=True):
        for line in lines:
            table.add_row(*line)
    deliver(result, tables, out, as_json)


def build(
    passages: Annotated[int, typer.Option(help="Made-up passages that are added.")] = 5000,
    threads: Annotated[
        str | None,
        typer.Option(help="Numbers of threads of one process, by comma; nothing for none. Default: 1 and all."),
    ] = None,
    workers: Annotated[str, typer.Option(help="Numbers of worker processes, by comma.")] = "1,2,4",
    encoders: Annotated[str, typer.Option(help="Numbers of encoders on Ray, by comma; nothing for none.")] = "1,2",
    encoder: Annotated[str, typer.Option(help="The sentence encoder: a name or folder.")] = DEFAULT_ENCODER,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Passages a second that one process, worker processes and Ray add to an index."""
    from compmem_research.bench.build import measure

    of_threads = None if threads is None else [int(n) for n in listed(threads)]
    numbers = [[int(n) for n in listed(given)] for given in (workers, encoders)]
    result = measure(passages=passages, threads=of_threads, workers=numbers[0], encoders=numbers[1], encoder=encoder)
    shown = ("how", "passages_per_second", "speed_up", "efficiency", "passages_per_processor_second", "seconds")
    table = Table(*(name.replace("_", " ") for name in shown), title=f"{passages} passages, {result['cores']} cores")
    for row in result["ways"]:
        table.add_row(*(str(row[name]) for name in shown))
    deliver(result, [table], out, as_json)


def speed(context: typer.Context) -> None:
    """Speed of CompMem, MemAgent's loop, the loop without a gate and the whole context; --help for options."""
    # It parses its own options, since a bare GPU machine without typer runs it as a module.
    from compmem_research.bench.speed import main

    raise typer.Exit(main(context.args))


def _deliver_flat(result: Mapping[str, Any], title: str, out: Path | None, as_json: bool) -> None:
    table = Table("what", "measured", title=title)
    for name, value in result.items():
        table.add_row(name, json.dumps(value) if isinstance(value, dict) else str(value))
    deliver(result, [table], out, as_json)
