"""States: the gate's input at each pass of the loop for a query, with relevance labels.

For each query there is a first pass. Later passes come from two rollouts of the loop with the extractive reader: one
reads only relevant blocks, and the other makes mistakes, as a gate does.
"""

import logging
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random

import numpy as np
from numpy.typing import NDArray

from compmem import IndexConfig, MemoryIndex
from compmem.encoder import LoadedEncoder
from compmem.gate import GateHead, first_features
from compmem.loop.context import QuestionContext
from compmem.readers import ExtractiveReader
from compmem.retrieval.ranking import SearchRanks, reciprocal_rank_fusion
from compmem.schema import Chunk, Encoder, Vectors, WorkingMemory
from compmem_research.training.dense_gate.collection import Collection, Query
from compmem_research.training.dense_gate.sources import Source
from compmem_research.training.dense_gate.styles import restyle

logger = logging.getLogger(__name__)

Labels = NDArray[np.float32]

SYSTEMS = ("dense", "bm25", "fused")
"""Rankings by the query alone, as baselines of the first pass."""

ORIGINAL = "asked"
"""The style of a query that is not restyled."""

STORED_BLOCKS = 10
"""Best blocks of each of these rankings that are stored."""

_RANKED = 100
_CORRECT_SHARE = 0.4
"""How often the rollout with mistakes reads a relevant block if there is one."""
_MISTAKE_POOL = 12
"""Top blocks of the fused ranking from which mistakes are sampled."""


