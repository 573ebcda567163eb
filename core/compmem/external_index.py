"""An index over another store: a retriever returns documents for each question."""

import asyncio
import copy
import hashlib
import itertools
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from typing import Any, Protocol, Self

import numpy as np
from cachetools import LRUCache
from numpy.typing import NDArray

from compmem.base_index import BaseIndex, checked_question
from compmem.checks import check_integer
from compmem.config import DEFAULT_CANDIDATES, IndexConfig, LoopConfig, RecallConfig, RuntimeConfig
from compmem.index_models import IndexModels
from compmem.ingest.chunking import split
from compmem.locks import Lock
from compmem.loop.blocks import BlockCache, BlockLoader
from compmem.loop.context import QuestionContext
from compmem.loop.drivers import WAITING
from compmem.loop.gates import DenseGate, make_gate
from compmem.naming import DEFAULT_ENCODER
from compmem.retrieval.external import RetrieverCandidateGenerator
from compmem.retrieval.query import QueryAnalyzer
from compmem.schema import Chunk, Document, Encoder, KVStates, MemoryBlock
from compmem.store import TransientLexicalIndex
from compmem.text.unicode import valid

CACHED_BLOCKS = 4096
"""Default number of blocks that are cached between questions."""


class Retrieve(Protocol):
    """Returns documents for a text, best first. If two with different content have one id, the second gets another."""

    def __call__(self, query: str, k: int, filter: Any) -> Iterable[Document]:
        """About k documents; the filter is the caller's, in the format of the store."""
        ...


class AsyncRetrieve(Protocol):
    """`Retrieve` for an event loop."""

    def __call__(self, query: str, k: int, filter: Any) -> Awaitable[Iterable[Document]]:
        """About k documents; the filter is the caller's, in the format of the store."""
        ...


class ExternalIndex(BaseIndex):
    """Uses any retriever as `MemoryIndex` uses its own store: `recall`, `search`, `answer`, `stream`, async methods.

    The retriever is called again with each new working memory. Its documents are split into sentences and encoded in
    one batch, once: the newest blocks are cached by a hash of their content. Nothing is written to disk. Term
    frequencies and names come only from the documents of one question, so no question changes the scores of another.

    Args:
        retrieve: Returns documents for a text.
        aretrieve: The same, awaited if the index is used in an event loop. None: `retrieve` in a thread.
        encoder: Encodes sentences; it need not be the model of the store.
        candidates: Documents to request for a question; fewer for queries from the working memory.
        chunk_tokens: Maximum number of tokens of a chunk, for documents that come as text and not in chunks.
        cached_blocks: Blocks that are cached between questions.
        runtime: Device and type of the encoder.

    Raises:
        ValueError: A number is below 1.
        TypeError: A retriever cannot be called. A question raises it where one returns anything but documents.
    """

    def __init__(
        self,
        retrieve: Retrieve,
        *,
        aretrieve: AsyncRetrieve | None = None,
        encoder: str | Encoder = DEFAULT_ENCODER,
        candidates: int = DEFAULT_CANDIDATES,
        chunk_tokens: int = 256,
        cached_blocks: int = CACHED_BLOCKS,
        runtime: RuntimeConfig | None = None,
    ) -> None:
        for name, given in (("retrieve", retrieve), ("aretrieve", aretrieve)):
            if not callable(given) and (given is not None or name == "retrieve"):
                raise TypeError(f"{name}={given!r} must be a function of query, k and filter that returns documents")
        check_integer("candidates", candidates)
        check_integer("cached_blocks", cached_blocks)
        config = IndexConfig(encoder=encoder, chunk_tokens=chunk_tokens)
        models = IndexModels(None, config, encoder=None, backbone=None, gate=None, runtime=runtime or RuntimeConfig())
        super().__init__(config, models)
        self._retrieve = retrieve
        self._aretrieve = aretrieve
        self._candidates = candidates
        self._cached_blocks = cached_blocks
        self._cache = _DocumentCache(cached_blocks, self._split)
        self._block_cache = BlockCache(cached_blocks)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._threaded = WAITING  # a retriever that hangs takes no thread from other indexes

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied

    def __reduce__(self) -> tuple[Callable[..., "ExternalIndex"], tuple[Any, ...]]:
        """Pickling and deep copies: another index over the same retriever, with nothing cached yet."""
        options: dict[str, Any] = {
            "aretrieve": self._aretrieve, "encoder": self.config.encoder, "candidates": self._candidates,
            "chunk_tokens": self.config.chunk_tokens, "cached_blocks": self._cached_blocks,
            "runtime": self._models.runtime,
        }  # fmt: skip
        return partial(type(self), self._retrieve, **options), ()

    def _for_event_loop(self, loop: asyncio.AbstractEventLoop) -> Self:
        if self._aretrieve is None:
            return self
        other = copy.copy(self)
        other._loop = loop
        return other

    @contextmanager
    def question_context(
        self, question: str, filter: Any = None, config: RecallConfig | None = None
    ) -> Iterator[QuestionContext]:
        """The documents of the retriever for one question, now and in later steps, as the loop sees them.

        Raises:
            ValueError: The question is empty or too long.
        """
        question, settings = checked_question(question), LoopConfig.complete(config)
        found = _QuestionBlocks(self._cache, self._models.compress)
        lexical_index = TransientLexicalIndex()

        def ask(texts: Mapping[str, int]) -> list[list[int]]:
            rankings = []
            for k, documents in zip(texts.values(), self._ask(texts, filter), strict=True):
                ranking: list[int] = []
                for document in _documents(documents, k):
                    pieces, new = found.add(document)
                    for number, chunk in pieces:
                        ranking.append(number)
                        if new:
                            lexical_index.add(number, chunk)
                rankings.append(list(dict.fromkeys(ranking)))
            return rankings

        analyzer = QueryAnalyzer(question, self.encoder, lexical_index)
        try:
            generator = RetrieverCandidateGenerator(
                analyzer=analyzer, lexical_index=lexical_index, dense=None, admitted=None,
                per_signal=settings.first_stage, links=settings.links, ask=ask, depth=self._candidates,
            )  # fmt: skip
            generator.retrieve("")
            blocks = BlockLoader(found, self._block_cache)
            trained = DenseGate(self.gate, blocks, generator, open_ended=True)
            yield QuestionContext(
                loader=blocks,
                config=settings,
                admitted=None,
                count=self._models.count_tokens,
                candidate_generator=generator,
                gate=make_gate(settings, trained, blocks, generator),
            )
        finally:
            lexical_index.close()

    def _ask(self, texts: Mapping[str, int], filter: Any) -> list[Iterable[Document]]:
        if self._loop is None or self._aretrieve is None:
            return [self._retrieve(text, k, filter) for text, k in texts.items()]
        return asyncio.run_coroutine_threadsafe(self._aask(self._aretrieve, texts, filter), self._loop).result()

    async def _aask(self, retrieve: AsyncRetrieve, texts: Mapping[str, int], filter: Any) -> list[Iterable[Document]]:
        return await asyncio.gather(*(retrieve(text, k, filter) for text, k in texts.items()))

    def _split(self, document: Document) -> list[Chunk]:
        pieces = split(
            _without_surrogates(document), chunk_tokens=self.config.chunk_tokens, count=self._models.count_tokens
        )
        return list(pieces)


