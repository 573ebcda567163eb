"""The vector store in the framework's own pipelines and indices, and the meaning of metadata."""

import json
import re

import pytest
from llama_index.core import Document, StorageContext, VectorStoreIndex
from llama_index.core.ingestion import DocstoreStrategy, IngestionPipeline
from llama_index.core.llms import ChatMessage, LLMMetadata
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from compmem import Document as CoreDocument
from compmem import IndexConfig, MemoryIndex, RecallConfig
from llama_index_compmem import CompMemIndex, CompMemVectorStore
from llama_index_compmem.llm import count_tokens
from llama_index_compmem.nodes import to_documents
from tests.frameworks_llama_index import FakeLLM, HashingEncoder

PRICE = "Which price has the ticket?"
LONG = " ".join(f"Item {n} weighs {n} grams and lies on shelf {n % 7}." for n in range(1500))


def make_store(**options):
    return CompMemVectorStore(MemoryIndex.create(config=IndexConfig(encoder=HashingEncoder())), **options)


def price(euros, name="price"):
    return Document(doc_id=name, text=f"The price of the ticket is {euros} euros. It is paid at the gate.")


def texts(store):
    return " ".join(sorted(node.get_content() for node in store.get_nodes()))


def make_pipeline(store, strategy=DocstoreStrategy.UPSERTS, docstore=True, splitter=True):
    steps = [SentenceSplitter(chunk_size=40, chunk_overlap=0)] if splitter else []
    kept = SimpleDocumentStore() if docstore else None
    return IngestionPipeline(
        transformations=[*steps, store.embed_model], vector_store=store, docstore=kept, docstore_strategy=strategy
    )


async def run(pipeline, documents, how):
    return await pipeline.arun(documents=documents) if how == "async" else pipeline.run(documents=documents)


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("splitter", [True, False])
async def test_upserts_reach_the_index(how, splitter):
    store = make_store()
    pipeline = make_pipeline(store, splitter=splitter)
    await run(pipeline, [price(10), price(7, "other")], how)
    await run(pipeline, [price(25)], how)
    assert "25 euros" in texts(store) and "10 euros" not in texts(store) and "7 euros" in texts(store)
    assert await run(pipeline, [price(25)], how) == []
    index = VectorStoreIndex.from_vector_store(store, embed_model=store.embed_model)
    index.delete_ref_doc("price")
    pipeline.docstore.delete_document("price")
    assert "25 euros" not in texts(store)
    await run(pipeline, [price(25)], how)
    assert "25 euros" in texts(store)
    assert store.memory.verify() == []


@pytest.mark.parametrize("how", ["sync", "async"])
async def test_documents_that_are_gone_are_deleted_and_duplicates_are_stored_once(how):
    store = make_store()
    pipeline = make_pipeline(store, DocstoreStrategy.UPSERTS_AND_DELETE)
    await run(pipeline, [price(10), price(7, "other")], how)
    await run(pipeline, [price(7, "other")], how)
    assert "7 euros" in texts(store) and "10 euros" not in texts(store)
    await store.aclear()
    assert len(store.memory) == 0
    once = make_pipeline(store, DocstoreStrategy.DUPLICATES_ONLY)
    for _ in range(2):
        await run(once, [price(10)], how)
    assert len(store.memory) == 1


async def test_a_pipeline_that_remembers_what_it_did_stores_again_what_was_deleted():
    store = make_store()
    pipeline = make_pipeline(store, docstore=False)
    for _ in range(2):
        pipeline.run(documents=[price(10)])
        assert "10 euros" in texts(store)
        await store.adelete("price")
        assert texts(store) == ""


def test_an_index_over_the_store_asks_the_memory():
    store = make_store()
    storage = StorageContext.from_defaults(vector_store=store)
    index = VectorStoreIndex([], storage_context=storage, embed_model=store.embed_model)
    index.insert(price(10))
    index.insert_nodes([TextNode(id_="gate", text="The gate opens at nine."), TextNode(id_="empty", text=" ")])
    found = index.as_retriever(similarity_top_k=1).retrieve(PRICE)
    assert [n.node.ref_doc_id for n in found] == ["price"] and 0 < found[0].score <= 1
    llm = FakeLLM(reply=lambda prompt: "10 euros" if "is 10 euros" in prompt else "?")
    assert str(index.as_query_engine(llm=llm).query(PRICE)) == "10 euros"
    index.delete_nodes(["gate"])
    assert [n.node_id for n in store.get_nodes(["gate", "nowhere"])] == []
    index.update_ref_doc(price(25))
    assert "25 euros" in texts(store) and "10 euros" not in texts(store)
    assert CompMemIndex.from_memory(store.memory).as_vector_store().memory is store.memory


