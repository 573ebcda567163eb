"""Documents of LangChain as documents of CompMem and back."""

import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import BasePromptTemplate, format_document
from numpy.typing import NDArray
from pydantic import PlainValidator

import compmem
from compmem.errors import CorruptStoreError
from compmem.metadata import to_json_value

Filter = Any
"""A metadata filter: `{"year": 2024}`, `{"year": {">=": 2020}}`, `{"or": [...]}`; a list is `and`. Over another
retriever: a filter in the format of its store."""

SCORE_KEY = "compmem_score"
"""Metadata key of the gate score of a recalled document."""
CITED_KEY = "compmem_cited"
"""Metadata key, true if the answer cites the document as `[n]`, where it is the n-th of the context."""
TITLE_KEY = "compmem_title"
"""Metadata key of a title that cannot be derived from the metadata."""
DOCUMENT_KEY = "compmem_document_id"
"""Metadata key of the whole document's id, in a part of a longer document."""
START_KEY = "compmem_start_index"
"""Metadata key of the offset in the whole document, in a part of a longer document."""
TWO_FILTERS = (
    "a filter is set already, and the filters of another store cannot be combined: set one, or give one with each "
    "question"
)
"""The message of an error."""
ADDED_KEYS = frozenset({SCORE_KEY, CITED_KEY, TITLE_KEY, DOCUMENT_KEY, START_KEY})
"""Metadata keys that are added to results and never stored."""
_SETTINGS_KEY = "langchain documents"


@dataclass(frozen=True, slots=True)
class EmbeddingsEncoder:
    """LangChain embeddings as the encoder of an index: `IndexConfig(encoder=EmbeddingsEncoder(embeddings))`."""

    embeddings: Embeddings

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the texts `[texts, dim]`, in order."""
        return np.asarray(self.embeddings.embed_documents(list(texts)), dtype=np.float32)

    def encode_query(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Vectors of the questions `[texts, dim]`, in order."""
        return np.asarray([self.embeddings.embed_query(text) for text in texts], dtype=np.float32)


def open_index(index: object) -> "compmem.BaseIndex":
    """The index; for a path, the index in that folder.

    Raises:
        ValueError: There is no index, or it cannot be used here.
    """
    if isinstance(index, compmem.BaseIndex):
        return index
    if isinstance(index, str | Path):
        return open_folder(index)
    hint = ": give its .index" if isinstance(getattr(index, "index", None), compmem.BaseIndex) else ""
    raise ValueError(f"index must be a MemoryIndex or the path of its folder, not {type(index).__name__}{hint}")


def open_folder(
    path: str | Path, embeddings: Embeddings | None = None, *, create: bool = False
) -> "compmem.MemoryIndex":
    """The index in a folder.

    Args:
        path: The folder.
        embeddings: The encoder, if the index was made with LangChain embeddings.
        create: Create the index if the folder does not exist or is empty.

    Raises:
        ValueError: The index cannot be opened or created.
    """
    encoder = None if embeddings is None else EmbeddingsEncoder(embeddings)
    try:
        try:
            return compmem.MemoryIndex.open(path, encoder=encoder)
        except compmem.StoreError:
            if not create:
                raise
        config = None if encoder is None else compmem.IndexConfig(encoder=encoder)
        return compmem.MemoryIndex.open_or_create(path, config)
    except compmem.StoreError as error:
        hint = " (with LangChain embeddings: CompMemRetriever.open(path, embeddings=...))" if encoder is None else ""
        raise ValueError(f"{error}{hint if str(error).endswith('encoder=') else ''}") from error


def check_prompts(prompts: object) -> "compmem.ChatPrompts | None":
    """The prompts of the chat reader.

    Raises:
        ValueError: They are something else.
    """
    if prompts is None or isinstance(prompts, compmem.ChatPrompts):
        return prompts
    raise ValueError(f"prompts must be ChatPrompts, not {type(prompts).__name__}")


if TYPE_CHECKING:

    class Index:
        """An index; a field of this type also takes the path of its folder."""

        def __get__(self, instance: object, owner: object = None) -> compmem.BaseIndex: ...
        def __set__(self, instance: object, value: compmem.BaseIndex | str | Path) -> None: ...

    Prompts = compmem.ChatPrompts | None
