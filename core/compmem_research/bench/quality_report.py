"""Tables of the sweep's runs, made only from their folders."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compmem_research.bench.cells import Cell
from compmem_research.bench.published import CHUNK_RECALL, EXITS, FIRST_FIFTH, SUB_EM
from compmem_research.bench.run import CONFIG, ENVIRONMENT, SCORES
from compmem_research.bench.systems import CHUNKS, RECALLED, SYSTEMS

RECALL = f"recall@{RECALLED}"
Entry = Mapping[str, Any]
Show = Callable[[Entry], str]

ABOUT = {
    "length": "RULER-HQA at rising length. Every question has a context of its own; a row tells how much of it is "
    "filled up from another data set, as HotpotQA's paragraphs end at about 1.5M tokens.",
    "chunks": f"Recall of the chunks of at most 4096 tokens that hold evidence, among the first {RECALLED} "
    "(2602.08382, table 3), over one joined text.",
    "ablations": "CompMem with one part left out, on the same questions as whole.",
    "tasks": "Other tasks by the same systems: other data sets, where the evidence stands, questions without an "
    "answer (score: the system says that it found nothing).",
    "ruler": "RULER's synthetic tasks in contexts of 14K tokens; score: share of the values in the answer.",
    "memory": "Tokens of working memory after each step.",
    "model": "One local language model, not trained for any of this, used in several ways: it answers from what was "
    "recalled, in one prompt (rag-fused, compmem-once), which is text (chat) or KV states kept for each passage by the "
    "training-free compressor (latent); or it takes notes in every step of the loop (compmem:chat).",
    "loops": "The papers' loops and ours by one local language model, not trained for any of them: it reads text "
    "(chat), or KV states that are kept for chunks or passages by the training-free compressor (latent).",
}
"""A description of each suite."""

READING = (
    "Without a language model the extractive reader stands in for one in every system: it quotes sentences, so EM is "
    "near 0, and a score says whether the quoted sentences hold the answer. Published columns are of language models "
    "of 7B on 128 other questions, by the two-way sub-EM, which counts an empty answer as right. Seconds of systems "
    "without a language model are the processor's, one thread, as the machine did other work as well; the clock's are "
    "in the files. Encoding is shared between questions and charged to each as if it were not. † steps of a scan timed "
    "on 12 of them and multiplied; its score is not known. Brackets: 95 % bootstrap interval."
)
"""What holds for all of these tables."""


@dataclass(frozen=True, slots=True)
class Result:
    """Parsed files of a run's folder."""

    name: str
    config: Mapping[str, Any]
    cells: Mapping[str, Mapping[str, float]]
    scores: Sequence[Entry]
    failed: Sequence[Mapping[str, str]]
    files: Mapping[str, str]
    environment: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Result":
        """The run in a folder."""
        scores, config, environment = (
            json.loads((folder / name).read_text(encoding="utf-8")) for name in (SCORES, CONFIG, ENVIRONMENT)
        )
        return cls(
            folder.name, config, scores["cells"], scores["scores"], scores["failed"], scores["files"], environment
        )

    def entry(self, cell: str, system: str) -> Entry | None:
        """The measurements of a system in a cell."""
        return next((e for e in self.scores if e["cell"] == cell and e["system"] == system), None)

    @property
    def systems(self) -> list[str]:
        """The systems that were measured, in order."""
        return list(dict.fromkeys(e["system"] for e in self.scores))

    @property
    def measured(self) -> list[str]:
        """The cells that were measured, in order."""
        return list(dict.fromkeys(e["cell"] for e in self.scores))


def results(folder: Path) -> list[Result]:
    """The runs below a folder that have results, in the order of the report."""
    found = {p.parent.name: Result.read(p.parent) for p in sorted(folder.glob(f"*/{SCORES}"))}
    order = [*(n for n in ABOUT if n in found), *(n for n in found if n not in ABOUT)]
    return [found[n] for n in order if found[n].scores]


def pages(result: Result) -> Iterator[str]:
    """The lines of one run's section."""
    most = max(int(e["questions"]) for e in result.scores)
    yield f"{ABOUT.get(result.name, '')} {most} questions a cell, seed {result.config['seed']}.".strip()
    if fewer := [f"{e['system']} {e['questions']}" for e in result.scores if e["questions"] < most]:
        yield f"The first of them only: {', '.join(fewer)}."
    yield ""
    if set(result.systems) & set(CHUNKS):
        yield from _table(result, f"{RECALL}, per cent", _share(RECALL), CHUNK_RECALL)
    else:
        first = {name: by for name, by in SUB_EM.items() if result.name == "length"}
        yield from _table(result, "score, per cent", _share("score"), first)
        yield from _table(result, "two-way sub-EM, per cent", _share("sub_em_two_way"), first)
        yield from _table(result, "EM / F1, per cent", _several("em", "f1"), {})
        yield from _table(result, f"evidence among the first {RECALLED}, per cent", _share(RECALL), {})
    yield from _table(result, "evidence before and after the gate: proposed / read, per cent", _several(
        "proposed", "read"), {})  # fmt: skip
    yield from _table(result, "seconds of a warm answer, mean", _warm, {})
    yield from _table(result, "seconds: making the memory / first answer, mean", _made, {})
    yield from _table(result, "blocks read / steps", _counts("blocks", "steps", digits=1), {})
    yield from _table(result, "tokens read / written", _counts("in", "out"), {})
    yield from _table(result, "peak memory of an answer / disk, MB", _room, {})
    yield from _table(result, f"exit early / exact / late, per cent (published GRU-Mem-7B: {EXITS})", _exits, {})
    yield from _curves(result)
    yield from _foot(result)


