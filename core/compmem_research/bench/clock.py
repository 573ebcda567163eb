"""Wall-clock time and processor time of this process; the latter does not depend on other load of the machine."""

import time

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]
"""Seconds of wall-clock time and of processor time, all threads together, `[2]`."""


def now() -> Times:
    """Both clocks; only differences are meaningful."""
    return np.array([time.perf_counter(), time.process_time()])


def none() -> Times:
    """Zero time."""
    return np.zeros(2)
