"""`compmem add`, `delete`, `compact`, `info` and `verify`: what is in an index."""

import time
from dataclasses import asdict
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

import compmem
from compmem.as_json import document_json
from compmem.cli import inputs, render
from compmem.cli.add_command import AddCommand
from compmem.cli.app import app, parse_filter, print_error, stderr_console, stdout_console, without_none, write_json
from compmem.cli.query_commands import AllowDownload, AsJson, BackboneBase, Device, Filter, IndexPath


@app.command()
def add(
    index: IndexPath,
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Files and folders: text, code, Markdown, HTML, PDF, .docx, .eml, CSV, JSON (lines); - is standard "
            "input.",
            show_default=False,
        ),
    ],
    stdin_format: Annotated[str, typer.Option(help=f"What - holds: {', '.join(inputs.FORMATS)}.")] = "txt",
    encoder: Annotated[str | None, typer.Option(help="Sentence encoder of a new index: a name or folder.")] = None,
    chunk_tokens: Annotated[int | None, typer.Option(help="Most tokens in a chunk of a new index.")] = None,
    vectors: Annotated[str | None, typer.Option(help="Vectors of a new index: int8 or fp16.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="Causal LM of a new index that holds KV memory: a name or folder.")
    ] = None,
    ratio: Annotated[
        int | None, typer.Option(help="Source tokens per memory token. Default: the checkpoint's own.")
    ] = None,
    kv_pruning: Annotated[
        str | None,
        typer.Option(
            help="Choice of a stock model's KV states: kvzip-heads, kvzip, kvzap, attention, expected-attention. "
            "Default: kvzap if the model has weights for it, else kvzip-heads."
        ),
    ] = None,
    kv_window: Annotated[
        int | None,
        typer.Option(help="Tokens of a document that the causal LM reads in one pass. Default: each chunk alone."),
    ] = None,
    kv: Annotated[str | None, typer.Option(help="KV states of a new index: bf16, int8 or int4.")] = None,
    shards: Annotated[
        int | None, typer.Option(help="Divide a new index into so many folders, by a hash of the documents' ids.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes that split and compress side by side. Default: this one alone.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS|local",
            help="Split and compress on a Ray cluster: auto, HOST:PORT, or local for this machine. With --device cuda, "
            "on its GPUs.",
        ),
    ] = None,
    prune: Annotated[
        bool, typer.Option("--prune", help="Also delete the documents of files that are gone from the given folders.")
    ] = False,
    device: Device = None,
    backbone_base: BackboneBase = None,
    allow_download: AllowDownload = False,
    as_json: AsJson = False,
) -> None:
    """Add documents to an index, made where there is none; known ones are kept, and changed ones replaced."""
    adding = AddCommand(
        index=index, paths=paths, stdin_format=stdin_format, shards=shards, workers=workers, ray=ray, prune=prune,
        settings=without_none(
            encoder=encoder, chunk_tokens=chunk_tokens, vectors=vectors, memory="kv" if backbone else None,
            backbone=backbone, ratio=ratio, kv_pruning=kv_pruning, kv_window=kv_window, kv=kv,
        ),
        runtime=compmem.RuntimeConfig(device=device, backbone_base=backbone_base), allow_download=allow_download,
    )  # fmt: skip
    errors: list[str] = []
    started = time.perf_counter()
    with progress_bar() as bar:
        counts = adding.run(errors, bar)
    seconds = time.perf_counter() - started
    if as_json:
        write_json({**counts, "errors": errors, "seconds": seconds})
    else:
        left_out = f", {len(errors)} left out" if errors else ""
        deleted = f", {counts['deleted']} deleted" if "deleted" in counts else ""
        stdout_console().print(
            f"{counts['added']} added or changed, {counts['unchanged']} unchanged{deleted}{left_out}, "
            f"{counts['documents']} documents in all ({seconds:.1f} s)"
        )
    if errors:
        raise typer.Exit(1)


