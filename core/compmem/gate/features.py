"""Features of the dense gate: numbers that compare a question and a working memory with a memory block.

The features transfer to other collections because none of them is a word. They say how much of the question a block
covers, how much of what is *still missing* after the working memory, how similar the vectors are, and whether one side
names the other (2602.08382 gates on question, memory and block; A7: without the memory the gate is far weaker).
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from compmem.gate.blocks import ParsedBlock
from compmem.gate.entity_features import ENTITY_FEATURES, entity_features, weight
from compmem.retrieval.query import LINES, QueryState
from compmem.schema import Vectors
from compmem.text.tokenize import Mention

FEATURES = (
    "question_chunk", "question_sentence", "question_second", "joint_chunk", "joint_sentence", "joint_gain",
    "lexical", "coverage", "coverage_sentence", "coverage_missing", "coverage_missing_sentence", "coverage_roots",
    "title_coverage", "title_in_question", "title_in_memory",
    "named_in_question", "named_in_question_weight", "named_in_question_capital", "named_in_question_shared",
    "named_in_memory", "named_in_memory_weight", "named_in_memory_capital", "named_in_memory_shared",
    "named_in_memory_nearby", "named_in_memory_bearing",
    "names_question", "names_question_weight", "names_memory", "names_memory_weight",
    "already_named",
    *ENTITY_FEATURES,
    "names_open", "names_total", "covered", "memory_lines", "length",
)  # fmt: skip
"""The features by name, in the order of the columns."""


def features(state: QueryState, blocks: Sequence[ParsedBlock]) -> Vectors:
    """The features of each block for this query state, `[blocks, features]`."""
    dense = _dense(state, blocks)
    lexical = [_lexical(state, block) for block in blocks]
    links = [_links(state, block) for block in blocks]
    joints = entity_features(state, blocks)
    total = sum(state.weights.values()) or 1.0
    shared = [
        sum(1 for n in state.names.values() if not any(n.name in line.mentions for line in state.lines)) / 3,
        len(state.names) / 3,
        sum(state.weights[t] for t in state.covered) / total,
        len(state.lines) / LINES,
    ]
    rows = [
        [*d, *x, *k, *j, *shared, math.log1p(b.length) / 6]
        for d, x, k, j, b in zip(dense, lexical, links, joints, blocks, strict=True)
    ]
    return np.asarray(rows, dtype=np.float32).reshape(len(blocks), len(FEATURES))


def _dense(state: QueryState, blocks: Sequence[ParsedBlock]) -> list[list[float]]:
    if not blocks:
        return []
    sizes = [len(b.vectors) for b in blocks]
    near = np.concatenate([b.vectors for b in blocks]) @ np.vstack([state.question[None], state.joint]).T
    rows, at = [], 0
    for size in sizes:
        block = near[at : at + size]
        at += size
        sentences = block[1:] if size > 1 else block
        cosines = np.sort(sentences[:, 0])
        joint = block[:, 1:]
        chunk_joint = float(joint[0].max()) if joint.size else float(block[0, 0])
        sentence_joint = float(sentences[:, 1:].max()) if joint.size else float(cosines[-1])
        rows.append([
            float(block[0, 0]), float(cosines[-1]), float(cosines[-2] if len(cosines) > 1 else cosines[-1]),
            chunk_joint, sentence_joint, sentence_joint - float(cosines[-1]),
        ])  # fmt: skip
    return rows


def _lexical(state: QueryState, block: ParsedBlock) -> list[float]:
    total = sum(state.weights.values()) or 1.0
    open_weight = sum(w for t, w in state.weights.items() if t not in state.covered) or 1.0
    held = {t: w for t, w in state.weights.items() if t in block.counts or t in block.title_terms}
    missing = {t: w for t, w in held.items() if t not in state.covered}
    in_title = {t: w for t, w in held.items() if t in block.title_terms}
    saturation = 1.2 * (0.5 + 0.5 * block.length / 80)
    score = 0.0
    for t, w in held.items():
        n = block.counts.get(t, 0) + 2 * (t in in_title)
        score += w * 2.2 * n / (n + saturation)
    beside_title = [(t, w) for t, w in held.items() if t not in in_title]
    root_total = sum(state.roots.values()) or 1.0
    return [
        score / (2.2 * total),
        sum(held.values()) / total,
        (sum(in_title.values()) + _best_sentence(beside_title, block)) / total,
        sum(missing.values()) / open_weight,
        _best_sentence(list(missing.items()), block) / open_weight,
        sum(w for r, w in state.roots.items() if r in block.roots) / root_total,
        sum(in_title.values()) / total,
        _share(block.title_terms, state.weights),
        max((_share(block.title_terms, line.terms) for line in state.lines), default=0.0),
    ]


def _best_sentence(weights: Sequence[tuple[str, float]], block: ParsedBlock) -> float:
    """The highest total weight of these terms in one sentence."""
    if not weights:
        return 0.0
    return max(sum(w for t, w in weights if t in sentence) for sentence in block.sentence_terms)


def _links(state: QueryState, block: ParsedBlock) -> list[float]:
    in_question = [state.names[t] for t in block.titles if t in state.names]
    if not state.lines and not state.names:
        return [0.0] * 15
    in_memory = [(line.mentions[t], line) for line in state.lines for t in block.titles if t in line.mentions]
    in_memory = [(m, line) for m, line in in_memory if m.name not in state.names]
    memory_names = {n for line in state.lines for n in line.mentions}
    own = set(block.titles)
    shared_with_question = [n for n in state.names if n not in own and f" {n} " in block.text]
    shared_with_memory = [n for n in memory_names if n not in own and n not in state.names and f" {n} " in block.text]
    root_total = sum(state.roots.values()) or 1.0
    nearby = [sum(w for r, w in state.roots.items() if r in m.nearby) / root_total for m, _ in in_memory]
    return [
        *_best_name_features(state, in_question),
        *_best_name_features(state, [m for m, _ in in_memory]),
        max(nearby, default=0.0),
        max((line.coverage for _, line in in_memory), default=0.0),
        min(len(shared_with_question), 3) / 3,
        max((weight(state, n) for n in shared_with_question), default=0.0),
        min(len(shared_with_memory), 3) / 3,
        max((weight(state, n) for n in shared_with_memory), default=0.0),
        float(any(t in memory_names for t in block.titles)),
    ]


def _best_name_features(state: QueryState, found: Sequence[Mention]) -> list[float]:
    if not found:
        return [0.0, 0.0, 0.0, 0.0]
    best = max(found, key=lambda m: (m.capitalised, weight(state, m.name)))
    return [1.0, weight(state, best.name), best.capitalised, math.log1p(len(state.known[best.name])) / 4]


def _share(part: frozenset[str], whole: Mapping[str, float] | frozenset[str]) -> float:
    return sum(t in whole for t in part) / len(part) if part else 0.0
