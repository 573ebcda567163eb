"""The LlamaIndex classes under load: concurrency, copies, tracing, cost."""

import asyncio
import copy
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from llama_index.core.base.llms.types import CompletionResponse
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.callbacks.schema import EventPayload
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent
from llama_index.core.instrumentation.events.query import QueryEndEvent, QueryStartEvent
from llama_index.core.instrumentation.events.retrieval import RetrievalEndEvent, RetrievalStartEvent
from llama_index.core.instrumentation.events.synthesis import SynthesizeEndEvent, SynthesizeStartEvent
from llama_index.core.llms import ChatMessage, CustomLLM, LLMMetadata
from llama_index.core.llms.callbacks import llm_completion_callback
from llama_index.core.postprocessor import LongContextReorder
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from workflows.errors import WorkflowTimeoutError

from compmem import LoopConfig
from llama_index_compmem import CompMemStepEvent, recall_tool
from tests.frameworks_llama_index import QUESTION, FakeLLM, HashingEncoder, make_index

QUESTIONS = [
    QUESTION,
    "Who invented the Orchid device?",
    "Who plays the cello?",
    "Where does the river Esk rise?",
    "Who is the mayor of the town in which Elena Marsh was born?",
]


# Concurrency


async def test_four_retrievals_with_a_slow_encoder_run_side_by_side():
    encoder = HashingEncoder()
    retriever = make_index(encoder=encoder).as_retriever(3, method="gate")
    await retriever.aretrieve(QUESTION)
    encoder.seconds = 0.3
    began = time.monotonic()
    found = await asyncio.gather(*(retriever.aretrieve(q) for q in QUESTIONS[:4]))
    assert time.monotonic() - began < 0.6
    assert all(len(nodes) == 3 for nodes in found)


async def _stays_responsive(work):
    """Runs the coroutine; returns the longest time for which the event loop was blocked."""
    longest, last, done = 0.0, time.monotonic(), False

    async def watch():
        nonlocal longest, last
        while not done:
            now = time.monotonic()
            longest, last = max(longest, now - last), now
            await asyncio.sleep(0.005)

    task = asyncio.create_task(watch())
    await work
    done = True
    await task
    return longest


async def test_the_event_loop_is_never_blocked():
    index = make_index(encoder=HashingEncoder(seconds=0.3))
    streaming = index.as_query_engine(streaming=True)

    async def streamed():
        return [p async for p in (await streaming.aquery(QUESTION)).async_response_gen()]

    for work in (
        index.as_retriever().aretrieve(QUESTION),
        index.as_query_engine().aquery(QUESTION),
        index.as_query_engine(FakeLLM()).aquery(QUESTION),
        streamed(),
        index.as_chat_engine().achat(QUESTION),
    ):
        assert await _stays_responsive(work) < 0.25


class SyncLLM(CustomLLM):
    """An LLM with sync methods only, as users write them."""

    chat_model: bool = False
    seconds: float = 0.4

    @property
    def metadata(self):
        return LLMMetadata(is_chat_model=self.chat_model)

    @llm_completion_callback()
    def complete(self, prompt, formatted=False, **kwargs):
        time.sleep(self.seconds)
        return CompletionResponse(text="Tarnhill.")

    @llm_completion_callback()
    def stream_complete(self, prompt, formatted=False, **kwargs):
        for text in ("Tarn", "Tarnhill."):
            time.sleep(self.seconds)
            yield CompletionResponse(text=text, delta=text[-4:])


@pytest.mark.parametrize("chat_model", [True, False])
async def test_an_llm_with_sync_methods_does_not_block_the_event_loop(index, chat_model):
    llm = SyncLLM(chat_model=chat_model)
    before = [
        ChatMessage(role="user", content="Who is it?"),
        ChatMessage(role="assistant", content="It is Jonas Veld."),
    ]
    streaming = index.as_query_engine(llm=llm, streaming=True)
    answers = []

    async def streamed():
        answers.append("".join([p async for p in (await streaming.aquery(QUESTION)).async_response_gen()]))

    async def chatted():
        answers.append((await index.as_chat_engine(llm=llm, chat_history=before).achat("And he?")).response)

    async def asked():
        answers.append(str(await index.as_query_engine(llm=llm).aquery(QUESTION)))

    for work in (streamed, chatted, asked):
        assert await _stays_responsive(work()) < 0.25
    assert answers == ["Tarnill.", "Tarnhill.", "Tarnhill."]


