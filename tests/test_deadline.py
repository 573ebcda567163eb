"""Readers that hang: answers come all the same, and no one else waits.

The deadline's clock stands still, and moves only with the events of an answer. So on a slow machine a reply in time is
in time, and a call that hangs is waited for only `BRIEFLY`. What hangs is released when the test is over.
"""

import asyncio
import contextvars
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from compmem import Document, IndexConfig, LoopConfig, MemoryIndex, ReaderError, RecallConfig, deadline, threads
from compmem.as_json import answer_json
from compmem.cli.answer_page import answer_page
from compmem.loop.drivers import run, run_loop
from compmem.loop.loop import recall_loop
from compmem.readers import ChatReader
from compmem.readers.chat_model import apieces, pieces
from compmem.schema import Answer, Chunk, MemoryBlock, Reading, Step, WorkingMemory
from tests.hashing import HashEncoder

QUESTION = "Who insures the building that Acme rents?"
NOTE = "<check>yes</check><update>Acme rents Harbour House.</update><next>end</next>"
BRIEFLY = 0.05
LONG = 60.0


@pytest.fixture
def clock(monkeypatch):
    """The clock of deadlines, which stands still."""
    stopped = SimpleNamespace(time=0.0)
    monkeypatch.setattr(deadline, "time", SimpleNamespace(monotonic=lambda: stopped.time))
    return stopped


@pytest.fixture(autouse=True)
def hung():
    """Set at the end of the test, so that no thread is left."""
    over = threading.Event()
    yield over
    over.set()
    wait_for_calls()


def calling():
    return [thread for thread in threading.enumerate() if thread.name == "compmem-chat"]


def wait_for_calls():
    for thread in calling():
        thread.join(LONG)


@pytest.fixture(scope="module")
def index():
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as made:
        made.add(
            [
                Document(id="lease", text="Acme rents Harbour House."),
                Document(id="policy", text="Lloyd insures Harbour House."),
            ]
        )
        made.answer(QUESTION)
        yield made


def models(hung, said):
    """Every kind of model: returns `said` in its first calls, and hangs in the next one after it has begun to reply."""
    replies = iter(said)

    def plain(messages):
        if reply := next(replies, None):
            return reply
        hung.wait(LONG)
        return "late"

    def streaming(messages):
        if reply := next(replies, None):
            yield reply
            return
        hung.wait(LONG)
        yield "late"

    async def waiting(messages):
        if reply := next(replies, None):
            return reply
        await asyncio.sleep(LONG)
        return "late"

    async def waiting_stream(messages):
        if reply := next(replies, None):
            yield reply
            return
        await asyncio.sleep(LONG)
        yield "late"

    return {f.__name__: f for f in (plain, streaming, waiting, waiting_stream)}


KINDS = ("plain", "streaming", "waiting", "waiting_stream")


both = pytest.mark.parametrize("how", ["sync", "async"])


def asked(index, how, config, clock=None, **models):
    """The answer; after each event the time is nearly over, and after a lost step it is over."""

    def came(event):
        if clock:
            lost = isinstance(event, Step) and event.lost
            clock.time = began + config.max_seconds - (0 if lost else BRIEFLY)
        return event

    began = clock.time if clock else 0.0

    async def answered():
        return [came(event) async for event in index.astream(QUESTION, config, **models)][-1]

    answer = (
        [came(e) for e in index.stream(QUESTION, config, **models)][-1] if how == "sync" else asyncio.run(answered())
    )
    assert isinstance(answer, Answer)
    return answer


@both
@pytest.mark.parametrize("kind", KINDS)
def test_a_reading_that_hangs_is_a_lost_step_and_the_blocks_are_quoted(index, hung, clock, kind, how):
    chat = models(hung, [])[kind]
    answer = asked(index, how, RecallConfig(reader="chat", max_seconds=BRIEFLY), clock, chat=chat)
    assert answer.stop_reason == "seconds"
    assert [(step.lost, step.updated) for step in answer.steps] == [(True, False)]
    assert [step["lost"] for step in answer_json(answer)["steps"]] == [True]
    assert answer.found
    assert "Acme rents Harbour House." in answer.text
    assert {e.chunk.document_id for e in answer.evidence} == {r.chunk.document_id for r in answer.sources}
    assert "not read in time" in answer_page(answer)


@both
@pytest.mark.parametrize("kind", ["streaming", "waiting"])
def test_where_writing_hangs_the_notes_are_the_answer(index, hung, clock, kind, how):
    chat = models(hung, [NOTE])[kind]
    answer = asked(index, how, RecallConfig(reader="chat", max_seconds=LONG), clock, chat=chat)
    assert (answer.stop_reason, answer.text) == ("seconds", "Acme rents Harbour House.")
    assert [(step.lost, step.updated) for step in answer.steps] == [(False, True)]
    assert len(answer.sources) == 1


