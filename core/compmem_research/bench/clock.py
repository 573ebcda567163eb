"""Time as it passes, and as this process works: the second is the same on a busy machine as on an idle one."""

import time

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
"""Seconds of the clock and of the processor, all threads together, `[2]`."""


def now() -> Times:
    """Both clocks; only differences mean anything."""
    return np.array([time.perf_counter(), time.process_time()])


def none() -> Times:
    """No time at all."""
    return np.zeros(2)
