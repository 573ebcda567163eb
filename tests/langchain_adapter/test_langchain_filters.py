"""Bound filters of the LangChain adapter: no caller lifts them."""

import pytest
from langchain_core.documents import Document
from langchain_core.runnables import ConfigurableField
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel

from compmem.text.tokenize import terms
from langchain_compmem import CompMemReasoner, CompMemRetriever, CompMemVectorStore, recall_tool
from tests.frameworks_langchain import HashingEncoder, ScriptedChat, make_index

QUESTION = "Who rents the Old Mill?"
MINE = {"tenant": "a"}
BOTH = [
    Document(id="a-mill", page_content="Acme rents the Old Mill.", metadata={"tenant": "a", "year": 1990}),
    Document(id="a-barn", page_content="Acme rents the Old Barn.", metadata={"tenant": "a", "year": 2020}),
    Document(id="b-mill", page_content="Bolt rents the Old Mill.", metadata={"tenant": "b", "year": 2021}),
    Document(id="b-barn", page_content="Bolt rents the Old Barn.", metadata={"tenant": "b", "year": 2022}),
]
GIVEN = [
    None, {}, [], {"year": {">": 2000}}, {"tenant": "b"}, {"not": {"tenant": "a"}}, {"or": [{"tenant": "b"}, {}]},
    [{"tenant": {"in": ["a", "b"]}}], [{"year": {">": 2000}}, [{"year": {"<": 2021}}]],
]  # fmt: skip


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    """An index that no test changes."""
    with make_index(tmp_path_factory.mktemp("filters") / "index") as made:
        CompMemRetriever(index=made).upsert(BOTH)
        yield made


def ids(documents):
    return {document.id for document in documents}


def admitted(index, given):
    """What both filters admit, by two searches with one filter each."""
    one, other = (CompMemRetriever(index=index, filter=f, k=9).invoke(QUESTION) for f in (MINE, given))
    return ids(one) & ids(other)


@pytest.mark.parametrize("given", GIVEN)
async def test_a_filter_of_a_call_only_narrows_the_bound_one(index, given):
    expected = admitted(index, given)
    retriever = CompMemRetriever(index=index, filter=MINE, k=9)
    store = CompMemVectorStore(index, filter=MINE)
    assert ids(retriever.invoke(QUESTION, filter=given)) == expected
    assert ids(await retriever.ainvoke(QUESTION, filter=given, method="gate")) == expected
    assert ids(retriever.bind(filter=given).invoke(QUESTION)) == expected
    assert ids(store.similarity_search(QUESTION, 9, filter=given)) == expected
    assert ids(await store.asimilarity_search(QUESTION, 9, filter=given)) == expected
    assert ids(store.similarity_search(" ", 9, filter=given)) == (expected if given else set())
    reasoner = CompMemReasoner(index=index, filter=MINE)
    for asked in ({"question": QUESTION, "filter": given}, {"messages": [("human", QUESTION)], "filter": given}):
        for output in (reasoner.invoke(asked), await reasoner.ainvoke(asked)):
            read = {i for step in output["steps"] for i in ids(step["context"])}
            assert ids(output["context"]) | read <= expected
    assert sum(1 for _ in reasoner.stream({"question": QUESTION, "filter": given})) > 0


async def test_a_reasoner_takes_a_filter_as_its_retriever_does(index):
    reasoner, given = CompMemReasoner(index=index), {"tenant": "b"}
    asked = {"question": QUESTION, "filter": given}
    expected = [i["context"] for i in reasoner.invoke(asked)["steps"]]

    def steps(parts):
        return [step["context"] for part in parts for step in part.get("steps", [])]

    assert expected and all(ids(context) <= {"b-mill", "b-barn"} for context in expected)
    assert steps([reasoner.invoke(QUESTION, filter=given)]) == expected
    assert steps([reasoner.bind(filter=given).invoke(QUESTION)]) == expected
    assert steps([reasoner.invoke(asked, filter=given)]) == expected, "twice the same"
    assert steps([await reasoner.ainvoke(QUESTION, filter=given)]) == expected
    assert steps(reasoner.stream(QUESTION, filter=given)) == expected
    assert steps([part async for part in reasoner.astream(QUESTION, filter=given)]) == expected
    with pytest.raises(ValueError, match="another filter than filter="):
        reasoner.invoke(asked, filter={"tenant": "a"})
    with pytest.raises(TypeError, match=r"invoke\(\) got unexpected arguments \['k'\]"):
        reasoner.invoke(QUESTION, k=3)
    with pytest.raises(TypeError, match=r"stream\(\) got unexpected arguments"):
        list(reasoner.stream(QUESTION, k=3))


