"""What the runs of the LangChain adapter say of a question: what was searched for, and what was found."""

from uuid import uuid4

import pytest
from langchain_core.embeddings import Embeddings
from langchain_core.retrievers import BaseRetriever

from compmem import RecallConfig
from langchain_compmem import CompMemReasoner, CompMemRetriever, recall_tool
from tests.frameworks_langchain import QUESTION, WORLD, HashingEncoder, Recorder, ScriptedChat, make_index

PARTS = ["What does the Orchid device measure", "Where was Elena Marsh born", "Where does the river Esk rise"]
PAIRS = [(a, b) for a in PARTS for b in PARTS if a != b]


@pytest.fixture
def reasoner(tmp_path):
    with make_index(tmp_path / "index") as made:
        CompMemRetriever(index=made).upsert(WORLD)
        yield CompMemReasoner(index=made)


async def traced(reasoner, way, asked):
    """The output, and the recorder of the runs."""
    recorder = Recorder()
    config = {"callbacks": [recorder]}
    output = reasoner.invoke(asked, config) if way == "invoke" else await reasoner.ainvoke(asked, config)
    assert set(recorder.ended) == set(recorder.started)
    return output, recorder


def recalls(recorder):
    """Query, ids of the documents, tags and metadata of each recall run."""
    return [
        (run["inputs"], [d.id for d in recorder.ended[name]], run["tags"], run["metadata"])
        for name, run in recorder.started.items()
        if run["kind"] == "retriever"
    ]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_each_recall_names_what_was_searched_for(reasoner, way):
    output, recorder = await traced(reasoner, way, QUESTION)
    steps = output["steps"]
    found = recalls(recorder)
    assert [names for _, names, _, _ in found] == [[d.id for d in step["context"]] for step in steps]
    notes = ["", *(step["working_memory"].split("\n")[-1] for step in steps[:-1])]
    assert [query for query, _, _, _ in found] == ["\n".join(filter(None, [QUESTION, note])) for note in notes]
    assert [tags for _, _, tags, _ in found] == [[f"step:{step['number']}"] for step in steps]
    assert all(metadata["compmem_seconds"] >= 0 for _, _, _, metadata in found)
    assert not any("compmem_seconds" in run["metadata"] for run in recorder.started.values() if run["name"] != "recall")


async def test_events_have_no_recall_without_documents(reasoner):
    events = [e async for e in reasoner.astream_events(QUESTION, version="v2") if e["name"] == "recall"]
    assert [e["event"] for e in events] == ["on_retriever_start", "on_retriever_end"] * (len(events) // 2)
    assert all(e["data"]["output"] for e in events if e["event"] == "on_retriever_end")


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_where_nothing_is_found_one_recall_says_so(tmp_path, way):
    with make_index(tmp_path / "empty") as empty:
        _, recorder = await traced(CompMemReasoner(index=empty), way, QUESTION)
        assert [(query, names) for query, names, _, _ in recalls(recorder)] == [(QUESTION, [])]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize(("first", "second"), PAIRS)
async def test_a_question_of_two_parts_is_answered_as_by_the_index(reasoner, way, first, second):
    asked = f"{first}, and {second[0].lower()}{second[1:]}?"
    output, recorder = await traced(reasoner, way, asked)
    own = reasoner.index.answer(asked)
    assert (output["answer"], output["working_memory"]) == (own.text, own.working_memory)
    requests = [step["request"] for step in output["steps"]]
    assert requests == [step.request for step in own.steps]
    assert list(dict.fromkeys(requests)) == [first, f"{second}?"]
    assert [query.split("\n")[0] for query, _, _, _ in recalls(recorder)] == requests


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_request_of_the_chat_model_is_what_was_searched_for(reasoner, way):
    request = "where Elena Marsh was born"
    chat = ScriptedChat(replies=[f"SEARCH: {request}", "In Tarnhill."])
    asking = CompMemReasoner(
        index=reasoner.index, chat_model=chat, recall_config=RecallConfig(writer_blocks=2, rounds=1)
    )
    output, recorder = await traced(asking, way, "Who invented the Orchid device?")
    requests = [step["request"] for step in output["steps"]]
    assert request in requests
    first = requests.index(request)
    queries = [query for query, _, _, _ in recalls(recorder)]
    assert len(queries) == len(requests)
    assert queries[first] == f"Who invented the Orchid device?\n{request}"
    assert queries[0] == "Who invented the Orchid device?"


class Plain(BaseRetriever):
    """Returns every document."""

    def _get_relevant_documents(self, query, *, run_manager):
        return WORLD


class Hashed(Embeddings):
    def embed_documents(self, texts):
        return HashingEncoder().encode(texts).tolist()

    def embed_query(self, text):
        return self.embed_documents([text])[0]


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("kind", [CompMemReasoner, CompMemRetriever])
async def test_a_wrapped_retriever_runs_under_what_wraps_it(kind, way):
    wrapping, recorder = kind.from_retriever(Plain(), embeddings=Hashed()), Recorder()
    config = {"callbacks": [recorder], "tags": ["mine"], "metadata": {"user": "7"}}
    found = wrapping.invoke(QUESTION, config) if way == "invoke" else await wrapping.ainvoke(QUESTION, config)
    assert found
    inner = [run for run in recorder.started.values() if run["name"] == "Plain"]
    assert inner and {recorder.started[run["parent"]]["name"] for run in inner} == {kind.__name__}
    assert all("mine" in run["tags"] and run["metadata"]["user"] == "7" for run in inner)
    assert set(recorder.ended) == set(recorder.started)


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_the_retriever_runs_under_its_tool(reasoner, way):
    tool, recorder = recall_tool(CompMemRetriever(index=reasoner.index, tags=["mine"])), Recorder()
    call, config = {"name": tool.name, "args": {"query": QUESTION}, "id": "1", "type": "tool_call"}, {"run_id": uuid4()}
    config["callbacks"] = [recorder]
    message = tool.invoke(call, config) if way == "invoke" else await tool.ainvoke(call, config)
    (run_id,) = recorder.started
    run = recorder.started[run_id]
    assert (run["kind"], run["name"], run["parent"]) == ("retriever", "CompMemRetriever", config["run_id"])
    assert run["inputs"] == QUESTION and "mine" in run["tags"]
    assert recorder.ended[run_id] == message.artifact
    events = [e async for e in tool.astream_events({"query": QUESTION}, version="v2")]
    (end,) = (e for e in events if e["event"] == "on_retriever_end")
    assert end["data"]["output"] == message.artifact