async def test_a_slow_llm_with_sync_methods_is_left_when_the_caller_has_waited_enough(index):
    llm = SyncLLM(seconds=30)
    before = [ChatMessage(role="user", content="Who is it?")]
    chat = index.as_chat_engine(llm=llm, chat_history=before)
    for work in (index.as_query_engine(llm=llm).aquery(QUESTION), chat.achat("And where?")):
        began = time.monotonic()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(work, 0.2)
        assert time.monotonic() - began < 5
    assert [m.content for m in chat.chat_history] == ["Who is it?"]


@pytest.mark.slow
def test_a_program_ends_while_a_slow_llm_is_left(run_python):
    code = (
        "import asyncio\n"
        "from tests.llama_index_adapter.test_llama_index_load import *\n"
        "async def main():\n"
        "    chat = make_index().as_chat_engine(llm=SyncLLM(seconds=60), chat_history=[ChatMessage(content='Who?')])\n"
        "    for work in (chat.achat('And where?'), chat.query_engine.aquery(QUESTION)):\n"
        "        try: await asyncio.wait_for(work, 0.2)\n"
        "        except TimeoutError: print('left')\n"
        "asyncio.run(main())\n"
    )
    assert run_python(code, timeout=55).split() == ["left", "left"]


async def _stops(encoder, start):
    """Cancels the started work; the encoder is called at most once more."""
    task = asyncio.create_task(start())
    await asyncio.sleep(0.3)
    assert encoder.calls
    assert not task.done()
    began = time.monotonic()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - began < 0.5
    calls = encoder.calls
    await asyncio.sleep(0.8)
    assert encoder.calls <= calls + 1


@pytest.mark.parametrize("how", ["aretrieve", "aquery", "aquery with an llm"])
async def test_cancelling_stops_the_loop_within_a_step(how):
    encoder = HashingEncoder()
    index = make_index(encoder=encoder)
    settings = LoopConfig(gate="off", exit_gate=False)
    start = {
        "aretrieve": index.as_retriever(recall_config=settings).aretrieve,
        "aquery": index.as_query_engine(recall_config=settings).aquery,
        "aquery with an llm": index.as_query_engine(FakeLLM(), recall_config=settings).aquery,
    }[how]
    await start(QUESTION)
    encoder.seconds, encoder.calls = 0.2, 0
    before = threading.active_count()
    await _stops(encoder, lambda: start(QUESTION))
    assert threading.active_count() <= before + 1  # the executor's idle threads stay for reuse


async def test_a_timeout_stops_the_loop():
    encoder = HashingEncoder()
    index = make_index(encoder=encoder)
    slow = LoopConfig(gate="off", exit_gate=False)
    engine = index.as_query_engine(recall_config=slow.replace(max_seconds=0.3))
    encoder.seconds = 0.1
    response = engine.query(QUESTION)
    assert response.metadata.stop_reason == "seconds"
    assert len(response.metadata.steps) < 5
    assert response.metadata.usage["seconds"] < 2

    class BaseIndex(Workflow):
        @step
        async def ask(self, ev: StartEvent) -> StopEvent:
            return StopEvent(result=str(await index.as_query_engine(recall_config=slow).aquery(QUESTION)))

    with pytest.raises(WorkflowTimeoutError):
        await BaseIndex(timeout=0.2).run()
    calls = encoder.calls
    await asyncio.sleep(0.5)
    assert encoder.calls <= calls + 1


def test_eight_threads_give_the_answers_of_one(index):
    engine, retriever = index.as_query_engine(), index.as_retriever(3)

    def ask(number):
        question = QUESTIONS[number % 5]
        if number % 2:
            return str(engine.query(question))
        return [(n.node.node_id, round(n.score, 6)) for n in retriever.retrieve(question)]

    alone = [ask(n) for n in range(20)]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda _: [ask(n) for n in range(20)], range(8)))
    assert all(answers == alone for answers in together)


