"""All systems on all available data sets, in one file that a second run continues.

A set is a JSONL file of questions (see `compmem_research.tasks.multihop`). `X_questions` is asked over the passages of
`X_corpus`. The questions and passages of `X_unanswerable` belong to `X`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from compmem.index import MemoryIndex
from compmem.naming import DEFAULT_ENCODER
from compmem.schema import Encoder
from compmem_research.bench.machine import command, machine
from compmem_research.bench.retrieval import BASELINE_RANKINGS, SYSTEMS, Outcome, ask, figures, kept_index, scores
from compmem_research.bench.styles import UNCHANGED, styled
from compmem_research.digests import digest, gate_digest
from compmem_research.metrics import mean_with_interval
from compmem_research.resume import read_progress, write_whole
from compmem_research.tasks.multihop import Question, read_corpus

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.xz")
QUESTIONS, CORPUS, UNANSWERABLE = "_questions", "_corpus", "_unanswerable"

COMPARED_SETTINGS: Final = ("recall@5", "ndcg@10")
"""Scores in which CompMem is compared with the best baseline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataSet:
    """Files that are measured together."""

    name: str
    questions: tuple[Path, ...]
    corpus: Path | None = None

    def files(self) -> dict[str, str]:
        """The first 16 digits of each file's SHA-256, by its name."""
        read = (*self.questions, *([self.corpus] if self.corpus else []))
        return {f.name: digest(f.read_bytes()) for f in read}


@dataclass(slots=True)
class Results:
    """The file with the results so far."""

    file: Path
    settings: Mapping[str, Any]
    machine: Mapping[str, Any]
    sets: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def open(cls, file: Path, settings: Mapping[str, Any]) -> "Results":
        """A new file, or an existing one to continue.

        Raises:
            ValueError: The file is not such a result, or has other settings or another machine.
        """
        here = machine()
        now = {**settings, "machine": here}
        sets = read_progress(file, now, lambda kept: ({**kept["settings"], "machine": kept["machine"]}, kept["sets"]))
        return cls(file, settings, here, sets or [])

    def holds(self, name: str, style: str, files: Mapping[str, str]) -> bool:
        """Whether a set with these files is measured in that style."""
        return any((s["set"], s["style"], s["files"]) == (name, style, files) for s in self.sets)

    def add(self, entry: dict[str, Any]) -> None:
        """Adds an entry, also to the file; it replaces an earlier one of the same set and style."""
        self.sets = [s for s in self.sets if (s["set"], s["style"]) != (entry["set"], entry["style"])]
        self.sets.append(entry)
        write_whole(self.file, json.dumps(self.shown(), indent=1) + "\n")

    def shown(self) -> dict[str, Any]:
        """The content of the file."""
        return {"command": command(), "machine": self.machine, "settings": self.settings, "sets": self.sets}


def find_sets(paths: Sequence[Path]) -> list[DataSet]:
    """The sets of the given files, and of every file of questions in the given folders.

    Raises:
        ValueError: There is none, or two have the same name.
        OSError: A path does not exist.
    """
    files = [f for path in paths for f in (_jsonl_in(path) if path.is_dir() else [path])]
    found: dict[str, DataSet] = {}
    for file in files:
        stem, ending = _parted(file)
        if _beside(file, CORPUS, QUESTIONS) or _beside(file, UNANSWERABLE, ""):
            continue  # measured together with its main file
        name = stem.removesuffix(QUESTIONS)
        unanswerable = file.with_name(f"{stem}{UNANSWERABLE}{ending}")
        questions = (file, unanswerable) if unanswerable.exists() else (file,)
        new = DataSet(name=name, questions=questions, corpus=_beside(file, QUESTIONS, CORPUS))
        if found.setdefault(name, new) != new:
            raise ValueError(f"two sets are named {name!r}")
    if not found:
        raise ValueError(f"no questions in {', '.join(map(str, paths))}")
    return list(found.values())


