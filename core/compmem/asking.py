"""Asking: recalls and answers by the loop, sync and async, over whatever a question can be asked of."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Any, Self, get_args

from compmem.config import IndexConfig, RecallConfig, SearchMethod
from compmem.drivers import INLINE, THREADED, Runner, events, gathered, iterate, run
from compmem.encoder import LoadedEncoder
from compmem.gate import GateHead
from compmem.models import Models
from compmem.question import QuestionBench
from compmem.readers import ExtractiveReader
from compmem.reasoner import Loop
from compmem.roles import loop_of, reader_of
from compmem.schema import Answer, Event, Reader, Recall, Step
from compmem.threads import in_thread
from compmem.valid import valid

Filter = Mapping[str, Any] | Sequence[Any]

LONGEST_QUESTION = 20_000
"""Characters of a question; a longer one is a document."""


class Asking(ABC):
    """What a question can be asked of; a subclass says what the question sees."""

    def __init__(self, config: IndexConfig, models: Models) -> None:
        self.config = config
        self._models = models

    @abstractmethod
    def bench(
        self, question: str, filter: Filter | None, config: RecallConfig
    ) -> AbstractContextManager[QuestionBench]:
        """What the loop works on for one question, with the settings that suit it.

        Raises:
            ValueError: The question is empty or overlong, or the filter is none.
        """

    def _within(self, loop: asyncio.AbstractEventLoop) -> Self:
        """This, as it is asked in an event loop."""
        return self

    def recall(
        self,
        question: str,
        k: int = 8,
        *,
        min_score: float = 0.0,
        filter: Filter | None = None,
        config: RecallConfig | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        on_step: Callable[[Step], None] = lambda step: None,
    ) -> list[Recall]:
        """The k blocks that the question needs, best first; fewer where fewer bear on it.

        The loop gathers them, so a block may be here for what another one said. A block's score is the probability that
        the gate gave it in its last look, and a later look sees what the first one said of each block. Where the first
        look suffices, by the gate's own judgement, it is the only one, and nothing is read. `search` always takes one
        pass.

        Args:
            question: What is asked.
            k: Most blocks.
            min_score: Blocks with a lower score are left out.
            filter: Which documents may be looked at.
            config: How the loop goes.
            cancelled: Asked before each step; true ends the loop there.
            on_step: Called with each step of the loop when it is made.

        Raises:
            ValueError: The question is empty or overlong, k is below 1, or the filter is none.
        """
        return run(self._recalled(INLINE, question, k, min_score, filter, config, cancelled, on_step))

    async def arecall(
        self,
        question: str,
        k: int = 8,
        *,
        min_score: float = 0.0,
        filter: Filter | None = None,
        config: RecallConfig | None = None,
        on_step: Callable[[Step], None] = lambda step: None,
    ) -> list[Recall]:
        """`recall` for an event loop, which is never blocked; cancelling it stops the work within a step."""
        settings, stop = config or RecallConfig(), threading.Event()
        here = self._within(asyncio.get_running_loop())
        try:
            if settings.parts(self.config)[0] in ("extractive", "latent") or _takes_one_pass(settings):
                ask = partial(here.recall, min_score=min_score, filter=filter, config=config)
                work = partial(ask, cancelled=stop.is_set, on_step=on_step)
                return await in_thread(work, question, k)
            return await here._recalled(THREADED, question, k, min_score, filter, config, stop.is_set, on_step)
        finally:
            stop.set()

    async def _recalled(
        self,
        runner: Runner,
        question: str,
        k: int,
        min_score: float,
        filter: Filter | None,
        config: RecallConfig | None,
        cancelled: Callable[[], bool],
        on_step: Callable[[Step], None],
    ) -> list[Recall]:
        question, config = valid(question), config or RecallConfig()
        _check_k(k)
        async with runner.entered(self.bench(question, filter, config)) as bench:
            if _takes_one_pass(config):
                return bench.best(await runner.call(bench.search, "gate", k), k, min_score)
            reader = self.reader(bench.config, bench, writes=False)
            loop = loop_of(bench, bench.config, bench.threshold, reader, writes=False, cancelled=cancelled)
            found = await gathered(question, loop, reader, runner, seconds=config.max_seconds, on_step=on_step)
            return await runner.call(bench.best, found.scores, k, min_score)

    def search(
        self,
        question: str,
        k: int = 8,
        *,
        method: SearchMethod = "gate",
        min_score: float = 0.0,
        filter: Filter | None = None,
    ) -> list[Recall]:
        """The k best blocks by one pass, without the loop, best first.

        Args:
            question: What is asked.
            k: Most blocks.
            method: `"gate"`: the gate scores what vectors, BM25 and links propose; the score is a probability.
                `"hybrid"`: vectors and BM25 fused by reciprocal ranks; 1 where both put a block first. `"dense"`:
                cosine of the vectors. `"bm25"`: BM25 as a share of the best score.
            min_score: Blocks with a lower score are left out.
            filter: Which documents may be looked at.

        Raises:
            ValueError: The question is empty or overlong, k is below 1, the filter or the method is none, or the index
                was made without an encoder and the method is not `"gate"`.
        """
        _check_k(k)
        if method not in get_args(SearchMethod):
            raise ValueError(f"method={method!r} must be one of {', '.join(map(repr, get_args(SearchMethod)))}")
        with self.bench(question, filter, RecallConfig()) as bench:
            return bench.best(bench.search(method, k), k, min_score)

    async def asearch(
        self,
        question: str,
        k: int = 8,
        *,
        method: SearchMethod = "gate",
        min_score: float = 0.0,
        filter: Filter | None = None,
    ) -> list[Recall]:
        """`search` for an event loop, which is never blocked."""
        here = self._within(asyncio.get_running_loop())
        work = partial(here.search, method=method, min_score=min_score, filter=filter)
        return await in_thread(work, question, k)

    def stream(
        self,
        question: str,
        config: RecallConfig | None = None,
        *,
        filter: Filter | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        wrap: Callable[[Reader], Reader] = lambda reader: reader,
    ) -> Generator[Event, None, None]:
        """The answer as it comes: each step when it is made, the text in pieces, last the whole `Answer`.

        Args:
            question: What is asked.
            config: How it is answered.
            filter: Which documents may be looked at.
            cancelled: Asked before each step; true ends the loop there.
            wrap: Puts something around the reader that the settings name, such as tracing.

        Raises:
            ValueError: The question is empty or overlong, or the filter is none.
            ReaderError: The chat model failed; the error carries the steps so far.
        """
        yield from iterate(self._events(INLINE, question, config, filter, cancelled, wrap))

    def answer(
        self,
        question: str,
        config: RecallConfig | None = None,
        *,
        filter: Filter | None = None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Answer:
        """The answer with its sources, steps and working memory. Raises what `stream` raises."""
        *_, last = self.stream(question, config, filter=filter, cancelled=cancelled)
        assert isinstance(last, Answer)
        return last

    async def astream(
        self,
        question: str,
        config: RecallConfig | None = None,
        *,
        filter: Filter | None = None,
        wrap: Callable[[Reader], Reader] = lambda reader: reader,
    ) -> AsyncGenerator[Event, None]:
        """`stream` for an event loop, which is never blocked; closing or cancelling it stops the work within a step."""
        stop, here = threading.Event(), self._within(asyncio.get_running_loop())
        try:
            async with aclosing(here._events(THREADED, question, config, filter, stop.is_set, wrap)) as made:
                async for event in made:
                    yield event
        finally:
            stop.set()

    async def _events(
        self,
        runner: Runner,
        question: str,
        config: RecallConfig | None,
        filter: Filter | None,
        cancelled: Callable[[], bool],
        wrap: Callable[[Reader], Reader],
    ) -> AsyncGenerator[Event, None]:
        question = valid(question)
        async with runner.entered(self.bench(question, filter, config or RecallConfig())) as bench:
            config = bench.config
            reader = self.reader(config, bench)
            loop = loop_of(bench, config, bench.threshold, reader, cancelled=cancelled)
            quoter = None if bench.dense is None else ExtractiveReader(bench.viewer)

            @asynccontextmanager
            async def again(request: str, seconds: float | None) -> AsyncIterator[tuple[Loop, Reader]]:
                asked = f"{question}\n{request}"[:LONGEST_QUESTION]
                settings = config.but(max_seconds=seconds)
                async with runner.entered(self.bench(asked, filter, settings)) as more:
                    other = self.reader(settings, more)
                    yield loop_of(more, settings, more.threshold, other, cancelled=cancelled), wrap(other)

            made = events(
                question, loop, wrap(reader), runner,
                seconds=config.max_seconds, quoter=quoter, rounds=config.rounds, again=again,
            )  # fmt: skip
            async with aclosing(made):
                async for event in made:
                    yield event

    async def aanswer(
        self, question: str, config: RecallConfig | None = None, *, filter: Filter | None = None
    ) -> Answer:
        """`answer` for an event loop."""
        async with aclosing(self.astream(question, config, filter=filter)) as made:
            *_, last = [event async for event in made]
        assert isinstance(last, Answer)
        return last

    @property
    def encoder(self) -> LoadedEncoder:
        """The encoder, loaded once and compared with the one that made the index.

        Raises:
            ValueError: The index was made without one.
            IncompatibleStoreError: It gives other vectors than the one that made the index.
        """
        return self._models.encoder

    @property
    def gate(self) -> GateHead:
        """The trained dense gate."""
        return self._models.gate

    def reader(self, config: RecallConfig, bench: QuestionBench, *, writes: bool = True) -> Reader:
        """What reads and, where an answer is written, writes for one question, as the settings name it.

        Raises:
            ValueError: The backbone is asked for, and the index holds dense memory; or the chat model, and there is
                none.
        """
        return reader_of(config, self.config, self._models, bench, writes=writes)


def _takes_one_pass(config: RecallConfig) -> bool:
    return config.max_steps == 1 and not config.reask


def _check_k(k: int) -> None:
    if not isinstance(k, int) or isinstance(k, bool) or k < 1:
        raise ValueError(f"k={k!r} must be a whole number of at least 1")


def checked_question(question: str) -> str:
    """The question as text that can be encoded.

    Raises:
        ValueError: It is empty or overlong.
    """
    question = valid(question)
    if not question.strip():
        raise ValueError("the question is empty")
    if len(question) > LONGEST_QUESTION:
        raise ValueError(f"the question has {len(question)} characters, more than {LONGEST_QUESTION}")
    return question
