"""The dense gate: a small trained network over the features, calibrated, with its own threshold."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from compmem.errors import CheckpointError
from compmem.gate.features import FEATURES
from compmem.schema import Vectors

SHIPPED = Path(__file__).parent.parent / "weights" / "dense_gate.safetensors"
FORMAT = "compmem-dense-gate/1"


class GateHead(nn.Module):
    """Features `[blocks, features]` -> logits `[blocks]`; `P = sigmoid(temperature * logit + bias)` is calibrated."""

    mean: Tensor
    scale: Tensor
    calibration: Tensor

    def __init__(self, hidden: int = 64, threshold: float = 0.5) -> None:
        super().__init__()
        size = len(FEATURES)
        self.threshold = threshold
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        self.register_buffer("calibration", torch.tensor([1.0, 0.0]))
        self.layers = nn.Sequential(
            nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, hidden // 2), nn.GELU(), nn.Linear(hidden // 2, 1)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Uncalibrated logits `[blocks]`."""
        logits: Tensor = self.layers((features - self.mean) / self.scale)
        return logits.squeeze(-1)

    def probabilities(self, features: Vectors) -> Vectors:
        """Calibrated probability that each block holds what the question needs, `[blocks]`."""
        logits = self(torch.from_numpy(features))
        slope, bias = self.calibration
        return np.asarray(torch.sigmoid(slope * logits + bias).numpy(), dtype=np.float32)

    def save(self, path: Path) -> None:
        """Writes weights, feature names and threshold to one safetensors file."""
        facts = {
            "format": FORMAT,
            "features": json.dumps(FEATURES),
            "hidden": str(self.layers[0].out_features),
            "threshold": repr(self.threshold),
        }
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, path, metadata=facts)

    @classmethod
    def load(cls, path: Path = SHIPPED) -> "GateHead":
        """The gate from a file.

        Raises:
            CheckpointError: The file is missing, is no gate, or was trained on other features.
        """
        if not path.is_file():
            raise CheckpointError(f"no gate weights at {str(path)!r}")
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            if facts.get("format") != FORMAT:
                raise CheckpointError(f"{str(path)!r} is {facts.get('format')!r}, not {FORMAT!r}")
            if tuple(json.loads(facts["features"])) != FEATURES:
                raise CheckpointError(f"{str(path)!r} was trained on other features; train it again")
            head = cls(int(facts["hidden"]), float(facts["threshold"]))
            head.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (no mapping)
        return head.eval()
