"""What a piece of work takes at most: on a GPU beyond the weights, on a CPU beyond what was held before it."""

from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Watches a device from now on: a GPU's allocations; on a CPU, the process (on Linux, where its peak resets)."""

    def __init__(self, device: torch.device, weights: int) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = weights
            return
        try:
            _RESET.write_text("5")
            self._before = _kilobytes("VmRSS")
        except OSError:
            self._before = None

    def bytes(self) -> int | None:
        """The highest so far beyond the beginning; None where that cannot be told."""
        if self._before is None:
            return None
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device) - self._before
        return max(0, _kilobytes("VmHWM") - self._before)


def _kilobytes(name: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])
