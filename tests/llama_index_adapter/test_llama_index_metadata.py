"""The metadata of a response: that of its sources, with how the answer came about beside it."""

import copy
import dataclasses
import pickle

from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import IndexNode

from llama_index_compmem import CompMemMetadata
from tests.frameworks_llama_index import QUESTION, FakeLLM


async def test_the_metadata_of_a_response_is_that_of_its_sources(index):
    streamed = index.as_query_engine(streaming=True).query(QUESTION)
    assert "".join(streamed.response_gen)
    responses = [
        index.as_query_engine().query(QUESTION),
        await index.as_query_engine(FakeLLM()).aquery(QUESTION),
        index.as_chat_engine().chat(QUESTION),
        streamed,
    ]
    for response in responses:
        assert response.metadata == {n.node.node_id: n.node.metadata for n in response.source_nodes}
        assert response.source_nodes and all(about["title"] for about in response.metadata.values())
        assert response.metadata.found and response.metadata.usage["steps"] == len(response.metadata.steps) > 0


def test_the_metadata_of_a_response_can_be_copied(index):
    response = index.as_query_engine().query(QUESTION)
    told = response.metadata
    for copied in (copy.copy(told), copy.deepcopy(told), pickle.loads(pickle.dumps(told))):
        assert type(copied) is CompMemMetadata and (copied, vars(copied)) == (told, vars(told))
    assert dataclasses.asdict(response)["metadata"] == told


async def test_an_engine_behind_a_node_puts_no_diagnostics_into_a_prompt(index):
    llm = FakeLLM(lambda prompt: "Tarnhill.")
    pointer = IndexNode(text="Facts", index_id="facts", obj=index.as_query_engine())
    outer = VectorStoreIndex(objects=[pointer], embed_model=MockEmbedding(4)).as_query_engine(llm=llm)
    for response in (outer.query(QUESTION), await outer.aquery(QUESTION)):
        (found,) = response.source_nodes
        assert {about["title"] for about in found.node.metadata.values()} == {"Orchid device", "Elena Marsh"}
    for _, messages in llm.calls:
        prompt = messages[-1].content
        assert "Elena Marsh was born in Tarnhill." in prompt
        assert not any(word in prompt for word in ("steps", "working_memory", "stop_reason", "usage"))
