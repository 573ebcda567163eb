"""Commands that measure recall and answers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from compmem_research.bench.command_output import Json, Out, deliver, listed


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
    deliver(runs[0] if len(runs) == 1 else {"runs": runs}, [_recall_table(run) for run in runs], out, as_json)


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
    deliver(result, [table], None, as_json)


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
    deliver(result, [table], out, as_json)


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
        model=model, systems=listed(systems), k=k, max_tokens=max_tokens, context_window=context_window,
        instruction=INSTRUCTION if instruction is None else instruction, limit=limit, seed=seed,
    )  # fmt: skip
    server = Server(model, base_url=base_url, api_key_env=api_key_env, max_tokens=max_tokens)
    result = measure(data, _passages(data, corpus), settings, server, rows=out.with_suffix(".jsonl"), indices=index)
    table = Table("data", "system", "questions", "F1", "EM", "calls", "seconds")
    for one in result["answers"]:
        for name, row in one["systems"].items():
            shown = (row["questions"], row["f1"], row["em"], row["calls"], row["seconds"])
            table.add_row(one["data"], name, *map(str, shown))
    deliver(result, [table], out, as_json)


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
        methods=listed(methods), ratios=tuple(map(int, listed(ratios))), pruning=listed(pruning), blocks=blocks,
        windows=tuple(map(int, listed(windows))), chunk_tokens=chunk_tokens, context_tokens=context_tokens,
        kv=listed(kv), limit=limit, max_tokens=max_tokens, share=share, first=first, seed=seed,
    )  # fmt: skip
    models = {Path(backbone).name: Backbone.load(backbone)}
    models |= {Path(folder).name: Backbone.load(folder, base=backbone) for folder in trained or ()}
    result = measure(data, settings, models, rows=out.with_suffix(".jsonl"))
    table = Table(*COLUMNS, title=result["data"])
    for row in result["fusion"]:
        table.add_row(*cells(row))
    deliver(result, [table], out, as_json)


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
        data=data, out=out or Path("core/results") / suite, cells=listed(cells) or cells_of,
        systems=listed(systems) or systems_of, questions=questions, seed=seed, scan_until=scan_until, model=model,
        base_url=base_url, api_key_env=api_key_env, backbone=backbone, ratio=ratio,
    )  # fmt: skip
    raise typer.Exit(1 if sweep(settings) else 0)


def _passages(data: Sequence[Path], corpus: Sequence[Path] | None) -> list[Path | None]:
    """The passages of each file of questions; None if the file has its own."""
    passages = [None if str(path) == "-" else path for path in corpus or [Path("-")] * len(data)]
    if len(passages) != len(data):
        raise typer.BadParameter(
            f"{len(passages)} for {len(data)} --data: give each its own, or - for none", param_hint="--corpus"
        )
    return passages


def _recall_table(run: Mapping[str, Any]) -> Table:
    from compmem_research.bench.retrieval import METRICS

    shares = [*METRICS, *(["nothing_found", "false_alarms"] if run["unanswerable"] else [])]
    table = Table(title=f"{run['data']}: {run['questions']} questions, {run['passages']} passages")
    for column in ("system", *shares, "seconds per question"):
        table.add_column(column.replace("_", " "), justify="left" if column == "system" else "right")
    for name, row in run["systems"].items():
        table.add_row(name, *(str(row.get(share, "-")) for share in shares), str(row["seconds_per_question"]))
    return table
