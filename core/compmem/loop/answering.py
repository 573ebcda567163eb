"""The answer to one question: searches for it, each a run of the loop, and what is then written.

A read that has not returned by the deadline (`RecallConfig.max_seconds`) is abandoned, and its step is lost. Writing is
abandoned too: the answer is then the text that came in time, or else quotations or notes, made without a model.
"""

import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing
from dataclasses import dataclass, replace
from functools import reduce
from typing import Final

from compmem.deadline import OverdueError, now, remaining
from compmem.errors import ReaderError
from compmem.loop.drivers import INLINE, Runner, loop_events
from compmem.loop.loop import Loop, LoopResult
from compmem.readers.outline import is_reply
from compmem.schema import (
    Answer,
    AnswerToken,
    Event,
    Evidence,
    MemoryBlock,
    Reader,
    Recall,
    Request,
    Step,
    Usage,
    WorkingMemory,
)

logger = logging.getLogger(__name__)

_CITED: Final = re.compile(r"\[(\d{1,4}(?:\s{0,3},\s{0,3}\d{1,4}){0,31})\]")

TIME_UP: Final = "Timed out before anything was found."
"""The answer if there is neither evidence nor a note at the deadline."""


@dataclass(frozen=True, slots=True)
class Search:
    """The loop for a question, a part of it, or a request of the writer, and who reads and writes for it."""

    loop: Loop
    reader: Reader
    quoter: Reader | None = None
    """A reader without a model; it writes the answer if the reader did not in time."""


class _Repeats:
    """Detects sentences of one sub-answer that an earlier sub-answer already has."""

    def __init__(self) -> None:
        self._earlier: set[str] = set()
        self._current: set[str] = set()
        self._last = False

    def begin(self) -> None:
        """A part begins."""
        self._earlier |= self._current
        self._current, self._last = set(), False

    def has(self, piece: str) -> bool:
        """Whether an earlier part has this piece. A bare yes or no counts only if its question was repeated too."""
        text = piece.strip()
        self._last = text in self._earlier and (self._last or not is_reply(text))
        self._current.add(text)
        return self._last


Begin = Callable[[str, float | None], AbstractAsyncContextManager[Search]]
"""Makes the search for a text, with a number of seconds for its loop."""


async def events(
    question: str,
    begin: Begin,
    runner: Runner = INLINE,
    *,
    parts: Sequence[str] = (),
    answer_separately: bool = False,
    otherwise: str = "",
    seconds: float | None = None,
    rounds: int = 0,
) -> AsyncGenerator[Event, None]:
    """Runs the loop to its end: yields each step, the answer in pieces, and at the end the whole answer.

    If the writer asks for missing facts, the loop runs again for them, and the writer sees the new blocks too.

    Args:
        question: The question.
        begin: Makes a search.
        runner: `INLINE` for sync callers, `THREADED` for async ones.
        parts: The questions that it consists of; if these are several, each has a search of its own.
        answer_separately: An answer is written to each part, from what was found for it; else one from everything.
        otherwise: What is searched for, and answered, if nothing is found.
        seconds: Until the deadline, from now.
        rounds: Maximum number of requests of the writer.

    Raises:
        ReaderError: The reader failed; the error carries the steps so far.
    """
    async with AsyncExitStack() as opened:
        work = _Answering(question, begin, runner, opened, seconds=seconds, answer_separately=answer_separately)
        searches = [(part, part, part) for part in parts] if len(parts) > 1 else [(question, question, "")]
        try:
            while searches:
                for search in searches:
                    async with aclosing(work.search(*search)) as steps:
                        async for step in steps:
                            yield step
                    if work.stopped:
                        break
                if otherwise and not (work.stopped or work.found):
                    async with aclosing(work.search(otherwise, otherwise, otherwise)) as steps:
                        async for step in steps:
                            yield step
                async with aclosing(work.write(may_ask=work.cost.rounds < rounds and not work.stopped)) as tokens:
                    async for token in tokens:
                        yield token
                searches = [(question, f"{question}\n{work.request}", work.request)] if work.request else []
        except ReaderError as error:
            error.steps = tuple(work.steps)
            raise
        yield work.answer()


