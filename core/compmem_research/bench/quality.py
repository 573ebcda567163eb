"""The sweep: every system on every cell, question by question; what cannot be measured is reported and skipped."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from compmem.backbone import Backbone
from compmem.errors import CompMemError, ReaderError
from compmem.readers import ChatModel, Endpoint, pieces
from compmem_research.bench.backbone_chat import BackboneChat
from compmem_research.bench.cells import Cell, Sources
from compmem_research.bench.errors import to_stderr
from compmem_research.bench.measuring import measure
from compmem_research.bench.memory import Memories, Models
from compmem_research.bench.run import Run
from compmem_research.bench.systems import ABLATIONS, BASELINES, CHUNKS, ONCE, SystemRun, system_run, with_readers
from compmem_research.digests import backbone_digest, gate_digest
from compmem_research.tasks.sample import Sample

Named = TypeVar("Named")

LENGTHS = ("7k", "14k", "28k", "56k", "112k", "224k", "448k", "896k", "1.75m")
RULER = (
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_2",
)  # fmt: skip
TASK_SYSTEMS = ("truncation", "rag-dense", "rag-fused", "gru-mem", "compmem")

SUITES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "length": (tuple(f"hqa@{length}" for length in LENGTHS), (*BASELINES, "compmem")),
    "chunks": (tuple(f"hqa@{length}" for length in LENGTHS[3:]), CHUNKS),
    "ablations": (("hqa@112k", "hqa@448k"), ("compmem", *ABLATIONS)),
    "tasks": (
        ("2wiki@56k", "musique@56k", "hqa@56k+first", "hqa@56k+last", "hqa@56k+reversed", "hqa@56k+memagent",
         "hqa@56k+unanswerable"),
        TASK_SYSTEMS,
    ),
    "ruler": (tuple(f"{task}@14k" for task in RULER), TASK_SYSTEMS),
    "memory": (("hqa@112k",), ("memagent", "gru-mem-no-exit", "compmem")),
    "model": (
        ("hqa@7k",),
        ("rag-fused:chat", "compmem:chat", "compmem-once:chat", "rag-fused:latent", "compmem-once:latent"),
    ),
    "loops": (
        ("hqa@28k",),
        ("rag-fused:chat", "compmem-once:chat", "memagent:chat", "gru-mem:chat", "lychee:latent", "chunks-loop:latent",
         "compmem-once:latent"),
    ),
}  # fmt: skip
"""The suites: cells and systems."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """Settings of one run."""

    data: Path
    """Folder of the evaluation files."""
    out: Path
    """Folder of the run."""
    cells: tuple[str, ...]
    systems: tuple[str, ...]
    questions: int = 20
    """Questions of each cell."""
    seed: int = 0
    scan_until: int = 28_000
    """Longest context in tokens for a whole run of scanning systems; above, some of their steps are timed."""
    model: str | None = None
    base_url: str | None = None
    api_key_env: str | None = None
    backbone: str | None = None
    """Folder of a causal LM: the latent reader, and the chat model if there is no other."""
    ratio: int | None = None
    """Source tokens per memory token of the backbone. None: its own."""

    def __post_init__(self) -> None:
        if self.questions < 1:
            raise ValueError(f"questions={self.questions!r} must be at least 1")

    def config(self) -> dict[str, Any]:
        """Everything that affects the figures, without this machine's folders."""
        return {
            "cells": list(self.cells), "systems": list(self.systems), "questions": self.questions,
            "seed": self.seed,
            "scan_until": self.scan_until, "model": self.model, "base_url": self.base_url,
            "backbone": Path(self.backbone).name if self.backbone else None, "gate": gate_digest(),
            **({} if self.ratio is None else {"ratio": self.ratio}),
        }  # fmt: skip


def sweep(settings: Sweep, report_error: Callable[[str], None] | None = None) -> int:
    """Measures what is not measured yet; returns the number of failures.

    Raises:
        ValueError: The folder has another run, or one of other weights or data.
    """
    report_error = report_error or to_stderr
    run = Run.open(settings.out, settings.config())
    cells = list(_parsed(settings.cells, Cell.read, run, report_error))
    entrants = list(_parsed(settings.systems, system_run, run, report_error))
    models = _models(settings, entrants, run, report_error)
    entrants = list(_able(entrants, models, report_error))
    sources = Sources(settings.data, models.plain.count_tokens, settings.questions, settings.seed)
    asked = dict(_asked(cells, sources, run, report_error))
    run.use({**sources.used, **({} if models.backbone is None else {"backbone": backbone_digest(models.backbone)})})
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    given_up: set[tuple[str, str]] = set()
    with Progress(*columns, transient=True) as progress:
        bar = progress.add_task("", total=sum(map(len, asked.values())))
        # Question by question over all cells, so an interrupted run has equally many of each.
        for number in range(settings.questions):
            for cell, samples in asked.items():
                if number < len(samples):
                    progress.update(bar, description=f"{cell}, question {number + 1}")
                    _question(run, cell, samples, number, entrants, models, settings.scan_until, report_error, given_up)
                    progress.advance(bar)
            run.close()
    run.close()
    return len(run.failed)


