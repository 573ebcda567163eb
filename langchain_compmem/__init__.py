"""CompMem for LangChain and LangGraph: a retriever that stores documents, and the whole loop as a runnable."""

from langchain_compmem.documents import EmbeddingsEncoder
from langchain_compmem.errors import ReasoningError
from langchain_compmem.reasoner import CompMemReasoner
from langchain_compmem.retriever import CompMemRetriever
from langchain_compmem.self_query import CompMemTranslator
from langchain_compmem.tool import recall_tool
from langchain_compmem.vectorstore import CompMemVectorStore

__all__ = [
    "CompMemReasoner",
    "CompMemRetriever",
    "CompMemTranslator",
    "CompMemVectorStore",
    "EmbeddingsEncoder",
    "ReasoningError",
    "recall_tool",
]
