"""The page of results, made only from the result files."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
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
    "answers": (
        "The systems ran as separate processes over one server of the model, which batched their requests, so seconds "
        "do not compare systems. The prompt was chosen on training questions."
    ),
    "answers_time": (
        "One request at a time, server and client on the same core: these seconds do compare systems. The questions "
        "are the first 15 of two sets of `answers`, less one of 2Wiki, during which the server was paused."
    ),
    "build": (
        "Tests ran on the same cores beside the rows of one and two workers, which their processor seconds show."
    ),
    "scale": (
        "The documents' vectors are random, so encoding is not in the adding times, and the gate turns nearly "
        "everything down: `loop_ms` is about one step. `loop_of_four_steps_ms` forces four. Of the 180 timed calls, "
        "152 repeat an earlier question, whose blocks may be in the cache; now each call has its own."
    ),
    "plan": (
        "Arithmetic and a seeded simulation, not a measurement. What it starts from and what it assumes is in the "
        "file, and explained in docs/scale.md."
    ),
    "serve": load.NOTE,
    "kv_trained": (
        "`reader` is phase 1 of the recipe `smollm2-135m`, a reader of text; `memory` is phase 2, compressor and "
        "reader together, which ships. One seed."
    ),
    "kv_importance": (
        "What ships: `memory` of `kv_trained`, its states chosen by KVzip, and in `memory-kvzap` by a prediction "
        "of that. The first 50 questions of each set of `kv_trained`."
    ),
    "kv_1500m": "A stock model whose states are chosen by predicted scores, fitted on 80 passages (`importance`).",
    "kv_1500m_stock": "A stock model with the default choice of states, on the questions of `kv_1500m`.",
    "kv_1500m_fusion": (
        "The same, on more questions, as stored and with `prophetkv`. For two thirds of them the head of the turn was "
        "run again for each question; now it is run once."
    ),
    "kv_1500m_long": "A stock model over long chunks: all paragraphs of a question's context, in their order.",
    "kv_1500m_windows": "A stock model over paragraphs that were read alone, and in one pass with their context.",
    "kv_1500m_windows_int4": (
        "The same with all states, in 4 bits: about the size of a quarter of them in 16 bits. The run was ended: 15 "
        "questions of HotpotQA and 20 of 2Wiki. One more of each set was not answered by all systems and is left out."
    ),
    "kv_1500m_28k": (
        "A stock model over contexts of 28,000 tokens in long chunks, with all states in 4 bits. The first 66 "
        "questions were asked on a machine with AVX2 alone, in float32, the others on one with AVX-512, in bfloat16, "
        "in a third of the time: seconds are the mean of both. From the 25th on, a text is read once for the answer "
        "and its loss."
    ),
    "kv_1500m_long_2wiki": (
        "`kv_1500m_long` on more questions of 2Wiki, in bfloat16: 63 so far, the first 33 and 30 from the 51st on."
    ),
    "kv_1500m_bits": "The first 13 questions of HotpotQA and 2Wiki of `kv_1500m_long`, stored in 16, 8 and 4 bits.",
    "kv_memory_bits": "The questions of `kv_memory_fusion`, stored in 16, 8 and 4 bits.",
    "kv_memory_fusion": "What ships as `smollm2-135m-memory` (`memory-kvzap`), as stored and with `prophetkv`.",
    "kv_1500m_kvzip": "The model of `kv_1500m`, 4 questions of each set: all states, KVzip and its prediction.",
    "importance": (
        "Passages of the training questions. A random choice would keep a quarter of the same states. Seconds of one "
        "core beside another run: only their ratio counts."
    ),
    "kv_answer_rl": (
        "One seed. The standard error of 64 questions is some 6 points: these figures do not tell the three apart."
    ),
    "kv_trained_rounded": (
        "What ships, over weights that were rounded to 4 bits once more, in other groups of 32 (0.076 of their norm "
        "changed), on the questions of `kv_trained_ratios`."
    ),
    "kv_trained_ratios": "The first 10 questions of each set of `kv_trained`, at more ratios.",
    "serve_blas_threads": (
        "The server before it limited the threads of NumPy's BLAS, on the machine of `serve` and minutes before."
    ),
    "latency": latency.NOTE,
    "sharded": sharded.NOTE,
    "shard_actors": shard_actors.NOTE,
    "threads": threads.NOTE,
    "speed_cpu": (
        "Random weights and an untrained gate: speed alone. Steps of MemAgent's loop on our engine take turns with the "
        "warm answers of the same length, so a slow minute of the machine weighs on both; rows of other lengths, the "
        "loop without a gate and stock generate() met other minutes."
    ),
    "embedded": (
        "The backbone that ships, through the loop of `reasoner.py` over compressed chunks, behind its own gate, on "
        "names, wordings and keys of evaluation that no stage saw. The goals for a backbone trained on a CPU are 85 % "
        "at 7K and 80 % at 28K tokens for two hops, and 98 % for a single needle. `compmem-gate-alone` reads what the "
        "gate lets through, best first; `compmem` has the reader weigh that first. The threshold for that was chosen "
        "in wordings of training. Nothing found is right where the fact is not told."
    ),
    "embedded_ordering": (
        "The backbone as each phase left it, before it has a gate: some 15 chunks, read in document order. Facts of "
        "two hops count only where they stand in the order of the hops, so half is the most. One seed, some 100 steps "
        "of reinforcement of a LoRA reasoner on a CPU. The intervals of the last three overlap: reinforcement brought "
        "about three points, and with the compressor no more than without. Measured on earlier weights, as "
        "`embedded_ratios` was on others."
    ),
    "embedded_ratios": (
        "Earlier weights, trained on for ten minutes over chunks compressed at ratios of 2, 4, 8 and 16 in turn, then "
        "asked at each; without a gate, some 15 chunks in document order. Facts of two hops count only where they "
        "stand in the order of the hops, so half is the most."
    ),
    "embedded_dtype": (
        "What shipped, as it is loaded on a CPU and in the type that it is stored in, both at once on a core each."
    ),
    "embedded_wordings": (
        "As `embedded`, but asked and told in wordings of training, about names that no stage saw: what is between the "
        "two is what unseen wordings cost."
    ),
    "embedded_questions": (
        "Real questions, which the embedded backbone was not made for: it knows no English. What the extractive reader "
        "gets of the same sets stands in `length` and `tasks`."
    ),
    "embedded_systems": (
        "The papers' settings of the same loop, on the same backbone and the same questions. Its reader was taught to "
        "pass over a fact that is not due yet, since our loop comes back; a loop that never does gets two hops only "
        "where they stand in the right order."
    ),
}
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
    if losses := run["losses"]:
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
