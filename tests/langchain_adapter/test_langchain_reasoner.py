"""The reasoner of LangChain: answers by quotes, by a chat model, by the backbone; conversations, prompts, failures."""

import copy

import pytest
from langchain_core.exceptions import LangChainException
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.utils import AddableDict

from compmem import (
    ChatPrompts,
    ChatReader,
    IndexConfig,
    MemoryIndex,
    ReaderError,
    RecallConfig,
    RuntimeConfig,
    Step,
)
from compmem import Document as CoreDocument
from langchain_compmem import CompMemReasoner, CompMemRetriever, ReasoningError
from tests.frameworks_langchain import QUESTION, WORLD, HashingEncoder, Recorder, ScriptedChat, make_index
from tests.langchain_world import READ_ALL, STEP_1, STEP_2, ask, chatting, ids
from tests.replies import keep_short

# The reasoner


def test_the_answer_quotes_over_two_hops(reasoner):
    output = reasoner.invoke(QUESTION)
    assert "born in Tarnhill" in output["answer"]
    assert set(ids(output["context"])) == {"orchid", "marsh"}
    assert all(0 <= d.metadata["compmem_score"] <= 1 for d in output["context"])
    assert [s["number"] for s in output["steps"]] == list(range(1, len(output["steps"]) + 1))
    assert output["working_memory"] == output["steps"][-1]["working_memory"]
    assert output["usage"]["steps"] == len(output["steps"])
    assert output["usage"]["model_calls"] == 0
    assert set(output) == {"answer", "found", "context", "working_memory", "steps", "usage", "stop_reason"}
    assert (output["found"], output["stop_reason"]) == (True, "exhausted")


def _same(one, other):
    def timeless(output):
        steps = [{k: v for k, v in s.items() if k != "seconds"} for s in output["steps"]]
        usage = {k: v for k, v in output["usage"].items() if k != "seconds"}
        return {**output, "steps": steps, "usage": usage}

    return timeless(one) == timeless(other)


async def test_every_way_of_asking_gives_the_same(reasoner):
    expected = reasoner.invoke(QUESTION)
    streamed = list(reasoner.stream({"question": QUESTION}))
    astreamed = [part async for part in reasoner.astream({"question": QUESTION, "chat_history": []})]
    for parts in (streamed, astreamed):
        assert all(isinstance(part, AddableDict) for part in parts)
        kinds = [("steps" if "steps" in p and "answer" not in p else "answer") for p in parts]
        assert kinds == sorted(kinds, reverse=True), "steps come before the answer"
        assert len(parts) > 3
        total = sum(parts[1:], parts[0])
        assert _same({**total, "answer": total["answer"].strip()}, expected)
    assert _same(await reasoner.ainvoke(QUESTION), expected)
    assert all(_same(output, expected) for output in reasoner.batch([QUESTION] * 3, {"max_concurrency": 2}))
    assert all(_same(output, expected) for output in await reasoner.abatch([QUESTION] * 3))


async def test_a_chat_model_reads_notes_and_answers(retriever):
    for mode in ("sync", "async"):
        reasoner = chatting(retriever)
        output = reasoner.invoke(QUESTION) if mode == "sync" else await reasoner.ainvoke(QUESTION)
        assert output["answer"] == "In Tarnhill."
        assert output["working_memory"] == "Elena Marsh invented it; she was born in Tarnhill."
        assert [s["exit"] for s in output["steps"]] == [False, True]
        assert output["usage"]["model_calls"] == 3
        assert output["usage"]["prompt_tokens"] > 0
    reasoner = chatting(retriever)
    parts = list(reasoner.stream(QUESTION))
    assert [p["answer"] for p in parts if p.get("answer")] == ["In ", "Tarnhill."]
    reasoner = chatting(retriever)
    assert [p["answer"] async for p in reasoner.astream(QUESTION) if p.get("answer")] == ["In ", "Tarnhill."]


