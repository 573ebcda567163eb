"""How a block relates to names that are in the working memory but not in the question.

The link between two hops is often not a title or heading of any block, so the index has no such name: for example, a
person whom three pages mention and none describes. Such names are recognised by their capitals; rare words count too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compmem.gate.blocks import ParsedBlock
from compmem.retrieval.query import MemoryLine, QueryState

ENTITY_FEATURES = (
    "fresh", "fresh_capital", "fresh_title", "fresh_missing",
    "spoken", "spoken_weight", "spoken_nearby", "spoken_nearby_weight", "spoken_title", "spoken_bearing",
    "asked_spoken", "asked_spoken_weight", "asked_spoken_missed",
)  # fmt: skip
"""The features by name, in the order of the columns."""


@dataclass(frozen=True, slots=True)
class _MemoryName:
    """A name in the memory: the name between spaces, its weight, and the question terms that occur with it."""

    spaced: str
    weight: float
    nearby: float
    coverage: float


def entity_features(state: QueryState, blocks: Sequence[ParsedBlock]) -> list[list[float]]:
    """The features of each block for this query state, `[blocks][features]`."""
    known = _memory_names(state)
    question_names = [(n, weight(state, n)) for n in state.capitalised]
    missing = {t: w for t, w in state.weights.items() if t not in state.covered}
    capitals = {t: w for line in state.lines for t, w in line.capitals.items()}
    return [
        [*_words(state.lines, capitals, missing, block), *_names(known, block), *_question_names(question_names, block)]
        for block in blocks
    ]  # fmt: skip


def weight(state: QueryState, name: str) -> float:
    """The joint rarity of the words of a name."""
    return sum(state.rarity[w] for w in name.split()) / 3


def _memory_names(state: QueryState) -> list[_MemoryName]:
    total = sum(state.roots.values()) or 1.0
    found: dict[str, _MemoryName] = {}
    for line in state.lines:
        for name, mention in line.capitalised.items():
            nearby = sum(w for r, w in state.roots.items() if r in mention.nearby) / total
            before = found.get(name, _MemoryName("", 0.0, 0.0, 0.0))
            found[name] = _MemoryName(
                f" {name} ", weight(state, name), max(before.nearby, nearby), max(before.coverage, line.coverage)
            )
    return list(found.values())


def _words(
    lines: Sequence[MemoryLine], capitals: Mapping[str, float], missing: Mapping[str, float], block: ParsedBlock
) -> list[float]:
    if not lines:
        return [0.0] * 4
    own = block.counts.keys() | block.title_terms
    bridge = 0.0
    for sentence in block.sentence_terms:
        both = capitals.keys() & (sentence | block.title_terms)
        if both:
            bridge = max(bridge, sum(w for t, w in missing.items() if t in sentence) * max(capitals[t] for t in both))
    return [
        min(max((sum(line.fresh[t] for t in line.fresh.keys() & own) for line in lines), default=0.0), 8.0) / 4,
        min(max((sum(line.capitals[t] for t in line.capitals.keys() & own) for line in lines), default=0.0), 4.0) / 2,
        sum(capitals[t] for t in capitals.keys() & block.title_terms) / (1 + len(block.title_terms)),
        bridge / (sum(missing.values()) or 1.0),
    ]


def _names(known: Sequence[_MemoryName], block: ParsedBlock) -> list[float]:
    if not known:
        return [0.0] * 6
    shared = [t for t in known if t.spaced in block.text]
    titles = [f" {t} " for t in block.titles]
    return [
        min(len(shared), 4) / 4,
        max((t.weight for t in shared), default=0.0),
        max((t.nearby for t in shared), default=0.0),
        max((t.weight * t.nearby for t in shared), default=0.0),
        max((t.weight for t in known if any(t.spaced in title for title in titles)), default=0.0),
        max((t.coverage for t in shared), default=0.0),
    ]


def _question_names(question_names: Sequence[tuple[str, float]], block: ParsedBlock) -> list[float]:
    shared = [w for n, w in question_names if f" {n} " in block.text or any(n in title for title in block.titles)]
    return [min(len(shared), 3) / 3, max(shared, default=0.0), sum(w for _, w in question_names) - sum(shared)]
