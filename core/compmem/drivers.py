"""The drivers of the loop, sync and async: they do what it asks for, and have the answer written at its end."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Generator, Iterator

from compmem.errors import ReaderError
from compmem.reasoner import Gathered, Loop, Odds, Read, Weigh
from compmem.schema import Answer, AnswerToken, Event, Reader, Reading, Step, Usage, WeighingReader

logger = logging.getLogger(__name__)


def stream(question: str, loop: Loop, reader: Reader) -> Iterator[Event]:
    """Runs the loop to its end: each step as it is made, the answer in pieces, last the whole answer.

    Raises:
        ReaderError: The reader failed; the error carries the steps so far.
    """
    steps: list[Step] = []
    try:
        gathered = yield from _drive(question, loop, reader, steps)
        pieces, cost = [], Usage()
        for piece in reader.write(question, gathered.memory):
            if isinstance(piece, Usage):
                cost += piece
            else:
                pieces.append(piece)
                yield AnswerToken(text=piece)
    except ReaderError as error:
        error.steps = tuple(steps)
        raise
    yield _answer(question, gathered, "".join(pieces), cost)


def _drive(question: str, loop: Loop, reader: Reader, steps: list[Step]) -> Generator[Event, None, Gathered]:
    reply: Reading | Odds = None
    while True:
        try:
            asked = loop.send(reply)
        except StopIteration as end:
            gathered: Gathered = end.value
            return gathered
        if isinstance(asked, Weigh):
            reply = _weigher(reader).weigh(question, asked.memory, asked.blocks)
        elif isinstance(asked, Read) and asked.insist:
            reply = _weigher(reader).read(question, asked.memory, asked.blocks, insist=True)
        elif isinstance(asked, Read):
            reply = reader.read(question, asked.memory, asked.blocks)
        else:
            reply = None
            steps.append(asked)
            yield asked


def gathered(
    question: str, loop: Loop, reader: Reader, on_step: Callable[[Step], None] = lambda step: None
) -> Gathered:
    """Runs the loop without the answer's turn; each step is handed over when it is made."""
    drive = _drive(question, loop, reader, [])
    while True:
        try:
            event = next(drive)
        except StopIteration as end:
            result: Gathered = end.value
            return result
        if isinstance(event, Step):
            on_step(event)


async def astream(question: str, loop: Loop, reader: Reader) -> AsyncIterator[Event]:
    """`stream` for an event loop: the thinking runs in a thread, the reader's own waiting on the loop."""
    steps: list[Step] = []
    try:
        reply: Reading | Odds = None
        while True:
            asked = await asyncio.to_thread(_advance, loop, reply)
            reply = None
            if isinstance(asked, Gathered):
                break
            if isinstance(asked, Read | Weigh):
                reply = await _answered(question, asked, reader)
            else:
                steps.append(asked)
                yield asked
        pieces, cost = [], Usage()
        async for piece in reader.awrite(question, asked.memory):
            if isinstance(piece, Usage):
                cost += piece
            else:
                pieces.append(piece)
                yield AnswerToken(text=piece)
    except ReaderError as error:
        error.steps = tuple(steps)
        raise
    yield _answer(question, asked, "".join(pieces), cost)


async def agathered(
    question: str, loop: Loop, reader: Reader, on_step: Callable[[Step], None] = lambda step: None
) -> Gathered:
    """`gathered` for an event loop."""
    reply: Reading | Odds = None
    while True:
        asked = await asyncio.to_thread(_advance, loop, reply)
        reply = None
        if isinstance(asked, Gathered):
            return asked
        if isinstance(asked, Read | Weigh):
            reply = await _answered(question, asked, reader)
        else:
            on_step(asked)


def _weigher(reader: Reader) -> WeighingReader:
    assert isinstance(reader, WeighingReader), "a loop that weighs has a reader that can"
    return reader


async def _answered(question: str, asked: Read | Weigh, reader: Reader) -> Reading | Odds:
    if isinstance(asked, Weigh):
        return await asyncio.to_thread(_weigher(reader).weigh, question, asked.memory, asked.blocks)
    if asked.insist:
        return await _weigher(reader).aread(question, asked.memory, asked.blocks, insist=True)
    return await reader.aread(question, asked.memory, asked.blocks)


def _advance(loop: Loop, reply: Reading | Odds) -> Read | Weigh | Step | Gathered:
    # StopIteration cannot cross a thread's future, so the loop's end comes back as a value.
    try:
        return loop.send(reply)
    except StopIteration as end:
        result: Gathered = end.value
        return result


def _answer(question: str, gathered: Gathered, text: str, cost: Usage) -> Answer:
    if 0 < len(gathered.steps) == gathered.usage.malformed_replies:
        logger.warning(
            "none of the model's %d replies kept to the format, so it took no notes; a model that cannot keep to it "
            "answers better with RecallConfig(writer=...)",
            len(gathered.steps),
        )
    quoted = {e.chunk.id for e in gathered.memory.evidence}
    sources = gathered.shown or [r for r in gathered.kept if not quoted or r.chunk.id in quoted]
    return Answer(
        question=question,
        text=text.strip(),
        found=bool(gathered.memory.text.strip()),
        sources=tuple({r.block: r for r in sources}.values()),
        evidence=gathered.memory.evidence,
        steps=gathered.steps,
        working_memory=gathered.memory.text,
        usage=gathered.usage + cost,
        exited=gathered.exited,
    )
