"""The gate: which blocks are worth recalling now?"""

from compmem.gate.blocks import Digest, digest, digests
from compmem.gate.features import FEATURES, features
from compmem.gate.head import FirstLook, GateHead
from compmem.gate.latent import NO_NOTES, LatentGate, gate_prompt

__all__ = [
    "FEATURES", "NO_NOTES", "Digest", "FirstLook", "GateHead", "LatentGate", "digest", "digests", "features",
    "gate_prompt",
]  # fmt: skip
