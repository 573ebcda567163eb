"""States: what the loop has before it at each look for a query, with what is relevant there.

For each query the first look comes first. Later looks come from two rollouts of the loop with the extractive reader:
one reads what is relevant, one block after another, and the other errs, as a gate does.
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
from compmem.retrieval.ranking import SearchRanks, fuse
from compmem.schema import Chunk, Encoder, Vectors, WorkingMemory
from compmem_research.training.dense_gate.collection import Collection, Query
from compmem_research.training.dense_gate.sources import Source
from compmem_research.training.dense_gate.styles import restyle

logger = logging.getLogger(__name__)

Labels = NDArray[np.float32]

SYSTEMS = ("dense", "bm25", "fused")
"""Rankings by the query alone that the first look is compared with."""

ASKED = "asked"
"""The style of a query as its source has it."""

KEPT = 10
"""Best blocks of each of those rankings that are kept."""

_RANKED = 100
_RIGHT = 0.4
"""How often the rollout that errs reads a relevant block where there is one."""
_TAKEN_FOR = 12
"""First blocks of the fused ranking among which it errs."""


@dataclass(frozen=True, eq=False)
class State:
    """One look at the candidates of a query."""

    own: Vectors
    """Features of each window, `[windows, len(FEATURES)]`."""
    rows: NDArray[np.int64]
    """The block of each window, from 0, rising, `[windows]`."""
    blocks: NDArray[np.int64]
    """The numbers of the blocks, `[blocks]`."""
    relevant: Labels
    """1 for the relevant ones, `[blocks]`."""
    search_ranks: SearchRanks
    """Where the searches for the query alone put them, `[blocks]`."""

    @cached_property
    def first(self) -> Vectors:
        """What the first look sees of each window, `[windows, len(FIRST_FEATURES)]`."""
        return first_features(self.own, self.search_ranks.take(self.rows))

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """The first window of each block, `[blocks]`."""
        return np.searchsorted(self.rows, np.arange(len(self.blocks)))


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """One query in one style, and every look that was had for it."""

    id: str
    """Of the query, whatever its style."""
    source: Source
    part: str
    """What the report names it under."""
    style: str
    chained: bool
    relevant: frozenset[int]
    """Numbers of the relevant blocks of the whole index."""
    ranked: Mapping[str, tuple[int, ...]]
    """The best blocks by each of `SYSTEMS`."""
    look: State
    later: tuple[State, ...]

    @property
    def half(self) -> int:
        """0 or 1, the same for all styles of a query: which half of the queries it is in for cross-fitting."""
        return zlib.crc32(self.id.encode()) % 2


def recall_loop(source: Source, encoder: Encoder | None, steps: int) -> Iterator[Asked]:
    """Every query of a source, asked.

    Args:
        source: Where the queries come from.
        encoder: Makes the vectors. None: the default one.
        steps: Reads of a rollout where several blocks are relevant; half as many where one is.
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
                wordings = [(ASKED, query.text)]
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
    # The gate is untrained: no state depends on one, and the shipped one may be of other features.
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
) -> Asked | None:
    """The looks for one query; None where nothing is proposed for it."""
    id, style, text = named
    with index.question_context(text) as context:
        look = _look(context, "", set(), relevant)
        if look is None:
            return None
        bm25 = [n for n, _ in context.stage.bm25(_RANKED)]
        near = context.stage.nearest(_RANKED)
        fused = list(fuse([near, bm25]))
        most = steps if len(relevant) > 1 else max(steps // 2, 1)
        later = [
            *_rollout(context, text, look, relevant, rng, min(len(relevant), steps), []),
            *_rollout(context, text, look, relevant, rng, most, fused),
        ]
        return Asked(
            id=id,
            source=source,
            part=query.part or source.name,
            style=style,
            chained=query.chained,
            relevant=relevant,
            ranked={name: tuple(r[:KEPT]) for name, r in zip(SYSTEMS, (near, bm25, fused), strict=True)},
            look=look,
            later=tuple(later),
        )


def _look(context: QuestionContext, memory: str, read: set[int], relevant: frozenset[int]) -> State | None:
    """The candidates under a working memory, without those that were read; None where there are none."""
    blocks = [n for n in context.propose(memory) if n not in read]
    if not blocks:
        return None
    own, rows = context.compared(memory, blocks)
    labels = np.array([n in relevant for n in blocks], dtype=np.float32)
    return State(own, rows, np.array(blocks, dtype=np.int64), labels, context.stage.search_ranks(blocks))


def _rollout(
    context: QuestionContext,
    query: str,
    look: State,
    relevant: frozenset[int],
    rng: Random,
    steps: int,
    mistakes: Sequence[int],
) -> Iterator[State]:
    """The looks after each read of a rollout, where something is known; before, it is the first look that serves.

    Args:
        context: The index under the query.
        query: Its text.
        look: The first look.
        relevant: Numbers of relevant blocks.
        rng: Draws what is read.
        steps: Most reads.
        mistakes: The ranking at whose top mistakes lie; empty: only what is relevant is read.
    """
    reader, memory, read = ExtractiveReader(context.analyzer), WorkingMemory(), set[int]()
    state: State | None = look
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
    """The block that is read next; None where the rollout ends."""
    right = [n for n in blocks if n in relevant]
    if right and (not mistakes or rng.random() < _RIGHT):
        return rng.choice(right)
    proposed = set(blocks) - relevant if mistakes else set()
    wrong = [n for n in mistakes[:_TAKEN_FOR] if n in proposed] or [n for n in blocks if n in proposed]
    return wrong[min(int(rng.expovariate(0.7)), len(wrong) - 1)] if wrong else None