def test_tokens_are_those_that_the_model_counted(retriever):
    def reply(text, tokens):
        usage = {"input_tokens": tokens, "output_tokens": 1, "total_tokens": tokens + 1}
        return AIMessage(content=text, usage_metadata=usage)

    usage = chatting(retriever, reply(STEP_2, 100), reply("In Tarnhill.", 10)).invoke(QUESTION)["usage"]
    assert (usage["model_calls"], usage["prompt_tokens"], usage["completion_tokens"]) == (2, 110, 2)


def test_a_follow_up_question_is_made_standalone_first(retriever):
    history = [
        ("human", "Who invented the Orchid device?"),
        {"role": "assistant", "content": "Dr Elena Marsh."},
        SystemMessage("not for the model to see"),
    ]
    reasoner = chatting(retriever, "Where was Elena Marsh born?", STEP_2, "In Tarnhill.")
    recorder = Recorder()
    output = reasoner.invoke({"question": "Where was she born?", "chat_history": history}, {"callbacks": [recorder]})
    asked = reasoner.chat_model.asked
    assert [m.type for m in asked[0]] == ["system", "human", "ai", "human"]
    assert "Where was Elena Marsh born?" in asked[1][-1].content
    assert "Where was she born?" not in asked[1][-1].content
    assert output["answer"] == "In Tarnhill."
    assert output["usage"]["model_calls"] == 3
    assert ("chain", "standalone question", "CompMemReasoner") in recorder.tree()
    assert chatting(retriever, "", STEP_2, "Here.").invoke({"question": QUESTION, "chat_history": history})["answer"]


async def test_a_follow_up_question_in_an_event_loop(retriever):
    reasoner = chatting(retriever, "Where was Elena Marsh born?", STEP_2, "In Tarnhill.")
    await reasoner.ainvoke({"question": "Where was she born?", "chat_history": [HumanMessage("Who is Marsh?")]})
    assert "Where was Elena Marsh born?" in reasoner.chat_model.asked[1][-1].content


def test_history_changes_nothing_where_the_question_is_complete(reasoner):
    history = [HumanMessage("Hello"), AIMessage("Hi")]
    assert _same(reasoner.invoke({"question": QUESTION, "chat_history": history}), reasoner.invoke(QUESTION))


def test_filters_of_field_and_input(retriever):
    reasoner = CompMemReasoner(index=retriever.index, filter={"title": "Esk"})
    read = {i for s in reasoner.invoke(QUESTION)["steps"] for i in ids(s["context"])}
    assert read <= {"esk"}
    wanted = {"question": QUESTION, "filter": {"title": {"in": ["Orchid device", "Elena Marsh"]}}}
    assert reasoner.invoke(wanted)["context"] == []
    assert set(ids(CompMemReasoner(index=retriever.index).invoke(wanted)["context"])) == {"orchid", "marsh"}


def test_prompts_are_the_callers(retriever):
    prompts = ChatPrompts(system="You speak like a pirate.")
    condense = ChatPromptTemplate.from_messages([MessagesPlaceholder("chat_history"), ("human", "Again: {question}")])
    reasoner = chatting(retriever, "What?", STEP_2, "Arr.", prompts=prompts, condense_prompt=condense)
    reasoner.invoke({"question": "Where?", "chat_history": [HumanMessage("Ahoy")]})
    assert reasoner.chat_model.asked[0][-1].content == "Again: Where?"
    assert reasoner.chat_model.asked[1][0].content == "You speak like a pirate."
    for wrong in ("Again: {question} {history}", "Again: {chat_history}"):
        with pytest.raises(ValueError, match="variables question and chat_history alone"):
            chatting(retriever, condense_prompt=PromptTemplate.from_template(wrong))


async def test_a_chat_model_that_writes_is_asked_once(retriever):
    chat = ScriptedChat(replies=["Tarnhill."])
    settings = RecallConfig(writer_blocks=3)
    reasoner = CompMemReasoner(index=retriever.index, chat_model=chat, recall_config=settings)
    recorder = Recorder()
    output = reasoner.invoke(QUESTION, {"callbacks": [recorder]})
    assert (output["answer"], output["usage"]["model_calls"], len(chat.asked)) == ("Tarnhill.", 1, 1)
    assert len(output["context"]) == 3 and {"orchid", "marsh"} < set(ids(output["context"]))
    assert "born in Tarnhill" in chat.asked[0][-1].content
    runs = [name for _, name, _ in recorder.tree()]
    assert runs.count("reading") == len(output["steps"]) and runs.count("answer") == 1
    assert _same(await reasoner.ainvoke(QUESTION), output)


