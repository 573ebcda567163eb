"""The LlamaIndex retriever and its filters, alone and inside the framework's own retrievers."""

import pytest
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import MockLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import LongContextReorder, SimilarityPostprocessor
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.retrievers import QueryFusionRetriever, RecursiveRetriever, RouterRetriever
from llama_index.core.schema import (
    Document,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    QueryBundle,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import RetrieverTool
from llama_index.core.vector_stores.types import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn

from compmem import Document as CoreDocument
from compmem import IndexConfig, LoopConfig, MemoryIndex
from llama_index_compmem import CompMemIndex, CompMemRetriever
from llama_index_compmem.nodes import NODE_KEY
from tests.frameworks_llama_index import QUESTION, FakeLLM, HashingEncoder, documents, names

# The retriever


def test_the_loop_finds_what_one_pass_need_not(index):
    found = index.as_retriever(2).retrieve(QUESTION)
    assert set(names(found)) == {"orchid", "marsh"}
    scores = [n.score for n in index.as_retriever(5).retrieve(QUESTION)]
    assert scores == sorted(scores, reverse=True)
    assert all(0 < s <= 1 for s in scores)
    one_pass = index.as_retriever(2, method="gate").retrieve(QUESTION)
    assert one_pass[0].node.ref_doc_id == "orchid"


async def test_async_retrieval_gives_the_same(index):
    for method in ("loop", "gate", "hybrid"):
        retriever = index.as_retriever(5, method=method)
        bundle = QueryBundle(QUESTION)
        assert await retriever.aretrieve(bundle) == retriever.retrieve(bundle)
        assert await retriever._aretrieve(query_bundle=bundle) == retriever._retrieve(bundle)


def test_top_k_may_be_more_than_there_is_and_none_and_is_checked(index):
    assert len(index.as_retriever(100).retrieve(QUESTION)) == 5
    assert index.as_retriever(0).retrieve(QUESTION) == []
    for wrong in (-1, 1.5, True):
        with pytest.raises(ValueError, match="similarity_top_k"):
            index.as_retriever(wrong)


@pytest.mark.parametrize("kind", [Document, TextNode])
def test_metadata_is_searched_whole_where_the_text_is_a_part_of_it(kind):
    given = [
        kind(id_="acme", text="Acme", metadata={"customer": "Acme Holdings Ltd"}),
        kind(id_="row", text="1", metadata={"row": "1", "year": "2011"}),
    ]
    index = CompMemIndex.from_nodes(given, embed_model=HashingEncoder())
    contexts = {name: [chunk.context for chunk in index.memory.chunks(name)] for name in ("acme", "row")}
    assert contexts == {"acme": ["customer: Acme Holdings Ltd"], "row": ["row: 1\nyear: 2011"]}
    assert {n.node.node_id: n.node.get_content() for n in index.as_retriever().retrieve("Acme")} == {
        node.node_id: node.get_content() for node in given
    }
    assert [node.get_content() for node in given] == ["Acme", "1"]


def test_an_empty_question_is_refused(index):
    with pytest.raises(ValueError, match="question is empty"):
        index.as_retriever().retrieve(" ")


def test_nodes_come_back_whole():
    first = TextNode(
        id_="first",
        text="Anvil Rock is red.",
        metadata={"zeta": 1, "alpha": {"deep": [1, None]}, "title": "Anvil"},
        excluded_llm_metadata_keys=["zeta"],
        text_template="{metadata_str} :: {content}",
        start_char_idx=3,
        end_char_idx=21,
        relationships={
            NodeRelationship.SOURCE: RelatedNodeInfo(node_id="doc", hash="abc"),
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="second", metadata={"k": "v"}),
        },
    )
    second = IndexNode(id_="second", text="Beacon Hill is green.", index_id="other")
    third = Node(id_="third", text_resource=MediaResource(text="Cape Dun is grey."), metadata={"k": 1})
    fourth = Document(doc_id="fourth", text="Dale End is gold.", metadata={"k": 2})
    made = CompMemIndex.from_nodes([first, second, third, fourth], embed_model=HashingEncoder())
    found = {n.node.node_id: n.node for n in made.as_retriever().retrieve("Anvil Rock")}
    assert found["first"] == first
    assert found["first"].hash == first.hash
    assert list(found["first"].metadata) == ["zeta", "alpha", "title"]
    assert isinstance(found["second"], IndexNode)
    assert found["second"].index_id == "other"
    assert (found["third"], found["fourth"]) == (third, fourth)