def test_metadata_that_is_too_long_to_be_searched_is_refused_with_what_helps():
    long = TextNode(id_="long", text="The gate opens at nine.", metadata={"page": "word " * 3000})
    with pytest.raises(ValueError, match=r"'long': the metadata .* 15,00\d characters.*excluded_embed_metadata_keys"):
        make_store().add([long])
    long.excluded_embed_metadata_keys = ["page"]
    assert make_store().add([long]) == ["long"]


def test_parts_of_a_document_that_was_added_whole_are_found_but_not_deleted():
    store = make_store()
    store.memory.add([CoreDocument(id="plain", chunks=["The price is 10 euros. ", "It is paid at the gate."])])
    store.add([TextNode(id_="plain#9", text="Another text."), TextNode(id_="node", text="The gate opens at nine.")])
    found = store.query(VectorStoreQuery(query_str=PRICE, similarity_top_k=4))
    assert {"plain#0", "plain#1"} <= set(found.ids)
    assert {n.node_id for n in store.get_nodes(found.ids)} == set(found.ids)
    assert [n.get_content() for n in store.get_nodes(["plain#1"])] == ["It is paid at the gate."]
    assert store.get_nodes(["node#0", "plain#7", "nowhere#0"]) == []
    with pytest.raises(ValueError, match=r"'plain#1' is a part of a document: delete it with delete\('plain'\)"):
        store.delete_nodes(["plain#1"])
    store.delete_nodes(["plain#9", "nowhere#0"])
    store.delete("plain")
    assert [n.node_id for n in store.get_nodes()] == ["node"]


F, Op = MetadataFilter, FilterOperator
ROWS = {
    "a": {"year": 2019, "tags": ["x", "y"], "by": "Ann Ray"},
    "b": {"year": 2021, "tags": ["y"], "by": "Bo"},
    "c": {},
}
FILTERS = [
    F(key="year", value=2019), F(key="year", value=2019, operator=Op.NE), F(key="year", value=2019, operator=Op.GT),
    F(key="year", value=2019, operator=Op.GTE), F(key="year", value=2021, operator=Op.LT),
    F(key="year", value=2021, operator=Op.LTE), F(key="by", value=["Bo", "Cy"], operator=Op.IN),
    F(key="by", value=["Bo", "Cy"], operator=Op.NIN), F(key="tags", value=["x", "z"], operator=Op.ANY),
    F(key="tags", value=["x", "y"], operator=Op.ALL), F(key="by", value="Ra", operator=Op.TEXT_MATCH),
    F(key="by", value="ANN", operator=Op.TEXT_MATCH_INSENSITIVE), F(key="tags", value="x", operator=Op.CONTAINS),
    F(key="year", value=None, operator=Op.IS_EMPTY),
]  # fmt: skip


def admitted(filters):
    """The result of the framework's own store; it has no nested filters, so conditions are combined here."""
    if len(filters.filters) == 1:
        accepts = build_metadata_filter_fn(lambda name: ROWS[name], filters)
        return {name for name in ROWS if accepts(name)}
    parts = [admitted(f if isinstance(f, MetadataFilters) else MetadataFilters(filters=[f])) for f in filters.filters]
    if filters.condition == FilterCondition.AND:
        return set.intersection(*parts)
    return set.union(*parts) if filters.condition == FilterCondition.OR else set(ROWS) - set.union(*parts)


async def test_every_filter_admits_what_the_frameworks_own_store_admits():
    store = make_store()
    store.add([TextNode(id_=name, text=f"Row {name}.", metadata=row) for name, row in ROWS.items()])
    single = [MetadataFilters(filters=[f]) for f in FILTERS]
    nested = [
        MetadataFilters(filters=[FILTERS[3], MetadataFilters(filters=FILTERS[7:9], condition=c)], condition=outer)
        for c in FilterCondition
        for outer in FilterCondition
    ]
    for filters in [*single, *nested]:
        expected = admitted(filters)
        assert {n.node_id for n in store.get_nodes(filters=filters)} == expected, filters
        asked = VectorStoreQuery(query_str="Row?", similarity_top_k=9, filters=filters)
        assert set((await store.aquery(asked)).ids) == expected, filters
    store.delete_nodes(["a", "c"], MetadataFilters(filters=[FILTERS[0]]))
    store.delete_nodes(None, None)
    assert [n.node_id for n in await store.aget_nodes()] == ["b", "c"]