class _Answering:
    """What was searched, found and written for a question so far.

    Args:
        question: The question.
        begin: Makes a search.
        runner: Runs it.
        opened: Keeps the searches open.
        seconds: Until the deadline, from now.
        answer_separately: An answer is written to what each search found.
    """

    def __init__(
        self,
        question: str,
        begin: Begin,
        runner: Runner,
        opened: AsyncExitStack,
        *,
        seconds: float | None,
        answer_separately: bool,
    ) -> None:
        self.steps: list[Step] = []
        self.cost = Usage()
        """The cost of writing."""
        self.request = ""
        """What the writer asked for instead of an answer."""
        self._question = question
        self._begin = begin
        self._runner = runner
        self._opened = opened
        self._answer_separately = answer_separately
        self._began = now()
        self._deadline = None if seconds is None else self._began + seconds
        self._found: list[tuple[str, Search, LoopResult]] = []
        self._pieces: list[str] = []
        self._repeats = _Repeats()
        self._late: LoopResult | None = None
        """The result that the answer is based on, if the writer did not finish in time."""

    @property
    def stopped(self) -> bool:
        """Whether the last search ended for lack of time, or was cancelled."""
        return self._found[-1][2].stop_reason in ("seconds", "cancelled")

    @property
    def found(self) -> bool:
        """Whether something was found that answers."""
        return any(result.answerable and result.memory.text for _, _, result in self._found)

    async def search(self, question: str, text: str, request: str) -> AsyncGenerator[Step, None]:
        """Runs the loop for a text; the reader sees the question, and the steps name the request."""
        search = await self._opened.enter_async_context(self._begin(text, remaining(self._deadline)))
        items = loop_events(question, search.loop, search.reader, self._runner, self._deadline)
        async with aclosing(items):
            async for item in items:
                if isinstance(item, LoopResult):
                    self._found.append((question, search, item))
                else:
                    self.steps.append(replace(item, number=len(self.steps) + 1, request=request))
                    yield self.steps[-1]

    async def write(self, *, may_ask: bool) -> AsyncGenerator[AnswerToken, None]:
        """The answer in pieces; or a request of the writer, which is kept."""
        self.request = ""
        try:
            for question, reader, memory in self._to_write():
                may = may_ask and bool(memory.blocks)
                pieces = self._runner.write(question, replace(memory, may_ask=may), reader, self._deadline)
                begun = len(self._pieces)
                self._repeats.begin()
                async with aclosing(pieces):
                    async for piece in pieces:
                        if isinstance(piece, Usage):
                            self.cost += piece
                        elif isinstance(piece, Request):
                            self.request = piece.text if may else ""
                        elif not self._answer_separately:
                            yield self._token(piece)
                        elif not self._repeats.has(piece):
                            yield self._token(f" {piece.lstrip()}" if 0 < begun == len(self._pieces) else piece)
        except OverdueError:
            self.request, self._late = "", replace(self._merged_result(), stop_reason="seconds")
            if not "".join(self._pieces).strip():
                self._late, text = await self._runner.call(_answer_without_model, self._found)
                yield self._token(text)
        if self.request:
            self.cost += Usage(rounds=1)

    def answer(self) -> Answer:
        """The whole answer."""
        found = self._late or self._merged_result()
        usage = replace(found.usage + self.cost, seconds=now() - self._began)
        return _answer(self._question, replace(found, steps=tuple(self.steps), usage=usage), "".join(self._pieces))

    def _merged_result(self) -> LoopResult:
        return reduce(_merge, [result for _, _, result in self._found])

    def _to_write(self) -> Iterator[tuple[str, Reader, WorkingMemory]]:
        """The questions to answer, each with its reader and memory; those for which something was found, if any."""
        if self._answer_separately:
            each = [(question, search.reader, result.memory) for question, search, result in self._found]
            yield from [one for one in each if one[2].text] or each[:1]
        else:
            yield self._question, self._found[-1][1].reader, self._merged_result().memory

    def _token(self, piece: str) -> AnswerToken:
        self._pieces.append(piece)
        return AnswerToken(text=piece)