async def test_a_chat_model_asks_back_and_cites(own):
    replies = ["SEARCH: where Elena Marsh was born", "Tarnhill [1]."]
    settings = RecallConfig(writer_blocks=2, rounds=1)
    for mode in ("sync", "async"):
        chat = ScriptedChat(replies=list(replies))
        reasoner = CompMemReasoner(index=own.index, chat_model=chat, recall_config=settings)
        output = reasoner.invoke(QUESTION) if mode == "sync" else await reasoner.ainvoke(QUESTION)
        assert output["answer"] == "Tarnhill [1]."
        assert (output["usage"]["rounds"], output["usage"]["model_calls"]) == (1, 2)
        cited = [document.metadata.get("compmem_cited", False) for document in output["context"]]
        assert cited[0] and not any(cited[1:])
        assert own.upsert(output["context"])["failed"] == []
    assert not any("compmem_cited" in d.metadata for d in own.invoke(QUESTION))


def test_another_reader_reads_and_the_chat_model_only_makes_questions_standalone(retriever):
    class Parrot:
        def read(self, question, memory, blocks):
            from compmem import Reading, WorkingMemory

            return Reading(memory=WorkingMemory(text=question), update=True, exit=True)

        async def aread(self, question, memory, blocks):
            return self.read(question, memory, blocks)

        def write(self, question, memory):
            yield memory.text

        async def awrite(self, question, memory):
            yield memory.text

    chat = ScriptedChat(replies=["Where was Elena Marsh born?"])
    reasoner = CompMemReasoner(index=retriever.index, chat_model=chat, recall_config=READ_ALL, reader=Parrot())
    asked = {"question": "Where was she born?", "chat_history": [HumanMessage("Who is Marsh?")]}
    output = reasoner.invoke(asked)
    assert output["answer"] == "Where was Elena Marsh born?"
    assert output["usage"]["model_calls"] == len(chat.asked) == 1


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("encoder", [HashingEncoder(), None])
async def test_the_backbone_reads_kv_memory(saved_model, tmp_path, monkeypatch, device, encoder):
    keep_short(monkeypatch, tokens=8)
    settings = IndexConfig(memory="kv", backbone=str(saved_model()), encoder=encoder, chunk_tokens=256)
    with MemoryIndex.create(tmp_path / "index", settings, runtime=RuntimeConfig(device=device)) as made:
        retriever = CompMemRetriever(index=made, k=2)
        retriever.upsert(WORLD)
        assert len(retriever.invoke(QUESTION)) == len(retriever.invoke(QUESTION, method="gate")) == 2
        recorder, reasoner = Recorder(), CompMemReasoner(index=made)
        output = reasoner.invoke(QUESTION, {"callbacks": [recorder]})
        calls, steps = output["usage"]["model_calls"], len(output["steps"])
        assert steps > 0 and (calls >= steps if encoder is None else calls == 1)  # not trained for it, it only writes
        assert [n for _, n, _ in recorder.tree()].count("reading") == len(output["steps"])
        streamed = list(reasoner.stream(QUESTION))
        assert _same(sum(streamed[1:], streamed[0]), output)
        assert _same(await reasoner.ainvoke(QUESTION), output)
        assert all(_same(one, output) for one in await reasoner.abatch([QUESTION] * 3))
        assert _same(copy.deepcopy(reasoner).invoke(QUESTION), output)
        chat = ScriptedChat(replies=["Where was Elena Marsh born?"])
        talking = CompMemReasoner(index=made, chat_model=chat, recall_config=RecallConfig(reader="latent"))
        told = talking.invoke({"question": "Where was she born?", "chat_history": [HumanMessage("Who is Marsh?")]})
        assert told["usage"]["model_calls"] == len(told["steps"]) + 1 + bool(told["working_memory"])


