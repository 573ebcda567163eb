"""What plain LlamaIndex takes is taken or refused plainly: filters, options, nested engines, empty questions."""

from itertools import pairwise

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import ChatMessage
from llama_index.core.postprocessor import LongContextReorder
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import Document, IndexNode, MetadataMode, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores.types import FilterOperator, MetadataFilter, MetadataFilters

from compmem import Document as CoreDocument
from compmem import IndexConfig, MemoryIndex, RecallConfig
from compmem.listing import BLANK
from llama_index_compmem import (
    CompMemIndex,
    CompMemNodeParser,
    CompMemQueryEngine,
    CompMemRetriever,
    CompMemVectorStore,
    recall_tool,
)
from tests.frameworks_llama_index import QUESTION, FakeLLM, HashingEncoder, documents, make_index, names

QUOTED = "The Orchid device was invented by Dr Elena Marsh. Elena Marsh was born in Tarnhill."


# Filters

F, Op = MetadataFilter, FilterOperator


@pytest.mark.parametrize("key", ["doc_id", "ref_doc_id", "document_id"])
def test_filters_on_the_source_document_admit_what_a_vector_index_admits(index, key):
    plain = VectorStoreIndex.from_documents(documents(), embed_model=MockEmbedding(4))
    for wanted in (
        F(key=key, value="marsh"),
        F(key=key, value="marsh", operator=Op.NE),
        F(key=key, value=["esk", "veld"], operator=Op.IN),
        F(key=key, value=["esk", "veld"], operator=Op.NIN),
        F(key=key, value="ar", operator=Op.TEXT_MATCH),
    ):
        filters = MetadataFilters(filters=[wanted])
        expected = set(names(plain.as_retriever(similarity_top_k=9, filters=filters).retrieve(QUESTION)))
        found = index.as_retriever(9, filters, method="gate").retrieve(QUESTION)
        assert expected and set(names(found)) == expected, wanted


def test_filters_on_the_source_document_of_nodes_without_one_and_with_such_a_key():
    store = CompMemVectorStore(MemoryIndex.create(config=IndexConfig(encoder=HashingEncoder())))
    source = {NodeRelationship.SOURCE: RelatedNodeInfo(node_id="book")}
    store.add([
        TextNode(id_="alone", text="Row a."),
        TextNode(id_="own", text="Row b.", metadata={"doc_id": "A-17"}, relationships=source),
    ])  # fmt: skip
    store.memory.add([CoreDocument(id="core", text="Row c.")])

    def admitted(key, value):
        return [n.node_id for n in store.get_nodes(filters=MetadataFilters(filters=[F(key=key, value=value)]))]

    for key in ("doc_id", "ref_doc_id", "document_id"):
        assert (admitted(key, "alone"), admitted(key, "core")) == (["alone"], ["core#0"])
    assert admitted("doc_id", "A-17") == admitted("ref_doc_id", "book") == admitted("document_id", "book") == ["own"]
    assert admitted("doc_id", "book") == []


def test_one_bare_filter_is_a_filter_and_other_types_are_refused(index):
    bare = F(key="year", value=1961)
    assert names(index.as_retriever(9, bare).retrieve(QUESTION)) == ["marsh"]
    assert names(index.as_query_engine(filters=bare).query(QUESTION).source_nodes) in (["marsh"], [])
    for wrong in ([bare], {"year": 1961}, "year"):
        for made in (index.as_retriever, index.as_query_engine):
            with pytest.raises(TypeError, match="must be MetadataFilters or a MetadataFilter"):
                made(filters=wrong)


async def test_a_blank_question_with_a_filter_gives_what_the_filter_admits(index):
    store = index.as_vector_store()
    vector_index = VectorStoreIndex.from_vector_store(store, embed_model=store.embed_model)
    recent = MetadataFilters(filters=[F(key="year", value=1900, operator=Op.GT)])
    for k, expected in ((9, ["orchid", "marsh", "veld"]), (2, ["orchid", "marsh"])):
        retriever = vector_index.as_retriever(similarity_top_k=k, filters=recent)
        for found in (retriever.retrieve(""), await retriever.aretrieve(" ")):
            assert sorted(names(found)) == sorted(expected)
    assert len(vector_index.as_retriever(similarity_top_k=3).retrieve("")) == 3


