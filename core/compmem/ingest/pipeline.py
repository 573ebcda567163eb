"""Adding documents: a batch at a time is checked, cut into chunks, compressed and committed.

A document that is longer than a batch is a batch of its own. It goes through the same steps in pieces, within one
transaction, so that what is held of it beside its text does not grow with it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from rich.progress import track

from compmem.ingest.chunking import split
from compmem.schema import Chunk, Document, MemoryBlock
from compmem.store import Store, content_hash
from compmem.text.unicode import check

BATCH_CHARACTERS = 400_000
"""Text that is compressed at once; documents of no more are committed together."""
PIECE_CHARACTERS = 200_000
"""Text of a longer document that is compressed at once."""


@dataclass(frozen=True, slots=True)
class IngestPipeline:
    """What turns documents into blocks of a store."""

    store: Store
    chunk_tokens: int
    """Most tokens of a chunk."""
    count: Callable[[Sequence[str]], list[int]]
    """Tokens of texts."""
    compress: Callable[[Sequence[Chunk]], list[MemoryBlock]]
    """The blocks of chunks, in order."""
    record: Callable[[Sequence[Chunk]], None]
    """Writes into the store which models made the blocks of chunks."""

    def add(self, documents: Iterable[Document], *, show_progress: bool = False) -> int:
        """Compresses documents and keeps them; returns how many were new or changed.

        Raises:
            ValueError: A document is empty, cannot be stored, or has the id of another one. Documents of earlier
                batches stay.
            TypeError: Something is no document.
            StoreLockedError: Another process is writing.
        """
        if isinstance(documents, Document):
            raise ValueError("add takes documents in a list or another iterable, not one document")
        if isinstance(documents, Sequence):
            list(_distinct(documents))  # what is all here is refused before any of it is kept
        incoming = track(documents, "compressing") if show_progress else documents
        return sum(self._add_batch(batch) for batch in _batches(_distinct(incoming)))

    def _add_batch(self, batch: Sequence[Document]) -> int:
        for document in batch:
            for what, text in (("title", document.title), ("context", document.context), ("text", document.text)):
                check(f"document {document.id!r}: its {what}", text)
        if len(batch) == 1 and len(batch[0].text) > BATCH_CHARACTERS:
            return self._add_long(batch[0])
        pieces = [(d, list(self._chunks(d))) for d in batch]
        known = self.store.hashes([d.id for d in batch])
        new = [(d, c) for d, c in pieces if known.get(d.id) != content_hash(d, c)]
        if not new:
            return 0
        chunks = [chunk for _, own in new for chunk in own]
        blocks = iter(self.compress(chunks))
        self.store.add([(d, [next(blocks) for _ in own]) for d, own in new], record=lambda: self.record(chunks))
        return len(new)

    def _add_long(self, document: Document) -> int:
        known = self.store.hashes([document.id]).get(document.id)
        if known is not None and known == content_hash(document, self._chunks(document)):
            return 0
        self.store.add([(document, self._blocks(document))])
        return 1

    def _blocks(self, document: Document) -> Iterator[MemoryBlock]:
        """The blocks of a document, compressed a piece at a time within the transaction of `add`."""
        piece: list[Chunk] = []
        held = 0
        for chunk in self._chunks(document):
            piece.append(chunk)
            held += len(chunk.text)
            if held >= PIECE_CHARACTERS:
                yield from self._compress(piece)
                piece, held = [], 0
        if piece:
            yield from self._compress(piece)

    def _compress(self, piece: Sequence[Chunk]) -> list[MemoryBlock]:
        blocks = self.compress(piece)
        self.record(piece)
        return blocks

    def _chunks(self, document: Document) -> Iterator[Chunk]:
        chunks = split(document, chunk_tokens=self.chunk_tokens, count=self.count)
        first = next(chunks, None)
        if first is None:
            raise ValueError(f"document {document.id!r} has no text: there is nothing to remember")
        return chain([first], chunks)


def _distinct(documents: Iterable[Document]) -> Iterator[Document]:
    """The documents, up to one that has the id of another."""
    seen: set[str] = set()
    for document in documents:
        if not isinstance(document, Document):
            raise TypeError(
                f"add takes documents, not {type(document).__name__}: make each one with Document(text=...)"
            )
        if document.id in seen:
            raise ValueError(f"document id {document.id!r} is given twice")
        seen.add(document.id)
        yield document


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """The documents in lists of a batch's characters and some more; one that is longer is alone in its list."""
    batch: list[Document] = []
    held = 0
    for document in documents:
        if len(document.text) > BATCH_CHARACTERS:
            if batch:
                yield batch
                batch, held = [], 0
            yield [document]
            continue
        batch.append(document)
        held += len(document.text)
        if held >= BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch
