"""The LlamaIndex query engine against the framework's own classes."""

import asyncio
import time

import pytest
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.base.response.schema import AsyncStreamingResponse, Response, StreamingResponse
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.postprocessor import LongContextReorder, SimilarityPostprocessor
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, RichPromptTemplate
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import QueryEngineTool
from llama_index.core.vector_stores.types import MetadataFilter, MetadataFilters
from llama_index.core.workflow import StartEvent, StopEvent, Workflow, step
from pydantic import BaseModel

from compmem import IndexConfig, LoopConfig, ReaderError, RecallConfig, RuntimeConfig
from llama_index_compmem import CompMemIndex, CompMemQueryEngine
from tests.frameworks_llama_index import (
    QUESTION,
    QUOTED,
    READING,
    FakeLLM,
    HashingEncoder,
    documents,
    failing,
    make_index,
    names,
    read_reply,
)

# Answers


async def test_without_an_llm_the_answer_is_quoted(index):
    engine = index.as_query_engine()
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert isinstance(response, Response)
        assert str(response) == QUOTED
        assert names(response.source_nodes) == ["orchid", "marsh"]
        assert all(0 < n.score <= 1 for n in response.source_nodes)
        assert "Tarnhill" in response.get_formatted_sources()
        told = response.metadata
        assert [s["number"] for s in told.steps] == list(range(1, told.usage["steps"] + 1))
        assert told.steps[0]["node_ids"] == [response.source_nodes[0].node.node_id]
        assert "born in Tarnhill" in told.working_memory
        assert (told.found, told.stop_reason in ("exit_gate", "exhausted", "steps")) == (True, True)
        assert told[response.source_nodes[0].node.node_id]["year"] == 1998


async def test_an_llm_reads_and_answers(index):
    llm = FakeLLM()
    engine = index.as_query_engine(llm, recall_config=READING)
    response = engine.query(QUESTION)
    assert str(response) == "The answer is Tarnhill."
    assert names(response.source_nodes) == ["orchid", "marsh"]
    assert {kind for kind, _ in llm.calls} == {"chat"}
    assert response.metadata.usage["model_calls"] == len(llm.calls) == 3
    llm.calls.clear()
    assert str(await engine.aquery(QUESTION)) == "The answer is Tarnhill."
    assert {kind for kind, _ in llm.calls} == {"achat"}


async def test_answers_are_streamed(index):
    engine = index.as_query_engine(FakeLLM(), recall_config=READING, streaming=True)
    response = engine.query(QUESTION)
    assert isinstance(response, StreamingResponse)
    assert names(response.source_nodes) == ["orchid", "marsh"]
    assert list(response.response_gen) == ["The ", "answer ", "is ", "Tarnhill."]
    assert response.metadata.usage["model_calls"] == 3
    response = await engine.aquery(QUESTION)
    assert isinstance(response, AsyncStreamingResponse)
    assert [p async for p in response.async_response_gen()] == ["The ", "answer ", "is ", "Tarnhill."]
    assert response.metadata.stop_reason == "exit_gate"
    assert str(index.as_query_engine(streaming=True).query(QUESTION)) == QUOTED
    abandoned = engine.query(QUESTION)
    assert next(abandoned.response_gen) == "The "
    abandoned.response_gen.close()


async def test_any_callable_is_a_chat_model(index):
    async def achat(messages):
        return read_reply(messages[-1]["content"])

    def chat(messages):
        return read_reply(messages[-1]["content"])

    for model in (chat, achat):
        assert str(await index.as_query_engine(chat=model).aquery(QUESTION)) == "The answer is Tarnhill."
    assert str(index.as_query_engine(chat=chat).query(QUESTION)) == "The answer is Tarnhill."
    with pytest.raises(ValueError, match="llm= or chat=, not both"):
        index.as_query_engine(FakeLLM(), chat=chat)
    with pytest.raises(ValueError, match="a callable goes to chat="):
        CompMemQueryEngine(index, chat)