async def test_a_backbone_that_weighs_does_so_behind_the_tracing(tmp_path):
    settings = IndexConfig(memory="kv", backbone="embedded", encoder=None, chunk_tokens=96)
    with MemoryIndex.create(tmp_path / "index", settings, runtime=RuntimeConfig(device="cpu")) as made:
        made.add(
            CoreDocument(id=p, text=f"{p} lives in {c}.") for p, c in (("Tovin Hask", "Wend"), ("Marel Pelt", "Mur"))
        )
        question = "In which city does Tovin Hask live?"
        recorder, reasoner, own = Recorder(), CompMemReasoner(index=made), made.answer(question)
        output = reasoner.invoke(question, {"callbacks": [recorder]})
        assert [step.recalls[0].chunk.document_id for step in own.steps] == ["Tovin Hask"]
        assert len(output["steps"]) == [n for _, n, _ in recorder.tree()].count("reading") == 1
        assert output["working_memory"] == (await reasoner.ainvoke(question))["working_memory"] == own.working_memory


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("error", [OSError("connection lost"), TimeoutError("30 s"), ValueError("quota")])
async def test_a_model_that_fails_leaves_the_steps_so_far(retriever, way, error):
    recorder, reasoner = Recorder(), chatting(retriever, STEP_1, error)
    config = {"callbacks": [recorder]}
    with pytest.raises(ReasoningError, match=f"the chat model failed: {type(error).__name__}") as caught:
        await ask(reasoner, way, config)
    assert isinstance(caught.value, LangChainException)
    assert isinstance(caught.value, ReaderError)
    assert [type(step) for step in caught.value.steps] == [Step]
    assert caught.value.steps[0].working_memory == "Elena Marsh invented the Orchid device."
    assert repr(caught.value.__cause__.__cause__) == repr(error)
    assert set(recorder.ended) == set(recorder.started)


def test_a_model_that_fails_over_the_history(retriever):
    asked = {"question": "Where?", "chat_history": [HumanMessage("Hi")]}
    with pytest.raises(ReasoningError, match="the chat model failed: OSError: down") as caught:
        chatting(retriever, OSError("down")).invoke(asked)
    assert caught.value.steps == ()


@pytest.mark.parametrize("nonsense", ["", "   ", "I like turtles.", "<update>", "<check>maybe</check>" * 50])
async def test_a_model_that_talks_nonsense_finds_nothing(retriever, nonsense):
    for output in (
        chatting(retriever, nonsense).invoke(QUESTION), await chatting(retriever, nonsense).ainvoke(QUESTION)
    ):  # fmt: skip
        assert output["working_memory"] == ""
        assert output["context"] == []
        assert output["usage"]["malformed_replies"] == len(output["steps"]) > 0
        assert "Nothing was found" in output["answer"]


def test_a_model_that_gives_no_answer(retriever):
    with pytest.raises(ReasoningError) as caught:
        chatting(retriever, STEP_2, "").invoke(QUESTION)
    assert len(caught.value.steps) == 1


def test_a_model_that_gives_no_text(retriever):
    reasoner = CompMemReasoner(
        index=retriever.index,
        chat_model=RunnableLambda(lambda messages: 42),
        recall_config=READ_ALL.replace(reader="chat"),
    )
    with pytest.raises(ReasoningError, match="gave a int, not text"):
        reasoner.invoke(QUESTION)
    with pytest.raises(ReasoningError, match="gave a int, not text"):
        reasoner.invoke({"question": "Where?", "chat_history": [HumanMessage("Hi")]})


def test_an_empty_index(tmp_path):
    with make_index(tmp_path / "index") as made:
        assert CompMemRetriever(index=made).invoke(QUESTION) == []
        output = CompMemReasoner(index=made).invoke(QUESTION)
        assert (output["context"], output["steps"], output["working_memory"]) == ([], [], "")


def test_a_retriever_whose_chat_reader_fails(retriever):
    def broken(messages):
        raise OSError("down")

    with pytest.raises(ReasoningError, match="the chat model failed: OSError: down"):
        CompMemRetriever(index=retriever.index, recall_config=READ_ALL, reader=ChatReader(broken)).invoke(QUESTION)
