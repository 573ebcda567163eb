"""`compmem bench ...`: each measurement prints a table, or JSON, and can write its result to a file."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from compmem_research.bench.quality_commands import answers, domains, fusion, quality, recall, wrapped
from compmem_research.bench.service_commands import serve, sharded, threads
from compmem_research.bench.speed_commands import build, encode, latency, plan, scale, speed
from compmem_research.tasks.official import Form, records, write_records

app = typer.Typer(no_args_is_help=True, help="Measure quality, recall and speed, as in the published results.")

_OWN_OPTIONS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

_MEASUREMENTS = (
    recall, domains, wrapped, answers, fusion, encode, scale, latency, sharded, plan, build, serve, threads,
)  # fmt: skip
for _measurement in _MEASUREMENTS:
    app.command()(_measurement)
app.command(context_settings=_OWN_OPTIONS)(speed)
app.command()(quality)


@app.command()
def convert(
    form: Annotated[Form, typer.Argument(help="Data set that the file is from.", show_default=False)],
    source: Annotated[Path, typer.Argument(help="The data set's original file, also as .gz or .xz.")],
    out: Annotated[Path, typer.Argument(help="JSONL of questions to write; the suffix decides the compression.")],
) -> None:
    """Convert a data set's original file to the questions that the other measurements read."""
    count = write_records(out, records(source, form))
    Console().print(f"{count} questions written to {out}")


@app.command()
def report(results: Annotated[Path, typer.Option(help="The folder of the results.")] = Path("core/results")) -> None:
    """Writes the page of results and its plots from the result files."""
    from compmem_research.bench.plots import draw, draw_recall
    from compmem_research.bench.quality_report import results as runs
    from compmem_research.bench.report import report as page

    draw_recall(results, results / "plots" / "recall.png")
    plots = draw(runs(results), results / "plots")
    (results / "README.md").write_text(page(results, plots), encoding="utf-8")