def test_filters_hold_in_every_step(index):
    recent = MetadataFilters(filters=[MetadataFilter(key="year", value=1962, operator=">")])
    response = index.as_query_engine(filters=recent).query(QUESTION)
    assert "orchid" in names(response.source_nodes)
    assert "marsh" not in names(response.source_nodes)


def test_settings_of_the_loop_hold(index):
    engine = index.as_query_engine(recall_config=RecallConfig(max_steps=1))
    assert len(engine.query(QUESTION).metadata.steps) == 1
    assert (
        make_index(recall_config=RecallConfig(max_steps=1)).as_query_engine().query(QUESTION).metadata.stop_reason
        == "steps"
    )
    memagent = index.as_query_engine(FakeLLM(lambda prompt: "notes"), recall_config=LoopConfig.memagent())
    assert len(memagent.query(QUESTION).metadata.steps) == 5


def test_unknown_options_are_refused_not_passed_over(index):
    with pytest.raises(TypeError, match=r"response_mode= is no option .* RetrieverQueryEngine\.from_args"):
        index.as_query_engine(response_mode="tree_summarize")


@pytest.mark.parametrize("encoder", [True, False])
async def test_over_kv_memory_the_backbone_reads_and_answers(saved_model, encoder):
    settings = IndexConfig(
        memory="kv", backbone=str(saved_model("qwen2")), encoder=HashingEncoder() if encoder else None, chunk_tokens=64
    )
    index = CompMemIndex.from_documents(documents()[:2], config=settings, runtime=RuntimeConfig(device="cpu"))
    engine = index.as_query_engine(recall_config=None)
    assert engine.get_prompts() == {}
    response = engine.query(QUESTION)
    assert response.metadata.usage["model_calls"] > 0
    assert str(await engine.aquery(QUESTION)) == str(response)
    nodes = index.as_retriever(2).retrieve(QUESTION)
    assert len(nodes) == 2
    assert isinstance(engine.synthesize(QUESTION, nodes), Response)
    assert str(index.as_query_engine(FakeLLM()).query(QUESTION)) == "The answer is Tarnhill."


# Prompts


def test_prompts_are_shown_and_changed(index):
    llm = FakeLLM()
    engine = index.as_query_engine(llm, recall_config=READING)
    assert set(engine.get_prompts()) == {"system", "update", "overwrite", "answer", "from_blocks", "cite", "ask_back"}
    engine.update_prompts({"answer": PromptTemplate("Say {it}: {question} Notes: {memory} {tone}", tone="Briefly.")})
    engine.query(QUESTION)
    said = llm.calls[-1][1][-1].content
    assert engine.get_prompts()["answer"].template.startswith("Say {it}: {question}")
    engine.update_prompts(engine.get_prompts())
    assert said.startswith(f"Say {{it}}: {QUESTION} Notes: ")
    assert said.endswith("Briefly.")
    mapped = PromptTemplate(
        "{query_str} {context_str}", template_var_mappings={"question": "query_str", "memory": "context_str"}
    )
    engine.update_prompts({"answer": mapped})


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({"answer": PromptTemplate("{question}")}, r"prompt 'answer' lacks \{memory\}"),
        ({"answer": PromptTemplate("{question} {memory} {blocks}")}, "prompt 'answer' has fields"),
        ({"reply": PromptTemplate("{question}")}, "unknown prompt 'reply'"),
        ({"answer": "{question}"}, "must be a PromptTemplate"),
        ({"from_blocks": ChatPromptTemplate.from_messages([("user", "{blocks} {question}")])}, "prompt 'system'"),
        ({"from_blocks": RichPromptTemplate("{% chat role='user' %}{{blocks}}{% endchat %}")}, "prompt 'system'"),
    ],
)
def test_prompts_that_cannot_be_used_are_refused(index, prompts, message):
    with pytest.raises(ValueError, match=message):
        index.as_query_engine(FakeLLM()).update_prompts(prompts)


