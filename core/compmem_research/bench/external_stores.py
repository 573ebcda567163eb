"""Recall of gold passages in an embedded vector store: by its plain retriever, by the loop over it, by our own index.

The store has the vectors of our index, so that all systems search the same passages by the same vectors.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Literal
from uuid import UUID

from llama_index.core import VectorStoreIndex
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.vector_stores.types import BasePydanticVectorStore

from compmem.base_index import BaseIndex
from compmem.index import MemoryIndex
from compmem_research.bench.retrieval import kept_index
from compmem_research.bench.stock_llama_index import Embedding, nodes_of
from compmem_research.metrics import mean_figures, recall_at
from compmem_research.tasks.multihop import Question, read_corpus
from llama_index_compmem import CompMemRetriever

KS = (2, 5, 10)

StoreName = Literal["lancedb", "qdrant"]

AGAIN: Final = 30
"""Number of the last questions, which are asked over each store a second time: their passages are encoded then."""

System = Callable[[str], list[int]]
"""Numbers of the passages for a question, best first."""


def measure(
    data: Path,
    corpus: Path | None = None,
    *,
    stores: Sequence[StoreName] = ("lancedb", "qdrant"),
    limit: int | None = None,
    index_folder: Path | None = None,
) -> dict[str, Any]:
    """Recall@2, @5 and @10 in per cent and seconds per question of each system.

    Args:
        data: Questions; see `compmem_research.tasks.multihop`.
        corpus: Passages, if the questions name them by title. None: the union of the questions' paragraphs.
        stores: Embedded vector stores, each queried directly and by the loop.
        limit: Only this many first questions, over the whole corpus.
        index_folder: Folder in which the index is stored and reused. None: a temporary one.

    Raises:
        ValueError: A data file has a broken line, or no question.
    """
    task = read_corpus(data, corpus)
    questions = task.questions[:limit]
    if not questions:
        raise ValueError(f"{data}: no question to ask")
    index, _ = kept_index(task, index_folder)
    systems: dict[str, Any] = {}
    with index, ExitStack() as opened:
        index.recall(questions[0].question, 2)  # loads the models, so that no system's time includes it
        systems["own index"] = _measured(_loop(index, int), questions)
        for name in stores:
            retriever = opened.enter_context(_retriever(name, index))
            external = CompMemRetriever.from_retriever(retriever).memory
            systems[f"{name}, plain"] = _measured(_plain(retriever), questions)
            loop = _loop(external, lambda node_id: UUID(node_id).int)
            wrapped = systems[f"{name}, wrapped"] = _measured(loop, questions)
            wrapped["seconds_again"] = _measured(loop, questions[-AGAIN:])["seconds_per_question"]
    return {"data": data.name, "questions": len(questions), "passages": len(task.passages), "systems": systems}


def _measured(system: System, questions: Sequence[Question]) -> dict[str, Any]:
    began = time.perf_counter()
    found = [system(question.question) for question in questions]
    seconds = (time.perf_counter() - began) / len(questions)
    out: dict[str, Any] = {}
    for k in KS:
        values = [100 * recall_at(ranked, question.gold, k) for ranked, question in zip(found, questions, strict=True)]
        out |= mean_figures(f"recall@{k}", values)
    return {**out, "seconds_per_question": round(seconds, 4)}


def _loop(index: BaseIndex, number: Callable[[str], int]) -> System:
    return lambda question: [number(recall.chunk.document_id) for recall in index.recall(question, max(KS))]


def _plain(retriever: BaseRetriever) -> System:
    return lambda question: [UUID(found.node.node_id).int for found in retriever.retrieve(question)]


@contextmanager
def _retriever(name: StoreName, index: MemoryIndex) -> Iterator[BaseRetriever]:
    with TemporaryDirectory() as folder:
        store = _store(name, Path(folder))
        store.add(nodes_of(index))
        embed_model = Embedding(index.encoder)
        yield VectorStoreIndex.from_vector_store(store, embed_model=embed_model).as_retriever(similarity_top_k=max(KS))


def _store(name: StoreName, folder: Path) -> BasePydanticVectorStore:
    if name == "lancedb":
        from llama_index.vector_stores.lancedb import LanceDBVectorStore

        lance: BasePydanticVectorStore = LanceDBVectorStore(uri=str(folder), table_name="passages")
        return lance
    from llama_index.vector_stores.qdrant import QdrantVectorStore
    from qdrant_client import QdrantClient

    qdrant: BasePydanticVectorStore = QdrantVectorStore("passages", client=QdrantClient(path=str(folder)))
    return qdrant
