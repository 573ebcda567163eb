"""Wall-clock time and processor time of this process; the latter does not depend on other load of the machine."""

import os
import time
from pathlib import Path

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


def tree_seconds(pid: int) -> float:
    """Processor time of a process and of all that it has started so far; 0 where the system does not tell."""
    try:
        tasks = Path(f"/proc/{pid}/task").iterdir()
        children = {child for task in tasks for child in (task / "children").read_text().split()}
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    own = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")  # its own, and that of children that have ended
    return own + sum(tree_seconds(int(child)) for child in children)