def test_without_a_model_there_are_no_prompts(index):
    engine = index.as_query_engine()
    assert engine.get_prompts() == {}
    with pytest.raises(ValueError, match="has no prompts"):
        engine.update_prompts({"answer": PromptTemplate("{question}{memory}")})


def test_an_llm_that_replies_with_objects_is_refused(index):
    class Town(BaseModel):
        name: str

    for make in (index.as_query_engine, lambda llm: index.as_chat_engine("best", llm)):
        with pytest.raises(ValueError, match=r"cannot be a StructuredLLM: RetrieverQueryEngine.from_args"):
            make(FakeLLM().as_structured_llm(Town))


async def test_an_llm_is_asked_once(index):
    llm = FakeLLM()
    engine = index.as_query_engine(llm, recall_config=RecallConfig(writer_blocks=4))
    engine.update_prompts({"from_blocks": PromptTemplate("Blocks: {blocks} Now say: {question}")})
    for ask in (engine.query(QUESTION), await engine.aquery(QUESTION), engine.with_streaming(True).query(QUESTION)):
        response = ask.get_response() if isinstance(ask, StreamingResponse) else ask
        assert str(response) == "The answer is Tarnhill."
        assert names(response.source_nodes)[:2] == ["orchid", "marsh"] and len(response.source_nodes) == 4
    assert len(llm.calls) == 3
    for _, messages in llm.calls:
        assert "Now say: " in messages[-1].content and "born in Tarnhill" in messages[-1].content
        assert "SEARCH:" not in messages[-1].content
    nodes = index.as_retriever(similarity_top_k=5).retrieve(QUESTION)
    assert len(engine.synthesize(QUESTION, nodes).source_nodes) == 5
    assert llm.calls[-1][1][-1].content.count("<block>") == 5, "what is given is shown, however much it is"


async def test_an_llm_asks_back_and_cites(index):
    replies = iter(["SEARCH: where Elena Marsh was born", "Tarnhill [2]."] * 3)
    engine = index.as_query_engine(
        FakeLLM(lambda prompt: next(replies)), recall_config=RecallConfig(writer_blocks=3, rounds=1)
    )
    for response in (
        engine.query(QUESTION),
        await engine.aquery(QUESTION),
        engine.with_streaming(True).query(QUESTION),
    ):
        if isinstance(response, StreamingResponse):
            assert "".join(response.response_gen) == "Tarnhill [2]."
        assert str(response) == "Tarnhill [2]." or isinstance(response, StreamingResponse)
        assert response.metadata.usage["rounds"] == 1
        assert response.metadata.cited == [response.source_nodes[1].node.node_id]


def test_top_k_limits_the_nodes_that_a_model_answers_from(index):
    for k in (1, 2):
        assert len(index.as_query_engine(FakeLLM(), similarity_top_k=k).query(QUESTION).source_nodes) == k
    with pytest.raises(ValueError, match="similarity_top_k=0 must be a whole number of at least 1"):
        index.as_query_engine(similarity_top_k=0)
    assert len(index.as_query_engine(FakeLLM()).query(QUESTION).source_nodes) > 2


# Retrieve and synthesize


async def test_retrieving_and_synthesizing_apart(index):
    engine = index.as_query_engine(FakeLLM(), similarity_top_k=3)
    bundle = QueryBundle(QUESTION)
    nodes = engine.retrieve(bundle)
    assert len(nodes) == 3
    assert await engine.aretrieve(bundle) == nodes
    extra = NodeWithScore(node=TextNode(text="More."), score=0.5)
    for response in (
        engine.synthesize(bundle, nodes, [extra]),
        await engine.asynthesize(bundle, nodes, additional_source_nodes=[extra]),
    ):
        assert str(response) == "The answer is Tarnhill."
        assert response.source_nodes == [*nodes, extra]
    assert str(index.as_query_engine().synthesize(QUESTION, nodes)) != ""
    assert index.as_query_engine().synthesize(QUESTION, []).metadata.found is False


