"""Commands that measure an index in shards, threads and the server."""

from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from compmem_research.bench.command_output import Json, Out, deliver, listed


def sharded(
    data: Annotated[Path, typer.Option(help="Questions with supporting paragraphs or gold titles (JSONL).")],
    corpus: Annotated[Path | None, typer.Option(help="Passages (JSONL) if the questions name them by title.")] = None,
    shards: Annotated[str, typer.Option(help="Numbers of shards, by comma.")] = "1,2,4,8",
    limit: Annotated[int, typer.Option(help="Only this many first questions.")] = 200,
    minutes: Annotated[float | None, typer.Option(help="No new question after so many minutes.")] = None,
    actors: Annotated[
        int | None, typer.Option(help="Compare the shards in one process with the same in so many Ray actors instead.")
    ] = None,
    index: Annotated[Path | None, typer.Option(help="Folder to store and reuse the index in one folder.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Candidates, gate scores and answers of an index in shards beside those of one folder."""
    from compmem_research.bench import shard_actors
    from compmem_research.bench.sharded import measure

    how: dict[str, Any] = {
        "shards": [int(n) for n in listed(shards)], "limit": limit, "minutes": minutes, "index_folder": index,
    }  # fmt: skip
    result = (
        measure(data, corpus, **how) if actors is None else shard_actors.measure(data, corpus, actors=actors, **how)
    )
    rows = result["sharded" if actors is None else "shard_actors"]
    table = Table(*(name.replace("_", " ") for name in rows[0]), title=result["data"])
    for row in rows:
        table.add_row(*map(str, row.values()))
    deliver(result, [table], out, as_json)


def serve(
    index: Annotated[Path, typer.Option(help="Folder of the index to serve.")],
    data: Annotated[Path, typer.Option(help="Questions (JSONL).")],
    clients: Annotated[str, typer.Option(help="Numbers of concurrent clients, comma-separated.")] = "1,8,32,64",
    processes: Annotated[str, typer.Option(help="Numbers of server processes, by comma; nothing for none.")] = "1,2",
    replicas: Annotated[str, typer.Option(help="Numbers of replicas on Ray, by comma; nothing for none.")] = "2",
    requests: Annotated[int, typer.Option(help="Requests per level; at least two per client.")] = 64,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Requests per second and latencies of `compmem serve` on loopback, by number of clients."""
    from compmem_research.bench.load import measure
    from compmem_research.tasks.multihop import read_lines

    questions = [line["question"] for _, line in read_lines(data, ("question",))]
    levels, workers, on_ray = ([int(n) for n in listed(given)] for given in (clients, processes, replicas))
    result = measure(index, questions, clients=levels, processes=workers, replicas=on_ray, requests=requests)
    table = Table("server", "clients", "requests/s", "per processor second", "p50", "p95", "p99 (ms)", "refused")
    for row in result["levels"]:
        rates = (row["requests_per_second"], row["requests_per_processor_second"])
        shown = (
            f"{row['server']}: {row['count']}",
            row["clients"],
            *rates,
            *row["latency_ms"].values(),
            row["refused"],
        )
        table.add_row(*map(str, shown))
    deliver(result, [table], out, as_json)


def threads(
    index: Annotated[Path, typer.Option(help="Folder of the index.")],
    data: Annotated[Path, typer.Option(help="Questions (JSONL).")],
    numbers: Annotated[str, typer.Option("--threads", help="Numbers of threads, by comma.")] = "1,2,4,8",
    limit: Annotated[int, typer.Option(help="Most questions.")] = 64,
    turns: Annotated[int, typer.Option(help="How often each way is measured, in turns.")] = 2,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Answers a second of one process by threads, with and without encoding several questions in one pass."""
    from compmem_research.bench.threads import measure
    from compmem_research.tasks.multihop import read_lines

    questions = [line["question"] for _, line in islice(read_lines(data, ("question",)), limit)]
    result = measure(index, questions, threads=[int(n) for n in listed(numbers)], turns=turns)
    profile = Table(*result["milliseconds"], title="milliseconds of a question on one thread")
    profile.add_row(*map(str, result["milliseconds"].values()))
    table = Table("threads", "encoded", "answers/s", "processor ms", "texts/pass")
    for row in result["by_threads"]:
        for way in ("alone", "together"):
            table.add_row(str(row["threads"]), way, *map(str, row[way].values()))
    deliver(result, [profile, table], out, as_json)