def measure(
    paths: Sequence[Path],
    out: Path,
    *,
    styles: Sequence[str] = (UNCHANGED,),
    limit: int | None = None,
    foreign: bool = False,
    indices: Path | None = None,
    encoder: str | Encoder | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The scores of every system on every set, in every style; what is in the file is not measured again.

    Args:
        paths: Files of questions, and folders of them.
        out: The file of the result, written after each set.
        styles: Names in `styles.STYLES`, or unchanged.
        limit: Only this many first questions of a set with an answer, and as many without one.
        foreign: The questions without an answer are those that the other sets answer, in place of a set's own ones.
        indices: Folder in which the index of each set is stored and reused. None: temporary ones.
        encoder: Instead of the default.
        seed: Seed for the styles' typing errors and phrases.

    Raises:
        ValueError: There is no set, a data file is broken, or the file has a result with other settings.
    """
    settings: dict[str, Any] = {"limit": limit, "seed": seed, "encoder": _named(encoder), "gate": gate_digest()}
    if foreign:
        settings["foreign"] = True
    results, sets = Results.open(out, settings), find_sets(paths)
    for each in sets:
        files = each.files()
        missing = [style for style in styles if not results.holds(each.name, style, files)]
        if not missing:
            continue
        task = read_corpus(each.questions, each.corpus)
        others = _foreign([s for s in sets if s is not each], limit) if foreign else []
        asked = _limited([q for q in task.questions if q.gold or not foreign], limit) + others
        if not asked:
            raise ValueError(f"{each.questions[0]}: no question to ask")
        index, seconds = kept_index(task, None if indices is None else indices / each.name, encoder)
        with index:
            index.recall(asked[0].question, 2)  # loads the models, so that no system's time includes it
            for style in missing:
                results.add({
                    "set": each.name, "style": style, "files": files, "questions": len(asked),
                    "unanswerable": sum(not q.gold for q in asked), "passages": len(task.passages),
                    "index_seconds": seconds,
                    "systems": by_systems(index, [replace(q, question=styled(q.question, style, seed)) for q in asked]),
                })  # fmt: skip
    return results.shown()


def by_systems(index: MemoryIndex, questions: Sequence[Question]) -> dict[str, dict[str, Any]]:
    """The scores of every system, for ours with the difference to the best baseline."""
    outcomes = {name: ask(name, index, questions, silence=True) for name in SYSTEMS}
    rows = {name: figures(own, questions) for name, own in outcomes.items()}
    if any(q.gold for q in questions):
        for name in SYSTEMS:
            if name not in BASELINE_RANKINGS:
                rows[name]["difference"] = {m: difference(name, m, outcomes, questions) for m in COMPARED_SETTINGS}
    return rows


def difference(
    name: str, metric: str, outcomes: Mapping[str, Sequence[Outcome]], questions: Sequence[Question]
) -> dict[str, Any]:
    """The difference to the baseline with the best mean, in points, with a paired 95 % bootstrap interval."""
    plain = {p: scores(metric, outcomes[p], questions) for p in BASELINE_RANKINGS}
    best = max(BASELINE_RANKINGS, key=lambda p: float(np.mean(plain[p])))
    paired = np.array(scores(metric, outcomes[name], questions)) - np.array(plain[best])
    mean, interval = mean_with_interval(paired.tolist())
    return {"to": best, "mean": mean, "95%": interval}


def _limited(questions: Sequence[Question], limit: int | None) -> list[Question]:
    answered = [q for q in questions if q.gold][:limit]
    return answered + [q for q in questions if not q.gold][:limit]


def _foreign(sets: Sequence[DataSet], limit: int | None) -> list[Question]:
    """Questions that these sets answer and another one does not, in equal numbers; `limit` in all."""
    found: list[Question] = []
    for each in sets:
        answered = [q for q in read_corpus(each.questions, each.corpus).questions if q.gold]
        found += answered[: None if limit is None else limit // len(sets)]
    return [replace(q, gold=frozenset(), own=frozenset(), support=()) for q in found]


def _jsonl_in(folder: Path) -> Iterator[Path]:
    return (f for f in sorted(folder.iterdir()) if f.name.endswith(ENDINGS))


def _parted(file: Path) -> tuple[str, str]:
    ending = next((e for e in ENDINGS if file.name.endswith(e)), "")
    return file.name.removesuffix(ending), ending


def _beside(file: Path, own: str, other: str) -> Path | None:
    """The file with the suffix `other` instead of `own` in its name, if it exists."""
    stem, ending = _parted(file)
    if not stem.endswith(own):
        return None
    there = file.with_name(f"{stem.removesuffix(own)}{other}{ending}")
    return there if there.exists() else None


def _named(encoder: str | Encoder | None) -> str:
    return encoder if isinstance(encoder, str) else DEFAULT_ENCODER if encoder is None else type(encoder).__name__
