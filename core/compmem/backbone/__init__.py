"""The causal LM: loading, memory tokens, reading recalled blocks, scoring, decoding."""

from compmem.backbone.backbone import Backbone
from compmem.backbone.chat_prefix import Blocks
from compmem.backbone.checkpoint import IMPORTANCE, BackboneComponents, size_on_disk
from compmem.backbone.chunk_text import chunk_ids, window_sizes
from compmem.backbone.config import AdapterConfig, Linear, MemoryConfig, Role
from compmem.backbone.fusion import fuse_blocks
from compmem.backbone.memory_tokens import memory_token_count
from compmem.backbone.parallel_encoding import stream_parallel
from compmem.backbone.prompts import Prompt
from compmem.backbone.stock import load_tokenizer

__all__ = [
    "IMPORTANCE",
    "AdapterConfig",
    "Backbone",
    "BackboneComponents",
    "Blocks",
    "Linear",
    "MemoryConfig",
    "Prompt",
    "Role",
    "chunk_ids",
    "fuse_blocks",
    "load_tokenizer",
    "memory_token_count",
    "size_on_disk",
    "stream_parallel",
    "window_sizes",
]