@both
def test_a_writer_that_hangs_is_replaced_by_quotations(index, hung, clock, how):
    chat = models(hung, [])["plain"]
    answer = asked(index, how, RecallConfig(writer="chat", threshold=0.0, max_seconds=LONG), clock, chat=chat)
    assert answer.stop_reason == "seconds"
    assert "Lloyd insures Harbour House." in answer.text


@both
def test_what_was_streamed_before_the_writing_hung_is_the_answer(index, hung, clock, how):
    replies = iter([NOTE])

    def model(messages):
        if reply := next(replies, None):
            yield reply
            return
        clock.time = LONG - BRIEFLY  # for what comes next
        yield "Lloyd "
        hung.wait(LONG)
        yield "or not"

    answer = asked(index, how, RecallConfig(reader="chat", max_seconds=LONG), chat=model)
    assert (answer.stop_reason, answer.text) == ("seconds", "Lloyd")


def test_nothing_known_is_said_to_be_a_matter_of_time(index, hung, clock):
    chat = models(hung, [])["plain"]
    answer = index.answer("Zebra?", RecallConfig(reader="chat", max_seconds=BRIEFLY, threshold=0.0), chat=chat)
    assert not answer.found
    assert answer.text == "Timed out before anything was found."


async def test_a_recall_ranks_what_was_scored_and_a_reader_of_ones_own_is_cancelled(index, clock):
    cancelled = []

    class Own:
        async def aread(self, question, memory, blocks):
            try:
                await asyncio.sleep(LONG)
            except asyncio.CancelledError:
                cancelled.append(True)
                raise

    steps = []
    found = await index.arecall(
        QUESTION,
        2,
        config=LoopConfig(gate="similarity", max_seconds=BRIEFLY),
        on_step=steps.append,
        reader=Own(),
    )
    assert {r.chunk.document_id for r in found} == {"lease", "policy"}
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    assert [step.lost for step in steps] == cancelled == [True]


@pytest.mark.parametrize("kind", KINDS)
def test_a_limit_longer_than_any_wait_is_none(index, hung, kind):
    chat = models(hung, ["Lloyd."])[kind]
    assert asked(index, "sync", RecallConfig(max_seconds=1e300), chat=chat).text == "Lloyd."


@both
def test_no_call_is_begun_when_the_time_is_up(index, hung, clock, how):
    calls = []

    def model(messages):
        calls.append(messages)
        hung.wait(LONG)

    asked(index, how, RecallConfig(reader="chat", max_seconds=BRIEFLY), clock, chat=model)
    hung.set()
    wait_for_calls()
    assert len(calls) == 1, "one reading, and no writing"


async def test_calls_that_hang_hold_neither_quotations_nor_the_default_executor(index, hung, monkeypatch):
    monkeypatch.setattr(threads, "MAX_CONCURRENT_CALLS", 3)
    monkeypatch.setattr(threads, "_index_pool", ThreadPoolExecutor(1))
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    chat = models(hung, [])["plain"]
    stuck = [asyncio.create_task(index.aanswer(QUESTION, RecallConfig(reader="chat"), chat=chat)) for _ in range(3)]
    async with asyncio.timeout(LONG / 2):
        while len(calling()) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert (await index.aanswer(QUESTION)).found
        assert await asyncio.to_thread(int, "7") == 7
        waiting = asyncio.create_task(index.aanswer(QUESTION, RecallConfig(reader="chat"), chat=lambda messages: NOTE))
        while not threads.chat_calls()._queued:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert len(calling()) == 3
        stuck[0].cancel()  # its client disconnects, and the next call takes its place
        assert (await waiting).found
    for task in stuck:
        task.cancel()
    assert all(isinstance(e, asyncio.CancelledError) for e in await asyncio.gather(*stuck, return_exceptions=True))


def test_so_many_abandoned_calls_are_an_error_and_no_more_threads(index, hung, clock, monkeypatch):
    monkeypatch.setattr(threads, "MAX_ABANDONED_CALLS", 2)
    config, chat = RecallConfig(reader="chat", max_seconds=BRIEFLY), models(hung, [])["plain"]
    for how in ("sync", "async"):
        assert asked(index, how, config, clock, chat=chat).stop_reason == "seconds"
    for how in ("sync", "async"):
        with pytest.raises(ReaderError, match=r"2 abandoned calls .* have not returned"):
            asked(index, how, config, clock, chat=chat)
    assert len(calling()) == 2
    hung.set()
    wait_for_calls()
    assert asked(index, "sync", config.replace(max_seconds=LONG), chat=lambda messages: NOTE).stop_reason == "exit_gate"