# The retriever and its tool


async def test_nodes_below_a_score_are_left_out(index):
    every = index.as_retriever(5).retrieve(QUESTION)
    cutoff = every[2].score
    for method in ("loop", "gate"):
        retriever = index.as_retriever(5, method=method, min_score=cutoff)
        scores = [n.score for n in index.as_retriever(5, method=method).retrieve(QUESTION)]
        expected = [score for score in scores if score >= cutoff]
        assert [n.score for n in retriever.retrieve(QUESTION)] == expected
        assert [n.score for n in await retriever.aretrieve(QUESTION)] == expected
    assert CompMemRetriever(index, min_score=1.0).retrieve(QUESTION) == []
    for wrong in (-0.1, 1.1, "high"):
        with pytest.raises(ValueError, match="min_score"):
            index.as_retriever(min_score=wrong)


async def test_a_tool_answers_a_blank_query_and_takes_only_its_own_retriever(index):
    tool = recall_tool(index.as_retriever(2))
    for query in ("", " \n"):
        assert str(tool.call(query=query)) == BLANK
        assert str(await tool.acall(query=query)) == BLANK
        assert tool.call(query=query).raw_output == []
    output, retrieved = tool.call(query=QUESTION), index.as_retriever(2).retrieve(QUESTION)
    assert "Tarnhill" in str(output) and output.raw_output == retrieved
    assert str(tool.fn(QUESTION)) == output.content
    foreign = VectorStoreIndex.from_documents(documents(), embed_model=MockEmbedding(4)).as_retriever()
    assert isinstance(foreign, BaseRetriever) and hasattr(foreign, "similarity_top_k")
    with pytest.raises(TypeError, match="there must be a CompMemRetriever"):
        recall_tool(foreign)


def test_filters_on_a_title_admit_no_node_without_one():
    given = [Document(doc_id="titled", text="One.", metadata={"title": "B"}), Document(doc_id="bare", text="Two.")]
    plain = VectorStoreIndex.from_documents(given, embed_model=MockEmbedding(4))
    index = CompMemIndex.from_documents(given, embed_model=HashingEncoder())
    values = {Op.IN: ["B", ""], Op.NIN: ["B"], Op.ANY: [""], Op.ALL: [""], Op.IS_EMPTY: None}
    for operator in Op:
        for value in [values[operator]] if operator in values else ["A", "B", "C", ""]:
            filters = MetadataFilters(filters=[F(key="title", value=value, operator=operator)])
            if operator in (Op.ANY, Op.ALL, Op.CONTAINS):  # the framework takes these for lists alone
                expected = {"titled"} if value in ("B", "", [""]) else set()
            else:
                expected = set(names(plain.as_retriever(similarity_top_k=9, filters=filters).retrieve("One?")))
            found = index.as_retriever(9, filters, method="gate").retrieve("One?")
            assert set(names(found)) == expected, (operator, value)


# Nodes that refer to other engines and retrievers


class Seen(BaseNodePostprocessor):
    """Changes nothing."""

    def _postprocess_nodes(self, nodes, query_bundle=None):
        return nodes


@pytest.mark.parametrize("kind", ["retriever", "engine"])
async def test_engines_follow_nodes_that_refer_to_objects(index, kind):
    def pointer():
        obj = index.as_retriever(2) if kind == "retriever" else index.as_query_engine()
        return IndexNode(text="Where was the inventor of the Orchid device born?", index_id="world", obj=obj)

    llm = FakeLLM(lambda prompt: "Tarnhill." if "born in Tarnhill" in prompt else "?")
    plain = VectorStoreIndex(objects=[pointer()], embed_model=MockEmbedding(4)).as_query_engine(llm=llm)
    made = CompMemIndex(objects=[pointer()], embed_model=HashingEncoder())
    engine, chat = made.as_query_engine(llm=llm), made.as_chat_engine(llm=llm)
    for response in (plain.query(QUESTION), engine.query(QUESTION), await engine.aquery(QUESTION), chat.chat(QUESTION)):
        assert str(response) == "Tarnhill."
        if kind == "retriever":
            assert set(names(response.source_nodes)) == {"orchid", "marsh"}
    if kind == "retriever":
        assert "invented by Dr Elena Marsh." in str(made.as_query_engine().query(QUESTION))