def test_templates_of_a_stored_node_only_put_texts_in_their_places():
    node = TextNode(
        id_="a", text="Anvil Rock is red.", metadata={"k": "v"},
        metadata_template="{key}={value:>50}", text_template="{content.__class__} {metadata_str}",
    )  # fmt: skip
    made = CompMemIndex.from_nodes([node], embed_model=HashingEncoder())
    (found,) = made.as_retriever().retrieve("Anvil Rock")
    assert found.node.metadata_template == TextNode().metadata_template
    assert found.node.text_template == TextNode().text_template


def test_a_retriever_is_made_of_an_index_a_memory_or_a_folder(index, tmp_path):
    assert names(CompMemRetriever(index, 1).retrieve(QUESTION)) == names(
        CompMemRetriever(index.memory, 1).retrieve(QUESTION)
    )
    with pytest.raises(ValueError, match="has no index"):
        CompMemRetriever(tmp_path / "nothing")
    with pytest.raises(ValueError, match="must be a CompMemIndex"):
        CompMemRetriever(42)


# Filters

ROWS = [
    {"year": 1998, "city": "Tarnhill", "tags": ["a", "b"]},
    {"year": 1961, "city": "tarn", "tags": ["b"]},
    {"year": 1961.5, "city": "", "tags": []},
    {"city": "Esk Hill", "tags": ["c", "a"]},
    {"year": None, "or": 1},
]
F, Op = MetadataFilter, FilterOperator
FILTERS = [
    F(key="year", value=1961), F(key="year", value=1961, operator=Op.NE), F(key="year", value=1961, operator=Op.GT),
    F(key="year", value=1961, operator=Op.GTE), F(key="year", value=1998, operator=Op.LT),
    F(key="year", value=1961, operator=Op.LTE), F(key="year", value=[1961, 1998], operator=Op.IN),
    F(key="year", value=[1961, 1998], operator=Op.NIN), F(key="tags", value=["a", "c"], operator=Op.ANY),
    F(key="tags", value=["a", "c"], operator=Op.ALL), F(key="city", value="Hill", operator=Op.TEXT_MATCH),
    F(key="city", value="TARN", operator=Op.TEXT_MATCH_INSENSITIVE), F(key="tags", value="a", operator=Op.CONTAINS),
    F(key="city", value="arn", operator=Op.CONTAINS), F(key="year", value=None, operator=Op.IS_EMPTY),
    F(key="city", value=None, operator=Op.IS_EMPTY), F(key="tags", value=None, operator=Op.IS_EMPTY),
    F(key="city", value=["Tarn", "tarn"], operator=Op.ANY), F(key="or", value=1),
    F(key="missing", value=1, operator=Op.NE),
]  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    nodes = [TextNode(id_=str(i), text=f"Row number {i}.", metadata=row) for i, row in enumerate(ROWS)]
    return CompMemIndex.from_nodes(nodes, embed_model=HashingEncoder())


def admitted(rows, filters):
    found = CompMemRetriever(rows, 10, filters, method="gate").retrieve("Which row?")
    return sorted(n.node.node_id for n in found)


@pytest.mark.parametrize("wanted", FILTERS, ids=lambda f: f"{f.key} {f.operator.value}")
def test_every_operator_admits_what_the_framework_admits(rows, wanted):
    filters = MetadataFilters(filters=[wanted])
    accepts = build_metadata_filter_fn(lambda i: ROWS[int(i)], filters)
    assert admitted(rows, filters) == [str(i) for i in range(len(ROWS)) if accepts(str(i))]


@pytest.mark.parametrize("condition", list(FilterCondition))
def test_every_condition_admits_what_the_framework_admits(rows, condition):
    for one in FILTERS:
        for other in FILTERS[::5]:
            filters = MetadataFilters(filters=[one, other], condition=condition)
            accepts = build_metadata_filter_fn(lambda i: ROWS[int(i)], filters)
            assert admitted(rows, filters) == [str(i) for i in range(len(ROWS)) if accepts(str(i))]


def test_filters_nest(rows):
    inner = MetadataFilters(filters=[F(key="year", value=1998), F(key="city", value="tarn")], condition="or")
    no_a = MetadataFilters(filters=[F(key="tags", value="a", operator=Op.CONTAINS)], condition="not")
    nested = MetadataFilters(filters=[inner, no_a])
    assert admitted(rows, inner) == ["0", "1"]
    assert admitted(rows, nested) == ["1"]
    assert admitted(rows, MetadataFilters(filters=[])) == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (F.model_construct(key="k", value=1, operator="~="), "unknown filter operator '~='"),
        (F(key="k", value=None), "needs a value"),
        (F(key="k", value=1, operator=Op.ANY), "takes a list"),
        (F(key="k", value=1, operator=Op.IN), "takes a list"),
        (F(key="k", value=1, operator=Op.TEXT_MATCH), "takes a string"),
        (F(key="k", value=["a"], operator=Op.GT), "takes a number or a string"),
    ],
)  # fmt: skip
def test_filters_that_mean_nothing_are_refused(rows, wrong, message):
    with pytest.raises(ValueError, match=message):
        admitted(rows, MetadataFilters.model_construct(filters=[wrong], condition=FilterCondition.AND))
    with pytest.raises(ValueError, match="within another one is empty"):
        admitted(rows, MetadataFilters(filters=[FILTERS[0], MetadataFilters(filters=[])], condition="or"))
    with pytest.raises(ValueError, match="unknown filter condition"):
        admitted(rows, MetadataFilters.model_construct(filters=FILTERS[:1], condition="xor"))
    with pytest.raises(ValueError, match="Input should be"):
        F(key="k", value=1, operator="~=")


