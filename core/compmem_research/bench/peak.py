"""Peak memory of a piece of work."""

import os
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

_STATUS = Path("/proc/self/statm")
_EVERY = 0.005


class Peak:
    """Peak of resident memory, or of a CUDA device, above the start: `with Peak() as peak: ...; peak.bytes`.

    Attributes:
        bytes: None if the system does not report it (no `/proc`).
    """

    def __init__(self, device: torch.device | None = None) -> None:
        self.bytes: int | None = None
        self._cuda = device if device is not None and device.type == "cuda" else None
        self._before = 0
        self._most = 0
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._sample, name="compmem-peak", daemon=True)

    def __enter__(self) -> Self:
        if self._cuda is not None:
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = torch.cuda.memory_allocated(self._cuda)
        elif _STATUS.exists():
            self._before = self._most = _resident()
            self._watch.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._cuda is not None:
            self.bytes = torch.cuda.max_memory_allocated(self._cuda) - self._before
        elif self._watch.is_alive():
            self._done.set()
            self._watch.join()
            self.bytes = max(self._most, _resident()) - self._before

    def _sample(self) -> None:
        while not self._done.wait(_EVERY):
            self._most = max(self._most, _resident())


def _resident() -> int:
    return int(_STATUS.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
