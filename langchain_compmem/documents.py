"""Documents of LangChain as documents of CompMem and back."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from numpy.typing import NDArray
from pydantic import PlainValidator

import compmem

Filter = dict[str, Any] | list[Any]
"""A metadata filter: `{"year": 2024}`, `{"year": {">=": 2020}}`, `{"or": [...]}`; a list is `and`."""

SCORE = "score"
"""Metadata key of the gate score, in [0, 1], higher is better."""


@dataclass(frozen=True, slots=True)
class EmbeddingsEncoder:
    """LangChain embeddings as the encoder of an index: `IndexConfig(encoder=EmbeddingsEncoder(embeddings))`."""

    embeddings: Embeddings

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the texts `[texts, dim]`, in order."""
        return np.asarray(self.embeddings.embed_documents(list(texts)), dtype=np.float32)


def opened(index: object) -> "compmem.MemoryIndex":
    """The index, or the one in that folder where a path is given.

    Raises:
        ValueError: There is no index there, or it cannot be used here.
    """
    if isinstance(index, compmem.MemoryIndex):
        return index
    if not isinstance(index, str | Path):
        raise ValueError(f"index must be a MemoryIndex or the path of its folder, not {index!r}")
    try:
        return compmem.MemoryIndex.open(index)
    except compmem.StoreError as error:
        raise ValueError(str(error)) from error


def checked(prompts: object) -> "compmem.ChatPrompts | None":
    """The prompts of the chat reader.

    Raises:
        ValueError: They are something else.
    """
    if prompts is None or isinstance(prompts, compmem.ChatPrompts):
        return prompts
    raise ValueError(f"prompts must be ChatPrompts, not {prompts!r}")


if TYPE_CHECKING:
    Index = compmem.MemoryIndex
    Prompts = compmem.ChatPrompts | None
else:  # pydantic wants its types when a class is made; these would load torch by then
    Index = Annotated[Any, PlainValidator(opened)]
    Prompts = Annotated[Any, PlainValidator(checked)]


def to_core(document: Document, *, split: bool) -> compmem.Document:
    """The document as CompMem keeps it: whole metadata, one chunk unless it is to be split."""
    text = document.page_content
    content: dict[str, Any] = {"text": text} if split else {"chunks": [text]}
    return compmem.Document(
        id=document.id or _hash(document),
        title=_title(document.metadata),
        metadata=document.metadata,
        **content,
    )


def from_core(document: compmem.Document) -> Document:
    """The document as it was given."""
    return Document(id=document.id, page_content=document.text, metadata=dict(document.metadata))


def from_chunk(chunk: compmem.Chunk) -> Document:
    """A chunk as a document of its own.

    The first chunk carries the id of its document, each further one the chunk's own, so ids are unique; the metadata
    of a part tells the document and the offset.
    """
    metadata = dict(chunk.metadata)
    if chunk.ordinal:
        metadata |= {"document_id": chunk.document_id, "start_index": chunk.start}
    return Document(id=chunk.id if chunk.ordinal else chunk.document_id, page_content=chunk.text, metadata=metadata)


def from_recall(recall: compmem.Recall) -> Document:
    """A recalled chunk with its gate score in the metadata."""
    document = from_chunk(recall.chunk)
    document.metadata[SCORE] = float(recall.score)
    return document


def _title(metadata: dict[str, Any]) -> str:
    """The title; else the name of the source, without folder and ending."""
    title, source = metadata.get("title"), metadata.get("source")
    if isinstance(title, str) and title.strip():
        return title
    return PurePosixPath(source.replace("\\", "/")).stem if isinstance(source, str) else ""


def _hash(document: Document) -> str:
    """An id for a document that has none: the same content gets the same id."""
    metadata = json.dumps(document.metadata, sort_keys=True, default=str)
    text = f"{metadata}\0{document.page_content}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:32]
