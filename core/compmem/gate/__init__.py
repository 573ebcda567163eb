"""The gate: which blocks are worth recalling now?"""

from compmem.gate.features import FEATURES, Digest, digest, features
from compmem.gate.head import GateHead

__all__ = ["FEATURES", "Digest", "GateHead", "digest", "features"]
