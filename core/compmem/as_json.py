"""Recalls, steps and answers as JSON values, for the command line and for servers."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from compmem.schema import Answer, Recall, Step

if TYPE_CHECKING:
    from compmem.store import DocumentInfo


def recall_json(recall: Recall) -> dict[str, Any]:
    """A recalled block as a JSON object."""
    chunk = recall.chunk
    return {
        "document": chunk.document_id, "chunk": chunk.id, "score": round(float(recall.score), 6), "title": chunk.title,
        "headings": list(chunk.headings), "start": chunk.start, "end": chunk.end, "text": chunk.text,
        "metadata": dict(chunk.metadata),
    }  # fmt: skip


def source_json(source: Recall) -> dict[str, Any]:
    """A source of an answer as a JSON object."""
    return {**recall_json(source), "cited": source.cited}


def document_json(document: "DocumentInfo") -> dict[str, Any]:
    """A document without its text as a JSON object."""
    return {
        "id": document.id, "title": document.title, "characters": document.characters, "chunks": document.chunks,
        "metadata": dict(document.metadata),
    }  # fmt: skip


def answer_json(answer: Answer) -> dict[str, Any]:
    """An answer as a JSON object; offsets are characters of the document."""
    return {
        "question": answer.question,
        "answer": answer.text,
        "found": answer.found,
        "sources": [source_json(source) for source in answer.sources],
        "evidence": [
            {
                "chunk": e.chunk.id, "start": e.chunk.start + e.start, "end": e.chunk.start + e.end, "text": e.text,
                "score": round(float(e.score), 6),
            }
            for e in answer.evidence
        ],
        "steps": [step_json(step) for step in answer.steps],
        "working_memory": answer.working_memory,
        "usage": asdict(answer.usage),
        "stop_reason": answer.stop_reason,
    }  # fmt: skip


def step_json(step: Step) -> dict[str, Any]:
    """A step as a JSON object."""
    return {
        "number": step.number,
        "recalls": [{"chunk": r.chunk.id, "score": round(float(r.score), 6)} for r in step.recalls],
        "working_memory": step.working_memory,
        "updated": step.updated,
        "exit": step.exit,
        "lost": step.lost,
        "backtracked": step.backtracked,
        "request": step.request,
        "candidates": step.candidates,
        "seconds": step.seconds,
    }
