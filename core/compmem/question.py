"""The index as one question sees it: candidates, gate scores and blocks, from one snapshot."""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from compmem.candidates import RANKED, FirstStage
from compmem.config import LoopConfig, SearchMethod
from compmem.gate import Digest, FirstLook, GateHead, LatentGate, digests, features
from compmem.locks import Lock
from compmem.ranking import fuse
from compmem.resident import Resident
from compmem.schema import KVStates, MemoryBlock, Recall, Vectors
from compmem.view import Viewer

GATED_AT_ONCE = 64
"""Blocks whose KV states are fetched together for the gate on the backbone."""


class Blocks(Protocol):
    """Where a question's blocks come from: a snapshot of a store, or what a retriever has brought."""

    def select(self, filter: None) -> NDArray[np.int64]:
        """Numbers of all blocks, rising."""
        ...

    def blocks(self, blocks: Sequence[int], *, kv: bool = ...) -> list[MemoryBlock]:
        """Blocks by number, in the order asked."""
        ...

    def kv_states(self, blocks: Sequence[int]) -> list[KVStates]:
        """The KV states of blocks alone, in the order asked."""
        ...


@dataclass(slots=True)
class QuestionBench:
    """What the loop works on: the index as one question sees it.

    Without an encoder there is no first stage, and every block that a filter admits is a candidate. Without an encoder
    and without a trained gate on the backbone, every candidate passes, in document order.
    """

    snapshot: Blocks
    config: LoopConfig
    admitted: NDArray[np.int64] | None
    """Numbers of the blocks that a filter admits; None where every block may be a candidate."""
    count: Callable[[Sequence[str]], list[int]]
    """Tokens of texts."""
    dense: FirstStage | None
    """The first stage; None where the index has no encoder."""
    gate: GateHead | None
    """The dense gate; None where the gate on the backbone serves, or where there are no vectors to look at."""
    latent: LatentGate | None = None
    """The gate on the backbone, where the checkpoint has one that is trained."""
    resident: Resident | None = None
    """KV blocks on the device; None for dense memory."""
    seen: "Seen" = field(default_factory=lambda: Seen())
    """Blocks that were read and taken apart lately, for this or an earlier question."""
    open_ended: bool = False
    """Whether a later look may see blocks of which the first one knows nothing."""
    first_look: FirstLook | None = None
    """What the dense gate made of the first candidates; None before, or where another gate serves."""
    _first: dict[int, float] = field(default_factory=dict)
    """Logits of the dense gate's first look, by block."""
    _digests: dict[int, tuple[Digest, ...]] = field(default_factory=dict)
    _blocks: dict[int, MemoryBlock] = field(default_factory=dict)

    @property
    def stage(self) -> FirstStage:
        """The first stage.

        Raises:
            ValueError: The index was made without an encoder.
        """
        if self.dense is None:
            raise ValueError(
                "this index was made with encoder=None, so it has no vectors: use reader='latent' and gate='learned' "
                "or 'off', or make the index with an encoder"
            )
        return self.dense

    @property
    def viewer(self) -> Viewer:
        """The question taken apart, for the dense gate and the extractive reader. Raises what `stage` raises."""
        return self.stage.viewer

    @property
    def threshold(self) -> float:
        """Below it a block is turned down."""
        if self.config.threshold is not None:
            return self.config.threshold
        if self.config.gate not in ("learned", "question"):
            return 0.0
        gate = self.latent or self.gate
        return gate.threshold if gate else 0.0

    def propose(self, memory: str) -> list[int]:
        """Numbers of the blocks that may bear on the question, given the working memory."""
        if self.config.candidates == "all" or self.dense is None:
            return [int(n) for n in (self.snapshot.select(None) if self.admitted is None else self.admitted)]
        return self.dense.propose(memory)

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        """The gate score of each block, given the working memory."""
        if not blocks or self.config.gate == "off":
            return [1.0] * len(blocks)
        if self.config.gate == "similarity":
            asked = self.viewer.view("").question
            self._load(blocks)
            return [float(np.clip(max(d.vectors[0] @ asked for d in self._digests[n]), 0.0, 1.0)) for n in blocks]
        known = "" if self.config.gate == "question" else memory
        if self.latent is not None:
            with torch.inference_mode():
                return self._score_latent(self.latent, known, blocks)
        if self.gate is not None:
            return self._score_dense(self.gate, known, blocks)
        return [1.0] * len(blocks)

    @property
    def looks_again(self) -> bool:
        """Whether first stage and gate are to be asked again with each new working memory."""
        if self.open_ended or self.first_look is None or self.gate is None:
            return True
        return self.first_look.more >= self.gate.more_threshold

    @property
    def answerable(self) -> bool:
        """Whether any of the first candidates may answer at all."""
        return self.first_look is None or self.gate is None or self.first_look.found >= self.gate.found_threshold

    def fetch(self, blocks: Sequence[int]) -> list[MemoryBlock]:
        """The blocks themselves, those of KV memory with their states on the device."""
        self._load(blocks)
        found = [self._blocks[n] for n in blocks]
        if self.resident is None:
            return found
        states = self.resident.take(blocks, self.snapshot.kv_states)
        return [replace(block, kv=kv) for block, kv in zip(found, states, strict=True)]

    def count_tokens(self, text: str) -> int:
        """Tokens of a text, by the backbone's tokenizer for KV memory, else by the encoder's."""
        return self.count([text])[0]

    def search(self, method: SearchMethod, k: int) -> dict[int, float]:
        """The scores of at least the k best blocks by one pass, in any order; see `MemoryIndex.search`."""
        if method == "gate":
            proposed = self.propose("")
            return dict(zip(proposed, self.score("", proposed), strict=True))
        if method == "bm25":
            worded = self.stage.worded(k)
            best = max((score for _, score in worded), default=1.0)
            return {n: score / best for n, score in worded}
        near = self.stage.nearest(max(k, RANKED))
        if method == "hybrid":
            return fuse([near, [n for n, _ in self.stage.worded(max(k, RANKED))]])
        self._load(near[:k])
        asked = self.viewer.view("").question
        return {n: float(np.clip(self._vectors(n)[0] @ asked, 0.0, 1.0)) for n in near[:k]}

    def best(self, scores: Mapping[int, float], k: int, min_score: float = 0.0) -> list[Recall]:
        """The k blocks with the highest scores, best first; fewer where fewer have at least `min_score`."""
        enough = [n for n, score in scores.items() if score >= min_score]
        numbers = sorted(enough, key=lambda n: (-scores[n], n))[:k]
        self._load(numbers)
        return [Recall(chunk=self._blocks[n].chunk, score=scores[n], block=n) for n in numbers]

    def compared(self, memory: str, blocks: Sequence[int]) -> tuple[Vectors, NDArray[np.int64]]:
        """Features of each window of these blocks, `[windows, len(FEATURES)]`, and the block of each, from 0."""
        self._load(blocks)
        rows = np.repeat(np.arange(len(blocks)), [len(self._digests[n]) for n in blocks])
        return features(self.viewer.view(memory), [d for n in blocks for d in self._digests[n]]), rows

    def _vectors(self, block: int) -> Vectors:
        vectors = self._blocks[block].vectors
        assert vectors is not None, "a search by vectors needs dense memory"
        return vectors

    def _score_dense(self, gate: GateHead, memory: str, blocks: Sequence[int]) -> list[float]:
        """The first look where nothing was looked at or known yet; later looks keep in view what it said."""
        own, rows = self.compared(memory, blocks)
        seen = np.array([n in self._first for n in blocks])
        if not memory or not seen.any():
            look = gate.look(own, self.stage.standing(blocks).take(rows), rows)
            if not self._first:
                self.first_look = look
            self._first.update(zip(blocks, look.logits.tolist(), strict=True))
            return [float(p) for p in look.probabilities]
        looked = list(self._first.values())
        lowest = min(looked)
        first = np.array([*looked, *(self._first.get(n, lowest) for n in blocks)], dtype=np.float32)
        return [float(p) for p in gate.look_again(own, first, seen, rows)]

    def _score_latent(self, gate: LatentGate, memory: str, blocks: Sequence[int]) -> list[float]:
        assert self.resident is not None, "a gate on the backbone goes with KV memory"
        groups = self.resident.stream(blocks, self.snapshot.kv_states, size=GATED_AT_ONCE)
        return [p for states in groups for p in gate.probabilities(memory, states)]

    def _load(self, blocks: Sequence[int]) -> None:
        new = [n for n in blocks if n not in self._blocks]
        found = self.seen.take(new)
        missing = [n for n in new if n not in found]
        for number, block in zip(missing, self.snapshot.blocks(missing, kv=False), strict=True):
            found[number] = (block, None if block.vectors is None else digests(block))
        self.seen.keep({n: found[n] for n in missing})
        for number, (block, taken_apart) in found.items():
            self._blocks[number] = block
            if taken_apart is not None:
                self._digests[number] = taken_apart


class Seen:
    """The blocks that were looked at last, of any question; numbers are never given to another block."""

    def __init__(self, most: int = 4096) -> None:
        self._most = most
        self._held: OrderedDict[int, tuple[MemoryBlock, tuple[Digest, ...] | None]] = OrderedDict()
        self._guard = Lock()

    def take(self, blocks: Sequence[int]) -> dict[int, tuple[MemoryBlock, tuple[Digest, ...] | None]]:
        """Those of the blocks that are held."""
        with self._guard:
            found = {n: self._held[n] for n in blocks if n in self._held}
            for number in found:
                self._held.move_to_end(number)
            return found

    def keep(self, blocks: Mapping[int, tuple[MemoryBlock, tuple[Digest, ...] | None]]) -> None:
        """Holds these as well, and lets go of the oldest."""
        with self._guard:
            self._held.update(blocks)
            while len(self._held) > self._most:
                self._held.popitem(last=False)