@app.command()
def delete(
    index: IndexPath,
    ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids of documents, or paths of the files and folders they came from.", show_default=False),
    ] = None,
    filter: Filter = None,
    as_json: AsJson = False,
) -> None:
    """Delete documents, by id, path or filter. `compact` frees their disk space."""
    if bool(ids) == (filter is not None):
        raise typer.BadParameter("name the ids or paths of documents, or give --filter")
    if "" in (ids or []):
        raise typer.BadParameter("an id or path is empty")
    with _store(index) as store:
        with store.snapshot() as snapshot:
            if filter is not None:
                conditions = parse_filter(filter)
                if not conditions:
                    raise typer.BadParameter("an empty filter names every document", param_hint="--filter")
                wanted = [d.id for d in snapshot.documents(conditions)]
                unknown: list[str] = []
            else:
                wanted, unknown = _resolve_names(snapshot, ids or [], inputs.id_base(index))
        deleted = store.delete(wanted)
    if as_json:
        write_json({"deleted": deleted, "unknown": unknown})
    else:
        for missing in unknown:
            stderr_console().print(Text("not in the index: ") + render.plain(missing), soft_wrap=True)
        stdout_console().print(f"{deleted} deleted")
    if unknown:
        raise typer.Exit(1)


@app.command()
def compact(index: IndexPath, as_json: AsJson = False) -> None:
    """Free the disk space of deleted and replaced documents."""
    with _store(index) as store:
        before = _bytes(store.info())
        with stderr_console().status("compacting"):
            store.compact()
        after = _bytes(store.info())
    if as_json:
        write_json({"bytes_before": before, "bytes": after})
    else:
        stdout_console().print(f"{before:,} bytes before, {after:,} now")


@app.command()
def verify(index: IndexPath, as_json: AsJson = False) -> None:
    """Read everything and compare checksums. Problems end it with exit code 1."""
    with _store(index) as store, stderr_console().status("reading every block"):
        problems = store.verify()
    if as_json:
        write_json({"problems": problems})
    else:
        for problem in problems:
            print_error(problem)
        stdout_console().print(f"{len(problems)} problems" if problems else "no problem found")
    if problems:
        raise typer.Exit(1)


@app.command()
def info(
    index: IndexPath,
    documents: Annotated[bool, typer.Option("--documents", help="List the documents as well.")] = False,
    filter: Filter = None,
    as_json: AsJson = False,
) -> None:
    """Show what an index holds, its settings and what it takes on disk."""
    wanted = parse_filter(filter)
    with _store(index) as store:
        backbone, pruning = _backbone(store)
        facts = {**asdict(store.info()), "shards": store.shard_count, **backbone}
        settings = {**store.config, **pruning}
        with store.snapshot() as snapshot:
            listed = list(snapshot.documents(wanted)) if documents or filter is not None else []
    if as_json:
        shown = {"path": str(index), **facts, "settings": settings}
        write_json({**shown, **({"list": [document_json(d) for d in listed]} if documents or filter else {})})
        return
    console = stdout_console()
    console.print(render.facts_table({"path": str(index), **facts, **settings}))
    if listed:
        made = render.table("id", "title", "characters", "chunks", "metadata", numbers=("characters", "chunks"))
        for d in listed:
            about = ", ".join(f"{k}={v}" for k, v in d.metadata.items())
            made.add_row(
                render.plain(d.id), render.plain(d.title), f"{d.characters:,}", f"{d.chunks:,}", render.plain(about)
            )
        console.print(made)


def _backbone(store: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """For KV memory: bytes on disk of the backbone's weights, None if not on this machine; how states were chosen."""
    config = store.config
    if config.get("memory") != "kv":
        return {}, {}
    from compmem.backbone import size_on_disk
    from compmem.provenance import stored_pruning

    chosen = config.get("kv_pruning") or stored_pruning(store)
    return {"backbone_bytes": size_on_disk(str(config.get("backbone")))}, {"kv_pruning": chosen}


def _resolve_names(snapshot: Any, names: list[str], base: Path) -> tuple[list[str], list[str]]:
    """The ids of documents that are named by id, by file or by folder; and the names that are none of them."""
    wanted = [name for name in names if snapshot.document_blocks(name)]
    others = [name for name in names if not snapshot.document_blocks(name)]
    read = [(d.id, PurePosixPath(path)) for d in snapshot.documents() if (path := inputs.file_of(d))] if others else []
    unknown = []
    for name in others:
        named = PurePosixPath(inputs.path_id(name, base))
        found = [id for id, path in read if path.is_relative_to(named)]
        wanted += found
        unknown += [] if found else [name]
    return list(dict.fromkeys(wanted)), unknown


def progress_bar() -> Progress:
    """A bar on standard error, where that is a terminal."""
    console = stderr_console()
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _store(path: Path) -> Any:
    # What needs no encoder works on any index, also one whose encoder is an object of another program.
    from compmem.store import open_store

    return open_store(path)


def _bytes(facts: Any) -> int:
    return int(facts.vector_bytes + facts.kv_bytes + facts.text_bytes)