def _asked(
    cells: Sequence[Cell], sources: Sources, run: Run, report_error: Callable[[str], None]
) -> Iterator[tuple[str, list[Sample]]]:
    """The samples of each cell that has some."""
    for cell in cells:
        try:
            samples = sources.samples(cell)
        except (ValueError, OSError) as error:
            _record_failure(run, report_error, cell.name, "", error)
            continue
        run.note(
            cell.name,
            tokens=round(sum(s.tokens for s in samples) / max(len(samples), 1)),
            filled=round(sources.extras(cell, samples), 4),
        )
        yield cell.name, samples


def _question(
    run: Run, cell: str, samples: Sequence[Sample], number: int, entrants: Sequence[SystemRun], models: Models,
    scan_until: int, report_error: Callable[[str], None], given_up: set[tuple[str, str]],
) -> None:  # fmt: skip
    sample, before = samples[number], samples[number - 1].question
    with Memories(sample, models, scan_until=scan_until) as memories:
        for one in entrants:
            if (cell, sample.id, one.name) in run.rows.by_key or (cell, one.name) in given_up:
                continue
            try:
                row = measure(one, memories.get(one), sample, models, before=before)
                run.rows.add({"cell": cell, **row})
            except (CompMemError, ValueError, MemoryError, OSError) as error:
                given_up.add((cell, one.name))
                _record_failure(run, report_error, cell, one.name, error)


def _parsed(
    names: Sequence[str], read: Callable[[str], Named], run: Run, report_error: Callable[[str], None]
) -> Iterator[Named]:
    for name in names:
        try:
            yield read(name)
        except ValueError as error:
            _record_failure(run, report_error, "", name, error)


def _models(settings: Sweep, entrants: Sequence[SystemRun], run: Run, report_error: Callable[[str], None]) -> Models:
    """The requested models that can be loaded; the others are reported."""
    backbone: Backbone | None = None
    chat: ChatModel | None = None
    readers = {e.reader for e in entrants}
    if settings.backbone is not None and readers & {"chat", "latent"}:
        try:
            backbone = Backbone.load(settings.backbone, ratio=settings.ratio)
            chat = BackboneChat(backbone)
        except (CompMemError, ValueError, OSError) as error:
            _record_failure(run, report_error, "", "backbone", error)
    if settings.model is not None and "chat" in readers:
        chat = None
        try:
            endpoint = Endpoint(settings.model, base_url=settings.base_url, api_key_env=settings.api_key_env)
            "".join(pieces(endpoint, [{"role": "user", "content": "Reply with the word yes."}]))
            chat = endpoint
        except (ReaderError, CompMemError, ImportError) as error:
            _record_failure(run, report_error, "", f"{settings.model} at {settings.base_url or 'its endpoint'}", error)
    return Models(chat=chat, backbone=backbone, backbone_name=settings.backbone or "")


def _able(entrants: Sequence[SystemRun], models: Models, report_error: Callable[[str], None]) -> Iterator[SystemRun]:
    left_out: list[str] = []
    for one in entrants:
        lacks = (one.reader == "chat" and models.chat is None) or (one.reader == "latent" and models.backbone is None)
        if lacks:
            left_out.append(one.name)
        else:
            yield one
    if left_out:
        report_error(
            f"left out, as no model is given (--model, --backbone) or it cannot be used: {', '.join(left_out)}"
        )


def _record_failure(run: Run, report_error: Callable[[str], None], cell: str, system: str, error: Exception) -> None:
    why = " ".join(str(error).split())[:300] or type(error).__name__
    run.fail(cell, system, why)
    report_error(": ".join(part for part in (cell, system, why) if part))


def suite(name: str, *, readers: bool = False) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The cells and systems of a suite; with every reader of a system, or only the extractive one.

    Raises:
        ValueError: The suite is unknown.
    """
    if name not in SUITES:
        raise ValueError(f"unknown suite {name!r}: there are {', '.join(SUITES)}")
    cells, systems = SUITES[name]
    if not readers:
        return cells, systems
    return cells, tuple(with_readers([*systems, ONCE] if "compmem" in systems else systems))
