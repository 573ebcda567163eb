"""Recalls, readings and the answer as separate runs, under the run of the reasoner.

A tracing reader wraps the reader of the loop, which calls it to read the recalled blocks and to write the answer. A
recall run lasts from the end of one reading to the beginning of the next.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Self

from langchain_core.callbacks import (
    AsyncCallbackManager,
    AsyncCallbackManagerForChainRun,
    AsyncCallbackManagerForRetrieverRun,
    CallbackManager,
    CallbackManagerForChainRun,
    CallbackManagerForRetrieverRun,
)
from langchain_core.documents import Document
from langchain_core.runnables import RunnableConfig, patch_config

import compmem
from compmem import (
    LoopConfig,
    MemoryBlock,
    Reader,
    Reading,
    RecallConfig,
    Request,
    ScoringReader,
    Usage,
    WorkingMemory,
)
from compmem.threads import in_thread
from langchain_compmem.chat import CallContext, ChatCalls
from langchain_compmem.documents import from_chunks

READING = "reading"
ANSWER = "answer"


@dataclass(slots=True, kw_only=True)
class ReaderProxy:
    """A reader that forwards every call."""

    index: "compmem.BaseIndex"
    question: str
    recall_config: RecallConfig | None
    config: RunnableConfig
    chat: ChatCalls | None
    _inner: Reader = field(init=False)
    _steps: int = field(default=0, init=False)

    def around(self, inner: Reader) -> Self:
        """This reader, wrapped around that one: for `wrap=` of `MemoryIndex.stream`."""
        self._inner = inner
        return self

    @property
    def can_score(self) -> bool:
        """Whether the inner reader can score blocks."""
        return isinstance(self._inner, ScoringReader) and self._inner.can_score

    def score_blocks(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> list[float] | None:
        """The inner reader's scores of the blocks before it reads them; None if it cannot score them."""
        return self._inner.score_blocks(question, memory, blocks) if isinstance(self._inner, ScoringReader) else None

    def read(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], **second: bool) -> Reading:
        """The inner reader's result for the blocks."""
        return self._inner.read(question, memory, blocks, **second)

    async def aread(
        self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], **second: bool
    ) -> Reading:
        """The inner reader's result for the blocks."""
        return await self._inner.aread(question, memory, blocks, **second)

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Request | Usage]:
        """The answer of the inner reader."""
        return self._inner.write(question, memory)

    def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Request | Usage]:
        """The answer of the inner reader."""
        return self._inner.awrite(question, memory)

    def _set_context(self, manager: CallbackManager | AsyncCallbackManager, *, streamed: bool) -> None:
        """Sets the run that the next calls of the chat model belong to."""
        if self.chat is not None:
            self.chat.call_context = CallContext(patch_config(self.config, callbacks=manager), streamed)

    def _more(self, reading: Reading) -> bool:
        """Whether the loop recalls again after this reading, as far as the reading shows."""
        recall_config = LoopConfig.complete(self.recall_config)
        last = recall_config.max_steps is not None and self._steps >= recall_config.max_steps
        return not last and not (recall_config.exit_gate and reading.exit)


@dataclass(slots=True, kw_only=True)
class TracingReader(ReaderProxy):
    """The traced sync methods."""

    parent: CallbackManagerForChainRun
    _recalling: CallbackManagerForRetrieverRun | None = field(default=None, init=False)

    def begin(self) -> None:
        """Starts a recall run."""
        children = self.parent.get_child(_tag(self._steps + 1))
        self._recalling = children.on_retriever_start(None, self.question, name="recall")

    def recalled(self, documents: list[Document]) -> None:
        """Ends the current recall run with these documents."""
        if self._recalling is not None:
            self._recalling.on_retriever_end(documents)
            self._recalling = None

    def failed(self, error: BaseException) -> None:
        """Ends the current recall run with this error."""
        if self._recalling is not None:
            self._recalling.on_retriever_error(error)
            self._recalling = None

    def read(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], **second: bool) -> Reading:
        """The inner reader's result for the blocks, in a run."""
        self._steps += 1
        documents = from_chunks(self.index, [block.chunk for block in blocks])
        self.recalled(documents)
        with self._run(READING, _seen(question, memory, documents), _tag(self._steps)) as outputs:
            reading = self._inner.read(question, memory, blocks, **second)
            outputs.update(_made(reading))
        if self._more(reading):
            self.begin()
        return reading

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Request | Usage]:
        """The answer of the inner reader, in a run."""
        self.recalled([])
        with self._run(ANSWER, _seen(question, memory), ANSWER, streamed=True) as outputs:
            for piece in self._inner.write(question, memory):
                _record(outputs, piece)
                yield piece

    @contextmanager
    def _run(self, name: str, inputs: dict[str, Any], tag: str, *, streamed: bool = False) -> Iterator[dict[str, Any]]:
        run = self.parent.get_child(tag).on_chain_start(None, inputs, name=name)
        self._set_context(run.get_child(tag), streamed=streamed)
        outputs: dict[str, Any] = {}
        try:
            yield outputs
        except BaseException as error:
            run.on_chain_error(error)
            raise
        run.on_chain_end(outputs)


@dataclass(slots=True, kw_only=True)
class AsyncTracingReader(ReaderProxy):
    """The traced async methods."""

    parent: AsyncCallbackManagerForChainRun
    _recalling: AsyncCallbackManagerForRetrieverRun | None = field(default=None, init=False)

    async def begin(self) -> None:
        """Starts a recall run."""
        children = self.parent.get_child(_tag(self._steps + 1))
        self._recalling = await children.on_retriever_start(None, self.question, name="recall")

    async def recalled(self, documents: list[Document]) -> None:
        """Ends the current recall run with these documents."""
        if self._recalling is not None:
            ending, self._recalling = self._recalling, None
            await ending.on_retriever_end(documents)

    async def failed(self, error: BaseException) -> None:
        """Ends the current recall run with this error."""
        if self._recalling is not None:
            ending, self._recalling = self._recalling, None
            await ending.on_retriever_error(error)

    async def aread(
        self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], **second: bool
    ) -> Reading:
        """The inner reader's result for the blocks, in a run."""
        self._steps += 1
        documents = await in_thread(from_chunks, self.index, [block.chunk for block in blocks])
        await self.recalled(documents)
        async with self._run(READING, _seen(question, memory, documents), _tag(self._steps)) as outputs:
            reading = await self._inner.aread(question, memory, blocks, **second)
            outputs.update(_made(reading))
        if self._more(reading):
            await self.begin()
        return reading

    async def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Request | Usage]:
        """The answer of the inner reader, in a run."""
        await self.recalled([])
        async with self._run(ANSWER, _seen(question, memory), ANSWER, streamed=True) as outputs:
            async for piece in self._inner.awrite(question, memory):
                _record(outputs, piece)
                yield piece

    @asynccontextmanager
    async def _run(
        self, name: str, inputs: dict[str, Any], tag: str, *, streamed: bool = False
    ) -> AsyncIterator[dict[str, Any]]:
        run = await self.parent.get_child(tag).on_chain_start(None, inputs, name=name)
        self._set_context(run.get_child(tag), streamed=streamed)
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


def _record(outputs: dict[str, Any], piece: str | Request | Usage) -> None:
    if isinstance(piece, str):
        outputs[ANSWER] = outputs.get(ANSWER, "") + piece
