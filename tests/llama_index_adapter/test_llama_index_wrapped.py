"""The loop over another retriever of LlamaIndex: whatever its nodes are, they come back as they were."""

import pytest
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, TextNode

from llama_index_compmem import CompMemQueryEngine, CompMemRetriever
from tests.frameworks_llama_index import QUESTION, FakeLLM, HashingEncoder, documents

LONG = "long " * 20_000


class Plain(BaseRetriever):
    """Returns the same nodes each time."""

    def __init__(self, nodes):
        self.nodes = nodes
        super().__init__()

    def _retrieve(self, query_bundle):
        return [NodeWithScore(node=node, score=0.5) for node in self.nodes]


class Page(TextNode):
    """A node class of the user's own, in a module that JSON does not name."""

    number: int = 7


@pytest.mark.parametrize(
    "metadata", [{"set": {1, 2}}, {"object": object()}, {"bytes": b"1"}, {"map": {1: 2}}, {"long": LONG}]
)
async def test_a_wrapped_node_may_have_any_metadata(metadata):
    nodes = [Page(id_=d.id_, text=d.text, metadata=metadata, embedding=[0.5]) for d in documents()]
    retriever = CompMemRetriever.from_retriever(Plain(nodes), 5, embed_model=HashingEncoder())
    for found in (retriever.retrieve(QUESTION), await retriever.aretrieve(QUESTION)):
        assert {n.node.node_id: n.node for n in found} == {node.node_id: node for node in nodes}
        assert all(type(n.node) is Page and n.node.metadata is not metadata for n in found)
    llm = FakeLLM(lambda prompt: "Tarnhill.")
    for model in (None, llm):
        engine = CompMemQueryEngine.from_retriever(Plain(nodes), model, embed_model=HashingEncoder())
        for response in (engine.query(QUESTION), await engine.aquery(QUESTION)):
            assert response.source_nodes and str(response).strip()
    assert next(iter(metadata)) in llm.calls[0][1][-1].content


async def test_a_postprocessor_may_add_long_metadata(index):
    class Window(BaseNodePostprocessor):
        def _postprocess_nodes(self, nodes, query_bundle=None):
            for found in nodes:
                found.node.metadata["window"] = LONG
            return nodes

    engine = index.as_query_engine(FakeLLM(lambda prompt: "Tarnhill."), node_postprocessors=[Window()])
    assert str(engine.query(QUESTION)) == str(await engine.aquery(QUESTION)) == "Tarnhill."
    assert "window" not in index.as_retriever(1).retrieve(QUESTION)[0].node.metadata