# Copies


def test_retrievers_and_engines_are_copied_and_pickled(tmp_path):
    index = make_index(path=tmp_path / "world.mem")
    llm = FakeLLM()
    engines = [index.as_query_engine(), index.as_query_engine(llm, similarity_top_k=3)]
    for made in [*engines, index.as_chat_engine(), index.as_chat_engine(llm=llm)]:
        ask = made.query if made in engines else made.chat
        expected = str(ask(QUESTION))
        for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made)), copy.copy(made)):
            if made not in engines:
                other.reset()
            assert str((other.query if made in engines else other.chat)(QUESTION)) == expected
    retriever = index.as_retriever(3)
    for other in (copy.deepcopy(retriever), pickle.loads(pickle.dumps(retriever))):
        assert other.retrieve(QUESTION) == retriever.retrieve(QUESTION)
        assert other.memory.path == index.memory.path


# Tracing


class Kept(BaseEventHandler):
    """Records every event."""

    events: list

    def handle(self, event, **kwargs):
        self.events.append(event)


@pytest.fixture
def kept():
    handler, root = Kept(events=[]), get_dispatcher()
    root.add_event_handler(handler)
    yield handler.events
    root.event_handlers.remove(handler)


async def test_the_dispatcher_is_told_of_queries_retrievals_and_steps(index, kept):
    for ask in ("sync", "async"):
        kept.clear()
        engine = index.as_query_engine()
        response = engine.query(QUESTION) if ask == "sync" else await engine.aquery(QUESTION)
        kinds = [type(e) for e in kept]
        for kind in (QueryStartEvent, QueryEndEvent, RetrievalStartEvent, RetrievalEndEvent):
            assert kinds.count(kind) == 1
        steps = [e for e in kept if isinstance(e, CompMemStepEvent)]
        assert [e.number for e in steps] == [s["number"] for s in response.metadata.steps]
        assert (steps[0].question, steps[0].node_ids) == (QUESTION, response.metadata.steps[0]["node_ids"])
        ended = next(e for e in kept if isinstance(e, RetrievalEndEvent))
        assert [n.node.ref_doc_id for n in ended.nodes] == ["orchid", "marsh"]
        assert {e.span_id.partition("-")[0] for e in steps} <= {
            "CompMemQueryEngine._query",
            "CompMemQueryEngine._aquery",
        }
        kept.clear()
        retriever = index.as_retriever(2)
        nodes = retriever.retrieve(QUESTION) if ask == "sync" else await retriever.aretrieve(QUESTION)
        kinds = [type(e) for e in kept]
        assert kinds[0] is RetrievalStartEvent
        assert kinds[-1] is RetrievalEndEvent
        assert kept[-1].nodes == nodes
        assert kinds.count(CompMemStepEvent) <= len(steps)  # none where the first look suffices


async def test_a_recall_tool_is_traced_as_a_retrieval(kept):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    index = make_index(callback_manager=CallbackManager([debug]))
    tool = recall_tool(index.as_retriever(2))
    for ask in ("sync", "async"):
        kept.clear()
        debug.flush_event_logs()
        output = tool.call(query=QUESTION) if ask == "sync" else await tool.acall(query=QUESTION)
        assert "Tarnhill" in output.content and len(output.raw_output) == 2
        start, end = (e for e in kept if isinstance(e, RetrievalStartEvent | RetrievalEndEvent))
        assert (start.str_or_query_bundle, end.nodes) == (QUESTION, output.raw_output)
        ((_, end),) = debug.get_event_pairs(CBEventType.RETRIEVE)
        assert end.payload[EventPayload.NODES] == output.raw_output


