"""Collects sources and metadata of a response while it is made, and reports them to tracing."""

import dataclasses
from collections.abc import AsyncGenerator, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from typing import Any

from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.instrumentation.events.synthesis import SynthesizeEndEvent, SynthesizeStartEvent
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher

from compmem import Answer, AnswerToken, Event, Recall, Step
from llama_index_compmem.errors import framework_errors
from llama_index_compmem.events import announce
from llama_index_compmem.nodes import node_ids, to_scored

dispatcher = get_dispatcher(__name__)


class ResponseBuilder:
    """Follows the events of one answer: fills its sources and metadata in place, and reports them to tracing.

    Args:
        query: The question.
        callbacks: Legacy callbacks.
        given: The sources, if the caller chose them.
    """

    def __init__(
        self, query: QueryBundle, callbacks: CallbackManager, given: Sequence[NodeWithScore] | None = None
    ) -> None:
        self.query = query
        self.question = query.query_str
        self.nodes: list[NodeWithScore] = list(given or [])
        self.metadata: dict[str, Any] = {"steps": []}
        self.text = ""
        self._callbacks = callbacks
        self._chosen = given is not None
        self._kept: dict[int, Recall] = {}

    def gather(self, events: Generator[Event, None, None]) -> Event:
        """Runs the loop; returns the first event after its last step."""
        with self._gathering(), framework_errors():
            for event in events:
                if not isinstance(event, Step):
                    return event
                self._step(event)
        raise AssertionError("an answer ends with the answer")

    async def agather(self, events: AsyncGenerator[Event, None]) -> Event:
        """`gather` for an event loop."""
        with self._gathering(), framework_errors():
            async for event in events:
                if not isinstance(event, Step):
                    return event
                self._step(event)
        raise AssertionError("an answer ends with the answer")

    def pieces(self, first: Event, events: Generator[Event, None, None]) -> Generator[str, None, None]:
        """The answer's text in pieces; when it has ended, sources and metadata are complete."""
        with framework_errors(), closing(events):
            if isinstance(first, AnswerToken):
                yield first.text
            for event in events:
                if isinstance(event, AnswerToken):
                    yield event.text
                elif isinstance(event, Answer):
                    self._answered(event)
        if isinstance(first, Answer):
            self._answered(first)

    async def apieces(self, first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[str, None]:
        """`pieces` for an event loop."""
        with framework_errors():
            async with aclosing(events):
                if isinstance(first, AnswerToken):
                    yield first.text
                async for event in events:
                    if isinstance(event, AnswerToken):
                        yield event.text
                    elif isinstance(event, Answer):
                        self._answered(event)
        if isinstance(first, Answer):
            self._answered(first)

    @contextmanager
    def writing(self) -> Iterator[Callable[[RESPONSE_TYPE], RESPONSE_TYPE]]:
        """Reports to tracing that the answer is being written, and the finished answer."""
        dispatcher.event(SynthesizeStartEvent(query=self.query))
        payload: dict[str, Any] = {EventPayload.QUERY_STR: self.question}
        with self._callbacks.event(CBEventType.SYNTHESIZE, payload=payload) as event:

            def wrote(response: RESPONSE_TYPE) -> RESPONSE_TYPE:
                event.on_end(payload={EventPayload.RESPONSE: response})
                dispatcher.event(SynthesizeEndEvent(query=self.query, response=response))
                return response

            yield wrote

    @contextmanager
    def _gathering(self) -> Iterator[None]:
        if self._chosen:
            yield
            return
        dispatcher.event(RetrievalStartEvent(str_or_query_bundle=self.query))
        payload: dict[str, Any] = {EventPayload.QUERY_STR: self.question}
        with self._callbacks.event(CBEventType.RETRIEVE, payload=payload) as event:
            yield
            self._sources(list(self._kept.values()))
            event.on_end(payload={EventPayload.NODES: self.nodes})
        dispatcher.event(RetrievalEndEvent(str_or_query_bundle=self.query, nodes=self.nodes))

    def _step(self, step: Step) -> None:
        self.metadata["steps"].append(announce(self.question, step, self._callbacks))
        self.metadata["working_memory"] = step.working_memory
        if step.updated:
            self._kept.update((r.block, r) for r in step.recalls)

    def _sources(self, recalls: Sequence[Recall]) -> None:
        if not self._chosen:
            self.nodes[:] = to_scored(recalls)
        self.metadata.update((n.node.node_id, n.node.metadata) for n in self.nodes)

    def _answered(self, answer: Answer) -> None:
        self.text = answer.text
        self._sources(answer.sources)
        self.metadata |= {
            "working_memory": answer.working_memory,
            "found": answer.found,
            "stop_reason": answer.stop_reason,
            "cited": node_ids([source for source in answer.sources if source.cited]),
            "usage": dataclasses.asdict(answer.usage),
        }
