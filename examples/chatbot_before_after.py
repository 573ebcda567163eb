"""An existing chat bot before and after: vector RAG over some documents, then CompMem in its place.

Both answer the same questions about the Python standard library, which each need two parts of its documentation. Both
have the same documents, chunks and encoder, and only quote, so that only the method differs.
It runs offline: instead of a model, a function quotes from the prompt. With `OPENAI_BASE_URL` and `OPENAI_MODEL`
(`pip install langchain-openai`), a model of that server answers in both bots.

    python examples/chatbot_before_after.py
"""

import os
import re
from operator import itemgetter
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import BaseChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore

from compmem import MemoryIndex
from compmem.cli.demo_docs import documents
from langchain_compmem import CompMemReasoner, CompMemRetriever

MODULES = ("http.server", "socketserver", "urllib.request", "ssl", "numbers")
QUESTIONS = (
    "How does the mix-in class handle requests on which http.server.ThreadingHTTPServer is based?",
    "What configuration does the ssl context hold that urllib.request.urlopen accepts?",
    "In which terms should numerator and denominator be in the base class of numbers.Integral?",
)
PROMPT = ChatPromptTemplate.from_template("Answer from the context.\n\n{context}\n\nQuestion: {question}")


class IndexEmbeddings(Embeddings):
    """The encoder of the index for the vector store, so that both bots see the same vectors."""

    def __init__(self, index: MemoryIndex) -> None:
        self.index = index

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.index.encoder.encode(texts).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def quote(prompt: Any) -> str:
    """Used instead of a chat model: the two sentences of the context that share most words with the question."""
    _, _, rest = prompt.to_string().partition("\n\n")
    context, _, question = rest.rpartition("Question: ")
    asked = set(re.findall(r"[\w.]{3,}", question.lower()))
    sentences = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+|\n\n+", context) if s.strip()]
    ranked = sorted(sentences, key=lambda s: -len(asked & set(re.findall(r"[\w.]{3,}", s.lower()))))
    return " ".join(ranked[:2])


def real_model() -> BaseChatModel | None:
    """The model of the server in the environment variables; None if they are not set."""
    url = os.environ.get("OPENAI_BASE_URL")
    if not url:
        return None
    from langchain_openai import ChatOpenAI

    key = os.environ.get("OPENAI_API_KEY", "none")
    return ChatOpenAI(model=os.environ.get("OPENAI_MODEL", "default"), base_url=url, api_key=key)


def before(chunks: list[Document], embeddings: Embeddings, model: BaseChatModel | None) -> Runnable[Any, Any]:
    """The bot before: the most similar chunks in one prompt."""
    store = InMemoryVectorStore.from_documents(chunks, embeddings)
    stuff = RunnableLambda(lambda x: {**x, "context": "\n\n".join(d.page_content for d in x["context"])})
    answer = stuff | PROMPT | (model or RunnableLambda(quote)) | StrOutputParser()
    search = itemgetter("question") | store.as_retriever(search_kwargs={"k": 3})
    return RunnablePassthrough.assign(context=search) | RunnablePassthrough.assign(answer=answer)


def after(index: MemoryIndex, model: BaseChatModel | None) -> Runnable[Any, Any]:
    """The bot after: the same input, `answer` and `context` in the output."""
    return CompMemReasoner(index=index, chat_model=model)


def main() -> None:
    """Asks both bots and prints their answers and sources."""
    given = [
        Document(id=d.id, page_content=d.text, metadata={"title": d.title})
        for d in documents()
        if d.id in MODULES or d.id.startswith(tuple(f"{m}." for m in MODULES))
    ]
    retriever = CompMemRetriever.from_documents(given)
    index = retriever.index
    chunks = [Document(id=c.id, page_content=c.text) for d in given for c in index.chunks(str(d.id))]
    model = real_model()
    bots = {"before": before(chunks, IndexEmbeddings(index), model), "after": after(index, model)}
    for question in QUESTIONS:
        print(f"\n{question}")
        for name, bot in bots.items():
            output = bot.invoke({"question": question})
            print(f"  {name}: {' '.join(output['answer'].split())}")
            print(f"    sources: {', '.join(str(d.id) for d in output['context']) or 'none'}")


if __name__ == "__main__":
    main()