@dataclass(frozen=True, eq=False)
class State:
    """One pass over the candidates of a query."""

    own: Vectors
    """Features of each window, `[windows, len(FEATURES)]`."""
    rows: NDArray[np.int64]
    """The block of each window, from 0, ascending, `[windows]`."""
    blocks: NDArray[np.int64]
    """The numbers of the blocks, `[blocks]`."""
    relevant: Labels
    """1 for the relevant ones, `[blocks]`."""
    search_ranks: SearchRanks
    """Ranks of the blocks in the searches for the query alone, `[blocks]`."""

    @cached_property
    def first(self) -> Vectors:
        """Features of the first pass of each window, `[windows, len(FIRST_FEATURES)]`."""
        return first_features(self.own, self.search_ranks.take(self.rows))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The first window of each block, `[blocks]`."""
        return np.searchsorted(self.rows, np.arange(len(self.blocks)))


@dataclass(frozen=True, kw_only=True, eq=False)
class QueryStates:
    """One query in one style, and all its passes."""

    id: str
    """Id of the query in its source, the same for all styles."""
    question: str
    """Its text before it is restyled."""
    source: Source
    part: str
    """The part under which the report lists it."""
    style: str
    chained: bool
    relevant: frozenset[int]
    """Numbers of the relevant blocks of the whole index."""
    ranked: Mapping[str, tuple[int, ...]]
    """The best blocks by each of `SYSTEMS`."""
    first_pass: State
    later: tuple[State, ...]

    @property
    def half(self) -> int:
        """0 or 1, its half for cross-fitting: the same for all styles of a question and all sources that ask it."""
        same = " ".join(self.question.lower().split())
        return zlib.crc32(f"{self.source.group}/{same}".encode()) % 2


def collect_states(source: Source, encoder: Encoder | None, steps: int) -> Iterator[QueryStates]:
    """All states of every query of a source.

    Args:
        source: Source of the queries.
        encoder: Computes the vectors. None: the default one.
        steps: Reads of a rollout if several blocks are relevant; half as many for one.
    """
    loaded: LoadedEncoder | None = None
    for number, collection in enumerate(source.collections()):
        rng = Random(f"{source.name}/{number}")
        with _indexed(collection, encoder, loaded) as index:
            loaded = index.encoder
            chunks = _chunks(index)
            logger.info("%s %d: %d blocks, %d queries", source.name, number, len(chunks), len(collection.queries))
            for place, query in enumerate(collection.queries):
                relevant = frozenset(n for n, chunk in chunks.items() if query.relevant(chunk))
                wordings = [(ORIGINAL, query.text)]
                if rng.random() < collection.restyled:
                    wordings.append(restyle(query.text, rng))
                for style, text in wordings:
                    id = f"{source.name}/{number}/{place}"
                    asked = text.strip() and _ask(index, source, query, (id, style, text), relevant, rng, steps)
                    if asked:
                        yield asked


def _indexed(collection: Collection, encoder: Encoder | None, loaded: LoadedEncoder | None) -> MemoryIndex:
    config = IndexConfig() if encoder is None else IndexConfig(encoder=encoder)
    made = MemoryIndex.create(None, config)
    # No state depends on the weights of a gate, and the shipped gate may have other features, so this one is untrained.
    index = MemoryIndex(made.store, config, encoder=loaded or made.encoder, gate=GateHead())
    index.add(collection.documents)
    return index


def _chunks(index: MemoryIndex) -> dict[int, Chunk]:
    with index.store.snapshot() as snapshot:
        numbers = [int(n) for n in snapshot.select(None)]
        return {n: block.chunk for n, block in zip(numbers, snapshot.blocks(numbers, kv=False), strict=True)}


def _ask(
    index: MemoryIndex,
    source: Source,
    query: Query,
    named: tuple[str, str, str],
    relevant: frozenset[int],
    rng: Random,
    steps: int,
) -> QueryStates | None:
    """The passes for one query; None if nothing is proposed for it."""
    id, style, text = named
    with index.question_context(text) as context:
        first_pass = _look(context, "", set(), relevant)
        if first_pass is None:
            return None
        bm25 = [n for n, _ in context.required_generator.bm25(_RANKED)]
        near = context.required_generator.nearest(_RANKED)
        fused = list(reciprocal_rank_fusion([near, bm25]))
        most = steps if len(relevant) > 1 else max(steps // 2, 1)
        later = [
            *_rollout(context, text, first_pass, relevant, rng, min(len(relevant), steps), []),
            *_rollout(context, text, first_pass, relevant, rng, most, fused),
        ]
        return QueryStates(
            id=id,
            question=query.text,
            source=source,
            part=query.part or source.name,
            style=style,
            chained=query.chained,
            relevant=relevant,
            ranked={name: tuple(r[:STORED_BLOCKS]) for name, r in zip(SYSTEMS, (near, bm25, fused), strict=True)},
            first_pass=first_pass,
            later=tuple(later),
        )


def _look(context: QuestionContext, memory: str, read: set[int], relevant: frozenset[int]) -> State | None:
    """The unread candidates with a working memory; None if there are none."""
    blocks = [n for n in context.propose(memory) if n not in read]
    if not blocks:
        return None
    own, rows = context.window_features(memory, blocks)
    labels = np.array([n in relevant for n in blocks], dtype=np.float32)
    return State(own, rows, np.array(blocks, dtype=np.int64), labels, context.required_generator.search_ranks(blocks))


def _rollout(
    context: QuestionContext,
    query: str,
    first_pass: State,
    relevant: frozenset[int],
    rng: Random,
    steps: int,
    mistakes: Sequence[int],
) -> Iterator[State]:
    """The passes after each read of a rollout with notes; before that, the first pass is used.

    Args:
        context: The index for the query.
        query: Its text.
        first_pass: The first pass.
        relevant: Numbers of relevant blocks.
        rng: Chooses the blocks to read.
        steps: Most reads.
        mistakes: The ranking whose top blocks are mistakes; empty: only relevant blocks are read.
    """
    reader, memory, read = ExtractiveReader(context.analyzer), WorkingMemory(), set[int]()
    state: State | None = first_pass
    for _ in range(steps):
        if state is None:
            return
        chosen = _chosen([int(n) for n in state.blocks], relevant, rng, mistakes)
        if chosen is None:
            return
        read.add(chosen)
        reading = reader.read(query, memory, context.fetch([chosen]))
        memory = reading.memory if reading.update else memory
        state = _look(context, memory.text, read, relevant)
        if state is not None and memory.text:
            yield state


def _chosen(blocks: Sequence[int], relevant: frozenset[int], rng: Random, mistakes: Sequence[int]) -> int | None:
    """The block that is read next; None if the rollout ends."""
    right = [n for n in blocks if n in relevant]
    if right and (not mistakes or rng.random() < _CORRECT_SHARE):
        return rng.choice(right)
    proposed = set(blocks) - relevant if mistakes else set()
    wrong = [n for n in mistakes[:_MISTAKE_POOL] if n in proposed] or [n for n in blocks if n in proposed]
    return wrong[min(int(rng.expovariate(0.7)), len(wrong) - 1)] if wrong else None
