"""The gate: which blocks are worth recalling now?"""

from compmem.gate.features import FEATURES, Digest, digest, digests, features
from compmem.gate.head import GateHead
from compmem.gate.latent import LatentGate

__all__ = ["FEATURES", "Digest", "GateHead", "LatentGate", "digest", "digests", "features"]