NumberedChunks = tuple[tuple[int, Chunk], ...]
"""The chunks of a document and their numbers."""


class _DocumentCache:
    """The last documents, split into numbered chunks, by a hash of their content; at most so many chunks together."""

    def __init__(self, max_chunks: int, split: Callable[[Document], list[Chunk]]) -> None:
        self._split = split
        self._cached: LRUCache[str, NumberedChunks] = LRUCache(max_chunks, getsizeof=lambda pieces: len(pieces) or 1)
        self._numbers = itertools.count()
        self._guard = Lock()

    def get(self, key: str, document: Document) -> NumberedChunks:
        """The chunks of the document with this hash; their numbers do not change while it is cached."""
        with self._guard:
            if key in self._cached:
                return self._cached[key]
        chunks = self._split(document)
        with self._guard:
            if key in self._cached:  # another thread has added it
                return self._cached[key]
            pieces = tuple((next(self._numbers), chunk) for chunk in chunks)
            if len(pieces) <= self._cached.maxsize:
                self._cached[key] = pieces
            return pieces


class _QuestionBlocks:
    """The blocks of one question; used in place of a snapshot of a store."""

    def __init__(self, cache: _DocumentCache, compress: Callable[[Sequence[Chunk]], list[MemoryBlock]]) -> None:
        self._cache = cache
        self._compress = compress
        self._documents: dict[tuple[str, str], NumberedChunks] = {}
        """By id and hash of the content: a retriever may give a document a new score in its metadata each time."""
        self._first: dict[str, str] = {}
        """The hash of the content of the first document of each id."""
        self._chunks: dict[int, Chunk] = {}

    def add(self, document: Document) -> tuple[NumberedChunks, bool]:
        """The chunks of a document, and whether they are new."""
        content = _hash(replace(document, metadata={}))
        if self._first.setdefault(document.id, content) != content:  # another text with the same id
            document = replace(document, id=f"{document.id}:{content[:8]}")
        key = (document.id, content)
        new = key not in self._documents
        if new:
            self._documents[key] = self._cache.get(_hash(document), document)
            self._chunks.update(self._documents[key])
        return self._documents[key], new

    def select(self, filter: None) -> NDArray[np.int64]:
        """Numbers of all blocks, ascending."""
        return np.array(sorted(self._chunks), np.int64)

    def blocks(self, blocks: Sequence[int], *, kv: bool = False) -> list[MemoryBlock]:
        """Blocks by number, encoded in one batch, in the order given."""
        return self._compress([self._chunks[number] for number in blocks]) if blocks else []

    def kv_states(self, blocks: Sequence[int]) -> list[KVStates]:
        """Refused: documents of a retriever have no KV states."""
        raise ValueError("documents of a retriever have no KV states")


def _documents(found: Iterable[Document], k: int) -> list[Document]:
    """The first k documents that a retriever returned.

    Raises:
        TypeError: It returned something else.
    """
    if not isinstance(found, Iterable):
        raise TypeError(f"a retriever must return a list of documents, not {type(found).__name__}")
    documents = list(itertools.islice(found, k))
    for each in documents:
        if not isinstance(each, Document):
            raise TypeError(f"a retriever must return documents, not {type(each).__name__}")
    return documents


def _hash(document: Document) -> str:
    parts = [getattr(document, field.name) for field in fields(document)]  # all of it decides on its chunks
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _without_surrogates(document: Document) -> Document:
    """The document with its lone surrogates replaced, so that one damaged text in a store does not fail a question."""
    return replace(
        document,
        title=valid(document.title),
        context=valid(document.context),
        text=valid(document.text),
        chunks=None if document.chunks is None else list(map(_readable_chunk, document.chunks)),
    )


def _readable_chunk(chunk: Chunk | str) -> Chunk | str:
    if isinstance(chunk, str):
        return valid(chunk)
    return replace(
        chunk,
        text=valid(chunk.text),
        title=valid(chunk.title),
        context=valid(chunk.context),
        headings=tuple(map(valid, chunk.headings)),
    )
