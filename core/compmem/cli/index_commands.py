"""`compmem add`, `delete`, `compact`, `info` and `verify`: what is in an index."""

import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

import compmem
from compmem.as_json import document_json
from compmem.cli import inputs, render
from compmem.cli.answer_text import printable
from compmem.cli.app import app, err, fail, given, out, parse_filter, write_json
from compmem.cli.query_commands import AllowDownload, AsJson, BackboneBase, Device, Filter, IndexPath
from compmem.schema import Document

logger = logging.getLogger(__name__)


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
    adding = _Adding(
        index=index, paths=paths, stdin_format=stdin_format, shards=shards, workers=workers, ray=ray, prune=prune,
        settings=given(
            encoder=encoder, chunk_tokens=chunk_tokens, vectors=vectors, memory="kv" if backbone else None,
            backbone=backbone, ratio=ratio, kv_pruning=kv_pruning, kv_window=kv_window, kv=kv,
        ),
        runtime=compmem.RuntimeConfig(device=device, backbone_base=backbone_base), allow_download=allow_download,
    )  # fmt: skip
    errors: list[str] = []
    started = time.perf_counter()
    counts = adding.run(errors)
    seconds = time.perf_counter() - started
    if as_json:
        write_json({**counts, "errors": errors, "seconds": seconds})
    else:
        left_out = f", {len(errors)} left out" if errors else ""
        deleted = f", {counts['deleted']} deleted" if "deleted" in counts else ""
        out().print(
            f"{counts['added']} added or changed, {counts['unchanged']} unchanged{deleted}{left_out}, "
            f"{counts['documents']} documents in all ({seconds:.1f} s)"
        )
    if errors:
        raise typer.Exit(1)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Adding:
    """What `add` was told to do."""

    index: Path
    paths: list[str]
    stdin_format: str
    settings: dict[str, Any]
    """Those fields of `IndexConfig` that were given; an index that is there must have been made with them."""
    shards: int | None
    workers: int | None
    ray: str | None
    prune: bool
    runtime: "compmem.RuntimeConfig"
    allow_download: bool

    def __post_init__(self) -> None:
        if self.stdin_format not in inputs.FORMATS:
            raise typer.BadParameter(f"--stdin-format {self.stdin_format!r} must be one of {', '.join(inputs.FORMATS)}")
        if self.workers is not None and self.ray is not None:
            raise typer.BadParameter("give --workers or --ray, not both")

    def run(self, errors: list[str]) -> dict[str, int]:
        """Adds the documents and returns their numbers; appends what could not be read to `errors`."""

        def report(error: inputs.InputError) -> None:
            errors.append(str(error))
            fail(str(error))

        with progress() as bar, self._readers() as each:
            files = bar.track(list(inputs.files(self.paths, report=report)), description="compressing")
            base, stdin, form = base_of(self.index), sys.stdin.buffer, cast("inputs.Format", self.stdin_format)
            found = inputs.documents(files, base=base, report=report, stdin=stdin, stdin_format=form, each=each)
            first = list(islice(found, 1))
            if not first and not errors:
                report(inputs.InputError(f"nothing to add: no file with text in {', '.join(self.paths)}"))
            if not first and not self.index.exists():
                return {"added": 0, "unchanged": 0, "documents": 0}  # no index is made of nothing
            with self._opened() as memory:
                seen = _Seen(memory)
                added = self._added(memory, map(seen.one, chain(first, found)), bar)
                pruned = {"deleted": memory.delete(_gone(memory, self.paths, base, seen.ids))} if self.prune else {}
                documents = memory.info().documents
        return {"added": added, "unchanged": len(seen.ids) - added, **pruned, "documents": documents}

    @contextmanager
    def _readers(self) -> Iterator[inputs.Each | None]:
        """Reads files in other processes; None: in this one. A cluster is connected before an index is made."""
        if self.ray is not None:
            from compmem import distributed

            with distributed.ray_cluster(self.ray):
                yield None
        elif self.workers is not None:
            from compmem.ingest.workers import Workers

            with Workers(self.workers) as readers:
                yield readers.map
        else:
            yield None

    def _opened(self) -> "compmem.MemoryIndex":
        """The index, made where there is none. A model that is given by name may be fetched.

        `MemoryIndex.open_or_create` also compares the settings that were not given, and does not try the models.
        """
        from compmem.index import MemoryIndex
        from compmem.store import store_exists

        if not store_exists(self.index):
            config = compmem.IndexConfig(**self.settings)
            check = self.workers is None and self.ray is None  # otherwise the models may be on other machines alone
            try:
                return MemoryIndex.create(
                    self.index, config, runtime=self.runtime, shards=self.shards, check_models=check
                )
            except ValueError:
                if not store_exists(self.index):  # otherwise another process has just made it
                    raise
        models = {name: self.settings[name] for name in ("encoder", "backbone") if name in self.settings}
        memory = MemoryIndex.open(self.index, runtime=self.runtime, allow_download=self.allow_download, **models)
        try:
            memory.check_made_with({n: v for n, v in self.settings.items() if n not in models}, self.shards)
        except compmem.IncompatibleStoreError:
            memory.close()
            raise
        return memory

    def _added(self, memory: "compmem.MemoryIndex", documents: Iterable[Document], bar: Progress) -> int:
        if self.ray is None:
            return memory.add(documents, workers=self.workers)
        from compmem import distributed

        dataset = distributed.dataset_of(documents)
        task = bar.add_task("committed", total=None)
        return distributed.add_dataset(memory, dataset, on_batch=lambda count: bar.advance(task, count))


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
                wanted, unknown = _named(snapshot, ids or [], base_of(index))
        deleted = store.delete(wanted)
    if as_json:
        write_json({"deleted": deleted, "unknown": unknown})
    else:
        for missing in unknown:
            err().print(Text("not in the index: ") + render.plain(missing), soft_wrap=True)
        out().print(f"{deleted} deleted")
    if unknown:
        raise typer.Exit(1)


