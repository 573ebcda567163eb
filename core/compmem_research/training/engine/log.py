"""The log of a run: JSON lines, and a plot."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

LOG, PLOT = "log.jsonl", "log.png"


class Log:
    """Appends JSON lines; lines that a killed run wrote after its last checkpoint are dropped.

    Args:
        folder: Folder of the log.
        step: The step from which the run continues.
        main: Whether this process writes.
    """

    def __init__(self, folder: Path, step: int, *, main: bool) -> None:
        self._file = folder / LOG
        self._main = main
        if not main:
            return
        folder.mkdir(parents=True, exist_ok=True)
        kept = [line for line in read_log(folder) if line["step"] <= step] if step else []
        self._file.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write(self, line: Mapping[str, Any]) -> None:
        """Write one line, to the file and to the logger."""
        if not self._main:
            return
        text = json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in line.items()})
        with self._file.open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        logger.info("%s", text)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's log, without a truncated last line."""
    file = folder / LOG
    if not file.exists():
        return []
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def plot(folder: Path) -> None:
    """Plot a run's log into its folder; without matplotlib, a log message says that there is no plot."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("no plot of %s: matplotlib is not installed (pip install 'compmem[train]')", folder / LOG)
        return
    curves: dict[str, list[tuple[int, float]]] = {}
    for line in read_log(folder):
        for name, value in line.items():
            if isinstance(value, float) and (name.startswith("loss") or "exact" in name):
                curves.setdefault(name, []).append((line["step"], value))
    losses = [name for name in curves if name.startswith("loss")]
    rest = [name for name in curves if name not in losses]
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    for axis, names, label in zip(figure.subplots(1, 2), (losses, rest), ("loss", "exact match"), strict=True):
        for name in names:
            axis.plot(*zip(*curves[name], strict=True), label=name, marker="." if label != "loss" else None)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
        if names:
            axis.legend(fontsize="small")
    figure.savefig(folder / PLOT, dpi=120)
