"""Plots of the results: scores by context length, and recall of each system."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compmem_research.bench.cells import Cell
from compmem_research.bench.published import CHUNK_RECALL, SUB_EM
from compmem_research.bench.quality_report import RECALL, Result

Points = Sequence[tuple[float, float]]
"""Tokens of the context, and a value."""

THICK_LINES = ("compmem", "chunks-loop")
"""Systems with a thick line."""


def draw(found: Sequence[Result], folder: Path) -> list[Path]:
    """Writes the plots of the runs; returns their files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    written: list[Path] = []
    for result in found:
        lengths = {c for c in result.measured if Cell.read(c).task == "hqa" and not Cell.read(c).variant}
        if result.name == "memory":
            written.append(_memory(result, folder / "memory-tokens.png"))
        elif len(lengths) > 2 and any(RECALL in e for e in result.scores) and result.name == "chunks":
            told = _published(result, CHUNK_RECALL)
            written.append(_lines(
                _points(result, RECALL), told, folder / "chunks-recall.png", f"gold chunks in {RECALL}, %", log=False
            ))  # fmt: skip
        elif len(lengths) > 2:
            told = _published(result, SUB_EM)
            written += [
                _lines(_points(result, "score"), told, folder / f"{result.name}-score.png", "score, %", log=False),
                _lines(_points(result, "warm_s processor"), {}, folder / f"{result.name}-seconds.png",
                       "processor seconds of a warm answer", log=True),
            ]  # fmt: skip
    return written


def draw_recall(results: Path, file: Path) -> list[Path]:
    """Writes a plot of recall@5 by plain retrieval, the gate and the loop on each multi-hop set; returns its file.

    Args:
        results: The folder with the `recall_*.json` files of `compmem bench recall`.
        file: The plot.

    Raises:
        ImportError: matplotlib is not installed.
    """
    runs = [json.loads(path.read_text()) for path in sorted(results.glob("recall_*.json"))]
    if not runs:
        return []
    figure, axes = _axes("", "needed passages among the first five, %")
    systems = list(runs[0]["systems"])
    greys = ["#c9d1d9", "#aab4bf", "#8b97a5", "#7fb2e5", "#2b6cb0"]
    height = 0.8 / len(systems)
    for number, (system, colour) in enumerate(zip(systems, greys, strict=False)):
        shares = [run["systems"][system]["recall@5"] for run in runs]
        places = [place + number * height for place in range(len(runs))]
        axes.barh(places, shares, height * 0.92, color=colour, label=SHOWN.get(system, system))
        for place, share in zip(places, shares, strict=True):
            axes.text(share + 0.8, place, f"{share:.1f}", va="center", fontsize=7)
    titles = [TITLES.get(run["data"].split("_")[0], run["data"]) for run in runs]
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(runs))], titles)
    axes.set_xlim(0, 105)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    return [_save(figure, axes, file)]


SHOWN = {"bm25": "BM25", "fused": "dense and BM25 fused", "one-shot gate": "gate, one pass", "loop": "CompMem (loop)"}
TITLES = {"2wikimultihopqa": "2WikiMultihopQA", "hotpotqa": "HotpotQA", "musique": "MuSiQue"}
"""Names of systems and of data sets, by the first word of their file, as the plot shows them."""


def _points(result: Result, figure: str) -> dict[str, Points]:
    lines: dict[str, Points] = {}
    for system in result.systems:
        entries = [(c, result.entry(c, system)) for c in result.measured]
        points = [(_tokens(result, c), float(e[figure][0])) for c, e in entries if e is not None and figure in e]
        if points:
            lines[system] = points
    return lines


def _published(result: Result, figures: Mapping[str, Mapping[str, float]]) -> dict[str, Points]:
    by_length = {Cell.read(c).length: _tokens(result, c) for c in result.measured}
    return {
        f"{name} (published)": [(by_length[length], value) for length, value in by.items() if length in by_length]
        for name, by in figures.items()
    }


def _tokens(result: Result, cell: str) -> float:
    return float(result.cells.get(cell, {}).get("tokens", Cell.read(cell).tokens))


def _lines(lines: Mapping[str, Points], published: Mapping[str, Points], file: Path, what: str, *, log: bool) -> Path:
    figure, axes = _axes(what, "tokens of the context")
    colours = _colours(len(lines))
    for (name, points), colour in zip(lines.items(), colours, strict=True):
        width = 2.6 if name in THICK_LINES else 1.2
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3, linewidth=width, color=colour, label=name)
    for number, (name, points) in enumerate(published.items()):
        grey = str(0.35 + 0.1 * (number % 5))
        axes.plot(*zip(*points, strict=True), linestyle=":", marker="x", markersize=3, color=grey, label=name)
    axes.set_xscale("log")
    if log:
        axes.set_yscale("log")
    else:
        axes.set_ylim(0, 102)
    return _save(figure, axes, file)


def _memory(result: Result, file: Path) -> Path:
    figure, axes = _axes("tokens of working memory", "step")
    for entry, colour in zip(result.scores, _colours(len(result.scores)), strict=True):
        curve = entry.get("memory", [])
        width = 2.6 if entry["system"] in THICK_LINES else 1.2
        axes.plot(range(1, len(curve) + 1), curve, linewidth=width, color=colour, label=entry["system"])
    axes.set_ylim(bottom=0)
    return _save(figure, axes, file)


def _axes(what: str, against: str) -> tuple[Any, Any]:
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise ImportError('plots need matplotlib: pip install "compmem[bench]"') from error
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7.6, 4.0), dpi=100)
    axes.set_xlabel(against)
    axes.set_ylabel(what)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _colours(count: int) -> list[Any]:
    from matplotlib import colormaps

    table = colormaps["tab20"]
    return [table(i % 20) for i in range(count)]


def _save(figure: Any, axes: Any, file: Path) -> Path:
    from matplotlib import pyplot as plt

    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, bbox_inches="tight", metadata={"Software": None})
    plt.close(figure)
    return file