else:  # pydantic evaluates its types when a class is defined; these would import torch
    Index = Annotated[Any, PlainValidator(open_index)]
    Prompts = Annotated[Any, PlainValidator(check_prompts)]


def combine_filters(index: "compmem.BaseIndex", bound: Filter | None, given: Filter | None) -> Filter | None:
    """The filter that admits what both filters admit.

    Raises:
        ValueError: The documents are in another store, and its filters cannot be combined here.
    """
    if bound is None or given is None:
        return given if bound is None else bound
    if not isinstance(index, compmem.ExternalIndex):
        return [bound, given]
    if is_empty_filter(given):
        return bound
    raise ValueError(TWO_FILTERS)


def is_empty_filter(given: Filter | None) -> bool:
    """Whether a filter admits everything."""
    return isinstance(given, Mapping | list | tuple) and not given


def as_documents(items: Iterable[Document]) -> list[Document]:
    """The documents in a list.

    Raises:
        TypeError: Something is no document.
    """
    documents = list(items)
    if others := [item for item in documents if not isinstance(item, Document)]:
        name = type(others[0]).__name__
        raise TypeError(f"there must be a list of Documents, not of {name}: Document(page_content=...) makes one")
    return documents


@dataclass(frozen=True, slots=True)
class StorageSettings:
    """How documents become those of an index; stored with it, so that later documents are treated alike."""

    split: bool = True
    metadata_keys: tuple[str, ...] = ()

    @classmethod
    def of(cls, index: "compmem.MemoryIndex") -> "StorageSettings | None":
        """Those of an index; None if no documents were added.

        Raises:
            CorruptStoreError: Something else is stored.
        """
        match index.store.get_meta(_SETTINGS_KEY):
            case None:
                return None
            case {"split": bool(split), "metadata_keys": [*keys]} if all(isinstance(key, str) for key in keys):
                return cls(split, tuple(map(str, keys)))
        raise CorruptStoreError(f"the index has a wrong value of {_SETTINGS_KEY!r}")

    def store(self, index: "compmem.MemoryIndex") -> None:
        """Stores them with the index."""
        index.store.put_meta(_SETTINGS_KEY, {"split": self.split, "metadata_keys": list(self.metadata_keys)})


def to_core(document: Document, *, split: bool, metadata_keys: Sequence[str] = ()) -> compmem.Document:
    """The document for CompMem: the user's metadata, and one chunk unless it is to be split.

    Metadata under `metadata_keys` is searched with every chunk.
    """
    text, metadata = document.page_content, own_metadata(document)
    content: dict[str, Any] = {"text": text} if split else {"chunks": [text]}
    title, source = document.metadata.get(TITLE_KEY), metadata.get("source")
    return compmem.Document(
        id=id_of(document),
        title=title if isinstance(title, str) else _title(metadata),
        context="\n".join(_fact(key, metadata[key]) for key in metadata_keys if metadata.get(key) is not None),
        metadata=metadata,
        source=source if isinstance(source, str) else "",
        **content,
    )


def from_core(document: compmem.Document) -> Document:
    """The original document."""
    metadata = _titled(document.title, document.metadata)
    return Document(id=document.id, page_content=document.text, metadata=metadata)


def chunk_formatter(prompt: BasePromptTemplate[str]) -> Callable[[compmem.Chunk], str]:
    """Formats a chunk for a chat model: its text and metadata in a document prompt."""
    return lambda chunk: format_document(_from_chunk(chunk, part=chunk.ordinal > 0), prompt)


def from_chunks(index: "compmem.BaseIndex", chunks: Sequence[compmem.Chunk]) -> list[Document]:
    """Chunks as separate documents, in order.

    The only chunk of a document is that document. A part of a longer document has the chunk's id, and its metadata
    has the id of the whole document and the offset.
    """
    counts = dict.fromkeys((chunk.document_id for chunk in chunks), 1)
    if isinstance(index, compmem.MemoryIndex):
        counts = index.count_chunks(counts)
    return [_from_chunk(chunk, part=chunk.ordinal > 0 or counts[chunk.document_id] > 1) for chunk in chunks]