def _answer_without_model(found: Sequence[tuple[str, Search, LoopResult]]) -> tuple[LoopResult, str]:
    """An answer without a model: quotations of evidence or of the best blocks, else the notes."""
    results, quoted, repeats = list[LoopResult](), list[str](), _Repeats()
    for question, search, result in found:
        memory, quoter = result.memory, search.quoter
        if quoter and not memory.text.strip() and memory.blocks:
            reading = quoter.read(question, memory, memory.blocks)
            if reading.update:
                result = replace(
                    result, memory=replace(reading.memory, blocks=memory.blocks), update_recalls=result.writer_recalls
                )
        if quoter and result.memory.evidence:
            repeats.begin()
            pieces = [piece for piece in quoter.write(question, result.memory) if isinstance(piece, str)]
            quoted += [piece.strip() for piece in pieces if not repeats.has(piece)]
        results.append(result)
    merged = replace(reduce(_merge, results), stop_reason="seconds")
    if quoted:
        return replace(merged, writer_recalls=()), " ".join(quoted)
    return merged, merged.memory.text.strip() or TIME_UP


def citations(text: str) -> set[int]:
    """The numbers cited in a text, as in `[1]` or `[1, 3]`."""
    return {int(number) for marks in _CITED.findall(text) for number in marks.split(",")}


def _merge(first: LoopResult, more: LoopResult) -> LoopResult:
    """The combined result of two loops for one question; blocks that the second found are shown first.

    Chunks are identified by their ids, since a write between the two loops may have renumbered blocks.
    """
    updating = {r.chunk.id for r in first.update_recalls}
    earlier = [*zip(first.writer_recalls, first.memory.blocks, strict=True)]
    new = [*zip(more.writer_recalls, more.memory.blocks, strict=True)]
    ordered: dict[str, tuple[Recall, MemoryBlock]] = {}
    for recall, block in [*(pair for pair in earlier if pair[0].chunk.id in updating), *new, *earlier]:
        ordered.setdefault(recall.chunk.id, (recall, block))
    lines = dict.fromkeys([*first.memory.text.split("\n"), *more.memory.text.split("\n")])
    quoted: dict[tuple[str, int], Evidence] = {}
    for evidence in (*first.memory.evidence, *more.memory.evidence):
        quoted.setdefault((evidence.chunk.id, evidence.start), evidence)
    return LoopResult(
        memory=WorkingMemory(
            text="\n".join(filter(None, lines)),
            evidence=tuple(quoted.values()),
            blocks=tuple(block for _, block in ordered.values()),
        ),
        steps=(*first.steps, *more.steps),
        scores=more.scores,  # of its own numbers
        update_recalls=(*first.update_recalls, *more.update_recalls),
        usage=first.usage + more.usage,
        stop_reason=more.stop_reason,
        writer_recalls=tuple(recall for recall, _ in ordered.values()),
        answerable=first.answerable or more.answerable,
    )


def _answer(question: str, found: LoopResult, text: str) -> Answer:
    if 0 < len(found.steps) == found.usage.malformed_replies:
        logger.warning(
            "none of the model's %d replies followed the format, so it took no notes; such a model answers better with "
            "RecallConfig(writer=...)",
            len(found.steps),
        )
    quoted = {e.chunk.id for e in found.memory.evidence}
    answer_recalls = found.writer_recalls or [r for r in found.update_recalls if not quoted or r.chunk.id in quoted]
    sources = {r.chunk.id: r for r in answer_recalls}.values()
    cited = citations(text) if found.writer_recalls else set()
    return Answer(
        question=question,
        text=text.strip(),
        found=found.answerable and bool(found.memory.text.strip()),
        sources=tuple(replace(r, cited=n in cited) for n, r in enumerate(sources, start=1)),
        evidence=found.memory.evidence,
        steps=found.steps,
        working_memory=found.memory.text,
        usage=found.usage,
        stop_reason=found.stop_reason,
    )
