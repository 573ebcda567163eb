"""The dense gate: small trained networks over the features, calibrated, with their own thresholds.

Three networks: `first` scores blocks in the first pass, which sees only the question. `later` scores blocks with a
working memory; its input includes the scores of the first pass. `question` predicts for the whole question whether
later passes will find more, and whether any block answers it.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compmem.checks import check_fraction
from compmem.errors import CheckpointError
from compmem.gate.listwise import (
    FIRST_FEATURES,
    LATER_FEATURES,
    QUESTION_FEATURES,
    first_features,
    later_features,
    question_features,
)
from compmem.retrieval.ranking import SearchRanks
from compmem.schema import Vectors

SHIPPED = Path(__file__).parent.parent / "weights" / "dense_gate.safetensors"
FORMAT = "compmem-dense-gate/3"

_FEATURES: Final = {"first": FIRST_FEATURES, "later": LATER_FEATURES, "question": QUESTION_FEATURES}
_MAX_DEVIATIONS: Final = 5.0
"""Features are clipped at this many standard deviations from the mean, the range seen in training."""
_MIN_SCALE: Final = 0.05


class Network(nn.Module):
    """Features `[rows, size]` -> logits `[rows, outputs]`: the mean of `heads` networks of two hidden layers.

    Attributes:
        direct: Weights with which features are added to that mean directly, `[size, outputs]`. Not trained.
    """

    mean: Tensor
    scale: Tensor
    direct: Tensor

    def __init__(self, size: int, hidden: int, outputs: int = 1, heads: int = 1) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("direct", torch.zeros(size, outputs))
        self.one = nn.Parameter(_normal(heads, size, hidden))
        self.one_bias = nn.Parameter(torch.zeros(heads, 1, hidden))
        self.two = nn.Parameter(_normal(heads, hidden, hidden // 2))
        self.two_bias = nn.Parameter(torch.zeros(heads, 1, hidden // 2))
        self.out = nn.Parameter(_normal(heads, hidden // 2, outputs))
        self.out_bias = nn.Parameter(torch.zeros(heads, 1, outputs))

    def fit_scale(self, features: Tensor) -> None:
        """Sets mean and deviation of each feature from these rows."""
        self.mean.copy_(features.mean(0))
        self.scale.copy_(features.std(0).clamp(min=_MIN_SCALE))

    def forward(self, features: Tensor) -> Tensor:
        """Uncalibrated logits `[rows, outputs]`."""
        return self.each(features).mean(0) + features @ self.direct

    def each(self, features: Tensor) -> Tensor:
        """The logits of each network, without the direct part, `[heads, rows, outputs]`."""
        x = ((features - self.mean) / self.scale).clamp(-_MAX_DEVIATIONS, _MAX_DEVIATIONS)
        hidden = nn.functional.gelu(x @ self.one + self.one_bias)
        hidden = nn.functional.gelu(hidden @ self.two + self.two_bias)
        logits: Tensor = hidden @ self.out + self.out_bias
        return logits


@dataclass(frozen=True, slots=True)
class FirstPass:
    """The gate's result for the candidates of a question, before anything is read."""

    logits: Vectors
    """`[blocks]`."""
    probabilities: Vectors
    """Calibrated probability that each block contains what the question needs, `[blocks]`."""
    more: float
    """Probability that later passes, with a working memory, find what is still missing."""
    found: float
    """Probability that any of the blocks answers the question."""


