"""The gate: which blocks are worth recalling now?"""

from compmem.gate.blocks import Digest, digest, digests
from compmem.gate.features import FEATURES, features
from compmem.gate.head import FirstLook, GateHead, Network, best_windows
from compmem.gate.latent import NO_NOTES, LatentGate, gate_prompt
from compmem.gate.listwise import (
    FIRST_FEATURES,
    LATER_FEATURES,
    QUESTION_FEATURES,
    first_features,
    later_features,
    question_features,
)

__all__ = [
    "FEATURES", "FIRST_FEATURES", "LATER_FEATURES", "NO_NOTES", "QUESTION_FEATURES", "Digest", "FirstLook", "GateHead",
    "LatentGate", "Network", "best_windows", "digest", "digests", "features", "first_features", "gate_prompt",
    "later_features", "question_features",
]  # fmt: skip
