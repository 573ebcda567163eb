"""Recall and answers with the loop, sync and async, for every kind of index."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Sequence
from contextlib import AbstractContextManager, aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import chain, count, zip_longest
from math import ceil
from typing import Self, Unpack, get_args

from compmem.checks import check_fraction, check_integer, check_one_of
from compmem.config import FIRST_STAGE, IndexConfig, LoopConfig, RecallConfig, RecallMethod, SearchMethod
from compmem.deadline import now, remaining
from compmem.encoder import LoadedEncoder
from compmem.gate import GateHead
from compmem.index_models import IndexModels
from compmem.loop.answering import Search, events
from compmem.loop.context import QuestionContext
from compmem.loop.drivers import INLINE, THREADED, Runner, iterate, run, run_loop
from compmem.loop.roles import Roles, make_loop, make_reader, resolve_roles
from compmem.readers import ExtractiveReader
from compmem.schema import Answer, AnswerModels, Event, Filter, Reader, Recall, Step
from compmem.text.question_parts import question_parts, without_background
from compmem.text.unicode import valid
from compmem.threads import in_thread

MAX_QUESTION_CHARS = 20_000
"""Maximum number of characters of a question."""


class BaseIndex(ABC):
    """An index that answers questions; a subclass provides the candidates and blocks of a question."""

    def __init__(self, config: IndexConfig, models: IndexModels) -> None:
        self.config = config
        self._models = models
        self._threaded = THREADED

    @abstractmethod
    def question_context(
        self, question: str, filter: Filter | None = None, config: RecallConfig | None = None
    ) -> AbstractContextManager[QuestionContext]:
        """The index for one question, as the loop sees it.

        Raises:
            ValueError: The question is empty or too long, or the filter is invalid.
        """

    def _for_event_loop(self, loop: asyncio.AbstractEventLoop) -> Self:
        """This index, for use in an event loop."""
        return self

    def recall(
        self,
        question: str,
        k: int = 8,
        *,
        method: RecallMethod = "loop",
        min_score: float = 0.0,
        filter: Filter | None = None,
        config: RecallConfig | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        on_step: Callable[[Step], None] = lambda step: None,
        **models: Unpack[AnswerModels],
    ) -> list[Recall]:
        """The k blocks that are needed to answer the question, best first.

        The loop finds blocks by what other blocks say. A block's score is the probability that the gate gave it the
        last time. If the gate finds that one pass suffices, nothing is read.

        Args:
            question: The question.
            k: Maximum number of blocks.
            method: The loop, or one pass as in `search`.
            min_score: From 0 to 1: blocks with a lower score are left out; `gate.threshold` is that of a step.
            filter: Which documents may be recalled.
            config: Settings of the loop; not used by one pass.
            cancelled: Called before each step; if it returns true, the loop ends.
            on_step: Called with each step of the loop.
            **models: Models that read; see `AnswerModels`.

        Raises:
            ValueError: The question is empty or too long, k is below 1, min_score is not from 0 to 1, the filter or
                the method is unknown, or the models do not fit the settings.
            TypeError: The question, `config` or a model is of a wrong type, or a keyword argument is unknown.
            ReaderError: The chat model failed.
        """
        check_one_of("method", method, get_args(RecallMethod))
        if method != "loop":
            _check_names(models)
            return self.search(question, k, method=method, min_score=min_score, filter=filter)
        return run(self._recall_async(INLINE, question, k, min_score, filter, config, cancelled, on_step, models))

    async def arecall(
        self,
        question: str,
        k: int = 8,
        *,
        method: RecallMethod = "loop",
        min_score: float = 0.0,
        filter: Filter | None = None,
        config: RecallConfig | None = None,
        on_step: Callable[[Step], None] = lambda step: None,
        **models: Unpack[AnswerModels],
    ) -> list[Recall]:
        """`recall` for an event loop, without blocking it; cancelling it ends the work within one step."""
        check_one_of("method", method, get_args(RecallMethod))
        if method != "loop":
            _check_names(models)
            return await self.asearch(question, k, method=method, min_score=min_score, filter=filter)
        stop, here = threading.Event(), self._for_event_loop(asyncio.get_running_loop())
        settings = LoopConfig.complete(config)
        arguments = (question, k, min_score, filter, settings, stop.is_set, on_step, models)
        try:
            roles = await in_thread(partial(self._roles, settings, models, writes=False))
            if roles.local:  # no reader has to be awaited, so the whole loop runs in one thread
                return await here._threaded.call(lambda: run(here._recall_async(INLINE, *arguments)))
            return await here._recall_async(here._threaded, *arguments)
        finally:
            stop.set()

    async def _recall_async(
        self,
        runner: Runner,
        question: str,
        k: int,
        min_score: float,
        filter: Filter | None,
        config: RecallConfig | None,
        cancelled: Callable[[], bool],
        on_step: Callable[[Step], None],
        models: AnswerModels,
    ) -> list[Recall]:
        question, settings = checked_question(question), LoopConfig.complete(config)
        check_integer("k", k)
        check_fraction("min_score", min_score)
        roles = await runner.call(partial(self._roles, settings, models, writes=False))
        parts, steps, ranked = _parts(question, settings, roles), count(1), list[list[Recall]]()
        deadline = None if settings.max_seconds is None else now() + settings.max_seconds
        for part in parts:
            left, request = remaining(deadline), part if len(parts) > 1 else ""
            rest = settings.replace(max_seconds=left, first_stage=max(settings.first_stage, k))

            def report_step(step: Step, request: str = request) -> None:
                on_step(replace(step, number=next(steps), request=request))

            async with runner.enter(self.question_context(part, filter, rest)) as context:
                reader = make_reader(roles, rest, context, self._models)
                loop = make_loop(context, rest, context.threshold, reader, writes=False, cancelled=cancelled)
                found = await run_loop(part, loop, reader, runner, seconds=left, on_step=report_step)
                ranked.append(await runner.call(context.best, found.scores, k, min_score))
        return _merge_rankings(ranked, k)

    def search(
        self,
        question: str,
        k: int = 8,
        *,
        method: SearchMethod = "gate",
        min_score: float = 0.0,
        filter: Filter | None = None,
    ) -> list[Recall]:
        """The k best blocks of one pass, without the loop, best first.

        Args:
            question: The question.
            k: Maximum number of blocks.
            method: `"gate"`: the gate scores what vectors, BM25 and links propose; the score is a probability.
                `"hybrid"`: vectors and BM25 combined by reciprocal rank fusion; 1 if both rank a block first.
                `"dense"`: cosine similarity of the vectors. `"bm25"`: BM25, divided by the best score.
            min_score: From 0 to 1: blocks with a lower score are left out.
            filter: Which documents may be recalled.

        Raises:
            ValueError: The question is empty or too long, k is below 1, min_score is not from 0 to 1, the filter or the
                method is invalid, or the index was made without an encoder and the method is not `"gate"`.
        """
        check_integer("k", k)
        check_fraction("min_score", min_score)
        check_one_of("method", method, get_args(SearchMethod))
        with self.question_context(question, filter, LoopConfig(first_stage=max(k, FIRST_STAGE))) as context:
            return context.best(context.search(method, k), k, min_score)

    async def asearch(
        self,
        question: str,
        k: int = 8,
        *,
        method: SearchMethod = "gate",
        min_score: float = 0.0,
        filter: Filter | None = None,
    ) -> list[Recall]:
        """`search` for an event loop, without blocking it."""
        here = self._for_event_loop(asyncio.get_running_loop())
        work = partial(here.search, method=method, min_score=min_score, filter=filter)
        return await here._threaded.call(work, question, k)

    def stream(
        self,
        question: str,
        config: RecallConfig | None = None,
        *,
        filter: Filter | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        wrap: Callable[[Reader], Reader] = lambda reader: reader,
        **models: Unpack[AnswerModels],
    ) -> Generator[Event, None, None]:
        """The answer as a stream of events: each step, then the text in pieces, and at the end the whole `Answer`.

        Args:
            question: The question.
            config: Settings of the loop.
            filter: Which documents may be recalled.
            cancelled: Called before each step; if it returns true, the loop ends.
            wrap: Wraps the reader, for example for tracing.
            **models: Models that read and write; see `AnswerModels`.

        Raises:
            ValueError: The question is empty or too long, the filter is unknown, or the models do not fit the settings.
            TypeError: The question, `config` or a model is of a wrong type, or a keyword argument is unknown.
            ReaderError: The chat model failed; the error carries the steps so far.
        """
        yield from iterate(self._events(INLINE, question, config, filter, cancelled, wrap, models))

    def answer(
        self,
        question: str,
        config: RecallConfig | None = None,
        *,
        filter: Filter | None = None,
        cancelled: Callable[[], bool] = lambda: False,
        **models: Unpack[AnswerModels],
    ) -> Answer:
        """The answer with its sources, steps and working memory. Arguments and errors are those of `stream`."""
        *_, last = self.stream(question, config, filter=filter, cancelled=cancelled, **models)
        assert isinstance(last, Answer)
        return last

    async def astream(
        self,
        question: str,
        config: RecallConfig | None = None,
        *,
        filter: Filter | None = None,
        wrap: Callable[[Reader], Reader] = lambda reader: reader,
        **models: Unpack[AnswerModels],
    ) -> AsyncGenerator[Event, None]:
        """`stream` for an event loop, without blocking it; closing or cancelling it ends the work within one step."""
        stop, here = threading.Event(), self._for_event_loop(asyncio.get_running_loop())
        try:
            async with aclosing(
                here._events(here._threaded, question, config, filter, stop.is_set, wrap, models)
            ) as stream:
                async for event in stream:
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
        models: AnswerModels,
    ) -> AsyncGenerator[Event, None]:
        question, settings = checked_question(question), LoopConfig.complete(config)
        roles = await runner.call(self._roles, settings, models)
        parts = _parts(question, settings, roles)
        otherwise = without_background(question) if settings.decompose and roles.quotes else ""
        each = settings.replace(writer_blocks=ceil(settings.writer_blocks / len(parts)))

        @asynccontextmanager
        async def begin(text: str, seconds: float | None) -> AsyncIterator[Search]:
            rest = each.replace(max_seconds=seconds)
            async with runner.enter(self.question_context(text[:MAX_QUESTION_CHARS], filter, rest)) as context:
                reader = make_reader(roles, rest, context, self._models)
                loop = make_loop(context, rest, context.threshold, reader, cancelled=cancelled)
                quoter = None if context.candidate_generator is None else ExtractiveReader(context.analyzer)
                yield Search(loop, wrap(reader), quoter)

        stream = events(
            question, begin, runner,
            parts=parts, answer_separately=roles.quotes, otherwise=otherwise,
            seconds=settings.max_seconds, rounds=settings.rounds,
        )  # fmt: skip
        async with aclosing(stream):
            async for event in stream:
                yield event

    async def aanswer(
        self,
        question: str,
        config: RecallConfig | None = None,
        *,
        filter: Filter | None = None,
        **models: Unpack[AnswerModels],
    ) -> Answer:
        """`answer` for an event loop."""
        async with aclosing(self.astream(question, config, filter=filter, **models)) as stream:
            *_, last = [event async for event in stream]
        assert isinstance(last, Answer)
        return last

    @property
    def encoder(self) -> LoadedEncoder:
        """The encoder, loaded once and compared with the one that the index was made with.

        Raises:
            ValueError: The index was made without one.
            IncompatibleStoreError: Its vectors differ from those of the encoder that the index was made with.
        """
        return self._models.encoder

    @property
    def gate(self) -> GateHead:
        """The trained dense gate."""
        return self._models.gate

    def reader(self, config: RecallConfig, context: QuestionContext, **models: Unpack[AnswerModels]) -> Reader:
        """The reader for one question, from the settings and the given models.

        Raises:
            ValueError: The models do not fit the settings or the index.
        """
        settings = LoopConfig.complete(config)
        return make_reader(self._roles(settings, models), settings, context, self._models)

    def _roles(self, config: RecallConfig, models: AnswerModels, *, writes: bool = True) -> Roles:
        _check_names(models)
        return resolve_roles(config, self.config, lambda: self._models.backbone.steps_trained, writes=writes, **models)


def _parts(question: str, settings: LoopConfig, roles: Roles) -> list[str]:
    """The questions to search for: those that a question consists of, unless a model reads it in every step.

    Where no gate chooses the blocks, all are found anyway, so it has parts only if each is answered apart.
    """
    parted = settings.decompose and roles.reader == "extractive" and (roles.quotes or settings.gate != "off")
    return question_parts(question) if parted else [question]


def _merge_rankings(ranked: Sequence[Sequence[Recall]], k: int) -> list[Recall]:
    """The k blocks that stand first in the rankings, best first, and equally many of each ranking where it can be."""
    best: dict[str, Recall] = {}
    for recall in chain.from_iterable(zip_longest(*ranked)):
        if recall is not None and (recall.chunk.id in best or len(best) < k):
            held = best.get(recall.chunk.id, recall)
            best[recall.chunk.id] = max(held, recall, key=lambda r: r.score)
    return sorted(best.values(), key=lambda r: -r.score)


def _check_names(models: AnswerModels) -> None:
    known = AnswerModels.__annotations__
    if others := sorted(models.keys() - known.keys()):  # of a misspelt filter, every document would be recalled
        raise TypeError(
            f"{others[0]}= is no argument: the models are {', '.join(known)}; settings go into config=RecallConfig(...)"
        )


def checked_question(question: str) -> str:
    """The question as text that can be encoded as UTF-8.

    Raises:
        TypeError: It is no text.
        ValueError: It is empty or too long.
    """
    if not isinstance(question, str):
        raise TypeError(f"the question must be a string, not {type(question).__name__}")
    question = valid(question)
    if not question.strip():
        raise ValueError("the question is empty")
    if len(question) > MAX_QUESTION_CHARS:
        raise ValueError(f"the question has {len(question)} characters, more than {MAX_QUESTION_CHARS}")
    return question
