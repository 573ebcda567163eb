"""Sources, steps and cost of an answer in plain text; control characters of documents are never printed."""

import re
from typing import Final

from compmem.schema import Answer, Evidence, Recall, Step, Usage

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
NOTHING_NEW: Final = "nothing new"
NOT_READ_IN_TIME: Final = "not read in time"


def printable(text: str) -> str:
    """The text without characters that control a terminal or change the direction of text."""
    return _CONTROL.sub("\ufffd", text.replace("\r\n", "\n"))


def location(recall: Recall) -> str:
    """The position of a recalled block: document, title and headings, characters."""
    chunk = recall.chunk
    named = [chunk.document_id] if chunk.document_id not in (chunk.title, *chunk.headings) else []
    parts = [*named, *([chunk.label] if chunk.label else []), f"characters {chunk.start}-{chunk.end}"]
    return printable(" · ".join(" ".join(part.split()) for part in parts))


def new_notes(step: Step, before: str) -> str:
    """The text that a step added to the working memory: new lines, or all of it if it was rewritten."""
    if step.working_memory == before:
        return ""
    old = set(before.split("\n"))
    lines = step.working_memory.split("\n")
    added = [line for line in lines if line not in old and line.strip()]
    return "\n".join(added if old.issubset({*lines, ""}) else lines)


def gate_decisions(step: Step) -> list[str]:
    """The decisions of the gates of a step, in words."""
    if step.lost:
        return [NOT_READ_IN_TIME]
    return [
        "memory updated" if step.updated else NOTHING_NEW,
        *(["a block rejected before"] if step.backtracked else []),
        *(["enough is known"] if step.exit else []),
    ]


def quotes(answer: Answer, source: Recall) -> list[Evidence]:
    """The sentences kept from one source, in order."""
    kept = {(e.start, e.end): e for e in answer.evidence if e.chunk.id == source.chunk.id}
    return [kept[span] for span in sorted(kept)]


def cost_text(usage: Usage) -> str:
    """The cost of the answer, on one line."""
    parts = [
        count_text(usage.steps, "step"),
        f"{count_text(usage.blocks_scored, 'block')} scored",
        f"{usage.blocks_read} read",
        *([count_text(usage.model_calls, "model call")] if usage.model_calls else []),
        *([f"{usage.prompt_tokens} + {usage.completion_tokens} tokens"] if usage.model_calls else []),
        *([f"{usage.rounds} follow-up {'search' if usage.rounds == 1 else 'searches'}"] if usage.rounds else []),
        *([f"{usage.malformed_replies} malformed"] if usage.malformed_replies else []),
        f"{usage.seconds:.2f} s",
    ]
    return ", ".join(parts)


def count_text(count: int, noun: str) -> str:
    """A count with its noun."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