@app.command()
def compact(index: IndexPath, as_json: AsJson = False) -> None:
    """Free the disk space of deleted and replaced documents."""
    with _store(index) as store:
        before = _bytes(store.info())
        with err().status("compacting"):
            store.compact()
        after = _bytes(store.info())
    if as_json:
        write_json({"bytes_before": before, "bytes": after})
    else:
        out().print(f"{before:,} bytes before, {after:,} now")


@app.command()
def verify(index: IndexPath, as_json: AsJson = False) -> None:
    """Read everything and compare checksums. Problems end it with exit code 1."""
    with _store(index) as store, err().status("reading every block"):
        problems = store.verify()
    if as_json:
        write_json({"problems": problems})
    else:
        for problem in problems:
            fail(problem)
        out().print(f"{len(problems)} problems" if problems else "no problem found")
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
    console = out()
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


class _Seen:
    """Documents on their way into an index: their ids, and a warning where a file takes over the id of another."""

    def __init__(self, memory: "compmem.MemoryIndex") -> None:
        self.ids: set[str] = set()
        self._memory = memory
        self._warned: set[tuple[str, str]] = set()

    def one(self, document: Document) -> Document:
        """The document as it is."""
        self.ids.add(document.id)
        if (known := self._memory.metadata(document.id)) is not None:
            before, now = str(known.get("path", "elsewhere")), str(document.metadata["path"])
            if before != now and (before, now) not in self._warned:
                self._warned.add((before, now))
                logger.warning(
                    "%s takes over the id %r of a document from %s",
                    printable(now),
                    printable(document.id),
                    printable(before),
                )
        return document


def base_of(index: Path) -> Path:
    """The folder from which the ids of an index name files: the one that it lies in, so that both may move together."""
    return index.resolve().parent


def _named(snapshot: Any, names: list[str], base: Path) -> tuple[list[str], list[str]]:
    """The ids of documents that are named by id, by file or by folder; and the names that are none of them."""
    wanted = [name for name in names if snapshot.document_blocks(name)]
    others = [name for name in names if not snapshot.document_blocks(name)]
    read = [(d.id, PurePosixPath(path)) for d in snapshot.documents() if (path := _path(d))] if others else []
    unknown = []
    for name in others:
        named = PurePosixPath(inputs.path_id(name, base))
        found = [id for id, path in read if path.is_relative_to(named)]
        wanted += found
        unknown += [] if found else [name]
    return list(dict.fromkeys(wanted)), unknown


def _gone(memory: "compmem.MemoryIndex", paths: list[str], base: Path, read: set[str]) -> list[str]:
    """The ids of documents whose files were in the given folders and are no longer there; of those just read, none."""
    folders = [PurePosixPath(inputs.path_id(path, base)) for path in paths if os.path.isdir(path)]
    return [
        document.id
        for document in memory.documents()
        if document.id not in read
        and (path := _path(document))
        and any(PurePosixPath(path).is_relative_to(folder) for folder in folders)
        and not os.path.lexists(base / path)
    ]


def _path(document: Any) -> str:
    """The file that a document was read from, as ids name files; empty where it was none."""
    path = document.metadata.get("path")
    return path if isinstance(path, str) and path != inputs.STDIN else ""


def progress() -> Progress:
    """A bar on standard error, where that is a terminal."""
    console = err()
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def _store(path: Path) -> Any:
    # What needs no encoder works on any index, also one whose encoder is an object of another program.
    from compmem.store import open_store

    return open_store(path)


def _bytes(facts: Any) -> int:
    return int(facts.vector_bytes + facts.kv_bytes + facts.text_bytes)
