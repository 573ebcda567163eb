"""Short hashes of what decides on a measurement."""

import hashlib
from importlib import resources


def digest(data: bytes) -> str:
    """The first 16 digits of a SHA-256."""
    return hashlib.sha256(data).hexdigest()[:16]


def gate_digest() -> str:
    """That of the shipped gate."""
    return digest(resources.files("compmem").joinpath("weights", "dense_gate.safetensors").read_bytes())
