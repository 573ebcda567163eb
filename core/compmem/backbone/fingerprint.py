"""A hash of what determines memory blocks: the memory settings and the weights of a backbone."""

import hashlib
import json
from dataclasses import asdict

import torch

from compmem.backbone.config import MemoryConfig
from compmem.backbone.decoder import Decoder


def fingerprint(decoder: Decoder, memory_config: MemoryConfig) -> str:
    """The hash, 32 hexadecimal digits; the same on every device, in float32 and in bfloat16."""
    memory = asdict(memory_config)
    # The store compares the ratio separately, with its own error message.
    del memory["ratio"]
    digest = hashlib.sha256(json.dumps(memory, sort_keys=True).encode())
    readers = (".adapters.reasoner_", ".adapters.gate_", "gate_head.")
    for name, parameter in sorted(decoder.named_parameters()):
        if any(mark in name for mark in readers):
            continue
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 256)].to(device="cpu", dtype=torch.bfloat16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
