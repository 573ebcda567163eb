"""A RAG chain as in LangChain's documentation, over the vectors of our index."""

from typing import Final

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore

from compmem.index import MemoryIndex
from compmem_research.bench.answers_types import Setup, System, SystemReply, texts

SYSTEM_PROMPT: Final = (
    "You are an assistant for question-answering tasks. Use the following pieces of retrieved context to answer the "
    "question. If you don't know the answer, say that you don't know. Use three sentences maximum and keep the answer "
    "concise.\n\n{context}"
)
"""The prompt of LangChain's tutorial."""

_ROLES: Final = {"system": "system", "human": "user", "ai": "assistant"}


def chain(setup: Setup) -> System:
    """Retriever, prompt, model, parser; the instruction follows the question."""
    words = f" {setup.instruction}".rstrip().replace("{", "{{").replace("}", "}}")
    retriever = _store(setup.index).as_retriever(search_kwargs={"k": setup.k})
    prompt = ChatPromptTemplate([("system", SYSTEM_PROMPT), ("human", "{input}" + words)])

    def model(value: PromptValue) -> AIMessage:
        said = setup.chat([{"role": _ROLES[m.type], "content": str(m.content)} for m in value.to_messages()])
        return AIMessage(said)

    answer = prompt | RunnableLambda(model) | StrOutputParser()

    def system(question: str) -> SystemReply:
        context = tuple(document.page_content for document in retriever.invoke(question))
        return SystemReply(text=answer.invoke({"input": question, "context": "\n\n".join(context)}), context=context)

    return system


def _store(index: MemoryIndex) -> InMemoryVectorStore:
    with index.store.snapshot() as snapshot:
        blocks = snapshot.select(None)
        passages = texts(snapshot.chunks(blocks))
        [stored] = snapshot.vectors_by_folder()
        vectors = [vector.tolist() for vector in stored.of(blocks)]
    store = InMemoryVectorStore(_Known(index, dict(zip(passages, vectors, strict=True))))
    store.add_documents([Document(text) for text in passages])
    return store


class _Known(Embeddings):
    """The vectors of passages in the index; questions are encoded with its encoder."""

    def __init__(self, index: MemoryIndex, vectors: dict[str, list[float]]) -> None:
        self._encoder, self._vectors = index.encoder, vectors

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Vectors of passages of the index."""
        return [self._vectors[text] for text in texts]

    def embed_query(self, text: str) -> list[float]:
        """Vector of a question."""
        return [float(x) for x in self._encoder.encode_query([text])[0]]