async def test_the_diagnostics_of_a_nested_engine_are_not_shown_to_a_model(index):
    pointer = IndexNode(text="All about the Orchid device.", index_id="world", obj=index.as_query_engine())
    retriever = CompMemIndex(objects=[pointer], embed_model=HashingEncoder()).as_retriever(1)
    for (found,) in (retriever.retrieve(QUESTION), await retriever.aretrieve(QUESTION)):
        for mode in (MetadataMode.LLM, MetadataMode.EMBED):
            assert found.node.get_content(metadata_mode=mode) == QUOTED
        assert {about["title"] for about in found.node.metadata.values()} == {"Orchid device", "Elena Marsh"}


# Postprocessors without a model


class Reranker(BaseNodePostprocessor):
    """Gives every node a score of another scale."""

    def _postprocess_nodes(self, nodes, query_bundle=None):
        for found in nodes:
            found.score = -3.0
        return nodes


async def test_quotes_come_only_from_nodes_that_the_gate_accepts():
    index = make_index()
    index.insert(Document(doc_id="other", text="The Walnut device was invented by Tor Moen."))
    gate = index.memory.gate.threshold
    accepted = {n.node.ref_doc_id for n in index.as_retriever(8).retrieve(QUESTION) if n.score >= gate}
    engine = index.as_query_engine(node_postprocessors=[Seen(), LongContextReorder()])
    for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
        assert set(names(response.source_nodes)) <= accepted and "born in Tarnhill" in str(response)
    assert 0 < len(accepted) < 6
    everything = index.as_query_engine(node_postprocessors=[Seen()], recall_config=RecallConfig(threshold=0.0))
    assert len(everything.query(QUESTION).source_nodes) == 6
    llm = FakeLLM()
    for options in ({"llm": llm, "node_postprocessors": [Seen()]}, {"node_postprocessors": [Reranker()]}):
        assert len(index.as_query_engine(**options).query(QUESTION).source_nodes) == 6
    nothing = index.as_query_engine(node_postprocessors=[Seen()], recall_config=RecallConfig(threshold=1.0))
    assert nothing.query(QUESTION).metadata.found is False


# Options


def test_options_of_a_vector_index_without_a_meaning_here_are_ignored():
    options = {"use_async": True, "insert_batch_size": 10, "store_nodes_override": True}
    made = CompMemIndex.from_documents(documents(), embed_model=HashingEncoder(), **options)
    assert len(made.memory.documents()) == 5
    assert len(make_index(**options).memory) == 5
    assert str(make_index().as_query_engine(verbose=True).query(QUESTION)) == QUOTED


async def test_a_tool_shows_the_objects_that_nodes_refer_to(index):
    pointer = IndexNode(text="All about the Orchid device.", index_id="world", obj=index.as_retriever(2))
    made = CompMemIndex(nodes=[], objects=[pointer], embed_model=HashingEncoder())
    expected = index.as_retriever(2).retrieve(QUESTION)
    tool = recall_tool(made.as_retriever(2))
    for output in (tool.call(query=QUESTION), await tool.acall(query=QUESTION)):
        assert output.raw_output == expected
        assert "All about" not in output.content and "born in Tarnhill" in output.content
        assert output.content.startswith(f"[1] {expected[0].node.metadata['title']} (id: {expected[0].node.node_id})")


@pytest.mark.parametrize("kind", [CompMemQueryEngine, CompMemRetriever, CompMemVectorStore])
def test_a_retriever_or_an_engine_is_no_index(index, kind):
    plain = VectorStoreIndex.from_documents(documents(), embed_model=MockEmbedding(4))
    for given in (index.as_retriever(1), index.as_query_engine(), plain.as_retriever()):
        with pytest.raises(ValueError, match=r"is no index: give the index itself, with filters=.*from_retriever"):
            kind(given)


