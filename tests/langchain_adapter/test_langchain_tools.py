"""Tools and searches of the LangChain adapter: blank questions, wrong arguments, scores, threads."""

import threading

import pytest
from langchain.agents import create_agent
from langchain_classic.retrievers.self_query.base import SelfQueryRetriever
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.structured_query import Comparator, Comparison, StructuredQuery
from langchain_core.tools import create_retriever_tool
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel

from compmem import RecallConfig
from langchain_compmem import (
    CompMemReasoner,
    CompMemRetriever,
    CompMemTranslator,
    CompMemVectorStore,
    EmbeddingsEncoder,
    recall_tool,
)
from tests.frameworks_langchain import QUESTION, WORLD, ScriptedChat, make_index
from tests.langchain_world import ids


@pytest.mark.parametrize("kind", ["recall", "framework", "reasoner"])
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_blank_query_does_not_end_an_agent(retriever, kind, way):
    tool = {
        "recall": lambda: recall_tool(retriever, name="find"),
        "framework": lambda: create_retriever_tool(retriever, "find", "Finds."),
        "reasoner": lambda: CompMemReasoner(index=retriever.index).as_tool(name="find"),
    }[kind]()
    name = "question" if kind == "reasoner" else "query"
    calls = [AIMessage("", tool_calls=[{"name": "find", "args": {name: q}, "id": q}]) for q in (" ", QUESTION)]
    agent = create_agent(ScriptedChat(replies=[*calls, "In Tarnhill."]), [tool])
    asked = {"messages": [HumanMessage("Where?")]}
    state = agent.invoke(asked) if way == "invoke" else await agent.ainvoke(asked)
    blank, found = (message for message in state["messages"] if message.type == "tool")
    assert state["messages"][-1].content == "In Tarnhill."
    assert "born in Tarnhill" in found.content and found.status == "success"
    if kind == "framework":
        assert blank.content == ""
    else:
        assert "the question is empty" in blank.content and blank.status == "error"


async def test_a_blank_question_with_a_filter_lists_what_it_admits(retriever):
    places = {"tags": {"contains": "place"}}
    stored = {document.id: document for document in WORLD}
    for found in (retriever.invoke(" ", filter=places), await retriever.ainvoke("", filter=places)):
        assert {d.id: d for d in found} == {name: stored[name] for name in ("tarnhill", "esk")}
    assert len(retriever.invoke("", filter=places, k=1)) == 1
    assert retriever.invoke("") == await retriever.ainvoke(" ") == []
    with pytest.raises(ValueError, match="unknown filter operator"):
        retriever.invoke("", filter={"year": {"~": 1}})
    with pytest.raises(ValueError, match="the question is empty"):
        retriever.recall(" ")
    long = CompMemRetriever(index=make_index(), split=True, k=3)
    long.upsert([d.model_copy(update={"page_content": d.page_content * 40}) for d in WORLD])
    parts = long.invoke("", filter=places)
    assert len(parts) == 3 and all("compmem_document_id" in d.metadata for d in parts)


async def test_a_self_query_with_a_filter_alone(retriever):
    store = CompMemVectorStore(retriever.index, filter={"year": {"<": 1990}})
    person = Comparison(Comparator.CONTAIN, "tags", "person")

    def asked(**fields):
        return SelfQueryRetriever(
            vectorstore=store,
            query_constructor=RunnableLambda(lambda _: StructuredQuery(query="", **fields)),
            structured_query_translator=CompMemTranslator(),
        )

    assert set(ids(asked(filter=person).invoke("people"))) == {"marsh", "veld"}
    assert set(ids(await asked(filter=person).ainvoke("people"))) == {"marsh", "veld"}
    assert asked(filter=None).invoke("people") == []
    assert [s for _, s in store.similarity_search_with_score("", filter={"title": "Esk"})] == [0.0]


def test_a_tool_names_the_sources_that_the_answer_cites_by_their_numbers(tmp_path):
    index = make_index(tmp_path / "split")
    CompMemRetriever(index=index, split=True).upsert(
        [d.model_copy(update={"page_content": " ".join([d.page_content] * 30)}) for d in WORLD]
    )
    settings = RecallConfig(writer_blocks=4, cite=True)
    reasoner = CompMemReasoner(
        index=index, chat_model=ScriptedChat(replies=["Tarnhill [2][3]."]), recall_config=settings
    )
    call = {"name": "answer_from_memory", "args": {"question": QUESTION}, "id": "1", "type": "tool_call"}
    message = reasoner.as_tool().invoke(call)
    cited = [d.metadata.get("compmem_document_id", d.id) for d in message.artifact["context"][1:3]]
    assert len(message.artifact["context"]) == 4
    assert message.content == f"Tarnhill [2][3].\n\nSources: [2] {cited[0]}, [3] {cited[1]}"


@pytest.mark.parametrize(
    "wrong", [7, None, "handbook.mem", lambda r: r.bind(k=2), lambda r: r.index, InMemoryVectorStore]
)
def test_a_tool_over_anything_else_is_refused_at_once(retriever, wrong):
    given = InMemoryVectorStore(_Nothing()) if wrong is InMemoryVectorStore else wrong
    given = given(retriever) if callable(given) else given
    with pytest.raises(TypeError, match="retriever must be a CompMemRetriever, not"):
        recall_tool(given)


