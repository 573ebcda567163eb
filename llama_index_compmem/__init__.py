"""CompMem in LlamaIndex: an index and a vector store, with a retriever, a query engine and a chat engine."""

from llama_index_compmem.chat_engine import CompMemChatEngine
from llama_index_compmem.errors import CompMemLLMError
from llama_index_compmem.events import CompMemStepEvent
from llama_index_compmem.index import CompMemIndex
from llama_index_compmem.node_parser import CompMemNodeParser
from llama_index_compmem.query_engine import CompMemQueryEngine
from llama_index_compmem.response_builder import CompMemMetadata
from llama_index_compmem.retriever import CompMemRetriever
from llama_index_compmem.tool import recall_tool
from llama_index_compmem.vector_store import CompMemVectorStore

__all__ = [
    "CompMemChatEngine",
    "CompMemIndex",
    "CompMemLLMError",
    "CompMemMetadata",
    "CompMemNodeParser",
    "CompMemQueryEngine",
    "CompMemRetriever",
    "CompMemStepEvent",
    "CompMemVectorStore",
    "recall_tool",
]