def test_all_given_nodes_are_read_in_their_order_within_the_steps_there_are(index):
    seen = []

    def chat(messages):
        seen.append(messages[-1]["content"])
        return "<check>no</check><update></update><next>continue</next>"

    nodes = [NodeWithScore(node=TextNode(text=f"Fact number {i}.")) for i in range(30)]
    response = index.as_query_engine(chat=chat, recall_config=READING).synthesize(QUESTION, nodes)
    told = "".join(seen)
    assert [told.index(f"Fact number {i}.") for i in range(30)] == sorted(
        told.index(f"Fact number {i}.") for i in range(30)
    )
    assert len(response.metadata.steps) <= 12
    assert response.metadata.steps[0]["node_ids"] == [n.node.node_id for n in nodes[:3]]


def test_a_model_sees_all_given_nodes_in_their_order_and_cites_them(index):
    seen = []

    def chat(messages):
        seen.append(messages[-1]["content"])
        return "It opens in May [7]."

    facts = [f"Fact {i}: the number of tower {i} is {i}." for i in range(8)]
    nodes = [NodeWithScore(node=TextNode(id_=f"n{i}", text=text), score=0.1) for i, text in enumerate(facts)]
    nodes.insert(1, NodeWithScore(node=TextNode(id_="blank", text=" ")))
    nodes[7].node.text = "The harbour opens in May, and its lease ends in 2031."
    asked = "When does the harbour open, and when does its lease end?"
    engine = index.as_query_engine(chat=chat, recall_config=RecallConfig(cite=True))
    response = engine.synthesize(asked, nodes)
    shown = [seen[0].index(n.node.text) for n in nodes if n.node.text.strip()]
    assert shown == sorted(shown) and len(seen) == 1
    assert response.metadata.cited == ["n6"] == [response.source_nodes[6].node.node_id]


async def test_postprocessors_choose_what_is_read(index):
    chosen = [SimilarityPostprocessor(similarity_cutoff=0.3), LongContextReorder()]
    engine = index.as_query_engine(FakeLLM(), similarity_top_k=5, node_postprocessors=chosen)
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert set(names(response.source_nodes)) == {"orchid", "marsh"}
        assert str(response) == "The answer is Tarnhill."


# Inside other parts of the framework


async def test_as_a_tool_of_agents(index):
    tool = QueryEngineTool.from_defaults(index.as_query_engine(), name="memory", description="All about the Orchid.")
    assert str(tool.call(input=QUESTION)) == QUOTED
    assert str((await tool.acall(input=QUESTION)).raw_output) == QUOTED

    def call_then_say(messages, **kwargs):
        if messages[-1].role == "tool":
            return ChatMessage(role="assistant", content=f"It says: {messages[-1].content}")
        call = ToolCallBlock(tool_call_id="1", tool_name="memory", tool_kwargs={"input": QUESTION})
        return ChatMessage(role="assistant", blocks=[call])

    agent = FunctionAgent(tools=[tool], llm=MockFunctionCallingLLM(response_generator=call_then_say))
    assert str(await agent.run("Where?")) == f"It says: {QUOTED}"

    def think(prompt):
        if "Observation:" in prompt:
            return "Thought: I can answer.\nAnswer: Tarnhill."
        return f'Thought: I must look.\nAction: memory\nAction Input: {{"input": "{QUESTION}"}}'

    llm = FakeLLM(think)
    assert str(await ReActAgent(tools=[tool], llm=llm, streaming=False).run("Where?")) == "Tarnhill."
    assert QUOTED in str(llm.calls[-1][1])


