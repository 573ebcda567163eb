"""Adding documents: a batch at a time is checked, cut into chunks, compressed and committed."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from rich.progress import track

from compmem.chunking import split
from compmem.schema import Chunk, Document, MemoryBlock
from compmem.store import Store, content_hash

BATCH_CHARACTERS = 400_000
"""Text that is compressed and committed at once."""


@dataclass(frozen=True, slots=True)
class Adding:
    """What turns documents into blocks of a store."""

    store: Store
    chunk_tokens: int
    """Most tokens of a chunk."""
    count: Callable[[Sequence[str]], list[int]]
    """Tokens of texts."""
    compress: Callable[[Sequence[Chunk]], list[MemoryBlock]]
    """The blocks of chunks, in order."""

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
            _check_unicode(document)
        pieces = [(d, split(d, chunk_tokens=self.chunk_tokens, count=self.count)) for d in batch]
        for document, chunks in pieces:
            if not chunks:
                raise ValueError(f"document {document.id!r} has no text: there is nothing to remember")
        known = self.store.hashes([d.id for d in batch])
        new = [(d, c) for d, c in pieces if known.get(d.id) != content_hash(d, c)]
        if not new:
            return 0
        blocks = iter(self.compress([c for _, chunks in new for c in chunks]))
        self.store.add([(d, [next(blocks) for _ in chunks]) for d, chunks in new])
        return len(new)


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
    batch: list[Document] = []
    held = 0
    for document in documents:
        batch.append(document)
        held += len(document.text)
        if held >= BATCH_CHARACTERS:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def _check_unicode(document: Document) -> None:
    try:
        (document.title + document.context + document.text).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"document {document.id!r} has a lone surrogate in its title, context or text: {error.reason}"
        ) from error
