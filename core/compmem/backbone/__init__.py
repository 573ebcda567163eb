"""The causal LM: loading, memory tokens, reading recalled blocks, scoring, decoding."""

from compmem.backbone.backbone import Backbone
from compmem.backbone.config import AdapterConfig, MemoryConfig, Role
from compmem.backbone.prompts import Prompt

__all__ = ["AdapterConfig", "Backbone", "MemoryConfig", "Prompt", "Role"]
