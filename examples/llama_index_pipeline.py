"""A LlamaIndex pipeline with CompMem in the place of the vector index: ingest, persist, load, ask, hand to an agent.

Runs offline: answers are quoted from the documents, and the agent's model is scripted. With `OPENAI_BASE_URL` and
`OPENAI_MODEL` (`pip install llama-index-llms-openai-like`) a model of that server, which must be able to call tools,
writes the answers and is the agent's.

    python examples/llama_index_pipeline.py
"""

import asyncio
import os
import tempfile

from llama_index.core import Document, StorageContext, load_index_from_storage
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ToolCallBlock
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.llms import LLM, ChatMessage
from llama_index.core.llms.mock import MockFunctionCallingLLM
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.tools import QueryEngineTool
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from llama_index_compmem import CompMemIndex

MUSEUM = {
    "Harbour Museum": (2015, "The Harbour Museum shows the Lindgren Collection. It opens at ten and has a small shop."),
    "Lindgren Collection": (
        2019,
        "The Lindgren Collection was given by Astrid Holm. It holds forty paintings.",
    ),
    "Astrid Holm": (1962, "Astrid Holm was born in Varberg. She sailed round the world before she began to paint."),
    "Town Gallery": (2022, "The Town Gallery shows the Brandt Collection. It is closed on Mondays."),
    "Brandt Collection": (2021, "The Brandt Collection was given by Jonas Brandt. It holds clocks and compasses."),
}
QUESTION = "Where was the giver of the Lindgren Collection born?"
RECENT = MetadataFilters(filters=[MetadataFilter(key="year", value=2020, operator=FilterOperator.GT)])


def ingest() -> CompMemIndex:
    """The documents, split by the framework's splitter, as an existing pipeline does, and remembered by CompMem."""
    documents = [
        Document(doc_id=name, text=text, metadata={"title": name, "year": year})
        for name, (year, text) in MUSEUM.items()
    ]
    pipeline = IngestionPipeline(transformations=[SentenceSplitter(chunk_size=256, chunk_overlap=0)])
    return CompMemIndex.from_nodes(pipeline.run(documents=documents))


def scripted_model() -> MockFunctionCallingLLM:
    """Calls the tool with the question, then repeats what it says."""

    def reply(messages: list[ChatMessage], **kwargs: object) -> ChatMessage:
        if messages[-1].role == "tool":
            return ChatMessage(role="assistant", content=f"The papers say: {messages[-1].content}")
        call = ToolCallBlock(tool_call_id="1", tool_name="museum", tool_kwargs={"input": str(messages[-1].content)})
        return ChatMessage(role="assistant", blocks=[call])

    return MockFunctionCallingLLM(response_generator=reply)


def real_model() -> LLM | None:
    """The model of the server in the environment variables; None if they are not set."""
    url = os.environ.get("OPENAI_BASE_URL")
    if not url:
        return None
    from llama_index.llms.openai_like import OpenAILike

    key = os.environ.get("OPENAI_API_KEY", "none")
    model = os.environ.get("OPENAI_MODEL", "default")
    return OpenAILike(model=model, api_base=url, api_key=key, is_chat_model=True, is_function_calling_model=True)


async def main() -> None:
    """Ingests, persists, loads, asks and hands the engine to an agent."""
    with tempfile.TemporaryDirectory() as folder:
        ingest().storage_context.persist(folder)
        index = load_index_from_storage(StorageContext.from_defaults(persist_dir=folder))

    model = real_model()
    engine = index.as_query_engine(model)
    response = await engine.aquery(QUESTION)
    print("question:", QUESTION)
    for step in response.metadata.steps:
        print(f"step {step['number']}:", step["working_memory"].splitlines()[-1])
    print("answer:", response)
    for source in response.source_nodes:
        print(f"source: {source.node.metadata['title']} ({source.score:.2f})")

    print(
        "only recent:",
        index.as_query_engine(model, filters=RECENT).query("Which collection does the Town Gallery show?"),
    )

    chat = index.as_chat_engine(llm=model)
    print("chat:", chat.chat("Who gave the Lindgren Collection?"))
    print("chat:", chat.chat("And where was she born?"))

    tool = QueryEngineTool.from_defaults(engine, name="museum", description="All about the museums of the town.")
    print("agent:", await FunctionAgent(tools=[tool], llm=model or scripted_model()).run(QUESTION))


if __name__ == "__main__":
    asyncio.run(main())
