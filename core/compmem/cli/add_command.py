"""What `compmem add` does: documents of files into an index, and out of it those of files that are gone."""

import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import Any, cast

import typer
from rich.progress import Progress

import compmem
from compmem.cli import inputs
from compmem.cli.answer_text import printable
from compmem.cli.app import print_error
from compmem.schema import Document

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class AddCommand:
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

    def run(self, errors: list[str], bar: Progress) -> dict[str, int]:
        """Adds the documents and returns their numbers; appends what could not be read to `errors`."""
        from compmem.store import store_exists

        def report(error: inputs.InputError) -> None:
            errors.append(str(error))
            print_error(str(error))

        with self._readers() as each:
            files = bar.track(list(inputs.files(self.paths, report=report)), description="compressing")
            base, stdin, form = inputs.id_base(self.index), sys.stdin.buffer, cast("inputs.Format", self.stdin_format)
            found = inputs.documents(files, base=base, report=report, stdin=stdin, stdin_format=form, each=each)
            first = list(islice(found, 1))
            if not first and not errors:
                report(inputs.InputError(f"nothing to add: no file with text in {', '.join(self.paths)}"))
            if not first and not store_exists(self.index):
                return {"added": 0, "unchanged": 0, "documents": 0}  # no index is made of nothing
            with self._open_index() as memory:
                seen = _IdTracker(memory)
                added = self._add_documents(memory, map(seen.track, chain(first, found)), bar)
                pruned = (
                    {"deleted": memory.delete(_missing_files(memory, self.paths, base, seen.ids))} if self.prune else {}
                )
                documents = memory.info().documents
        return {"added": added, "unchanged": len(seen.ids) - added, **pruned, "documents": documents}

    @contextmanager
    def _readers(self) -> Iterator[inputs.MapFunction]:
        """Reads files, in other processes if there are workers. A cluster is connected before an index is made."""
        if self.ray is not None:
            from compmem import distributed

            with distributed.ray_cluster(self.ray):
                yield map
        elif self.workers is not None:
            from compmem.ingest.workers import Workers

            with Workers(self.workers) as readers:
                yield readers.map
        else:
            yield map

    def _open_index(self) -> "compmem.MemoryIndex":
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

    def _add_documents(self, memory: "compmem.MemoryIndex", documents: Iterable[Document], bar: Progress) -> int:
        if self.ray is None:
            return memory.add(documents, workers=self.workers)
        from compmem import distributed

        dataset = distributed.dataset_of(documents)
        task = bar.add_task("committed", total=None)
        return distributed.add_dataset(memory, dataset, on_batch=lambda count: bar.advance(task, count))


class _IdTracker:
    """Documents on their way into an index: their ids, and a warning where a file takes over the id of another."""

    def __init__(self, memory: "compmem.MemoryIndex") -> None:
        self.ids: set[str] = set()
        self._memory = memory
        self._warned: set[tuple[str, str]] = set()

    def track(self, document: Document) -> Document:
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


def _missing_files(memory: "compmem.MemoryIndex", paths: list[str], base: Path, read: set[str]) -> list[str]:
    """The ids of documents whose files were in the given folders and are no longer there; of those just read, none."""
    folders = [PurePosixPath(inputs.path_id(path, base)) for path in paths if os.path.isdir(path)]
    return [
        document.id
        for document in memory.documents()
        if document.id not in read
        and (path := inputs.file_of(document))
        and any(PurePosixPath(path).is_relative_to(folder) for folder in folders)
        and not os.path.lexists(base / path)
    ]