class GateHead(nn.Module):
    """Scores the candidates of a question; see the module docstring.

    Attributes:
        threshold: Blocks with a lower probability are not read.
        more_threshold: The loop queries again if `FirstPass.more` is at least this.
        found_threshold: The index is said to contain no answer if `FirstPass.found` is lower.
    """

    calibration: Tensor
    """Slope and bias of the logits of `first`, `later`, `more` and `found`, `[4, 2]`."""

    def __init__(self, hidden: int = 64, heads: int = 1) -> None:
        super().__init__()
        self.threshold = 0.5
        self.more_threshold = 0.5
        self.found_threshold = 0.0
        self.hidden, self.heads = hidden, heads
        self.register_buffer("calibration", torch.tensor([[1.0, 0.0]] * 4))
        self.first = Network(len(FIRST_FEATURES), hidden, heads=heads)
        self.later = Network(len(LATER_FEATURES), hidden, heads=heads)
        self.question = Network(len(QUESTION_FEATURES), hidden // 2, outputs=2, heads=heads)

    @torch.inference_mode()
    def first_pass(self, base_features: Vectors, search_ranks: SearchRanks, rows: NDArray[np.int64]) -> FirstPass:
        """Scores of the first pass over a question's candidates.

        Args:
            base_features: Features of each window under the question, `[windows, len(FEATURES)]`.
            search_ranks: Ranks of each window's block in the searches for the question, `[windows]`.
            rows: The block of each window, from 0, ascending; every block has one. `[windows]`.
        """
        features = first_features(base_features, search_ranks)
        best, top = best_windows(self.first(torch.from_numpy(features)).squeeze(-1).numpy(), rows)
        whole = question_features(base_features[top], features[top], best)
        both = self.question(torch.from_numpy(whole)[None])[0].numpy()
        more, found = (float(self.calibrated(both[n : n + 1], 2 + n)[0]) for n in (0, 1))
        return FirstPass(best, self.calibrated(best, 0), more, found)

    @torch.inference_mode()
    def later_pass(
        self, base_features: Vectors, first: Vectors, seen: NDArray[np.bool_], rows: NDArray[np.int64]
    ) -> Vectors:
        """The probability of each block with a working memory, `[blocks]`; arguments as in `later_features`."""
        logits = self.later(torch.from_numpy(later_features(base_features, first, seen, rows))).squeeze(-1).numpy()
        return self.calibrated(best_windows(logits, rows)[0], 1)

    def calibrated(self, logits: Vectors, of: int) -> Vectors:
        """Logits as probabilities, by the calibration of one of the outputs."""
        slope, bias = self.calibration[of].tolist()
        return np.asarray(1 / (1 + np.exp(-np.clip(slope * logits + bias, -60, 60))), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Writes weights, feature names and thresholds to one safetensors file."""
        facts = {
            "format": FORMAT,
            "features": json.dumps(_FEATURES),
            "hidden": str(self.hidden),
            "heads": str(self.heads),
            "thresholds": json.dumps([self.threshold, self.more_threshold, self.found_threshold]),
        }
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path, metadata=facts)

    @classmethod
    def load(cls, path: Path = SHIPPED) -> "GateHead":
        """The gate from a file.

        Raises:
            CheckpointError: The file is missing, is not a gate, or was trained on other features.
        """
        if not path.is_file():
            raise CheckpointError(f"no gate weights at {str(path)!r}")
        try:
            with safe_open(path, "pt") as file:
                facts = file.metadata() or {}
                if facts.get("format") != FORMAT:
                    raise CheckpointError(f"{str(path)!r} is {facts.get('format')!r}, not {FORMAT!r}")
                if json.loads(facts["features"]) != json.loads(json.dumps(_FEATURES)):
                    raise CheckpointError(f"{str(path)!r} was trained on other features; train it again")
                head = cls(int(facts["hidden"]), int(facts["heads"]))
                head.threshold, head.more_threshold, head.found_threshold = json.loads(facts["thresholds"])
                for threshold in (head.threshold, head.more_threshold, head.found_threshold):
                    check_fraction("a threshold", threshold)
                head.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
            raise CheckpointError(f"{str(path)!r} is not a gate: {error}") from error
        return head.eval()


def _normal(heads: int, size: int, out: int) -> Tensor:
    return torch.randn(heads, size, out) / math.sqrt(size)


def best_windows(logits: Vectors, rows: NDArray[np.int64]) -> tuple[Vectors, NDArray[np.int64]]:
    """The highest logit among each block's windows, and the first window with it, `[blocks]` each.

    Args:
        logits: `[windows]`.
        rows: The block of each window, from 0, ascending; every block has one. `[windows]`.
    """
    starts = np.searchsorted(rows, np.arange(rows[-1] + 1))
    best = np.maximum.reduceat(logits, starts)
    hits = np.flatnonzero(logits == best[rows])
    return best, hits[np.searchsorted(hits, starts)]