def test_queries_by_id_and_queries_that_cannot_be_served():
    store = make_store()
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="book")}
    store.add([
        TextNode(id_="a", text="Row a.", metadata={"document_id": "b"}),
        TextNode(id_="b", text="Row b.", relationships=source),
    ])  # fmt: skip
    assert store.query(VectorStoreQuery(query_str="Row?", similarity_top_k=5, node_ids=["b"])).ids == ["b"]
    assert store.query(VectorStoreQuery(query_str="Row?", similarity_top_k=5, doc_ids=["book"])).ids == ["b"]
    assert store.query(VectorStoreQuery(query_str="Row?", similarity_top_k=0)).ids == []
    with pytest.raises(ValueError, match="no query_str"):
        store.query(VectorStoreQuery(query_embedding=[1.0]))
    with pytest.raises(ValueError, match="is not supported"):
        store.query(VectorStoreQuery(query_str="Row?", mode=VectorStoreQueryMode.MMR))


# Metadata


def book(**metadata):
    return Document(doc_id="book", text="Boats are moored in January. Ice holds them.", metadata=metadata)


def engine_over(document, llm, **options):
    others = [Document(text=f"A lantern hangs over mill {n}. Nobody lights it.") for n in range(6)]
    index = CompMemIndex.from_documents([document, *others], embed_model=HashingEncoder())
    return index.as_query_engine(llm=llm, **options)


@pytest.mark.parametrize("reader", [None, "chat"])
@pytest.mark.parametrize("chosen", [True, False])
def test_metadata_is_searched_and_shown(reader, chosen):
    postprocessors = [SimilarityPostprocessor(similarity_cutoff=0.0)] if chosen else None
    llm = FakeLLM()
    engine = engine_over(
        book(author="Bianca Rossi"), llm, recall_config=RecallConfig(reader=reader), node_postprocessors=postprocessors
    )
    question = "What did Bianca Rossi write?"
    assert engine.query(question).source_nodes[0].node.ref_doc_id == "book"
    assert any(
        "author: Bianca Rossi\n\nBoats are moored" in messages[-1].content.replace("**", "")
        for _, messages in llm.calls
    )


def test_excluded_metadata_is_not_searched_and_not_shown():
    document = book(author="Bianca Rossi", secret="Xylophone", title="Harbour notes")
    document.excluded_embed_metadata_keys = ["secret", "title"]
    document.excluded_llm_metadata_keys = ["author"]
    llm = FakeLLM()
    engine = engine_over(document, llm)
    memory = engine.memory
    chunk = next(c for d in memory.documents() for c in memory.chunks(d.id) if c.text.startswith("Boats"))
    assert (chunk.title, chunk.context) == ("", "author: Bianca Rossi")
    engine.query("Where are boats moored?")
    prompt = llm.calls[0][1][-1].content
    assert "Rossi" not in prompt and "secret: Xylophone" in prompt and "title: Harbour notes" in prompt


def test_the_users_metadata_survives_and_writing_back_what_was_retrieved_changes_nothing():
    metadata = {"score": 7, "document_id": "theirs", "id": 1, "title": "Notes", "b": 1, "a": {"z": 1}}
    store = make_store()
    store.add([TextNode(id_="n", text="Boats are moored.", metadata=metadata)])
    for _ in range(2):
        (found,) = store.query(VectorStoreQuery(query_str="Boats?", similarity_top_k=1)).nodes
        assert list(found.metadata.items()) == list(metadata.items())
        assert store.memory.add(to_documents([found])) == 0
    found.metadata["score"] = 8
    store.add([found])
    assert [n.metadata["score"] for n in store.get_nodes()] == [8]


def test_nodes_put_in_by_other_means_come_back_with_their_metadata():
    store = make_store()
    store.memory.add([CoreDocument(id="d", title="T", text="Boats are moored.", metadata={"score": 1})])
    llm = FakeLLM()
    CompMemIndex.from_memory(store.memory).as_query_engine(llm=llm).query("Boats?")
    assert "title: T\ntext:\nBoats are moored." in llm.calls[0][1][-1].content.replace("**", "")
    assert [(n.node_id, n.metadata) for n in store.get_nodes()] == [("d#0", {"score": 1})]
    store.delete("d")
    assert store.get_nodes() == []


# The model's window


class SmallLLM(FakeLLM):
    @property
    def metadata(self):
        return LLMMetadata(is_chat_model=True, context_window=2048, num_output=256)


def note(prompt):
    if "Blocks to read now" not in prompt:
        return "It lies on shelf 2."
    found = re.findall(r"Item 1200 [^.]*\.", prompt.split("Blocks to read now")[1])
    return f"<check>{'yes' if found else 'no'}</check><update>{' '.join(found)}</update><next>continue</next>"