async def test_legacy_callbacks_are_told_too():
    debug = LlamaDebugHandler(print_trace_on_end=False)
    index = make_index(callback_manager=CallbackManager([debug]))
    for ask in ("sync", "async"):
        debug.flush_event_logs()
        engine = index.as_query_engine()
        response = engine.query(QUESTION) if ask == "sync" else await engine.aquery(QUESTION)
        for kind in (CBEventType.QUERY, CBEventType.RETRIEVE, CBEventType.SYNTHESIZE):
            ((start, end),) = debug.get_event_pairs(kind)
            assert start.payload[EventPayload.QUERY_STR] == QUESTION
        assert end.payload[EventPayload.RESPONSE] is response
        assert len(debug.get_event_pairs(CBEventType.AGENT_STEP)) == len(response.metadata.steps)
        debug.flush_event_logs()
        nodes = index.as_retriever(2).retrieve(QUESTION)
        ((_, end),) = debug.get_event_pairs(CBEventType.RETRIEVE)
        assert end.payload[EventPayload.NODES] == nodes


@pytest.mark.parametrize("how", ["sync", "async", "streaming", "chosen"])
async def test_an_llm_is_called_while_the_answer_is_synthesized_not_while_nodes_are_retrieved(how, kept):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    manager = CallbackManager([debug])
    chosen = [LongContextReorder()] if how == "chosen" else None
    llm = FakeLLM()
    llm.callback_manager = manager
    engine = make_index(callback_manager=manager).as_query_engine(
        llm=llm, streaming=how == "streaming", node_postprocessors=chosen
    )
    kept.clear()
    debug.flush_event_logs()
    response = await engine.aquery(QUESTION) if how == "async" else engine.query(QUESTION)
    assert str(response) == "The answer is Tarnhill."
    wanted = (RetrievalStartEvent, RetrievalEndEvent, SynthesizeStartEvent, LLMChatStartEvent, SynthesizeEndEvent)
    assert [type(e) for e in kept if isinstance(e, wanted)] == list(wanted)
    steps = [n for n, e in enumerate(kept) if isinstance(e, CompMemStepEvent)]
    ended = next(n for n, e in enumerate(kept) if isinstance(e, RetrievalEndEvent))
    assert max(steps) < ended or how == "chosen"
    (_, retrieved), (wrote, _), (asked, _) = (
        *debug.get_event_pairs(CBEventType.RETRIEVE),
        *debug.get_event_pairs(CBEventType.SYNTHESIZE),
        *debug.get_event_pairs(CBEventType.LLM),
    )
    order = [(e.event_type, e.id_) for e in debug.get_events()]
    at = [order.index((kind, e.id_)) for kind, e in (("retrieve", retrieved), ("synthesize", wrote), ("llm", asked))]
    assert at == sorted(at) and len(retrieved.payload[EventPayload.NODES]) == 5


async def test_a_failure_of_an_llm_ends_what_was_traced(kept):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    engine = make_index(callback_manager=CallbackManager([debug])).as_query_engine(
        llm=FakeLLM(lambda prompt: RuntimeError("rate limit"))
    )
    for ask in ("sync", "async"):
        debug.flush_event_logs()
        with pytest.raises(ValueError, match="rate limit"):
            engine.query(QUESTION) if ask == "sync" else await engine.aquery(QUESTION)
        for kind in (CBEventType.QUERY, CBEventType.RETRIEVE, CBEventType.SYNTHESIZE):
            assert len(debug.get_event_pairs(kind)) == 1


# Cost


def test_the_adapter_costs_little_beyond_the_core(index):
    engine, retriever, memory = index.as_query_engine(), index.as_retriever(3), index.memory

    def cheapest(*calls):
        """The least processor time of each call; they alternate, so that other load affects all of them."""
        times = [[] for _ in calls]
        for _ in range(15):
            for own, call in zip(times, calls, strict=True):
                began = time.process_time()
                call()
                own.append(time.process_time() - began)
        return [min(own) for own in times]

    query, answer, retrieve, recall = cheapest(
        lambda: engine.query(QUESTION),
        lambda: memory.answer(QUESTION),
        lambda: retriever.retrieve(QUESTION),
        lambda: memory.recall(QUESTION, 3),
    )
    assert query < 2.5 * answer
    assert retrieve < 2.5 * recall


def test_importing_costs_little_beyond_the_framework(run_python):
    code = (
        "import time, llama_index.core, sys; began = time.process_time(); import llama_index_compmem; "
        "print(time.process_time() - began); assert 'torch' not in sys.modules"
    )
    assert float(run_python(code)) < 0.6, "0.3 s on a machine with nothing else to do"
