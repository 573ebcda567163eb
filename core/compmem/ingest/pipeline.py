"""Adds documents: each batch is checked, split into chunks, compressed and committed.

A document longer than a batch is added alone, in pieces, in one transaction. Memory for it is bounded, except for its
text.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.progress import track

from compmem.ingest.compressor import CompressedBatch, DocumentCompressor
from compmem.schema import Chunk, Document, MemoryBlock
from compmem.store import JSON, Store, content_hash
from compmem.store.records import metadata_json

BATCH_CHARACTERS = 400_000
"""Text that is compressed at once; documents of no more are committed together."""
PIECE_CHARACTERS = 200_000
"""Text of a longer document that is compressed at once."""
TASK_CHARACTERS = 25_000
"""Text that a worker compresses at once."""

CompressionTask = tuple[Sequence[Document], Mapping[str, str]]
"""Documents, and the content hash of each one of them that is known."""


@dataclass(frozen=True, slots=True)
class IngestPipeline:
    """Turns documents into blocks of a store."""

    store: Store
    compressor: DocumentCompressor
    record_provenance: Callable[[Mapping[str, JSON]], None]
    """Writes into the store which models made the blocks that it takes."""

    def add(
        self,
        documents: Iterable[Document],
        *,
        show_progress: bool = False,
        compress_tasks: Callable[[Iterator[CompressionTask]], Iterator[CompressedBatch]] | None = None,
    ) -> int:
        """Compresses and stores documents; returns how many were new or changed.

        Args:
            documents: Documents with ids of their own.
            show_progress: A bar on the terminal.
            compress_tasks: Compresses tasks in other processes, in order. None: in this one.

        Raises:
            ValueError: A document is empty, cannot be stored, or has the id of another one. Documents that were
                committed before stay.
            TypeError: An item is not a `Document`, or there are none to iterate over.
            StoreLockedError: Another process is writing.
        """
        if isinstance(documents, Document):
            raise ValueError("add takes documents in a list or another iterable, not one document")
        if not isinstance(documents, Iterable):
            raise TypeError(f"add takes documents in a list or another iterable, not {type(documents).__name__}")
        distinct: Iterable[Document] = without_repeats(documents)
        if isinstance(documents, Sequence):
            distinct = list(distinct)  # a list is checked completely before any document is stored
        incoming = track(distinct, "compressing") if show_progress else distinct
        if compress_tasks is None:
            return sum(self._add_batch(batch) for batch in document_batches(incoming, BATCH_CHARACTERS))
        tasks = ((batch, self._known(batch)) for batch in document_batches(incoming, TASK_CHARACTERS))
        return sum(self._commit(done) for done in compress_tasks(tasks))

    def _add_batch(self, batch: Sequence[Document]) -> int:
        if len(batch) == 1 and len(batch[0].text) > BATCH_CHARACTERS:
            return self._add_long(batch[0])
        return self._commit(self.compressor.compress_new(batch, self._known(batch)))

    def _commit(self, done: CompressedBatch) -> int:
        self.store.add(done.entries, record=lambda: self.record_provenance(done.provenance))
        return len(done.entries)

    def _known(self, batch: Sequence[Document]) -> dict[str, str]:
        return self.store.hashes([d.id for d in batch])

    def _add_long(self, document: Document) -> int:
        known = self._known([document]).get(document.id)
        if known is not None and known == content_hash(document, self.compressor.chunks(document)):
            return 0
        self.store.add([(document, self._blocks(document))])
        return 1

    def _blocks(self, document: Document) -> Iterator[MemoryBlock]:
        """The blocks of a document, compressed a piece at a time within the transaction of `add`."""
        piece: list[Chunk] = []
        held = 0
        for chunk in self.compressor.chunks(document):
            piece.append(chunk)
            held += len(chunk.text)
            if held >= PIECE_CHARACTERS:
                yield from self._compress(piece)
                piece, held = [], 0
        if piece:
            yield from self._compress(piece)

    def _compress(self, piece: Sequence[Chunk]) -> list[MemoryBlock]:
        blocks = self.compressor.compress(piece)
        self.record_provenance(self.compressor.provenance(piece))
        return blocks


def without_repeats(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents, each once, until one has the id of an earlier one and other content.

    Raises:
        TypeError: One of them is no document.
        ValueError: An id is given twice, with different content.
    """
    seen: dict[str, int] = {}
    for document in documents:
        if not isinstance(document, Document):
            raise TypeError(
                f"add takes documents, not {type(document).__name__}: make each one with Document(text=...)"
            )
        content = content_key(document)
        if document.id not in seen:
            seen[document.id] = content
            yield document
        elif seen[document.id] != content:
            raise ValueError(f"document id {document.id!r} is given twice, with different content")


def content_key(document: Document) -> int:
    """A hash, of this process, of all that is stored of a document but its id."""
    pieces = tuple(map(_content, document.chunks or ()))
    return hash((document.title, document.context, document.text, metadata_json(document), pieces))


def _content(chunk: Chunk | str) -> Hashable:
    """What is stored of a chunk that the caller split."""
    return chunk if isinstance(chunk, str) else (chunk.text, chunk.headings, chunk.context, chunk.sentences)


def document_batches(documents: Iterable[Document], characters: int) -> Iterator[list[Document]]:
    """The documents in lists of so many characters and some more; one that is longer is alone in its list."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        if len(document.text) > characters:
            if batch:
                yield batch
                batch, held = [], 0
            yield [document]
            continue
        batch.append(document)
        held += len(document.text)
        if held >= characters:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
