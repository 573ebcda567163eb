"""Opens a CompMem index by its folder, or takes it from an object that has one."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from numpy.typing import NDArray

import compmem
from compmem import Encoder, IncompatibleStoreError, RecallConfig, RuntimeConfig
from llama_index_compmem.errors import framework_errors

if TYPE_CHECKING:
    from compmem import BaseIndex, MemoryIndex


@runtime_checkable
class HasMemory(Protocol):
    """An object over a CompMem index, such as `CompMemIndex`."""

    @property
    def memory(self) -> "MemoryIndex":
        """The CompMem index."""
        ...

    @property
    def recall_config(self) -> RecallConfig | None:
        """Settings of the loop for what is made from this object and has none of its own."""
        ...


def memory_of(index: "HasMemory | MemoryIndex | str | Path") -> "MemoryIndex":
    """The CompMem index: given directly, inside another object, or by its folder.

    Raises:
        ValueError: There is no index, or it is a retriever or an engine, whose filters would be lost.
    """
    if isinstance(index, BaseRetriever | BaseQueryEngine):
        raise ValueError(
            f"a {type(index).__name__} is no index: give the index itself, with filters= and other settings; for a "
            "retriever of another store there is from_retriever(...)"
        )
    if isinstance(index, str | Path):
        return open_memory(index)
    if isinstance(index, compmem.MemoryIndex):
        return index
    if isinstance(index, HasMemory):
        return index.memory
    raise ValueError(
        f"index= must be a CompMemIndex, a compmem.MemoryIndex or the folder of one, not {type(index).__name__}: "
        "for documents there is CompMemIndex.from_documents(...), for another store from_retriever(its retriever)"
    )


def resolve_index(index: "HasMemory | BaseIndex | str | Path") -> "BaseIndex":
    """An index of any kind: given directly, inside another object, or by its folder.

    Raises:
        ValueError: As `memory_of`.
    """
    return index if isinstance(index, compmem.BaseIndex) else memory_of(index)


def index_behind(asked: object) -> "BaseIndex | None":
    """The index that a retriever or an engine of this package asks, or a retriever over its vector store."""
    memories = (getattr(part, "memory", None) for part in (asked, getattr(asked, "_vector_store", None)))
    return next((memory for memory in memories if isinstance(memory, compmem.BaseIndex)), None)


def recall_config_of(index: object) -> RecallConfig | None:
    """The settings of the loop that an object over an index was made with."""
    return index.recall_config if isinstance(index, HasMemory) else None


def open_memory(
    path: str | Path,
    embed_model: BaseEmbedding | Encoder | None = None,
    runtime: RuntimeConfig | None = None,
) -> "MemoryIndex":
    """The CompMem index in a folder.

    Raises:
        ValueError: There is no index, or it was made with another embedding model.
    """
    with framework_errors():
        try:
            return compmem.MemoryIndex.open(path, encoder=as_encoder(embed_model), runtime=runtime)
        except IncompatibleStoreError as error:
            raise ValueError(f"{error} (in LlamaIndex: embed_model=)") from error


def open_or_create(path: str | Path) -> "MemoryIndex":
    """The CompMem index in a folder; a new one if the folder does not exist or is empty.

    Raises:
        ValueError: The index cannot be opened or created.
    """
    with framework_errors():
        return compmem.MemoryIndex.open_or_create(path)


def as_encoder(model: BaseEmbedding | Encoder | None) -> Encoder | None:
    """An embedding model of LlamaIndex, or an encoder of CompMem, as an encoder.

    Raises:
        ValueError: It is a name for `resolve_embed_model`.
    """
    given: object = model
    if isinstance(given, str) and given.partition(":")[0] in ("default", "local", "clip"):
        raise ValueError(
            f"embed_model={given!r} is a name for LlamaIndex: pass resolve_embed_model({given!r}), or the name of a "
            "sentence-transformers model without a prefix"
        )
    return EmbedModelEncoder(model) if isinstance(model, BaseEmbedding) else model


class EmbedModelEncoder:
    """An embedding model of LlamaIndex as an encoder."""

    def __init__(self, model: BaseEmbedding) -> None:
        self._model = model

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the texts `[texts, dim]`, in order."""
        return np.asarray(self._model.get_text_embedding_batch(list(texts)), dtype=np.float32)

    def encode_query(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the questions `[texts, dim]`, in order."""
        return np.asarray([self._model.get_query_embedding(text) for text in texts], dtype=np.float32)
