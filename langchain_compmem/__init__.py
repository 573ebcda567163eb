"""CompMem for LangChain and LangGraph: a retriever that can be written to, and the whole loop as a runnable."""

from langchain_compmem.documents import EmbeddingsEncoder
from langchain_compmem.errors import ReasoningError
from langchain_compmem.reasoner import CompMemReasoner
from langchain_compmem.retriever import CompMemRetriever

__all__ = ["CompMemReasoner", "CompMemRetriever", "EmbeddingsEncoder", "ReasoningError"]
