"""The gate: which blocks are worth recalling now?"""

from compmem.gate.blocks import Digest, digest, digests
from compmem.gate.features import FEATURES, features
from compmem.gate.head import GateHead
from compmem.gate.latent import NO_NOTES, LatentGate, gate_prompt

__all__ = ["FEATURES", "NO_NOTES", "Digest", "GateHead", "LatentGate", "digest", "digests", "features", "gate_prompt"]