def test_a_chat_engine_takes_the_frameworks_names(index):
    def reply(prompt):
        return QUESTION if prompt.startswith("Rewrite:") else "Tarnhill."

    llm = FakeLLM(reply)
    chat = index.as_chat_engine(
        "condense_question",
        llm=llm,
        verbose=True,
        system_prompt="Answer like {a} pirate.",
        condense_question_prompt=PromptTemplate("Rewrite: {chat_history} {question}"),
        chat_history=[ChatMessage(role="user", content="Who is it?")],
    )
    assert str(chat.chat("And where?")) == "Tarnhill."
    assert llm.calls[0][1][-1].content.startswith("Rewrite: user: Who is it?")
    system = llm.calls[1][1][0].content
    assert system.endswith("Answer like {a} pirate.") and "quoted from documents" in system
    both = PromptTemplate("{chat_history} {question}")
    with pytest.raises(TypeError, match="condense_prompt= or condense_question_prompt=, not both"):
        index.as_chat_engine(condense_prompt=both, condense_question_prompt=both)
    for wrong, error in (("{chat_history}", ValueError), ("{question} {history}", ValueError), (7, TypeError)):
        with pytest.raises(error, match="condense_prompt"):
            index.as_chat_engine(llm=llm, condense_prompt=wrong)
    index.as_chat_engine(llm=llm, condense_prompt="{chat_history} {question}")
    for mode in ("context", "condense_plus_context", "simple"):
        with pytest.raises(TypeError, match=f"filter= is no option of chat_mode='{mode}'"):
            index.as_chat_engine(mode, llm=llm, filter=None)
    for mode in ("best", "condense_question"):
        with pytest.raises(TypeError, match=r"skip_condense= is no option .* chat_mode='condense_plus_context'"):
            index.as_chat_engine(mode, llm=llm, skip_condense=True)
    own = index.as_chat_engine("condense_plus_context", llm=llm, skip_condense=True, system_prompt="x", min_score=0.1)
    assert str(own.chat(QUESTION)) == "Tarnhill."
    with pytest.raises(ValueError, match="has no prompts"):
        index.as_chat_engine(system_prompt="Answer like a pirate.")


def test_a_pipelines_cache_keeps_parsers_of_different_sizes_apart():
    def parser(tokens):
        config = IndexConfig(chunk_tokens=tokens, encoder=HashingEncoder())
        return CompMemNodeParser(MemoryIndex.create(config=config))

    document = Document(text=" ".join(f"Person {n} lives in house {n}." for n in range(60)))
    first = IngestionPipeline(transformations=[parser(256)])
    counts = [len(first.run(documents=[document]))]
    for tokens in (32, 256):
        pipeline = IngestionPipeline(transformations=[parser(tokens)], cache=first.cache)
        counts.append(len(pipeline.run(documents=[document])))
    assert counts[0] == counts[2] < counts[1]
    assert parser(32).to_dict() == parser(32).to_dict() != parser(256).to_dict()


def test_offsets_of_nodes_are_right_where_a_text_repeats_itself():
    text = "  " + "The mill is old. " * 300
    config = IndexConfig(chunk_tokens=64, encoder=HashingEncoder())
    nodes = CompMemNodeParser(MemoryIndex.create(config=config)).get_nodes_from_documents([Document(text=text)])
    places = [(node.start_char_idx, node.end_char_idx) for node in nodes]
    assert [text[start:end] for start, end in places] == [node.text for node in nodes]
    assert all(end <= start for (_, end), (start, _) in pairwise(places)) and len(nodes) > 2


def test_a_store_returns_the_ids_of_what_it_keeps():
    store = CompMemVectorStore(MemoryIndex.create(config=IndexConfig(encoder=HashingEncoder())))
    nodes = [TextNode(id_="blank", text=" "), TextNode(id_="a", text="Row a."), TextNode(id_="b", text="Row b.")]
    assert store.add(nodes) == ["a", "b"] == [n.node_id for n in store.get_nodes()]


def test_what_is_made_over_an_index_or_a_store_has_its_settings_of_the_loop(index):
    one_step = RecallConfig(max_steps=1)
    store = CompMemVectorStore(index.memory, recall_config=one_step)
    over = CompMemIndex.from_memory(index.memory, recall_config=one_step)
    for made in (store, over):
        assert CompMemQueryEngine(made).query(QUESTION).metadata.stop_reason == "steps"
        assert CompMemQueryEngine(made, recall_config=RecallConfig()).query(QUESTION).metadata.stop_reason != "steps"
    assert CompMemQueryEngine(index.memory).query(QUESTION).metadata.stop_reason != "steps"