def _table(result: Result, title: str, show: Show, published: Mapping[str, Mapping[str, float | str]]) -> Iterator[str]:
    shown = {(c, s): show(e) for c in result.measured for s in result.systems if (e := result.entry(c, s))}
    systems = [s for s in result.systems if any(shown.get((c, s)) for c in result.measured)]
    if not systems:
        return
    yield f"**{title}**"
    yield ""
    yield "| " + " | ".join(["cell", *systems, *(f"*published: {p}*" for p in published)]) + " |"
    yield "| --- |" + " ---: |" * (len(systems) + len(published))
    for cell in result.measured:
        length = Cell.read(cell).length
        theirs = [f"*{by[length]}*" if length in by else "" for by in published.values()]
        yield "| " + " | ".join([_named(result, cell), *(shown.get((cell, s)) or "-" for s in systems), *theirs]) + " |"
    yield ""


def _named(result: Result, cell: str) -> str:
    filled = result.cells.get(cell, {}).get("filled", 0.0)
    return f"{cell} ({100 * filled:.0f} % filled up)" if filled else cell


def _share(name: str) -> Show:
    def show(entry: Entry) -> str:
        if name not in entry:
            return "†" if entry["extrapolated"] else ""
        value, low, high = entry[name]
        return f"{value:.1f} [{low:.0f}, {high:.0f}]"

    return show


def _several(*names: str) -> Show:
    return lambda e: " / ".join(f"{e[n][0]:.1f}" for n in names) if all(n in e for n in names) else ""


def _counts(*names: str, digits: int = 0) -> Show:
    return lambda e: " / ".join(f"{e[n]:,.{digits}f}" for n in names)


def _warm(entry: Entry) -> str:
    value, low, high = entry[f"warm_s {_clock(entry)}"]
    return f"{value:.3g} [{low:.3g}, {high:.3g}]" + _mark(entry)


def _clock(entry: Entry) -> str:
    """The seconds to show: of the processor, unless the work is done elsewhere."""
    return "clock" if ":" in entry["system"] else "processor"


def _made(entry: Entry) -> str:
    return " / ".join(f"{entry[f'{name} {_clock(entry)}'][0]:.3g}" for name in ("index_s", "first_s")) + _mark(entry)


def _room(entry: Entry) -> str:
    peak = "-" if entry["peak"] is None else f"{entry['peak'] / 1e6:.1f}"
    return f"{peak} / {entry['disk'] / 1e6:.1f}"


def _exits(entry: Entry) -> str:
    found = entry.get("exit")
    return " / ".join(f"{found[k]:.0f}" for k in ("early", "exact", "late")) if found else ""


def _mark(entry: Entry) -> str:
    return " †" if entry["extrapolated"] else ""


def _curves(result: Result) -> Iterator[str]:
    if result.name != "memory":
        return
    for entry in result.scores:
        curve = entry.get("memory", [])
        yield f"* {entry['cell']}, {entry['system']}: " + ", ".join(f"{tokens:.0f}" for tokens in curve)
    yield ""


def _foot(result: Result) -> Iterator[str]:
    if any("+first" in c for c in result.measured):
        for name, by in FIRST_FIFTH.items():
            told = ", ".join(f"{length}: {v}" for length, v in by.items())
            yield f"*Published with the evidence in the first fifth, {name}: {told}.*  "
    for failure in result.failed:
        yield f"Not measured: {': '.join(v for v in failure.values() if v)}  "
    names = dict.fromkeys(s.partition(":")[0] for s in result.systems)
    yield f"Systems: {'; '.join(f'{name}: {SYSTEMS[name].about}' for name in names if name in SYSTEMS)}.  "
    if model := result.config.get("model") or result.config.get("backbone"):
        ratio = f", ratio {result.config['ratio']}" if "ratio" in result.config else ""
        yield f"Language model: {model}{ratio}.  "
    yield f"Data: {', '.join(f'{name} ({digest})' for name, digest in result.files.items())}.  "
