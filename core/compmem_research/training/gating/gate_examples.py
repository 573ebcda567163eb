"""Training examples of the gate: questions, the working memories of rollouts, and the chunks that help with each.

A rollout without exit gate reads every chunk, so there are working memories before, between and after the evidence.
Each is paired with chunks of the whole context: read ones, later ones, and those that never help.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compmem_research.resume import changes, replacing
from compmem_research.training.rollouts.evidence import Evidence, Labels
from compmem_research.training.rollouts.questions import Context
from compmem_research.training.rollouts.rollouts import Rollouts
from compmem_research.training.rollouts.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class GateState:
    """A working memory, and the chunks that help with it."""

    memory: str
    labels: tuple[bool, ...]
    """A label for each chunk of the context."""


@dataclass(frozen=True, slots=True)
class GateContext:
    """One question, its chunks and the working memories of its rollouts."""

    question: str
    chunks: tuple[tuple[int, ...], ...]
    states: tuple[GateState, ...]


def collect(rollouts: Rollouts, contexts: Sequence[Context], seeds: Sequence[Sequence[int]]) -> list[GateContext]:
    """Rollouts of these questions, as examples for the gate."""
    return [
        GateContext(
            question=context.sample.question,
            chunks=tuple(tuple(ids) for ids in context.ids),
            states=states_of(context, runs, rollouts.settings.labels),
        )
        for context, runs in zip(contexts, rollouts.run(contexts, seeds), strict=True)
    ]


def states_of(context: Context, runs: Iterable[Trajectory], labels: Labels) -> tuple[GateState, ...]:
    """The distinct working memories of these rollouts, each with its labels."""
    evidence = Evidence(context.sample, context.chunks, labels)
    found: dict[GateState, None] = {}
    for run in runs:
        open_ = evidence.all
        for step in run.steps:
            helps = tuple(evidence.supports(n, open_) for n in range(len(context.chunks)))
            found[GateState(step.memory, helps)] = None
            if step.check:
                open_ = evidence.open_after(step.number, open_)
    return tuple(found)


def write(file: Path, contexts: Iterable[GateContext], made_of: Mapping[str, Any]) -> None:
    """Write what decides on examples and the examples as JSON lines, atomically."""
    with replacing(file) as part, part.open("w", encoding="utf-8") as lines:
        lines.write(json.dumps({"made_of": made_of}, ensure_ascii=False) + "\n")
        for context in contexts:
            states = [[state.memory, [int(label) for label in state.labels]] for state in context.states]
            line = {"question": context.question, "chunks": context.chunks, "states": states}
            lines.write(json.dumps(line, ensure_ascii=False) + "\n")


def read(file: Path, made_of: Mapping[str, Any]) -> list[GateContext]:
    """The examples in a file.

    Raises:
        ValueError: A line is invalid, or something else decided on the examples.
    """
    before: Mapping[str, Any] = {}
    contexts = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                if number == 1:
                    before = dict(json.loads(line)["made_of"])
                else:
                    contexts.append(_context(json.loads(line)))
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file}:{number}: no rollouts for the gate: {error}; remove the file") from error
    if other := changes(before, made_of):
        raise ValueError(f"{file} was made with {other}: remove it, or use another folder")
    return contexts


def _context(line: dict[str, object]) -> GateContext:
    question, chunks, states = line["question"], line["chunks"], line["states"]
    if not isinstance(question, str) or not isinstance(chunks, list) or not isinstance(states, list):
        raise TypeError("a field has another type")
    made = GateContext(
        question=question,
        chunks=tuple(tuple(int(i) for i in ids) for ids in chunks),
        states=tuple(GateState(str(memory), tuple(bool(label) for label in labels)) for memory, labels in states),
    )
    if any(len(state.labels) != len(made.chunks) for state in made.states):
        raise ValueError("as many labels as chunks are needed")
    return made
