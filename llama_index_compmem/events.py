"""Tracing: one event per step of the loop, in the dispatcher and in legacy callbacks."""

from typing import Any

from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index_instrumentation import get_dispatcher
from llama_index_instrumentation.base import BaseEvent

from compmem import Step
from llama_index_compmem.nodes import node_ids

dispatcher = get_dispatcher(__name__)


class CompMemStepEvent(BaseEvent):
    """One step of the loop: the blocks it read, and the working memory after it."""

    question: str
    number: int
    node_ids: list[str]
    scores: list[float]
    working_memory: str
    updated: bool
    exit: bool
    backtracked: bool
    lost: bool
    candidates: int
    seconds: float
    request: str
    """What was searched for, if not the whole question: a part of it, or a request of the LLM."""

    @classmethod
    def class_name(cls) -> str:
        """Name of the event."""
        return "CompMemStepEvent"


def step_facts(step: Step) -> dict[str, Any]:
    """A step as JSON values, for events and for the metadata of a response."""
    return {
        "number": step.number,
        "node_ids": node_ids(step.recalls),
        "scores": [recall.score for recall in step.recalls],
        "working_memory": step.working_memory,
        "updated": step.updated,
        "exit": step.exit,
        "backtracked": step.backtracked,
        "lost": step.lost,
        "candidates": step.candidates,
        "seconds": step.seconds,
        "request": step.request,
    }


def announce(question: str, step: Step, callbacks: CallbackManager) -> dict[str, Any]:
    """Sends a step to the dispatcher and the callbacks; returns its facts."""
    facts = step_facts(step)
    dispatcher.event(CompMemStepEvent(question=question, **facts))
    payload: dict[str, Any] = {EventPayload.QUERY_STR: question, EventPayload.ADDITIONAL_KWARGS: facts}
    with callbacks.event(CBEventType.AGENT_STEP, payload=payload) as event:
        event.on_end(payload={EventPayload.RESPONSE: step.working_memory})
    return facts