def test_calls_that_wait_are_refused_when_too_many_hang(hung, monkeypatch):
    monkeypatch.setattr(threads, "MAX_CONCURRENT_CALLS", 2)
    monkeypatch.setattr(threads, "MAX_ABANDONED_CALLS", 2)
    calls = threads.CallThreads()
    first, second, third = (calls.submit(lambda: hung.wait(LONG)) for _ in range(3))
    calls.abandon(first)
    assert third.running(), "it has taken the place"
    waiting = calls.submit(int)
    calls.abandon(second)
    with pytest.raises(ReaderError, match=r"2 abandoned calls .* have not returned"):
        waiting.result(LONG)
    hung.set()
    assert third.result(LONG)


def test_a_call_that_gets_no_thread_is_an_error_and_takes_no_place(monkeypatch):
    monkeypatch.setattr(threads, "MAX_CONCURRENT_CALLS", 1)
    calls = threads.CallThreads()

    def full(thread):
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", full)
        with pytest.raises(ReaderError, match="no thread is left"):
            calls.submit(int).result(LONG)
    assert calls.submit(int).result(LONG) == 0


def test_a_step_is_begun_only_while_there_is_time_for_it_and_for_the_answer():
    class Bench:
        def propose(self, memory):
            return list(range(9))

        def score(self, memory, blocks):
            return [1.0] * len(blocks)

        def fetch(self, blocks):
            return [MemoryBlock(chunk=Chunk(text="t", document_id=str(n))) for n in blocks]

        def count_tokens(self, text):
            return 0

    now = [0.0]

    class Slow:
        def read(self, question, memory, blocks):
            now[0] += 2.0
            return Reading(memory=memory, update=False, exit=False)

    loop = recall_loop(Bench(), RecallConfig(max_seconds=9.0), 0.5, clock=lambda: now[0])
    found = run(run_loop("q?", loop, Slow()))
    assert (found.stop_reason, len(found.steps)) == ("seconds", 3), (
        "6 s of reading, then 2 s for another and 2 s to answer"
    )


VARIABLE = contextvars.ContextVar("variable", default="unset")


@both
@pytest.mark.parametrize("kind", KINDS)
def test_context_variables_reach_the_model_and_stay_over_its_pieces(index, kind, how):
    seen = []

    def plain(messages):
        seen.append(VARIABLE.get())
        return NOTE

    def streaming(messages):
        seen.append(VARIABLE.get())
        token = VARIABLE.set("within")
        yield NOTE
        VARIABLE.reset(token)
        yield ""

    async def waiting(messages):
        return plain(messages)

    async def waiting_stream(messages):
        for piece in streaming(messages):
            yield piece

    chat = {f.__name__: f for f in (plain, streaming, waiting, waiting_stream)}[kind]

    def ask():
        VARIABLE.set("mine")
        for seconds in (None, LONG):
            assert (
                asked(index, how, RecallConfig(reader="chat", max_seconds=seconds), chat=chat).stop_reason
                == "exit_gate"
            )

    contextvars.copy_context().run(ask)
    assert seen == ["mine"] * 4, "a reading and a writing each"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(hung, monkeypatch):
    monkeypatch.setattr(threads, "MAX_CONCURRENT_CALLS", 2)

    async def model(messages):
        return "said"

    def works():
        called = threads.chat_calls().submit(lambda: 7).result(LONG), threads.submit(int, "7").result(LONG)
        return called == (7, 7) and list(pieces(model, [])) == ["said"]

    assert works()
    for _ in range(3):
        threads.chat_calls().submit(lambda: hung.wait(LONG))
    with threads.chat_calls()._guard:  # another thread is about to start a call while this one forks
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = 0 if works() else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("leaves", ["sync", "async"])
def test_a_sync_stream_that_is_left_is_closed_in_its_own_context(leaves):
    closed = []

    def model(messages):
        token = VARIABLE.set("within")
        try:
            while True:
                yield "more "
        finally:
            VARIABLE.reset(token)  # fails in another context
            closed.append(True)

    async def left():
        stream = apieces(model, [])
        await anext(stream)
        await stream.aclose()

    if leaves == "async":
        asyncio.run(left())
    else:
        answer = ChatReader(model).write("q", WorkingMemory(text="m"))
        next(answer)
        answer.close()
    assert closed == [True]


def test_the_seconds_of_an_answer_are_also_those_of_its_writing(index, clock):
    def writes_slowly(messages):
        clock.time += 7
        return "Lloyd."

    answer = index.answer(QUESTION, chat=writes_slowly)
    assert answer.text == "Lloyd."
    assert answer.usage.seconds == 7
