"""Fits a gate: its three networks, and their outputs on held-out queries.

Later passes and the network of the question use the scores of the first pass. If these came from a network trained on
the same queries, they would be too confident. So the queries are split in halves, and each half is scored by networks
trained on the other (cross-fitting). A question is in one half, however many sources ask it over other documents and in
other styles. Calibration and thresholds use these scores too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from compmem.gate import FIRST_FEATURES, GateHead, Network, later_features, question_features
from compmem.schema import Vectors
from compmem_research.training.dense_gate.networks import JudgedQuery, TrainingList, block_logits, fit_judged, fit_lists
from compmem_research.training.dense_gate.settings import DenseGateTraining
from compmem_research.training.dense_gate.states import Labels, QueryStates, State
from compmem_research.training.dense_gate.variants import later_of_few, of_few, weakened, without_relevant
from compmem_research.training.gating.calibration import platt

_UNANSWERED = 0.25
"""Share of first passes that are also used without their relevant blocks."""
_FEW, _FEW_ANSWERED = 0.2, 0.8
"""Share of first passes also used as in an index of a few documents, and of those the share with relevant blocks."""
_FEW_JUDGED = 0.3
_FEW_LATER = 0.3
"""Share of later passes that are also used as in an index of a few documents."""
_WEAKENED_FROM = 9
"""Least number of blocks in a list for a weakened search."""
_LATER_EPOCHS = 1.25
_BASELINE_FEATURES = ("question_chunk_standard", "bm25_standard")
"""Standard scores of a block in the list by vectors and by words."""
_DEVIATIONS_PER_UNIT = 3.0
"""Features are divided by 3 standard deviations."""
_READ = 5
"""Blocks of the first pass that are read in any case: relevant ones after these are missed without more passes."""


@dataclass(slots=True)
class HeldOut:
    """Outputs of networks on queries of the other half: logits before calibration, and labels."""

    first: list[tuple[Vectors, Labels]] = field(default_factory=list)
    """Of each first pass."""
    later: list[tuple[Vectors, Labels]] = field(default_factory=list)
    """Of each later pass."""
    judged: list[tuple[JudgedQuery, Vectors]] = field(default_factory=list)
    """For each query, with the changed ones, the logits of `more` and `found`."""


def fit_gate(settings: DenseGateTraining, asked: Sequence[QueryStates]) -> tuple[GateHead, HeldOut]:
    """A calibrated gate, its third threshold not yet chosen, and the outputs of cross-fitted networks.

    Raises:
        ValueError: There are too few queries to split.
    """
    halves = [[a for a in asked if a.half == n] for n in (0, 1)]
    if not all(any(a.later for a in half) for half in halves):
        raise ValueError("there are too few queries to train a gate: some must be held out")
    held = HeldOut()
    firsts = [fit_first(settings, halves[1 - n], heads=1) for n in (0, 1)]
    said = {id(a): block_logits(firsts[a.half], a.first_pass.first, a.first_pass.rows)[0] for a in asked}
    held.first = [(said[id(a)], a.first_pass.relevant) for a in asked]
    head = GateHead(settings.hidden, settings.heads)
    head.threshold, head.more_threshold = settings.threshold, settings.more_threshold
    calibration = [_platt(held.first)]
    enough = _enough(settings.threshold, calibration[0])

    later = [[(_later(s, a.first_pass, said[id(a)]), s, a.part) for a in half for s in a.later] for half in halves]
    few = [_later_passes_of_few(settings, half, firsts[n]) for n, half in enumerate(halves)]
    judged = [judged_queries(settings, half, firsts[n], enough) for n, half in enumerate(halves)]
    for n in (0, 1):
        network = _fit_later(settings, [*later[1 - n], *few[1 - n]], heads=1)
        held.later += [(block_logits(network, x, s.rows)[0], s.relevant) for x, s, _ in later[n]]
        of_question = fit_judged(settings, judged[1 - n], heads=1)
        held.judged += zip(judged[n], query_logits(of_question, judged[n]), strict=True)
    more = [(logits[:1], np.array([j.more], np.float32)) for j, logits in held.judged if j.more >= 0]
    found = [(logits[1:], np.array([j.found], np.float32)) for j, logits in held.judged]
    calibration += [_platt(held.later), _platt(more), _platt(found)]

    head.first = fit_first(settings, asked, heads=settings.heads)
    head.later = _fit_later(settings, [*later[0], *later[1], *few[0], *few[1]], heads=settings.heads)
    head.question = fit_judged(settings, [*judged[0], *judged[1]], heads=settings.heads)
    head.calibration.copy_(torch.tensor(calibration))
    return head.eval(), held


def fit_first(settings: DenseGateTraining, asked: Sequence[QueryStates], heads: int) -> Network:
    """The network of the first pass, fitted to first passes and to changed ones.

    The scores of plain search are added after the training, since on unseen kinds of documents a network deviates too
    much from plain search.
    """
    rng = np.random.default_rng(settings.seed)
    lists: list[tuple[State, str]] = []
    for a in asked:
        shown: list[State | None] = [a.first_pass]
        if rng.random() < _UNANSWERED:
            shown.append(without_relevant(a.first_pass))
        if rng.random() < _FEW:
            shown.append(of_few(a.first_pass, rng, answered=rng.random() < _FEW_ANSWERED))
        if rng.random() < settings.weakened and len(a.first_pass.blocks) >= _WEAKENED_FROM:
            shown.append(weakened(a.first_pass, rng))
        lists += [(first_pass, a.part) for first_pass in shown if first_pass is not None]
    ranked = [TrainingList(first_pass.first, first_pass.rows, first_pass.relevant, part) for first_pass, part in lists]
    network = fit_lists(settings, ranked, settings.epochs, heads)
    for signal in _BASELINE_FEATURES:
        network.direct[FIRST_FEATURES.index(signal)] = settings.plain * _DEVIATIONS_PER_UNIT / len(_BASELINE_FEATURES)
    return network


_Later = tuple[Vectors, State, str]
"""The features of a later pass, the pass, and its part of a source."""


def _later_passes_of_few(settings: DenseGateTraining, asked: Sequence[QueryStates], first: Network) -> list[_Later]:
    """Some of the later passes as in an index of a few documents, scored by a network not trained on them."""
    rng = np.random.default_rng(settings.seed)
    found: list[_Later] = []
    for a in asked:
        for state in a.later:
            if rng.random() < _FEW_LATER:
                first_pass, few = later_of_few(a.first_pass, state, rng)
                if len(first_pass.blocks) and len(few.blocks):
                    said, _ = block_logits(first, first_pass.first, first_pass.rows)
                    found.append((_later(few, first_pass, said), few, a.part))
    return found


def _fit_later(settings: DenseGateTraining, later: Sequence[_Later], heads: int) -> Network:
    ranked = [TrainingList(features, state.rows, state.relevant, part) for features, state, part in later]
    return fit_lists(settings, ranked, max(round(_LATER_EPOCHS * settings.epochs), 1), heads)


def _later(state: State, first_pass: State, said: Vectors) -> Vectors:
    """Features of a later pass, given these logits of the first."""
    of_block = dict(zip(first_pass.blocks.tolist(), said.tolist(), strict=True))
    lowest = min(of_block.values())
    first = [*of_block.values(), *(of_block.get(n, lowest) for n in state.blocks.tolist())]
    seen = np.array([n in of_block for n in state.blocks.tolist()])
    return later_features(state.own, np.array(first, np.float32), seen, state.rows)


def judged_queries(
    settings: DenseGateTraining, asked: Sequence[QueryStates], first: Network, enough: float = -np.inf
) -> list[JudgedQuery]:
    """Features of the first pass of each query, original and changed, with labels.

    Args:
        settings: Only the seed is used.
        asked: Queries that `first` was not trained on.
        first: The network of the first pass.
        enough: Logit from which a block is read, for the label of `more`.
    """
    rng = np.random.default_rng(settings.seed)
    found: list[JudgedQuery] = []
    for a in asked:
        features, logits = _question_input(first, a.first_pass)
        more = float(a.chained and _has_missed_block(a.first_pass, logits, len(a.relevant), enough))
        found.append(JudgedQuery(features, more, float(bool(a.relevant)), a.part, plain=True))
        unanswered = without_relevant(a.first_pass)
        if unanswered is not None:
            found.append(JudgedQuery(_question_input(first, unanswered)[0], -1.0, 0.0, a.part, plain=False))
        if rng.random() < _FEW_JUDGED:
            for answered in (True, False):
                few = of_few(a.first_pass, rng, answered=answered)
                if few is not None:
                    features, logits = _question_input(first, few)
                    held = int(few.relevant.sum())
                    more = float(a.chained and _has_missed_block(few, logits, held, enough)) if answered else -1.0
                    found.append(JudgedQuery(features, more, float(held > 0), a.part, plain=False))
    return found


def _has_missed_block(first_pass: State, logits: Vectors, relevant: int, enough: float) -> bool:
    """Whether a relevant block is not among the first ones or would not be read."""
    first = np.argsort(-logits, kind="stable")[:_READ]
    return bool(
        first_pass.relevant[first].sum() < min(relevant, _READ) or (logits[first_pass.relevant > 0] < enough).any()
    )


def _question_input(first: Network, first_pass: State) -> tuple[Vectors, Vectors]:
    """Question features of a first pass, and its logits of the blocks."""
    logits, windows = block_logits(first, first_pass.first, first_pass.rows)
    return question_features(first_pass.own[windows], first_pass.first[windows], logits), logits


@torch.inference_mode()
def query_logits(network: Network, judged: Sequence[JudgedQuery]) -> Vectors:
    """Logits of `more` and `found` before calibration, `[queries, 2]`."""
    if not judged:
        return np.zeros((0, 2), np.float32)
    return np.asarray(network(torch.from_numpy(np.stack([j.features for j in judged]))).numpy())


def _platt(said: Sequence[tuple[Vectors, Labels]]) -> tuple[float, float]:
    logits, labels = (torch.from_numpy(np.concatenate(parts)) for parts in zip(*said, strict=True))
    return platt(logits, labels, decay=1e-4)


def _enough(threshold: float, calibration: tuple[float, float]) -> float:
    """The logit before calibration for a probability."""
    slope, bias = calibration
    probability = min(max(threshold, 1e-6), 1 - 1e-6)
    return (float(np.log(probability / (1 - probability))) - bias) / slope if slope > 0 else float("-inf")
