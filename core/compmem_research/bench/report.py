"""The page of results, made only from the result files."""

import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from compmem_research.bench import (
    answers_report,
    domains_report,
    fusion_report,
    latency,
    load,
    plan,
    quality_report,
    shard_actors,
    sharded,
    threads,
)
from compmem_research.bench.retrieval import METRICS

PUBLISHED = {
    "2wikimultihopqa_retrieval": "76.5 (NV-Embed-v2, 7B), 90.4 (HippoRAG 2, 70B LLM); their 1,000 questions",
    "hotpotqa": "94.5 (NV-Embed-v2), 96.3 (HippoRAG 2); another sample",
    "musique": "69.7 (NV-Embed-v2), 74.7 (HippoRAG 2); another sample",
}
"""Published recall@5, and how the published setting differs."""

NOTES = {
    **tomllib.loads((files("compmem_research.bench") / "notes.toml").read_text(encoding="utf-8")),
    "serve": load.NOTE, "latency": latency.NOTE, "sharded": sharded.NOTE, "shard_actors": shard_actors.NOTE,
    "threads": threads.NOTE,
}  # fmt: skip
"""Notes for readers of a run."""


def report(results: Path, plots: Sequence[Path] = ()) -> str:
    """The page as Markdown, from every result in the folder.

    Args:
        results: The folder.
        plots: Plots of the runs to include; they are below the folder.

    Raises:
        ValueError: The folder has no result.
    """
    runs = {p.stem: json.loads(p.read_text()) for p in sorted(results.glob("*.json"))}
    sweeps = quality_report.results(results)
    if not runs and not sweeps:
        raise ValueError(f"no results in {str(results)!r}")
    lines = ["# Results", "", "Made by `compmem bench report` from the files beside it. Failures stay in.", ""]
    lines += _quality(sweeps, plots)
    for name, run in runs.items():
        body = next((of(run) for key, of in KINDS.items() if key in run), _flat(run))
        lines += [
            f"## {name}",
            "",
            *([NOTES[name], ""] if name in NOTES else []),
            *body,
            "",
            f"`{run.get('command', 'compmem train evaluate')}`  ",
            _machine(run["machine"]) if "machine" in run else f"{run['device']}; torch {run['torch']}.",
            "",
        ]
    return "\n".join(lines)


def _quality(sweeps: Sequence[quality_report.Result], plots: Sequence[Path]) -> Iterator[str]:
    if sweeps:
        yield from ("## Quality", "", quality_report.READING, "")
    for result in sweeps:
        yield from (f"### {result.name}", "")
        for plot in plots:
            if plot.stem.startswith(f"{result.name}-"):
                yield from (f"![{plot.stem.replace('-', ', ')}]({plot.parent.name}/{plot.name})", "")
        yield from quality_report.pages(result)
        about = result.environment
        yield from (f"`{about['command']}`  ", _machine(about["machine"]), "")


def _recall(run: Mapping[str, Any]) -> Iterator[str]:
    yield f"{run['questions']} questions over {run['passages']} passages; per cent, 95 % bootstrap interval at 5."
    published = next((v for k, v in PUBLISHED.items() if run["data"].startswith(k)), None)
    if published:
        yield f"Published recall@5: {published}."
    measured = {m for row in run["systems"].values() for m in row}
    shown = [m for m in (*METRICS, "nothing_found", "false_alarms") if m in measured]
    yield ""
    yield f"| system | {' | '.join(shown).replace('_', ' ')} | interval at 5 | seconds a question |"
    yield "| --- |" + " ---: |" * (len(shown) + 2)
    for name, row in run["systems"].items():
        low, high = row.get("recall@5 95%", (None, None))
        interval = "-" if low is None else f"{low:.1f} to {high:.1f}"
        cells = " | ".join(f"{row[m]:.1f}" if m in row else "-" for m in shown)
        yield f"| {name} | {cells} | {interval} | {row['seconds_per_question']:.3f} |"
    if losses := run.get("losses"):
        yield ""
        yield (
            f"Where gold passages are lost (first 200 questions): the first stage proposes "
            f"{losses['proposed_at_first']} % at once and {losses['proposed_ever']} % over the loop; "
            f"{losses['read']} % are read."
        )


