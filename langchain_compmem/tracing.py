"""Recalls, readings and the answer as separate runs, under the run of the reasoner.

A tracing reader wraps the reader of a search, which calls it to read the recalled blocks and to write the answer. A
question with several parts, and each request of the chat model, is a search of its own.

A recall that finds nothing more only shows that the loop has ended, so a recall run is made when its blocks are known.
It has no duration; `compmem_seconds` in its metadata says how long the recall took. If nothing was read at all, one run
without documents shows that. The query of a run is what was searched for: the question or the part of it, and on a
second line the newest note of the working memory, or what the chat model asked for.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForChainRun,
    CallbackManager,
    CallbackManagerForChainRun,
)
from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig, patch_config

import compmem
from compmem import MemoryBlock, Reader, ReaderProxy, Reading, Request, Usage, WorkingMemory
from compmem.threads import in_thread
from langchain_compmem.chat import NOSTREAM, CallContext, ChatCalls
from langchain_compmem.documents import from_chunks

READING = "reading"
ANSWER = "answer"
RECALL = "recall"
SECONDS = "compmem_seconds"
"""Metadata key of the seconds that a recall took."""


@dataclass(slots=True)
class QuestionTrace:
    """What the searches of one question share."""

    index: "compmem.BaseIndex"
    question: str
    config: RunnableConfig
    chat: ChatCalls | None
    steps: int = 0
    request: str = ""
    """The last request of the chat model; the next search is for it."""
    recall_started: float = field(default_factory=perf_counter)
    """When the current recall began."""

    def searched(self, question: str, memory: WorkingMemory) -> str:
        """What was searched for: the question, and the newest note or the request of the chat model."""
        about = memory.text.strip().rpartition("\n")[2] or self.request
        return f"{question}\n{about}" if about else question

    def recall_run(self) -> tuple[str, dict[str, Any]]:
        """Tag and metadata of the recall run that ends now."""
        return _tag(max(self.steps, 1)), {SECONDS: round(perf_counter() - self.recall_started, 6)}

    def record(self, outputs: dict[str, Any], piece: str | Request | Usage) -> None:
        """Adds a piece that was written to the outputs of its run; keeps a request."""
        if isinstance(piece, str):
            outputs[ANSWER] = outputs.get(ANSWER, "") + piece
            if self.chat is not None:
                self.chat.answer_id = self.chat.reply_id
        elif isinstance(piece, Request):
            self.request, self.recall_started = piece.text, perf_counter()

    def set_context(
        self, manager: CallbackManager | AsyncCallbackManager, *, answers: bool = False, may_ask: bool = False
    ) -> None:
        """Sets the run that the next calls of the chat model belong to.

        The text of a call is hidden from LangGraph's `stream_mode="messages"` if it is not the answer, or may be a
        request instead.
        """
        if self.chat is not None:
            if may_ask or not answers:
                manager.add_tags([NOSTREAM])
            self.chat.begin(CallContext(patch_config(self.config, callbacks=manager), answers))


class TracingReader(ReaderProxy):
    """The traced sync methods."""

    def __init__(self, trace: QuestionTrace, parent: CallbackManagerForChainRun, inner: Reader) -> None:
        super().__init__(inner)
        self.trace = trace
        self.parent = parent

    def read(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], **options: bool) -> Reading:
        """The inner reader's result for the blocks, in a run."""
        self.trace.steps += 1
        documents = from_chunks(self.trace.index, [block.chunk for block in blocks])
        self._recalled(self.trace.searched(question, memory), documents)
        with self._run(READING, _seen(question, memory, documents), _tag(self.trace.steps)) as outputs:
            reading = self.inner.read(question, memory, blocks, **options)
            outputs.update(_made(reading))
        self.trace.recall_started = perf_counter()
        return reading

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Request | Usage]:
        """The answer of the inner reader, in a run."""
        if not self.trace.steps:
            self._recalled(self.trace.searched(self.trace.question, memory), [])
        with self._run(ANSWER, _seen(question, memory), ANSWER, answers=True, may_ask=memory.may_ask) as outputs:
            for piece in self.inner.write(question, memory):
                self.trace.record(outputs, piece)
                yield piece

    def _recalled(self, query: str, documents: list[Document]) -> None:
        tag, metadata = self.trace.recall_run()
        manager = self.parent.get_child(tag)
        manager.add_metadata(metadata, inherit=False)
        manager.on_retriever_start(None, query, name=RECALL).on_retriever_end(documents)

    @contextmanager
    def _run(self, name: str, inputs: dict[str, Any], tag: str, **kind: bool) -> Iterator[dict[str, Any]]:
        run = self.parent.get_child(tag).on_chain_start(None, inputs, name=name)
        self.trace.set_context(run.get_child(tag), **kind)
        outputs: dict[str, Any] = {}
        try:
            yield outputs
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(outputs)


class AsyncTracingReader(ReaderProxy):
    """The traced async methods."""

    def __init__(self, trace: QuestionTrace, parent: AsyncCallbackManagerForChainRun, inner: Reader) -> None:
        super().__init__(inner)
        self.trace = trace
        self.parent = parent

    async def aread(
        self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], **options: bool
    ) -> Reading:
        """The inner reader's result for the blocks, in a run."""
        self.trace.steps += 1
        documents = await in_thread(from_chunks, self.trace.index, [block.chunk for block in blocks])
        await self._recalled(self.trace.searched(question, memory), documents)
        async with self._run(READING, _seen(question, memory, documents), _tag(self.trace.steps)) as outputs:
            reading = await self.inner.aread(question, memory, blocks, **options)
            outputs.update(_made(reading))
        self.trace.recall_started = perf_counter()
        return reading

    async def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Request | Usage]:
        """The answer of the inner reader, in a run."""
        if not self.trace.steps:
            await self._recalled(self.trace.searched(self.trace.question, memory), [])
        async with self._run(ANSWER, _seen(question, memory), ANSWER, answers=True, may_ask=memory.may_ask) as outputs:
            async for piece in self.inner.awrite(question, memory):
                self.trace.record(outputs, piece)
                yield piece

    async def _recalled(self, query: str, documents: list[Document]) -> None:
        tag, metadata = self.trace.recall_run()
        manager = self.parent.get_child(tag)
        manager.add_metadata(metadata, inherit=False)
        run = await manager.on_retriever_start(None, query, name=RECALL)
        await run.on_retriever_end(documents)

    @asynccontextmanager
    async def _run(self, name: str, inputs: dict[str, Any], tag: str, **kind: bool) -> AsyncIterator[dict[str, Any]]:
        run = await self.parent.get_child(tag).on_chain_start(None, inputs, name=name)
        self.trace.set_context(run.get_child(tag), **kind)
        outputs: dict[str, Any] = {}
        try:
            yield outputs
        except BaseException as error:
            await run.on_chain_error(error)
            raise
        await run.on_chain_end(outputs)


def _tag(step: int) -> str:
    return f"step:{step}"


def _seen(question: str, memory: WorkingMemory, documents: list[Document] | None = None) -> dict[str, Any]:
    seen = {"question": question, "working_memory": memory.text}
    return seen if documents is None else {**seen, "context": documents}


def _made(reading: Reading) -> dict[str, Any]:
    return {"working_memory": reading.memory.text, "updated": reading.update, "exit": reading.exit}