class _Nothing(EmbeddingsEncoder):
    """Embeddings that are never used."""

    def __init__(self):
        super().__init__(None)


@pytest.mark.parametrize("method", ["loop", "gate", "hybrid", "dense", "bm25"])
async def test_low_scores_are_left_out(retriever, method):
    whole = retriever.invoke(QUESTION, k=5, method=method)
    scores = [document.metadata["compmem_score"] for document in whole]
    cut = (scores[0] + scores[-1]) / 2
    expected = ids(d for d in whole if d.metadata["compmem_score"] >= cut)
    assert 0 < len(expected) < len(whole)
    strict = CompMemRetriever(index=retriever.index, min_score=cut, method=method, k=5)
    assert ids(strict.invoke(QUESTION)) == ids(await strict.ainvoke(QUESTION)) == expected
    assert ids(retriever.invoke(QUESTION, k=5, method=method, min_score=cut)) == expected
    assert ids(await retriever.ainvoke(QUESTION, k=5, method=method, min_score=cut)) == expected
    assert ids(strict.invoke(QUESTION, min_score=0.0)) == ids(whole)
    recalls = retriever.index.recall(QUESTION, 5, method=method, min_score=cut)
    assert [recall.chunk.document_id for recall in recalls] == expected
    store = CompMemVectorStore(retriever.index, min_score=cut, method=method)
    assert ids(store.similarity_search(QUESTION, 5)) == expected
    text = recall_tool(strict).invoke({"query": QUESTION})
    assert [name for name in ids(whole) if f"(id: {name})" in text] == expected


@pytest.mark.parametrize("wrong", [float("nan"), -0.1, 1.1])
def test_a_score_that_is_no_share_is_refused(retriever, wrong):
    with pytest.raises(ValueError, match="min_score"):
        CompMemRetriever(index=retriever.index, min_score=wrong)
    with pytest.raises(ValueError, match="min_score"):
        retriever.invoke(QUESTION, min_score=wrong)


async def test_no_sql_runs_in_the_event_loop(retriever, monkeypatch):
    store = type(retriever.index.store)
    opened, threads = store.snapshot, []

    def snapshot(self, *args, **kwargs):
        threads.append(threading.get_ident())
        return opened(self, *args, **kwargs)

    monkeypatch.setattr(store, "snapshot", snapshot)
    vectors, esk = CompMemVectorStore(retriever.index), {"title": "Esk"}
    for work in (
        lambda: vectors.asimilarity_search(QUESTION),
        lambda: vectors.asimilarity_search("", filter=esk),
        lambda: vectors.amax_marginal_relevance_search(QUESTION),
        lambda: vectors.aget_by_ids(["esk"]),
        lambda: recall_tool(retriever).ainvoke({"query": QUESTION}),
        lambda: retriever.ainvoke(QUESTION),
        lambda: retriever.ainvoke("", filter=esk),
        lambda: CompMemReasoner(index=retriever.index).ainvoke(QUESTION),
    ):
        threads.clear()
        assert await work()
        assert threads and threading.get_ident() not in threads


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_the_answering_tool_takes_a_string(retriever, way):
    tool = CompMemReasoner(index=retriever.index).as_tool()
    assert "Tarnhill" in (tool.invoke(QUESTION) if way == "invoke" else await tool.ainvoke(QUESTION))


class Narrowed(BaseModel):
    question: str
    filter: dict | None = None


class Misnamed(BaseModel):
    query: str


class Unknown(BaseModel):
    question: str
    year: int


def test_a_schema_for_the_answering_tool_has_known_arguments(retriever):
    reasoner = CompMemReasoner(index=retriever.index)
    narrowed = reasoner.as_tool(Narrowed).invoke({"question": QUESTION, "filter": {"year": 1998}})
    assert "orchid" in narrowed and "marsh" not in narrowed
    for schema in (Misnamed, Unknown):
        with pytest.raises(ValueError, match=r"must have 'question', .* \['chat_history', 'filter', 'question'\]"):
            reasoner.as_tool(schema)


class _Filtered(BaseModel):
    question: str
    filter: dict[str, object] | None = None


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
async def test_a_refused_argument_does_not_end_an_agent(retriever, way):
    asking = CompMemReasoner(index=retriever.index).as_tool(name="ask", args_schema=_Filtered)
    finding = recall_tool(retriever, name="find")
    arguments = {"ask": {"question": QUESTION, "filter": {"year": {"~": 1}}}, "find": {"query": "x" * 200_000}}
    calls = [AIMessage("", tool_calls=[{"name": n, "args": args, "id": n}]) for n, args in arguments.items()]
    agent = create_agent(ScriptedChat(replies=[*calls, "I do not know."]), [asking, finding])
    asked = {"messages": [HumanMessage("Where?")]}
    state = agent.invoke(asked) if way == "invoke" else await agent.ainvoke(asked)
    filtered, long = (message for message in state["messages"] if message.type == "tool")
    assert "unknown filter operator" in filtered.content and "characters" in long.content
    assert filtered.status == long.status == "error"
