"""The device of a run: its name, the precision, and the speed of its matrix products."""

import platform
import time

import torch

from compmem.backbone import Backbone


def device_name(device: torch.device) -> str:
    """What computes."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def precision(backbone: Backbone) -> torch.autocast:
    """Autocast for decoding and measuring: trained weights are float32 even if the frozen ones are not."""
    weight = backbone.decoder.embed_tokens.weight
    mixed = weight.dtype in (torch.bfloat16, torch.float16)
    # A graph captured inside would later read cast copies that were freed on exit, so the cache is off.
    return torch.autocast(
        weight.device.type, weight.dtype if mixed else torch.bfloat16, enabled=mixed, cache_enabled=False
    )


def matmul_ceiling(device: torch.device, *, bf16: bool, seconds: float) -> float:
    """Floating-point operations per second of a large matrix product on the device, the best of a few."""
    size = 8192 if device.type == "cuda" else 1024
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    best, began = float("inf"), time.monotonic()
    while time.monotonic() - began < seconds or best == float("inf"):
        _settle(device)
        start = time.perf_counter()
        a @ a
        _settle(device)
        best = min(best, time.perf_counter() - start)
    return 2 * size**3 / best


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
