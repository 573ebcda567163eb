"""Persists a CompMem index in LlamaIndex's storage context, and loads it.

The context's loader does not pass the path of its folder to an index, so everything that must survive a move of that
folder has to be in the JSON that it passes. An index without its own folder is therefore packed into the file of a
vector store, where the framework's own store has its vectors; an index with a folder is stored by its path.

From a file system (`fs=`) the loader reads only the file of the default vector store, since it cannot list others, so
there the index is packed into that file, beside what it contains.
"""

import base64
import json
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.data_structs.data_structs import IndexStruct
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.data_structs.struct_type import IndexStructType
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.simple import DEFAULT_VECTOR_STORE, NAMESPACE_SEP, SimpleVectorStoreData
from llama_index.core.vector_stores.types import DEFAULT_PERSIST_DIR, DEFAULT_PERSIST_FNAME

from compmem import temporary
from llama_index_compmem.loading import open_memory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llama_index.core.vector_stores.types import BasePydanticVectorStore

    from compmem import MemoryIndex, RuntimeConfig

STRUCT_TYPE: Final = cast("IndexStructType", "compmem")
"""Type by which the framework's loader finds the class of a persisted index."""

_DEFAULT_PATH: Final = str(Path(DEFAULT_PERSIST_DIR) / DEFAULT_PERSIST_FNAME)
_PACKED_KEY: Final = "compmem"
_PLAIN: Final = re.compile(r"[a-z]{1,20}(?:-\d{1,20})?\.(?:sqlite|bin|safetensors)")


@dataclass
class CompMemStruct(IndexStruct):
    """Place of a persisted index."""

    path: str | None = None
    """The folder. None: the index is packed into a store of the storage context."""
    store_name: str = field(default_factory=lambda: f"compmem-{uuid4().hex}")
    """Name of that store."""

    @classmethod
    def get_type(cls) -> IndexStructType:
        """Type by which the loader finds the class."""
        return STRUCT_TYPE


def struct_of(memory: "MemoryIndex") -> CompMemStruct:
    """What LlamaIndex stores of an index: its folder, if it has one of its own."""
    return CompMemStruct(path=None if memory.temporary else str(memory.path.absolute()))


INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[STRUCT_TYPE] = CompMemStruct


class PackedVectorStore(SimpleVectorStore):
    """Represents an index without its own folder in a storage context, and is persisted with it."""

    _memory: Any = PrivateAttr()

    def __init__(self, memory: "MemoryIndex") -> None:
        super().__init__()
        self._memory = memory

    @property
    def memory(self) -> "MemoryIndex":
        """The CompMem index."""
        memory: MemoryIndex = self._memory
        return memory

    def persist(self, persist_path: str = _DEFAULT_PATH, fs: Any | None = None) -> None:
        """Writes the current state of the index."""
        packed = pack(self._memory)
        folder, _, file = persist_path.rpartition("/")
        name, separated, rest = file.partition(NAMESPACE_SEP)
        if fs is None or not separated:
            SimpleVectorStore(packed).persist(persist_path, fs)
            return
        _add_to_file(f"{folder}/{DEFAULT_VECTOR_STORE}{NAMESPACE_SEP}{rest}", f"{_PACKED_KEY}:{name}", packed, fs)
        if fs.exists(persist_path):  # of a call without fs=
            fs.rm(persist_path)

    def to_dict(self, **kwargs: Any) -> dict[str, Any]:
        """The current state of the index, as JSON values."""
        packed: dict[str, Any] = pack(self._memory).to_dict()
        return packed


def pack(memory: "MemoryIndex") -> SimpleVectorStoreData:
    """The files of an index as the data of a vector store."""
    with tempfile.TemporaryDirectory(prefix="compmem-") as folder:
        memory.copy_to(folder)
        files = {
            f.name: base64.b64encode(f.read_bytes()).decode()
            for f in sorted(Path(folder).iterdir())
            if _PLAIN.fullmatch(f.name)
        }
    return SimpleVectorStoreData(metadata_dict={_PACKED_KEY: files})


def _add_to_file(path: str, key: str, packed: SimpleVectorStoreData, fs: Any) -> None:
    """Puts a packed index into the file of a vector store, under a key of its own."""
    content: dict[str, Any] = SimpleVectorStoreData().to_dict()
    if fs.exists(path):
        with fs.open(path, "r", encoding="utf-8") as file:
            content = json.load(file)
    content["metadata_dict"] = {**content.get("metadata_dict", {}), key: packed.metadata_dict[_PACKED_KEY]}
    with fs.open(path, "w", encoding="utf-8") as file:
        json.dump(content, file)


def unpack(
    stores: "Mapping[str, BasePydanticVectorStore]", name: str, embed_model: Any, runtime: "RuntimeConfig | None"
) -> "MemoryIndex":
    """The index with this name in the stores of a storage context: the open one, else one that was packed.

    It is in a temporary folder that is removed with the last copy of the object.

    Raises:
        ValueError: They contain none, or a damaged one, or it was made with another embedding model.
    """
    if isinstance(own := stores.get(name), PackedVectorStore):
        return own.memory
    files = _packed(own, _PACKED_KEY) or _packed(stores.get(DEFAULT_VECTOR_STORE), f"{_PACKED_KEY}:{name}")
    if files is None:
        raise ValueError("the storage context does not contain this index: give its folder as path=")
    if others := [file for file in files if not _PLAIN.fullmatch(file)]:
        raise ValueError(f"the storage context contains a file {others[0]!r}, which does not belong to an index")
    folder = temporary.make_folder()
    try:
        for file, content in files.items():
            (folder / file).write_bytes(base64.b64decode(content, validate=True))
        memory = open_memory(folder, embed_model, runtime)
    except BaseException:
        temporary.discard(folder)
        raise
    _packed(stores.get(DEFAULT_VECTOR_STORE), f"{_PACKED_KEY}:{name}", remove=True)  # so that it is not persisted twice
    return memory


def _packed(store: object, key: str, *, remove: bool = False) -> dict[str, str] | None:
    """The files of an index in a loaded store."""
    if not isinstance(store, SimpleVectorStore):
        return None
    found = store.data.metadata_dict.pop(key, None) if remove else store.data.metadata_dict.get(key)
    return found if isinstance(found, dict) else None
