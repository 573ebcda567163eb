"""The gate: which blocks are worth recalling at this step."""

from compmem.gate.backbone_gate import NO_NOTES, BackboneGate, gate_prompt
from compmem.gate.blocks import ParsedBlock, parse_block, parse_windows
from compmem.gate.features import FEATURES, features
from compmem.gate.head import FirstPass, GateHead, Network, best_windows
from compmem.gate.listwise import (
    FIRST_FEATURES,
    LATER_FEATURES,
    QUESTION_FEATURES,
    first_features,
    later_features,
    question_features,
)
from compmem.gate.unknown_words import unknown_share

__all__ = [
    "FEATURES",
    "FIRST_FEATURES",
    "LATER_FEATURES",
    "NO_NOTES",
    "QUESTION_FEATURES",
    "BackboneGate",
    "FirstPass",
    "GateHead",
    "Network",
    "ParsedBlock",
    "best_windows",
    "features",
    "first_features",
    "gate_prompt",
    "later_features",
    "parse_block",
    "parse_windows",
    "question_features",
    "unknown_share",
]  # fmt: skip
