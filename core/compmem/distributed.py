"""Building an index on Ray Data: encoders anywhere on a cluster, and writers on the machine that has the index.

Each shard is an ordinary index folder that one actor writes. The hash of a document's id decides its shard. A document
that is known by id and content is skipped, so a batch may be processed twice, and a build that was stopped can be
continued.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from compmem import errors
from compmem.checks import check_integer
from compmem.config import IndexConfig, RuntimeConfig
from compmem.index import MemoryIndex
from compmem.index_models import IndexModels
from compmem.ingest.compressor import CompressedBatch
from compmem.ingest.pipeline import document_batches, without_repeats
from compmem.provenance import record_provenance
from compmem.schema import Document
from compmem.shard_actors import assign_shards, local_actor
from compmem.shard_actors import open_index as open_index
from compmem.store import FolderStore, content_hash, shard_of
from compmem.store.records import metadata_json

try:
    import pyarrow as pa
    import ray
    import ray.data
except ImportError as error:
    raise ImportError("building on Ray needs Ray Data: pip install 'compmem[ray]'") from error

COLUMNS: Final = ("id", "text", "title", "context", "metadata")
"""What is read of a dataset; all but the first two may be missing. Metadata is a struct, or a JSON object as text."""

BATCH_SIZE: Final = 256
"""Documents that an encoder compresses at once."""

MAX_WRITERS: Final = 4
"""Actors that write, at most; each has shards of its own."""

MAX_RESTARTS: Final = 5
"""How often a writer that was killed is started again."""

_BLOCK_CHARACTERS: Final = 200_000
_SCHEMA = pa.schema([(name, pa.string()) for name in COLUMNS])
_KNOWN_ERRORS: Final = {
    kind.__name__: kind
    for kind in (ValueError, TypeError, OSError, ImportError, MemoryError, *vars(errors).values())
    if isinstance(kind, type) and issubclass(kind, Exception)
}


def build(
    dataset: "ray.data.Dataset",
    path: str | Path,
    *,
    shards: int | None = None,
    config: IndexConfig | None = None,
    runtime: RuntimeConfig | None = None,
    allow_download: bool = False,
    encoders: int | None = None,
    num_gpus: float | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], None] | None = None,
) -> int:
    """Builds the index in a folder from a dataset, or adds to the one there; returns how many documents were new.

    A changed document counts as new and replaces the old one. If Ray repeats a batch after a failure, only documents
    not yet written count.

    Args:
        dataset: Rows with the columns `id` and `text`, and perhaps `title`, `context` and `metadata`, which is a struct
            or a JSON object as text. Other columns are left out.
        path: The folder, on this machine.
        shards: Into how many folders a new index is divided. None: one, undivided.
        config: How documents become memory, for a new index.
        runtime: Device and types of the encoders.
        allow_download: Models that an index names may be fetched from the hub by every machine.
        encoders: Actors that split and compress. None: one a GPU, or one a CPU but one.
        num_gpus: GPUs of each of them. None: one where `runtime` names a CUDA device.
        batch_size: Documents that one of them compresses and hands to the writers at once.
        on_batch: Called with the number of documents of each batch that is committed. Ray Data shows bars of its own.

    Raises:
        ValueError: A document is empty, cannot be stored, or has the id of another one; a column is missing; the folder
            holds something else. Committed documents stay.
        IncompatibleStoreError: The index there was made with other settings or another number of shards.
        StoreError: The index cannot be opened or written.
        WorkerError: Ray ended the build. What was committed stays; building again completes it.
    """
    with MemoryIndex.open_or_create(
        path, config, runtime=runtime, shards=shards, allow_download=allow_download
    ) as index:
        return add_dataset(
            index, dataset, encoders=encoders, num_gpus=num_gpus, batch_size=batch_size, on_batch=on_batch
        )


def add_dataset(
    index: MemoryIndex,
    dataset: "ray.data.Dataset",
    *,
    encoders: int | None = None,
    num_gpus: float | None = None,
    batch_size: int = BATCH_SIZE,
    on_batch: Callable[[int], None] | None = None,
) -> int:
    """Adds a dataset to an index that is open; returns how many documents were new or changed. See `build`."""
    if num_gpus is None:
        num_gpus = 1 if str(index._models.runtime.device or "").startswith("cuda") else 0
    folders = index.store.folders
    writers = _writers(folders)
    number, cpus = _encoder_count_and_cpus(encoders, num_gpus)
    results = dataset.map_batches(
        _Encoder,
        fn_constructor_args=(index._models, writers, len(folders)),
        compute=ray.data.ActorPoolStrategy(size=number),
        batch_size=batch_size,
        batch_format="pyarrow",
        num_cpus=cpus,
        num_gpus=num_gpus or None,
    )
    added = 0
    try:
        for done in results.iter_rows():
            if done["error"]:
                raise _KNOWN_ERRORS.get(done["error"], errors.WorkerError)(done["message"])
            added += done["added"]
            if on_batch is not None:
                on_batch(done["documents"])
        ray.get([writer.close.remote() for writer in writers])
    except ray.exceptions.RayError as error:
        raise errors.WorkerError(
            f"Ray ended the build of {str(index.path)!r} ({type(error).__name__}: {str(error)[:300]}). "
            "What was committed stays; build again to complete it"
        ) from error
    finally:
        for writer in writers:
            ray.kill(writer)
    return added


@contextmanager
def ray_cluster(address: str) -> Iterator[None]:
    """Connects this process to a cluster for the block; `local` is one of this machine that ends with the block.

    Raises:
        ValueError: The address is that of Ray's client server, whose programs do not run on the machine with the index.
        ConnectionError: There is no cluster.
    """
    if address.startswith("ray://"):
        raise ValueError(f"{address!r}: start the command on a machine of the cluster, with --ray auto or HOST:PORT")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    local_options = {"include_dashboard": False} if address == "local" else {}
    ray.init(address=address, logging_level=logging.ERROR, log_to_driver=False, **local_options)
    ray.data.DataContext.get_current().enable_progress_bars = False
    try:
        yield
    finally:
        ray.shutdown()


def dataset_of(documents: Iterable[Document]) -> "ray.data.Dataset":
    """Documents as a dataset in Ray's object store, which moves to disk what does not fit in memory.

    Raises:
        ValueError: A document is split already.
    """
    tables = []
    for batch in document_batches(documents, _BLOCK_CHARACTERS):
        rows = [_row(document) for document in batch]
        tables.append(ray.put(pa.Table.from_pylist(rows, schema=_SCHEMA)))
    return ray.data.from_arrow_refs(tables or [ray.put(_SCHEMA.empty_table())])


class _Encoder:
    """An actor that splits and compresses batches and sends them to the writers; one result row per batch."""

    def __init__(self, models: IndexModels, writers: Sequence[Any], shards: int) -> None:
        self._compressor = models.document_compressor()
        self._writers = writers
        self._shards = shards

    def __call__(self, table: "pa.Table") -> dict[str, Any]:
        added, kind, message = 0, "", ""
        try:
            added = self._add(_documents(table))
        except Exception as error:
            cause = getattr(error, "cause", error)  # what a writer raised comes wrapped
            kind = next((c.__name__ for c in type(cause).__mro__ if c.__name__ in _KNOWN_ERRORS), "")
            if not kind:
                raise
            message = str(cause)
        return {"documents": [len(table)], "added": [added], "error": [kind], "message": [message]}

    def _add(self, documents: Sequence[Document]) -> int:
        parts: dict[int, list[Document]] = {}
        for document in documents:
            parts.setdefault(shard_of(document.id, self._shards), []).append(document)
        asked = [self._writer(n).claim.remote(n, {d.id: _digest(d) for d in part}) for n, part in parts.items()]
        known = {name: digest for part in ray.get(asked) for name, digest in part.items()}
        done = self._compressor.compress_new(documents, known)
        new: dict[int, list[Any]] = {}
        for entry in done.entries:
            new.setdefault(shard_of(entry[0].id, self._shards), []).append(entry)
        ray.get([self._writer(n).add.remote(n, CompressedBatch(part, done.provenance)) for n, part in new.items()])
        return len(done.entries)

    def _writer(self, shard: int) -> Any:
        return self._writers[shard % len(self._writers)]


class _Writer:
    """An actor that writes some shards. No other process writes to them."""

    def __init__(self, folders: Mapping[int, Path]) -> None:
        self._stores = {shard: FolderStore.open(folder) for shard, folder in folders.items()}
        self._claimed: dict[str, int] = {}

    def claim(self, shard: int, digests: Mapping[str, int]) -> dict[str, str]:
        """The content hash of each of these documents that the shard holds.

        Raises:
            ValueError: A document of this build has the id and not the content. The same content is a batch done again.
        """
        for name, digest in digests.items():
            if self._claimed.setdefault(name, digest) != digest:
                raise ValueError(f"document id {name!r} is given twice, with different content")
        return self._stores[shard].hashes(list(digests))

    def add(self, shard: int, done: CompressedBatch) -> None:
        """Commits documents with their blocks, but for those that a try before a restart has committed."""
        store = self._stores[shard]
        known = store.hashes([document.id for document, _ in done.entries])
        new = [(d, b) for d, b in done.entries if known.get(d.id) != content_hash(d, [block.chunk for block in b])]
        store.add(new, record=lambda: record_provenance(store, done.provenance))

    def close(self) -> None:
        """Closes the shards."""
        for store in self._stores.values():
            store.close()


def _writers(folders: Sequence[Path]) -> list[Any]:
    """Actors on this machine, which take no CPU from the encoders; Ray starts one that was killed again."""
    actor = local_actor(_Writer, max_restarts=MAX_RESTARTS, max_task_retries=MAX_RESTARTS)
    return [actor.remote(part) for part in assign_shards(folders, min(MAX_WRITERS, os.cpu_count() or 1))]


def _encoder_count_and_cpus(encoders: int | None, num_gpus: float) -> tuple[int, float | None]:
    """How many encoders there are, and the CPUs of each. Reading the dataset needs a CPU of its own, or would wait."""
    if encoders is not None:
        check_integer("encoders", encoders)
    found = ray.cluster_resources()
    if num_gpus:
        return encoders or max(1, int(found.get("GPU", 0) / num_gpus)), None
    cpus = int(found.get("CPU", 1))
    number = encoders or max(1, cpus - 1)
    return number, 1 if number < cpus else 0


def _documents(table: "pa.Table") -> list[Document]:
    if missing := [name for name in COLUMNS[:2] if name not in table.column_names]:
        raise ValueError(f"the dataset has no column {missing[0]!r}: it needs 'id' and 'text'")
    rows = table.select([c for c in COLUMNS if c in table.column_names]).to_pylist()
    return list(without_repeats(map(_document, rows)))


def _document(row: Mapping[str, Any]) -> Document:
    name, metadata = row["id"], row.get("metadata")
    try:
        if name is None or name == "":
            raise ValueError("it has no id")
        if isinstance(metadata, str) and metadata:
            metadata = json.loads(metadata)
        elif isinstance(metadata, Mapping):  # rows of a struct have all names that any row has
            metadata = {key: value for key, value in metadata.items() if value is not None}
        return Document.from_json({**row, "metadata": metadata or None})
    except (ValueError, RecursionError) as error:
        raise ValueError(f"document {str(name)!r}: {error}") from error


def _row(document: Document) -> dict[str, str]:
    if document.chunks is not None:
        raise ValueError(f"document {document.id!r} is split already, which a dataset cannot hold")
    about = metadata_json(document)
    return {
        "id": document.id, "text": document.text, "title": document.title, "context": document.context,
        "metadata": about,
    }  # fmt: skip


def _digest(document: Document) -> int:
    content = f"{content_hash(document, ())}\0{document.context}\0{document.text}"
    return int.from_bytes(hashlib.blake2b(content.encode("utf-8", "surrogatepass"), digest_size=8).digest())
