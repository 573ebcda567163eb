"""A collection: documents of one index, and queries with their relevant documents."""

from collections.abc import Callable, Sequence
from collections.abc import Collection as Container
from dataclasses import dataclass

from compmem.schema import Chunk, Document

Relevant = Callable[[Chunk], bool]
"""Whether a chunk answers a query, or contains part of the answer or of the chain to it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """A query to a collection."""

    text: str
    relevant: Relevant
    part: str = ""
    """The part of the source under which the report lists it; empty: the source."""
    chained: bool = False
    """Relevant chunks depend on each other, so some are only found once others have been read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Collection:
    """Documents, and queries to them."""

    documents: Sequence[Document]
    queries: Sequence[Query]
    restyled: float = 0.0
    """Share of the queries that are also used in another style."""


def relevant_to(documents: Container[int]) -> Relevant:
    """A relevance function for the chunks of these documents, whose ids are numbers."""
    ids = {str(n) for n in documents}
    return lambda chunk: chunk.document_id in ids


def passages(texts: Sequence[tuple[str, str]]) -> list[Document]:
    """One document with one chunk for each title and text; its id is its number."""
    return [
        Document(id=str(n), title=title, chunks=[Chunk(text=text, title=title)])
        for n, (title, text) in enumerate(texts)
    ]