def from_recalls(index: "compmem.BaseIndex", recalls: Sequence[compmem.Recall]) -> list[Document]:
    """Recalled chunks with their gate scores in the metadata, in order."""
    documents = from_chunks(index, [recall.chunk for recall in recalls])
    for document, recall in zip(documents, recalls, strict=True):
        document.metadata[SCORE_KEY] = float(recall.score)
        if recall.cited:
            document.metadata[CITED_KEY] = True
    return documents


def is_stored(index: "compmem.MemoryIndex", document: Document) -> bool:
    """Whether a document that came from the index is stored there unchanged.

    Raises:
        ValueError: It is a changed part of a longer document.
    """
    if not ADDED_KEYS & document.metadata.keys():
        return False
    whole = whole_id(document)
    stored = _result(index, whole, document.id)
    if stored is None:
        return False
    known = {key: value for key, value in document.metadata.items() if key not in (SCORE_KEY, CITED_KEY)}
    same = (stored.page_content, stored.metadata) == (document.page_content, known)
    if DOCUMENT_KEY in stored.metadata and not same:
        raise ValueError(
            f"{document.id!r} is a part of the document {whole!r} and cannot be changed alone: change and upsert the "
            f"whole document, from get([{whole!r}])"
        )
    return same


def part_with_id(index: "compmem.MemoryIndex", part_id: str) -> Document | None:
    """The part of a longer document with the id that results have; None if there is none."""
    return _result(index, part_id.rpartition("#")[0], part_id)


def _result(index: "compmem.MemoryIndex", whole: str, result_id: str | None) -> Document | None:
    """The document or its part as results show it."""
    return next((found for found in from_chunks(index, index.chunks(whole)) if found.id == result_id), None)


def id_of(document: Document) -> str:
    """The id; for a document that has none, a hash of its content."""
    return document.id or _hash(document)


def whole_id(document: Document) -> str:
    """The id of the document, or of the whole document if this is a part."""
    whole = document.metadata.get(DOCUMENT_KEY)
    return whole if isinstance(whole, str) else id_of(document)


def own_metadata(document: Document) -> dict[str, Any]:
    """The metadata without the keys that were added to it."""
    return {key: value for key, value in document.metadata.items() if key not in ADDED_KEYS}


def check_metadata(document: Document) -> None:
    """Checks that the metadata can be stored.

    Raises:
        ValueError: It is not JSON.
    """
    try:
        json.dumps(to_json_value(own_metadata(document)), allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the metadata of document {id_of(document)!r} is not JSON: {error}") from error


def _fact(key: str, value: object) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    return " ".join(f"{key}: {text}".split())


def _from_chunk(chunk: compmem.Chunk, *, part: bool) -> Document:
    metadata = _titled(chunk.title, chunk.metadata)
    if part:
        metadata |= {DOCUMENT_KEY: chunk.document_id, START_KEY: chunk.start}
    return Document(id=chunk.id if part else chunk.document_id, page_content=chunk.text, metadata=metadata)


def _titled(title: str, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the metadata, with the title if that cannot be derived from it."""
    copied = copy.deepcopy(dict(metadata))
    return copied if title == _title(copied) else {**copied, TITLE_KEY: title}


def _title(metadata: Mapping[str, Any]) -> str:
    """The title; else the name of the source, without folder and suffix."""
    title, source = metadata.get("title"), metadata.get("source")
    if isinstance(title, str) and title.strip():
        return title
    return PurePosixPath(source.replace("\\", "/")).stem if isinstance(source, str) else ""


def _hash(document: Document) -> str:
    """An id for a document without one; the same content gets the same id.

    Raises:
        ValueError: The metadata is nested too deeply.
    """
    try:
        metadata = json.dumps(own_metadata(document), sort_keys=True, default=str)
    except RecursionError as error:
        raise ValueError(f"the metadata of a document without an id is not JSON: {error}") from error
    text = f"{metadata}\0{document.page_content}".encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:32]
