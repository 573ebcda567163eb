"""Short hashes of what decides on a measurement or on a run of a stage."""

import hashlib
import json
from importlib import resources
from pathlib import Path
from typing import Literal

import torch

from compmem.backbone import Backbone


def digest(data: bytes) -> str:
    """The first 16 digits of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def file_digest(file: Path | None) -> str | None:
    """Digest of a file's content; None if there is no file."""
    return digest(file.read_bytes()) if file is not None and file.is_file() else None


def gate_digest() -> str:
    """Digest of the shipped gate."""
    return digest(resources.files("compmem").joinpath("weights", "dense_gate.safetensors").read_bytes())


def part_digest(backbone: Backbone, part: Literal["reasoner", "gate"], *, dtype: torch.dtype = torch.float32) -> str:
    """The SHA-256 of a part's parameters, rounded to a dtype."""
    found = hashlib.sha256()
    for name, parameter in sorted(backbone.parameters(part).items()):
        found.update(name.encode() + parameter.detach().to(dtype).float().cpu().numpy().tobytes())
    return found.hexdigest()


def backbone_digest(backbone: Backbone) -> str:
    """Digest of all weights: what makes blocks, what reads them, and the gate with its threshold.

    It is the same on every device, in float32 and bfloat16.
    """
    reader, gate = (part_digest(backbone, part, dtype=torch.bfloat16) for part in ("reasoner", "gate"))
    return digest(json.dumps([backbone.fingerprint(), reader, gate, backbone.threshold]).encode())