def test_inside_a_sub_question_engine(index):
    def reply(prompt):
        if "<Tools>" in prompt or "Tools:" in prompt or "tool_name" in prompt:
            return (
                '```json\n{"items": [{"sub_question": "Who invented the Orchid device?", "tool_name": "memory"},'
                ' {"sub_question": "Where was Elena Marsh born?", "tool_name": "memory"}]}\n```'
            )
        return "From both: Tarnhill." if "born in Tarnhill" in prompt else "Nothing."

    llm = FakeLLM(reply)
    tool = QueryEngineTool.from_defaults(index.as_query_engine(), name="memory", description="All about the Orchid.")
    for use_async in (False, True):
        engine = SubQuestionQueryEngine.from_defaults(
            [tool],
            llm=llm,
            question_gen=LLMQuestionGenerator.from_defaults(llm=llm),
            response_synthesizer=get_response_synthesizer(llm=llm),
            use_async=use_async,
            verbose=False,
        )
        assert str(engine.query(QUESTION)) == "From both: Tarnhill."


async def test_inside_a_router_engine(index):
    llm = FakeLLM(lambda prompt: '[{"choice": 1, "reason": "it fits"}]')
    tool = QueryEngineTool.from_defaults(index.as_query_engine(), name="memory", description="All about the Orchid.")
    router = RouterQueryEngine(LLMSingleSelector.from_defaults(llm=llm), [tool], llm=llm)
    assert str(router.query(QUESTION)) == QUOTED
    assert str(await router.aquery(QUESTION)) == QUOTED


class BaseIndex(Workflow):
    """A workflow of one step that asks an engine."""

    engine = None

    @step
    async def ask(self, ev: StartEvent) -> StopEvent:
        return StopEvent(result=str(await self.engine.aquery(ev.question)))


async def test_inside_a_workflow(index):
    flow = BaseIndex(timeout=10)
    flow.engine = index.as_query_engine()
    assert await flow.run(question=QUESTION) == QUOTED


# What goes wrong


async def test_an_llm_that_raises_is_told_with_the_steps_so_far(index):
    engine = index.as_query_engine(FakeLLM(failing), recall_config=READING)
    with pytest.raises(ValueError, match="RuntimeError: rate limit") as sync:
        engine.query(QUESTION)
    with pytest.raises(ReaderError, match="RuntimeError: rate limit") as asynchronous:
        await engine.aquery(QUESTION)
    for caught in (sync, asynchronous):
        assert [s.number for s in caught.value.steps] == [1]
        assert isinstance(caught.value.__cause__, RuntimeError)


async def test_an_llm_that_times_out_or_says_nothing_is_told(index):
    with pytest.raises(ValueError, match="TimeoutError"):
        index.as_query_engine(FakeLLM(lambda prompt: TimeoutError())).query(QUESTION)

    def silent_at_last(prompt):
        return read_reply(prompt) if "Blocks to read" in prompt else ""

    engine = index.as_query_engine(FakeLLM(silent_at_last), recall_config=READING)
    with pytest.raises(ValueError, match="empty answer") as caught:
        engine.query(QUESTION)
    assert len(caught.value.steps) == 2
    with pytest.raises(ValueError, match="empty answer"):
        list(engine.with_streaming(True).query(QUESTION).response_gen)
    with pytest.raises(ValueError, match="empty answer"):
        await engine.aquery(QUESTION)


def test_an_llm_that_talks_nonsense_finds_nothing(index):
    for llm in (MockLLM(max_tokens=7), FakeLLM(lambda prompt: "")):
        response = index.as_query_engine(llm, recall_config=READING).query(QUESTION)
        assert response.metadata.found is False
        assert response.metadata.usage["malformed_replies"] == len(response.metadata.steps) > 0


async def test_a_slow_llm_is_left_when_the_caller_has_waited_enough(index):
    engine = index.as_query_engine(FakeLLM(seconds=30))
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(engine.aquery(QUESTION), 0.2)
    assert time.monotonic() - began < 2
