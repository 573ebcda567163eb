"""Hashes of what determines memory blocks: the memory settings and the weights of a backbone, or of its stock model."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from compmem.backbone.config import MemoryConfig
from compmem.backbone.decoder import Decoder

SAMPLE_VALUES = 64
"""Values of each matrix in a sample."""


def fingerprint(decoder: Decoder, memory_config: MemoryConfig, *, predicted: bool) -> str:
    """The hash, 32 hexadecimal digits; the same on every device, in float32 and in bfloat16.

    Args:
        decoder: The layers.
        memory_config: The memory settings.
        predicted: Whether states are chosen by predicted importance, whose weights then count.
    """
    memory = asdict(memory_config)
    # The store compares these separately, with its own error message.
    del memory["ratio"], memory["pruning"]
    if memory_config.states == "inserted":
        del memory["states"]
    unused = (".adapters.reasoner_", ".adapters.gate_", "gate_head.", *(() if predicted else ("importance",)))
    kept = {n: p for n, p in decoder.named_parameters() if not any(mark in n for mark in unused)}
    return _hash(json.dumps(memory, sort_keys=True), kept)


def base_fingerprint(decoder: Decoder) -> str:
    """The hash of the stock model alone, 32 hexadecimal digits; the same in float32 and in bfloat16."""
    return _hash("", decoder.parameters_of("base"))


def base_sample(decoder: Decoder) -> Tensor:
    """Some values of each matrix of the stock model, one after the other, `[values]` in float32."""
    matrices = [(n, p.detach().flatten()) for n, p in sorted(decoder.parameters_of("base").items()) if p.dim() > 1]
    return torch.cat(
        [flat[:: max(1, flat.numel() // SAMPLE_VALUES)][:SAMPLE_VALUES].float().cpu() for _, flat in matrices]
    )


def sample_similarity(sample: Tensor, other: Tensor) -> float:
    """The cosine of two samples; 0 if they are of models of other sizes."""
    if sample.shape != other.shape:
        return 0.0
    return float(torch.nn.functional.cosine_similarity(sample.double(), other.double(), dim=0))


def _hash(settings: str, parameters: Mapping[str, Parameter]) -> str:
    """A hash of settings and of a sample of each parameter, rounded to bfloat16."""
    digest = hashlib.sha256(settings.encode())
    for name, parameter in sorted(parameters.items()):
        flat = parameter.detach().flatten()
        sample = flat[:: max(1, flat.numel() // 256)].to(device="cpu", dtype=torch.bfloat16)
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(sample.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]
