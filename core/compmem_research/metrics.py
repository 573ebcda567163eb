"""Scores of answers and of recall, for rewards and benchmarks."""

import math
import re
import string
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CITATION = re.compile(r"\s{0,9}\[\d{1,4}(?:\s{0,3},\s{0,3}\d{1,4}){0,31}\]")
_DRAWS = 2000
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and repeated spaces (SQuAD's normalisation)."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def without_citations(text: str) -> str:
    """An answer without citation marks, as in `[1]` or `[1, 3]`."""
    return _CITATION.sub("", text).strip()


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction equals one of the answers after normalisation."""
    said = normalize(prediction)
    return float(any(said == normalize(a) for a in answers))


def f1(prediction: str, answers: Sequence[str]) -> float:
    """The best harmonic mean of token precision and recall over the answers."""
    return max((_f1(normalize(prediction).split(), normalize(a).split()) for a in answers), default=0.0)


def sub_em(prediction: str, answers: Sequence[str]) -> float:
    """1.0 if the prediction contains one of the answers as whole words; a shorter prediction does not count."""
    said = f" {normalize(prediction)} "
    return float(any(a and f" {a} " in said for a in map(normalize, answers)))


def sub_em_two_way(prediction: str, answers: Sequence[str]) -> float:
    """The published sub-EM (2507.02259): first answer in prediction, or prediction in first answer.

    For comparison with published tables: a prediction that is empty after normalisation counts as a hit.
    """
    said, gold = normalize(prediction), normalize(answers[0])
    return float(gold in said or said in gold)


def string_match(prediction: str, references: Sequence[str]) -> float:
    """Share of the references that the prediction contains, ignoring case (RULER)."""
    said = prediction.lower()
    return sum(r.lower() in said for r in references) / len(references)


def recall_at(ranked: Sequence[object], gold: Collection[object], k: int) -> float:
    """Share of the gold items among the first k."""
    return len(set(ranked[:k]) & set(gold)) / len(set(gold))


def ndcg_at(ranked: Sequence[object], gold: Collection[object], k: int) -> float:
    """Discounted cumulative gain of the first k, divided by the best possible; all gold items have the same weight."""
    found, right = list(dict.fromkeys(ranked))[:k], set(gold)
    gain = sum(1 / math.log2(rank + 1) for rank, item in enumerate(found, 1) if item in right)
    return gain / sum(1 / math.log2(rank + 1) for rank in range(1, min(len(right), k) + 1))


def calibration_error(probabilities: NDArray[np.floating], labels: NDArray[np.floating]) -> float:
    """Expected calibration error: mean gap between probability and frequency over ten equal bins, by their size."""
    bins = 10
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    gaps = [
        abs(float(probabilities[which == b].mean() - labels[which == b].mean())) * float((which == b).mean())
        for b in range(bins)
        if (which == b).any()
    ]
    return sum(gaps)


def bootstrap_interval(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile interval of the mean, from resampled questions."""
    data = np.asarray(values, dtype=float)
    picks = np.random.default_rng(seed).integers(0, len(data), (_DRAWS, len(data)))
    low, high = np.percentile(data[picks].mean(axis=1), [2.5, 97.5])
    return float(low), float(high)


def mean_with_interval(values: Sequence[float], *, digits: int = 1, seed: int = 0) -> tuple[float, list[float]]:
    """The mean and its 95 % bootstrap interval, rounded."""
    interval = bootstrap_interval(values, seed=seed)
    return round(float(np.mean(values)), digits), [round(limit, digits) for limit in interval]


def mean_figures(name: str, values: Sequence[float], *, digits: int = 1) -> dict[str, Any]:
    """The mean under a name, and its interval under `NAME 95%`; nothing if there are no values."""
    if not values:
        return {}
    mean, interval = mean_with_interval(values, digits=digits)
    return {name: mean, f"{name} 95%": interval}


def _f1(said: list[str], gold: list[str]) -> float:
    if not said or not gold:
        return float(said == gold)
    shared = sum((Counter(said) & Counter(gold)).values())
    return 2 * shared / (len(said) + len(gold))
