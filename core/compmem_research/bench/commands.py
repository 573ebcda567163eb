"""`compmem bench ...`: each measurement prints a table, or JSON, and can write its result to a file."""

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from compmem.naming import DEFAULT_ENCODER
from compmem_research.bench.machine import command, machine
from compmem_research.tasks.official import Form, records, write_records

app = typer.Typer(no_args_is_help=True, help="Measure quality, recall and speed, as in the published results.")

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path | None, typer.Option(help="Also write the result, with its command and machine, to this file.")]


@app.command()
def recall(
    data: Annotated[
        list[Path], typer.Option(help="Questions with supporting paragraphs or gold titles (JSONL); may be repeated.")
    ],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Passages (JSONL) if the questions name them by title; as many as --data, - for none."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only this many first questions of each file.")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder to store and reuse the index of each file.")] = None,
    gate: Annotated[Path | None, typer.Option(help="Another dense gate, made by `compmem train dense-gate`.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Recall of gold passages by dense, BM25, fused, one-shot gate and the loop."""
    from compmem_research.bench.recall import measure

    runs = []
    for file, own in zip(data, _passages(data, corpus), strict=True):
        kept = None if index is None else index / file.name.split(".")[0]
        runs.append(measure(file, own, limit=limit, index_folder=kept, gate=gate))
    _deliver(runs[0] if len(runs) == 1 else {"runs": runs}, [_recall_table(run) for run in runs], out, as_json)


@app.command()
def domains(
    data: Annotated[list[Path], typer.Option(help="Folder of questions (JSONL), or one file; may be repeated.")],
    out: Annotated[Path, typer.Option(help="The result. Sets in it are not measured again.")] = Path(
        "core/results/domains.json"
    ),
    limit: Annotated[
        int | None, typer.Option(help="Only this many first questions of a set with an answer, and without.")
    ] = None,
    styles: Annotated[
        bool, typer.Option("--styles", help="Also as keywords, chat messages, with typing errors and in lower case.")
    ] = False,
    foreign: Annotated[
        bool, typer.Option("--foreign", help="Without an answer are the questions of the other sets, not a set's own.")
    ] = False,
    index: Annotated[Path | None, typer.Option(help="Folder to store and reuse the index of each set.")] = None,
    seed: Annotated[int, typer.Option(help="Seed for the typing errors and phrases of --styles.")] = 0,
    as_json: Json = False,
) -> None:
    """All systems on all sets in folders, CompMem and the baselines; an interrupted run is continued.

    Remove the file after a change of the library's code: only settings, data, gate and machine are compared.
    """
    from compmem_research.bench.domains import measure
    from compmem_research.bench.domains_report import ALL, overview
    from compmem_research.bench.styles import STYLES, UNCHANGED

    chosen = (UNCHANGED, *STYLES) if styles else (UNCHANGED,)
    result = measure(data, out, styles=chosen, limit=limit, foreign=foreign, indices=index, seed=seed)
    table = Table("set", "style", *ALL, title="recall@5 / nDCG@10")
    for row in overview(result["sets"]):
        table.add_row(*row)
    _deliver(result, [table], None, as_json)


@app.command()
def wrapped(
    data: Annotated[Path, typer.Option(help="Questions with supporting paragraphs or gold titles (JSONL).")],
    corpus: Annotated[Path | None, typer.Option(help="Passages (JSONL) if the questions name them by title.")] = None,
    limit: Annotated[int | None, typer.Option(help="Only this many first questions.")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder to store and reuse the index.")] = None,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Recall of gold passages by embedded LanceDB and Qdrant, by the loop over each, and by our own index."""
    from compmem_research.bench.external_stores import KS, measure

    result = measure(data, corpus, limit=limit, index_folder=index)
    table = Table(title=f"{result['data']}: {result['questions']} questions, {result['passages']} passages")
    for column in ("system", *(f"recall@{k}" for k in KS), "seconds per question"):
        table.add_column(column, justify="left" if column == "system" else "right")
    for name, row in result["systems"].items():
        table.add_row(name, *(str(row[f"recall@{k}"]) for k in KS), str(row["seconds_per_question"]))
    _deliver(result, [table], out, as_json)


@app.command()
def answers(
    data: Annotated[list[Path], typer.Option(help="Questions (JSONL); may be repeated.")],
    model: Annotated[str, typer.Option(envvar="OPENAI_MODEL", help="Chat model; its name at the endpoint.")],
    corpus: Annotated[
        list[Path] | None,
        typer.Option(help="Passages (JSONL) if the questions name them by title; as many as --data, - for none."),
    ] = None,
    base_url: Annotated[
        str | None, typer.Option(envvar="OPENAI_BASE_URL", help="Endpoint with the OpenAI API.")
    ] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="NAME", help="Variable with the endpoint's key.")] = None,
    systems: Annotated[
        str,
        typer.Option(help="By comma: none, llamaindex, langchain, bm25, fused, loop, loop-cite, loop-ask, steps."),
    ] = "llamaindex,langchain,loop",
    limit: Annotated[int | None, typer.Option(help="Questions per file, sampled with --seed. Default: all.")] = None,
    seed: Annotated[int, typer.Option(help="Seed for sampling questions.")] = 0,
    k: Annotated[int, typer.Option(help="Passages that the model sees.")] = 5,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of a reply.")] = 64,
    context_window: Annotated[int, typer.Option(help="Context window of the model in tokens.")] = 4096,
    instruction: Annotated[
        str | None, typer.Option(help="Text after every question that asks for short answers.")
    ] = None,
    index: Annotated[Path | None, typer.Option(help="Folder to store and reuse the index of each file.")] = None,
    out: Annotated[Path, typer.Option(help="The result. The answers are stored beside it, in a .jsonl file.")] = Path(
        "core/results/answers.json"
    ),
    as_json: Json = False,
) -> None:
    """One chat model's answers over corpora, by CompMem and plain RAG; an interrupted run is continued."""
    from compmem_research.bench.answers import INSTRUCTION, Settings, measure
    from compmem_research.bench.answers_model import Server

    settings = Settings(
        model=model, systems=_listed(systems), k=k, max_tokens=max_tokens, context_window=context_window,
        instruction=INSTRUCTION if instruction is None else instruction, limit=limit, seed=seed,
    )  # fmt: skip
    server = Server(model, base_url=base_url, api_key_env=api_key_env, max_tokens=max_tokens)
    result = measure(data, _passages(data, corpus), settings, server, rows=out.with_suffix(".jsonl"), indices=index)
    table = Table("data", "system", "questions", "F1", "EM", "calls", "seconds")
    for one in result["answers"]:
        for name, row in one["systems"].items():
            shown = (row["questions"], row["f1"], row["em"], row["calls"], row["seconds"])
            table.add_row(one["data"], name, *map(str, shown))
    _deliver(result, [table], out, as_json)


@app.command()
def fusion(
    data: Annotated[list[Path], typer.Option(help="Questions with their own paragraphs (JSONL); may be repeated.")],
    backbone: Annotated[str, typer.Option(help="A stock model: name, folder or .gguf file.")],
    out: Annotated[Path, typer.Option(help="The result; its rows go beside it as .jsonl, and a second run goes on.")],
    methods: Annotated[
        str, typer.Option(help="By comma; joined by + for several at once.")
    ] = "none,epic,prophetkv,cacheblend,graph-kv,ape,graph-kv+epic+prophetkv",
    ratios: Annotated[str, typer.Option(help="Source tokens per memory token, by comma.")] = "1,2,4,8",
    pruning: Annotated[
        str, typer.Option(help="How states are chosen, by comma: names as of `compmem add --kv-pruning`.")
    ] = "attention",
    trained: Annotated[
        list[str] | None, typer.Option(help="Folders with what was trained on that model, measured beside it.")
    ] = None,
    blocks: Annotated[int, typer.Option(help="Paragraphs that are recalled for each question.")] = 5,
    windows: Annotated[
        str, typer.Option(help="Tokens of the question's context that are read in one pass, by comma; 0: each alone.")
    ] = "0",
    chunk_tokens: Annotated[
        int, typer.Option(help="Join neighbours to chunks of at most so many tokens, all in the order of the context.")
    ] = 0,
    context_tokens: Annotated[
        int, typer.Option(help="Fill a context with other paragraphs of the set; recall the chunks with gold ones.")
    ] = 0,
    kv: Annotated[str, typer.Option(help="How states are stored, by comma: bf16, int8, int4.")] = "bf16",
    limit: Annotated[int, typer.Option(help="Questions of a file, drawn by the seed.")] = 20,
    max_tokens: Annotated[int, typer.Option(help="Most tokens of an answer.")] = 24,
    share: Annotated[float, typer.Option(help="Share of tokens that is computed again.")] = 0.1,
    first: Annotated[int, typer.Option(help="First tokens of a block that EPIC computes again.")] = 16,
    seed: Annotated[int, typer.Option(help="Decides on questions, distractors and their order.")] = 0,
    as_json: Json = False,
) -> None:
    """Answers of a stock model from paragraphs as text and as KV states that see one another, by each method."""
    from compmem.backbone import Backbone
    from compmem_research.bench.fusion import Settings, measure
    from compmem_research.bench.fusion_report import COLUMNS, cells

    settings = Settings(
        methods=_listed(methods), ratios=tuple(map(int, _listed(ratios))), pruning=_listed(pruning), blocks=blocks,
        windows=tuple(map(int, _listed(windows))), chunk_tokens=chunk_tokens, context_tokens=context_tokens,
        kv=_listed(kv), limit=limit, max_tokens=max_tokens, share=share, first=first, seed=seed,
    )  # fmt: skip
    models = {Path(backbone).name: Backbone.load(backbone)}
    models |= {Path(folder).name: Backbone.load(folder, base=backbone) for folder in trained or ()}
    result = measure(data, settings, models, rows=out.with_suffix(".jsonl"))
    table = Table(*COLUMNS, title=result["data"])
    for row in result["fusion"]:
        table.add_row(*cells(row))
    _deliver(result, [table], out, as_json)


@app.command()
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


@app.command()
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


@app.command()
def latency(
    chunks: Annotated[str, typer.Option(help="Numbers of made-up blocks, by comma.")] = "100000,1000000",
    shards: Annotated[str, typer.Option(help="Numbers of shards, by comma; 1 is one folder.")] = "1,8",
    questions: Annotated[int, typer.Option(help="Timed questions of each kind.")] = 60,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Time of one pass and of four steps of the loop over large indexes, in one folder and in shards."""
    from compmem_research.bench.latency import COLUMNS, cells, measure

    counts, parts = ([int(n) for n in _listed(given)] for given in (chunks, shards))
    result = measure(chunks=counts, shards=parts, questions=questions)
    table = Table(*COLUMNS, title="made-up blocks, random vectors")
    for row in result["latency"]:
        table.add_row(*cells(row))
    _deliver(result, [table], out, as_json)


@app.command()
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
        "shards": [int(n) for n in _listed(shards)], "limit": limit, "minutes": minutes, "index_folder": index,
    }  # fmt: skip
    result = (
        measure(data, corpus, **how) if actors is None else shard_actors.measure(data, corpus, actors=actors, **how)
    )
    rows = result["sharded" if actors is None else "shard_actors"]
    table = Table(*(name.replace("_", " ") for name in rows[0]), title=result["data"])
    for row in rows:
        table.add_row(*map(str, row.values()))
    _deliver(result, [table], out, as_json)


@app.command()
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
    _deliver(result, tables, out, as_json)


@app.command()
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

    of_threads = None if threads is None else [int(n) for n in _listed(threads)]
    numbers = [[int(n) for n in _listed(given)] for given in (workers, encoders)]
    result = measure(passages=passages, threads=of_threads, workers=numbers[0], encoders=numbers[1], encoder=encoder)
    shown = ("how", "passages_per_second", "speed_up", "efficiency", "passages_per_processor_second", "seconds")
    table = Table(*(name.replace("_", " ") for name in shown), title=f"{passages} passages, {result['cores']} cores")
    for row in result["ways"]:
        table.add_row(*(str(row[name]) for name in shown))
    _deliver(result, [table], out, as_json)


@app.command()
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
    levels, workers, on_ray = ([int(n) for n in _listed(given)] for given in (clients, processes, replicas))
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
    _deliver(result, [table], out, as_json)


@app.command()
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
    result = measure(index, questions, threads=[int(n) for n in _listed(numbers)], turns=turns)
    profile = Table(*result["milliseconds"], title="milliseconds of a question on one thread")
    profile.add_row(*map(str, result["milliseconds"].values()))
    table = Table("threads", "encoded", "answers/s", "processor ms", "texts/pass")
    for row in result["by_threads"]:
        for way in ("alone", "together"):
            table.add_row(str(row["threads"]), way, *map(str, row[way].values()))
    _deliver(result, [profile, table], out, as_json)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []})
def speed(context: typer.Context) -> None:
    """Speed of CompMem, MemAgent's loop, the loop without a gate and the whole context; --help for options."""
    # It parses its own options, since a bare GPU machine without typer runs it as a module.
    from compmem_research.bench.speed import main

    raise typer.Exit(main(context.args))


@app.command()
def quality(
    data: Annotated[Path, typer.Option(help="Folder of the evaluation files.")],
    suite: Annotated[
        str, typer.Option(help="length, chunks, ablations, tasks, ruler, memory, model or loops.")
    ] = "length",
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: core/results/SUITE.")] = None,
    cells: Annotated[
        str | None, typer.Option("--conditions", help="Instead of the suite's: TASK@LENGTH[+VARIANT], comma-separated.")
    ] = None,
    systems: Annotated[str | None, typer.Option(help="Instead of the suite's: SYSTEM[:READER], by comma.")] = None,
    questions: Annotated[int, typer.Option(help="Questions per cell.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed for questions, distractors and their order.")] = 0,
    scan_until: Annotated[int, typer.Option(help="Longest context, in tokens, of whole scans.")] = 28_000,
    model: Annotated[str | None, typer.Option(help="Chat model; its name at the endpoint.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Endpoint with the OpenAI API.")] = None,
    api_key_env: Annotated[str | None, typer.Option(metavar="NAME", help="Variable with the endpoint's key.")] = None,
    backbone: Annotated[str | None, typer.Option(help="Folder of a causal LM, for latent and chat systems.")] = None,
    ratio: Annotated[int | None, typer.Option(help="Its source tokens per memory token. Default: its own.")] = None,
) -> None:
    """The papers' tasks by the papers' systems; an interrupted run is continued."""
    from compmem_research.bench.quality import Sweep, sweep
    from compmem_research.bench.quality import suite as suite_of

    cells_of, systems_of = suite_of(suite, readers=model is not None or backbone is not None)
    settings = Sweep(
        data=data, out=out or Path("core/results") / suite, cells=_listed(cells) or cells_of,
        systems=_listed(systems) or systems_of, questions=questions, seed=seed, scan_until=scan_until, model=model,
        base_url=base_url, api_key_env=api_key_env, backbone=backbone, ratio=ratio,
    )  # fmt: skip
    raise typer.Exit(1 if sweep(settings) else 0)


@app.command()
def convert(
    form: Annotated[Form, typer.Argument(help="Data set that the file is from.", show_default=False)],
    source: Annotated[Path, typer.Argument(help="The data set's original file, also as .gz or .xz.")],
    out: Annotated[Path, typer.Argument(help="JSONL of questions to write; the suffix decides the compression.")],
) -> None:
    """Convert a data set's original file to the questions that the other measurements read."""
    count = write_records(out, records(source, form))
    Console().print(f"{count} questions written to {out}")


@app.command()
def report(results: Annotated[Path, typer.Option(help="The folder of the results.")] = Path("core/results")) -> None:
    """Writes the page of results and its plots from the result files."""
    from compmem_research.bench.plots import draw, draw_recall
    from compmem_research.bench.quality_report import results as runs
    from compmem_research.bench.report import report as page

    draw_recall(results, results / "plots" / "recall.png")
    plots = draw(runs(results), results / "plots")
    (results / "README.md").write_text(page(results, plots), encoding="utf-8")


def _passages(data: Sequence[Path], corpus: Sequence[Path] | None) -> list[Path | None]:
    """The passages of each file of questions; None if the file has its own."""
    passages = [None if str(path) == "-" else path for path in corpus or [Path("-")] * len(data)]
    if len(passages) != len(data):
        raise typer.BadParameter(
            f"{len(passages)} for {len(data)} --data: give each its own, or - for none", param_hint="--corpus"
        )
    return passages


def _listed(names: str | None) -> tuple[str, ...]:
    return tuple(n.strip() for n in (names or "").split(",") if n.strip())


def _recall_table(run: Mapping[str, Any]) -> Table:
    from compmem_research.bench.retrieval import METRICS

    shares = [*METRICS, *(["nothing_found", "false_alarms"] if run["unanswerable"] else [])]
    table = Table(title=f"{run['data']}: {run['questions']} questions, {run['passages']} passages")
    for column in ("system", *shares, "seconds per question"):
        table.add_column(column.replace("_", " "), justify="left" if column == "system" else "right")
    for name, row in run["systems"].items():
        table.add_row(name, *(str(row.get(share, "-")) for share in shares), str(row["seconds_per_question"]))
    return table


def _deliver_flat(result: Mapping[str, Any], title: str, out: Path | None, as_json: bool) -> None:
    table = Table("what", "measured", title=title)
    for name, value in result.items():
        table.add_row(name, json.dumps(value) if isinstance(value, dict) else str(value))
    _deliver(result, [table], out, as_json)


def _deliver(result: Mapping[str, Any], tables: Sequence[Table], out: Path | None, as_json: bool) -> None:
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"command": command(), "machine": machine(), **result}, indent=1) + "\n")
    if as_json:
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        Console().print(*tables, sep="\n")
