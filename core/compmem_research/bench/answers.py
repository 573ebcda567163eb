"""Answers of one chat model over whole corpora: CompMem and plain RAG, in one file that a second run continues.

The passages of a file are indexed once, and every question is asked over all of them. Each pair of question and system
is a line of a JSONL file, with a fingerprint of everything that affects it; lines with the same fingerprint are kept.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from compmem.naming import DEFAULT_ENCODER
from compmem.readers import ChatPrompts
from compmem_research.bench.answers_model import Complete, MeteredChat
from compmem_research.bench.answers_report import summary
from compmem_research.bench.answers_systems import SYSTEMS
from compmem_research.bench.answers_types import Setup, System, SystemReply
from compmem_research.bench.errors import to_stderr
from compmem_research.bench.retrieval import kept_index
from compmem_research.digests import digest, gate_digest
from compmem_research.metrics import exact_match, f1, normalize, sub_em, without_citations
from compmem_research.resume import Key, Row, Rows
from compmem_research.tasks.multihop import Question, read_corpus

KEY = ("fingerprint", "id", "system")
"""What identifies a row."""

MAX_ANSWER_CHARS = 200
"""Most characters of an answer stored in a row."""

INSTRUCTION = "Answer in as few words as possible, not in a sentence."
"""Asks every system for short answers. A small model takes a list of kinds of answers for a form to fill in."""

YES_NO = ("yes", "no")
"""Answers for which it is not checked whether a context contains them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Questions, systems, and everything that affects the answers.

    Raises:
        ValueError: A system is unknown, or a number is too small.
    """

    model: str
    systems: tuple[str, ...]
    k: int = 5
    """Passages that the model sees."""
    max_tokens: int = 64
    context_window: int = 4096
    instruction: str = INSTRUCTION
    limit: int | None = None
    """Questions of each file, sampled with the seed. None: all."""
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [name for name in self.systems if name not in SYSTEMS]:
            raise ValueError(f"unknown system {unknown[0]!r}: there are {', '.join(SYSTEMS)}")
        for name in ("k", "max_tokens", "context_window", "limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value!r} must be at least 1")

    def fingerprint(self, files: Sequence[Path]) -> str:
        """The first 16 digits of a SHA-256 of everything that affects an answer; not which questions are sampled."""
        answer_settings = {
            "model": self.model, "k": self.k, "max_tokens": self.max_tokens, "context_window": self.context_window,
            "instruction": self.instruction, "prompts": asdict(ChatPrompts()), "encoder": DEFAULT_ENCODER,
            "gate": gate_digest(),
            "files": [digest(file.read_bytes()) for file in files],
        }  # fmt: skip
        return digest(json.dumps(answer_settings, sort_keys=True).encode())


@dataclass(frozen=True, slots=True)
class _Task:
    """One file of questions with its indexed passages."""

    name: str
    fingerprint: str
    questions: list[Question]
    passages: int
    chat: MeteredChat
    systems: dict[str, System]

    def keys(self) -> set[Key]:
        """Every question with every system."""
        return {(self.fingerprint, q.id, name) for q in self.questions for name in self.systems}


def measure(
    data: Sequence[Path],
    corpora: Sequence[Path | None],
    settings: Settings,
    complete: Complete,
    *,
    rows: Path,
    indices: Path | None = None,
    report_error: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """The means of each system on each file and on all of them; see `answers_report.summary`.

    Questions alternate over files and systems, so an interrupted run has equally many of each.

    Args:
        data: Files of questions; see `compmem_research.tasks.multihop`. Questions without an answer are left out.
        corpora: The passages of each file, if its questions name them by title. None: the union of its paragraphs.
        settings: Questions and systems.
        complete: The chat model.
        rows: The JSONL file of the run.
        indices: Folder in which the index of each file is stored and reused. None: temporary ones.
        report_error: Called with errors. None: they are written to standard error.

    Raises:
        ValueError: A file has a broken line, or no question.
    """
    report_error = report_error or to_stderr
    kept, failed = Rows.open(rows, KEY), 0
    with ExitStack() as opened:
        pairs = list(zip(data, corpora, strict=True))
        tasks = [_task(settings, complete, indices, file, corpus, opened) for file, corpus in pairs]
        for task, question, name in _turns(tasks):
            if (task.fingerprint, question.id, name) in kept.by_key:
                continue
            try:
                kept.add({"fingerprint": task.fingerprint, "data": task.name, **_ask(task, question, name)})
            except Exception as error:  # a framework or a server may fail in any way; the next run tries again
                failed += 1
                report_error(f"{task.name}, {question.id}, {name}: {type(error).__name__}: {error}")
    sets = [
        {"data": task.name, "fingerprint": task.fingerprint, "passages": task.passages, **summary(kept.of(task.keys()))}
        for task in tasks
    ]
    pooled = summary(kept.of(set().union(*(task.keys() for task in tasks))))
    return {"settings": asdict(settings), "failed": failed, "answers": sets, "pooled": pooled}


def _task(
    settings: Settings, complete: Complete, indices: Path | None, file: Path, corpus: Path | None, opened: ExitStack
) -> _Task:
    task, name = read_corpus(file, corpus), file.name.split(".")[0]
    questions = [q for q in task.questions if q.answers[0].strip()]
    if not questions:
        raise ValueError(f"{file}: no question to ask")
    Random(settings.seed).shuffle(questions)
    index, _ = kept_index(task, None if indices is None else indices / name)
    opened.enter_context(index)
    chat = MeteredChat(complete)
    setup = Setup(
        index=index, chat=chat, k=settings.k, instruction=settings.instruction, max_tokens=settings.max_tokens,
        context_window=settings.context_window,
    )  # fmt: skip
    questions = questions[: settings.limit]
    index.recall(questions[0].question, 2)  # loads the models, so that no system's time includes it
    fingerprint = settings.fingerprint([f for f in (file, corpus) if f is not None])
    systems = {system: SYSTEMS[system](setup) for system in settings.systems}
    return _Task(name, fingerprint, questions, len(task.passages), chat, systems)


def _turns(tasks: Sequence[_Task]) -> Iterator[tuple[_Task, Question, str]]:
    for number in range(max(len(task.questions) for task in tasks)):
        for task in tasks:
            if number < len(task.questions):
                yield from ((task, task.questions[number], name) for name in task.systems)


def _ask(task: _Task, question: Question, name: str) -> Row:
    task.chat.take_cost()
    began = time.perf_counter()
    reply: SystemReply = task.systems[name](question.question)
    seconds, cost = time.perf_counter() - began, task.chat.take_cost()
    answer, checkable = without_citations(reply.text), normalize(question.answers[0]) not in YES_NO
    row: Row = {
        "id": question.id, "system": name, "answer": " ".join(reply.text.split())[:MAX_ANSWER_CHARS],
        "em": exact_match(answer, question.answers), "f1": round(f1(answer, question.answers), 4),
        "blocks": len(reply.context), "rounds": reply.rounds, "calls": cost.calls,
        "prompt_tokens": cost.prompt_tokens, "completion_tokens": cost.completion_tokens,
        "seconds": round(seconds, 3), "retrieval_seconds": round(seconds - cost.seconds, 3),
    }  # fmt: skip
    if checkable and reply.context:
        row["in_context"] = sub_em("\n".join(reply.context), question.answers)
    return row