def test_a_tool_with_a_filter_of_the_agent_keeps_to_the_bound_one(index):
    class Narrow(BaseModel):
        question: str
        filter: dict

    tool = CompMemReasoner(index=index, filter=MINE).as_tool(Narrow)
    for given, expected in (({}, {"a-mill", "a-barn"}), ({"tenant": "b"}, set()), ({"year": {">": 2000}}, {"a-barn"})):
        call = {"name": tool.name, "args": {"question": QUESTION, "filter": given}, "id": "1", "type": "tool_call"}
        assert ids(tool.invoke(call).artifact["context"]) == expected
    listed = recall_tool(CompMemRetriever(index=index, filter=MINE, k=9)).invoke({"query": QUESTION})
    assert "Acme" in listed and "Bolt" not in listed


def test_the_middleware_keeps_to_the_filter_of_its_reasoner(index):
    from langchain.agents import create_agent

    from langchain_compmem.middleware import CompMemMiddleware

    memory = CompMemMiddleware(CompMemReasoner(index=index, filter=MINE))
    agent = create_agent(ScriptedChat(replies=["Acme."]), [], middleware=[memory])
    state = agent.invoke({"messages": [("human", QUESTION)], "filter": {}, "memory": None})
    assert ids(state["memory"]["context"]) == {"a-mill", "a-barn"}


def test_the_application_sets_the_bound_filter(index):
    chosen = CompMemReasoner(index=index, filter=MINE).configurable_fields(filter=ConfigurableField(id="filter"))
    other = chosen.with_config(configurable={"filter": {"tenant": "b"}})
    assert ids(other.invoke(QUESTION)["context"]) == {"b-mill", "b-barn"}
    assert ids(other.invoke({"question": QUESTION, "filter": MINE})["context"]) == set()


async def test_filters_of_another_store_are_not_combined():
    class Words(HashingEncoder):
        def embed_documents(self, texts):
            return self.encode([" ".join(terms(text)) for text in texts]).tolist()

        def embed_query(self, text):
            return self.embed_documents([text])[0]

    store = InMemoryVectorStore(Words())
    store.add_documents(BOTH)

    def mine(document):
        return document.metadata["tenant"] == "a"

    reasoner = CompMemReasoner.from_retriever(store, filter=mine)
    retriever = CompMemRetriever.from_retriever(store, filter=mine, k=9)
    assert ids(retriever.invoke(QUESTION)) == ids(retriever.invoke(QUESTION, filter={})) == {"a-mill", "a-barn"}
    for call in (
        lambda: retriever.invoke(QUESTION, filter=lambda document: True),
        lambda: reasoner.invoke({"question": QUESTION, "filter": {"year": 2021}}),
    ):
        with pytest.raises(ValueError, match="a filter is set already"):
            call()
    with pytest.raises(ValueError, match="a filter is set already"):
        await reasoner.ainvoke({"question": QUESTION, "filter": lambda document: True})


@pytest.mark.parametrize("name", ["filters", "Filter", "metadata_filter", "where"])
async def test_a_misnamed_filter_is_refused(index, name):
    reasoner = CompMemReasoner(index=index)
    for asked in ({"question": QUESTION}, {"messages": [("human", QUESTION)]}):
        with pytest.raises(ValueError, match=f"the input has '{name}': the filter of a question is named 'filter'"):
            reasoner.invoke({**asked, name: MINE})
        with pytest.raises(ValueError, match="named 'filter'"):
            await reasoner.ainvoke({**asked, name: [MINE]})
        assert reasoner.invoke({**asked, name: None, "tenant": {"a": 1}})["found"], "other keys are those of a chain"


def test_a_store_with_a_filter_deletes_within_it(tmp_path):
    with make_index(tmp_path / "index") as made:
        CompMemRetriever(index=made).upsert(BOTH)
        assert CompMemVectorStore(made, filter=MINE).delete()
        assert sorted(info.id for info in made.documents()) == ["b-barn", "b-mill"]
        assert CompMemVectorStore(made).delete()
        assert len(made) == 0