# Inside other parts of the framework


def test_inside_a_retriever_query_engine_with_postprocessors(index):
    engine = RetrieverQueryEngine.from_args(
        index.as_retriever(5),
        llm=FakeLLM(lambda prompt: "Tarnhill."),
        node_postprocessors=[
            SimilarityPostprocessor(similarity_cutoff=0.3),
            LongContextReorder(),
        ],
    )
    response = engine.query(QUESTION)
    assert str(response) == "Tarnhill."
    assert set(names(response.source_nodes)) == {"orchid", "marsh"}


async def test_inside_a_fusion_retriever(index):
    parts = [index.as_retriever(2), index.as_retriever(2, method="gate")]
    for mode in ("reciprocal_rerank", "simple", "relative_score"):
        fused = QueryFusionRetriever(parts, llm=MockLLM(), num_queries=1, mode=mode)
        assert "orchid" in names(await fused.aretrieve(QUESTION))


def test_inside_a_router_retriever(index):
    other = CompMemIndex.from_nodes([TextNode(text="Nothing of use.")], embed_model=HashingEncoder())
    choose = FakeLLM(lambda prompt: '[{"choice": 2, "reason": "people"}]')
    router = RouterRetriever(
        selector=LLMSingleSelector.from_defaults(llm=choose),
        retriever_tools=[
            RetrieverTool.from_defaults(other.as_retriever(), description="nothing"),
            RetrieverTool.from_defaults(index.as_retriever(2), description="people and places"),
        ],
        llm=choose,
    )
    assert set(names(router.retrieve(QUESTION))) == {"orchid", "marsh"}


def test_inside_a_recursive_retriever(index):
    pointers = CompMemIndex.from_nodes(
        [
            IndexNode(id_="p", text="All about the Orchid device and who made it.", index_id="world"),
            TextNode(id_="q", text="The mill of Hob burnt down."),
        ],
        embed_model=HashingEncoder(),
    )
    parts = {"root": pointers.as_retriever(1), "world": index.as_retriever(2)}
    recursive = RecursiveRetriever("root", retriever_dict=parts)
    assert set(names(recursive.retrieve(QUESTION))) == {"orchid", "marsh"}


def test_index_nodes_that_hold_an_object_lead_to_it(index):
    pointer = IndexNode(text="All about the Orchid device.", index_id="world", obj=index.as_retriever(2))
    made = CompMemIndex(nodes=[], objects=[pointer], embed_model=HashingEncoder())
    assert set(names(made.as_retriever(1).retrieve(QUESTION))) == {"orchid", "marsh"}


def test_behind_an_ingestion_pipeline():
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=40, chunk_overlap=0)])
    made = CompMemIndex.from_nodes(pipeline.run(documents=documents()), embed_model=HashingEncoder())
    made.insert_nodes(pipeline.run(documents=[Document(doc_id="mill", text="The mill of Hob burnt down in 1910.")]))
    assert set(made.ref_doc_info) == {d.id_ for d in documents()} | {"mill"}
    assert names(made.as_retriever(1).retrieve("When did the mill of Hob burn down?")) == ["mill"]


def test_settings_of_the_loop_are_passed_on(index):
    rag = CompMemRetriever(index, 2, recall_config=LoopConfig.rag(2))
    assert rag.retrieve(QUESTION)[0].node.ref_doc_id in {"orchid", "marsh"}


def test_a_node_that_cannot_be_read_is_told(tmp_path):
    core = MemoryIndex.create(tmp_path / "odd.mem", IndexConfig(encoder=HashingEncoder()))
    core.add([CoreDocument(id="odd", text="Anvil Rock is red.", metadata={NODE_KEY: "[" * 50_000})])
    with pytest.raises(ValueError, match="the node 'odd' in the index cannot be read"):
        CompMemRetriever(core).retrieve("Anvil Rock?")