def _recalls(run: Mapping[str, Any]) -> Iterator[str]:
    for own in run["runs"]:
        yield from (f"### {own['data']}", "", *_recall(own), "")


def _speed(run: Mapping[str, Any]) -> Iterator[str]:
    yield f"Backbone {run['backbone']}, {run['device']}, {run['dtype']}, compressor: {run['compressor']}."
    yield ""
    yield "| system | tokens | first answer, s | warm answer, s | extrapolated |"
    yield "| --- | ---: | ---: | ---: | --- |"
    for row in run["rows"]:
        shown = [f"{row[k]:.2f}" if isinstance(row.get(k), float) else "-" for k in ("first_seconds", "warm_seconds")]
        known = "yes" if row.get("extrapolated") else ""
        yield f"| {row['system']} | {row['length']} | {' | '.join(shown)} | {known} |"


def _loops(run: Mapping[str, Any]) -> Iterator[str]:
    made, settings = run["backbone"], run["settings"]
    yield (
        f"{made['parameters']:,} parameters, ratio {made['ratio']}, chunks of at most {settings['chunk_tokens']} "
        f"tokens, at most {settings['max_steps']} steps. Per cent of the questions, 95 % bootstrap interval."
    )
    yield ""
    yield "| task | tokens | system | questions | right | blocks read of | seconds to compress / answer | malformed |"
    yield "| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: |"
    for line in run["lines"]:
        low, high = line["interval"]
        yield (
            f"| {line['task']} | {line['length']} | {line['system']} | {line['questions']} "
            f"| {line['accuracy']:.1f} [{low:.0f}, {high:.0f}] | {line['blocks_read']} of {line['blocks']} "
            f"| {line['seconds_compress']:.2f} / {line['seconds_answer']:.2f} | {line['malformed']} |"
        )


def _ways(run: Mapping[str, Any]) -> Iterator[str]:
    shown = ("seconds", "processor_seconds", "passages_per_second", "speed_up", "efficiency", "seconds_writing")
    yield f"{run['passages']:,} passages, encoder {run['encoder']}, {run['cores']} cores."
    yield ""
    yield f"| way | {' | '.join(shown).replace('_', ' ')} |"
    yield "| --- |" + " ---: |" * len(shown)
    for row in run["ways"]:
        yield f"| {row['how']} | {' | '.join(str(row.get(name, '-')) for name in shown)} |"


def _flat(run: Mapping[str, Any]) -> Iterator[str]:
    yield "| what | measured |"
    yield "| --- | --- |"
    for name, value in run.items():
        if name in ("command", "machine"):
            continue
        shown = ", ".join(f"{k}: {v}" for k, v in value.items()) if isinstance(value, dict) else value
        yield f"| {name} | {shown} |"


KINDS: dict[str, Callable[[Mapping[str, Any]], Iterator[str]]] = {
    "systems": _recall,
    "runs": _recalls,
    "sets": domains_report.pages,
    "answers": answers_report.pages,
    "fusion": fusion_report.pages,
    "rows": _speed,
    "lines": _loops,
    "ways": _ways,
    "plans": plan.pages,
    "latency": latency.pages,
    "sharded": sharded.pages,
    "shard_actors": shard_actors.pages,
    "levels": load.pages,
    "by_threads": threads.pages,
}
"""How a result is shown, by a key that only its kind has."""


def _machine(machine: Mapping[str, Any]) -> str:
    where = machine["gpu"] or f"{machine['cpu']} with {', '.join(machine['cpu_features'])}"
    return f"{machine['threads']} CPU threads, {where}; Python {machine['python']}, torch {machine['torch']}."
