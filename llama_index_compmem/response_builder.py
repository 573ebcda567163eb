"""Collects sources and metadata of a response while it is made, and reports them to tracing."""

import dataclasses
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from contextlib import ExitStack, aclosing, closing, contextmanager
from itertools import chain
from typing import Any

from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.instrumentation.events.synthesis import SynthesizeEndEvent, SynthesizeStartEvent
from llama_index.core.schema import NodeWithScore, QueryBundle
from llama_index_instrumentation import get_dispatcher

from compmem import Answer, AnswerToken, Event, Reader, Recall, Step
from llama_index_compmem.errors import framework_errors
from llama_index_compmem.events import announce
from llama_index_compmem.nodes import node_ids, to_scored
from llama_index_compmem.watched_reader import WatchedReader

dispatcher = get_dispatcher(__name__)


class CompMemMetadata(dict[str, Any]):
    """The metadata of a response: as in the framework, that of each source node by the node's id.

    How the answer came about is in its attributes, which the framework neither copies into nodes nor shows to a model.

    Attributes:
        steps: The steps of the loop, as in `CompMemStepEvent`.
        working_memory: The working memory after the last step.
        found: Whether something answers the question; None until the answer has ended.
        stop_reason: Why the loop ended.
        cited: Ids of the nodes that the answer cites as `[n]`, the n-th of `source_nodes`.
        usage: Seconds, calls and tokens.
    """

    def __init__(self, *entries: Any) -> None:
        super().__init__(*entries)
        self.steps: list[dict[str, Any]] = []
        self.working_memory = ""
        self.found: bool | None = None
        self.stop_reason = ""
        self.cited: list[str] = []
        self.usage: dict[str, Any] = {}


class ResponseBuilder:
    """Follows the events of one answer: fills its sources and metadata in place, and reports them to tracing.

    Args:
        query: The question.
        callbacks: Legacy callbacks.
        source_nodes: The sources, if the caller chose them.
    """

    def __init__(
        self, query: QueryBundle, callbacks: CallbackManager, source_nodes: Sequence[NodeWithScore] | None = None
    ) -> None:
        self.query = query
        self.question = query.query_str
        self.nodes: list[NodeWithScore] = list(source_nodes or [])
        self.metadata = CompMemMetadata()
        self.text = ""
        self._callbacks = callbacks
        self._chosen = source_nodes is not None
        self._kept: dict[int, Recall] = {}
        self._running = ExitStack()
        self._event: Any = None
        self._writes = False

    def run_loop(self, events: Generator[Event, None, None]) -> Event:
        """Runs the loop; returns the first event after its last step."""
        with framework_errors():
            for event in events:
                if not isinstance(event, Step):
                    self.begin_writing()
                    return event
                self._step(event)
        raise AssertionError("an answer ends with the answer")

    async def arun_loop(self, events: AsyncGenerator[Event, None]) -> Event:
        """`run_loop` for an event loop."""
        with framework_errors():
            async for event in events:
                if not isinstance(event, Step):
                    self.begin_writing()
                    return event
                self._step(event)
        raise AssertionError("an answer ends with the answer")

    def pieces(self, first: Event, events: Generator[Event, None, None]) -> Generator[str, None, None]:
        """The answer's text in pieces; when it has ended, sources and metadata are complete."""
        with framework_errors(), closing(events):
            for event in chain([first], events):
                if (text := self._text_of(event)) is not None:
                    yield text

    async def apieces(self, first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[str, None]:
        """`pieces` for an event loop."""
        with framework_errors():
            async with aclosing(events):
                event: Event | None = first
                while event is not None:
                    if (text := self._text_of(event)) is not None:
                        yield text
                    event = await anext(events, None)

    @contextmanager
    def tracing(self) -> Iterator[None]:
        """Reports to tracing, within the block: retrieval until the answer is being written, then synthesis."""
        with self._running:
            if not self._chosen:
                dispatcher.event(RetrievalStartEvent(str_or_query_bundle=self.query))
                self._begin(CBEventType.RETRIEVE)
            yield

    def watched(self, reader: Reader) -> Reader:
        """The reader; retrieval ends for tracing when it begins to write."""
        return WatchedReader(reader, self.begin_writing)

    def begin_writing(self) -> None:
        """Reports to tracing, once, that retrieval has ended and the answer is being written."""
        if self._writes:
            return
        self._writes = True
        if not self._chosen:
            self._sources(list(self._kept.values()))
            self._end({EventPayload.NODES: self.nodes})
            dispatcher.event(RetrievalEndEvent(str_or_query_bundle=self.query, nodes=self.nodes))
        dispatcher.event(SynthesizeStartEvent(query=self.query))
        self._begin(CBEventType.SYNTHESIZE)

    def finish(self, response: RESPONSE_TYPE) -> RESPONSE_TYPE:
        """The response, reported to tracing."""
        self._end({EventPayload.RESPONSE: response})
        dispatcher.event(SynthesizeEndEvent(query=self.query, response=response))
        return response

    def _begin(self, kind: CBEventType) -> None:
        payload: dict[str, Any] = {EventPayload.QUERY_STR: self.question}
        self._event = self._running.enter_context(self._callbacks.event(kind, payload=payload))

    def _end(self, payload: dict[str, Any]) -> None:
        self._event.on_end(payload=payload)
        self._running.close()

    def _step(self, step: Step) -> None:
        self.metadata.steps.append(announce(self.question, step, self._callbacks))
        self.metadata.working_memory = step.working_memory
        if step.updated:
            self._kept.update((r.block, r) for r in step.recalls)

    def _sources(self, recalls: Sequence[Recall]) -> None:
        if self._chosen:  # those that were read first, so that `[n]` cites the n-th
            place = {name: n for n, name in enumerate(node_ids(recalls))}
            self.nodes.sort(key=lambda found: place.pop(found.node.node_id, len(recalls)))
        else:
            self.nodes[:] = to_scored(recalls)
        self.metadata.update((n.node.node_id, n.node.metadata) for n in self.nodes)

    def _text_of(self, event: Event) -> str | None:
        """The text of a piece of the answer; of the answer itself, sources and metadata are kept instead."""
        if isinstance(event, Answer):
            self._set_answer(event)
        return event.text if isinstance(event, AnswerToken) else None

    def _set_answer(self, answer: Answer) -> None:
        self.text = answer.text
        self._sources(answer.sources)
        self.metadata.working_memory = answer.working_memory
        self.metadata.found = answer.found
        self.metadata.stop_reason = answer.stop_reason
        self.metadata.cited = node_ids([source for source in answer.sources if source.cited])
        self.metadata.usage = dataclasses.asdict(answer.usage)