def largest(llm):
    return max(sum(count_tokens(m.content) for m in messages) for _, messages in llm.calls)


@pytest.mark.parametrize("reader", [None, "chat"])
@pytest.mark.parametrize("nodes", ["one long", "twelve similar"])
async def test_no_prompt_is_longer_than_the_models_window(reader, nodes):
    long = [TextNode(text=LONG)] if nodes == "one long" else [TextNode(text=LONG[:1800]) for _ in range(12)]
    llm = SmallLLM(reply=note)
    index = CompMemIndex.from_nodes(long, embed_model=HashingEncoder())
    engine = index.as_query_engine(llm=llm, recall_config=RecallConfig(reader=reader))
    response = engine.query("On which shelf lies item 1200?")
    await engine.asynthesize("On which shelf lies item 1200?", [NodeWithScore(node=n) for n in long[:3]])
    assert llm.calls and largest(llm) <= 2048 - 256
    if nodes == "one long":
        assert str(response) == "It lies on shelf 2."
        assert any("Item 1200 weighs" in messages[-1].content for _, messages in llm.calls)


def test_a_conversation_is_cut_to_the_window():
    llm = SmallLLM(reply=lambda prompt: note(prompt) if "Blocks to read now" in prompt else "Where does item 1200 lie?")
    index = CompMemIndex.from_nodes([TextNode(text="Item 1200 lies on shelf 2.")], embed_model=HashingEncoder())
    history = [ChatMessage(role="user", content=LONG[:3000]), ChatMessage(role="assistant", content=LONG)]
    memory = ChatMemoryBuffer.from_defaults(token_limit=100_000)
    index.as_chat_engine(llm=llm, memory=memory, chat_history=history).chat("And where is it?")
    assert LONG[:500] in llm.calls[0][1][-1].content and largest(llm) <= 2048 - 256


def test_a_path_is_an_index_that_is_created_the_first_time(tmp_path):
    folder = tmp_path / "new.mem"
    with CompMemVectorStore(folder).memory as index:
        assert index.documents() == []
    with CompMemVectorStore(str(folder)).memory as index:
        assert index.path == folder
    with pytest.raises(ValueError, match="not empty"):
        CompMemVectorStore(tmp_path)


def test_a_store_is_made_again_from_its_fields(tmp_path):
    store = CompMemVectorStore(tmp_path / "kept.mem")
    store.add([TextNode(text="The price is 5 euros.")])
    made = CompMemVectorStore.from_dict(json.loads(store.to_json()))
    assert (texts(made), made.to_dict()) == (texts(store), store.to_dict())
    temporary = CompMemVectorStore(MemoryIndex.create(config=IndexConfig(encoder=HashingEncoder())))
    with pytest.raises(ValueError, match="was temporary: give it a folder, or pass index="):
        CompMemVectorStore.from_dict(temporary.to_dict())
    assert CompMemVectorStore.from_dict(temporary.to_dict(), index=temporary.memory).memory is temporary.memory


def test_an_index_uses_the_vector_store_of_its_storage_context(tmp_path):
    store = CompMemVectorStore(tmp_path / "kept.mem")
    CompMemIndex.from_documents([price(5)], storage_context=StorageContext.from_defaults(vector_store=store))
    assert "5 euros" in texts(CompMemVectorStore(tmp_path / "kept.mem"))
    assert str(CompMemIndex.from_memory(tmp_path / "kept.mem").as_query_engine().query(PRICE)).startswith("The price")
    with pytest.raises(ValueError, match="has its own path="):
        CompMemIndex.from_documents(
            [price(5)], storage_context=StorageContext.from_defaults(vector_store=store), path=tmp_path / "other.mem"
        )


def test_an_index_refuses_the_vector_store_of_something_else():
    class Other(CompMemVectorStore.__mro__[1]):
        stores_text: bool = True
        client = property(lambda self: None)

        def add(self, nodes, **options): ...

        def delete(self, ref_doc_id, **options): ...

        def query(self, query, **options): ...

    with pytest.raises(ValueError, match="not in Other: give it path="):
        CompMemIndex.from_documents([price(5)], storage_context=StorageContext.from_defaults(vector_store=Other()))


def test_what_is_no_document_and_no_list_is_named():
    for given, name in ((["hello"], "of str"), (price(5), "one Document"), (None, "one NoneType")):
        with pytest.raises(TypeError, match=f"there must be a list of documents or nodes, not {name}"):
            CompMemIndex.from_documents(given)
