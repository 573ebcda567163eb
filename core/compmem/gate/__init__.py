"""The gate: which blocks are worth recalling now?"""

from compmem.gate.blocks import Digest, digest, digests
from compmem.gate.features import FEATURES, features
from compmem.gate.head import GateHead
from compmem.gate.latent import LatentGate

__all__ = ["FEATURES", "Digest", "GateHead", "LatentGate", "digest", "digests", "features"]
