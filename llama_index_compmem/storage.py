"""Persists a CompMem index in LlamaIndex's storage context, and loads it.

The context's loader does not pass the path of its folder to an index, so everything that must survive a move of that
folder has to be in the JSON that it passes. An index without its own folder is therefore packed into the file of a
vector store, where the framework's own store has its vectors; an index with a folder is stored by its path.
"""

import base64
import re
import shutil
import tempfile
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast
from uuid import uuid4

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.data_structs.data_structs import IndexStruct
from llama_index.core.data_structs.registry import INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS
from llama_index.core.data_structs.struct_type import IndexStructType
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.simple import SimpleVectorStoreData
from llama_index.core.vector_stores.types import DEFAULT_PERSIST_DIR, DEFAULT_PERSIST_FNAME

from llama_index_compmem.loading import open_memory

if TYPE_CHECKING:
    from compmem import MemoryIndex, RuntimeConfig

STRUCT_TYPE: Final = cast("IndexStructType", "compmem")
"""Type by which the framework's loader finds the class of a persisted index."""

_DEFAULT_PATH: Final = str(Path(DEFAULT_PERSIST_DIR) / DEFAULT_PERSIST_FNAME)
_FILES: Final = "compmem"
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


INDEX_STRUCT_TYPE_TO_INDEX_STRUCT_CLASS[STRUCT_TYPE] = CompMemStruct


class PackedVectorStore(SimpleVectorStore):
    """Represents an index without its own folder in a storage context, and is persisted with it."""

    _memory: Any = PrivateAttr()

    def __init__(self, memory: "MemoryIndex") -> None:
        super().__init__()
        self._memory = memory

    def persist(self, persist_path: str = _DEFAULT_PATH, fs: Any | None = None) -> None:
        """Writes the current state of the index."""
        SimpleVectorStore(pack(self._memory)).persist(persist_path, fs)

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
    return SimpleVectorStoreData(metadata_dict={_FILES: files})


def unpack(store: object, embed_model: Any, runtime: "RuntimeConfig | None") -> "MemoryIndex":
    """The index in a loaded store, in a temporary folder that is removed with the object.

    Raises:
        ValueError: It contains none, or a damaged one.
    """
    files = store.data.metadata_dict.get(_FILES) if isinstance(store, SimpleVectorStore) else None
    if not isinstance(files, dict):
        raise ValueError("the storage context does not contain this index: give its folder as path=")
    folder = Path(tempfile.mkdtemp(prefix="compmem-"))
    try:
        for name, content in files.items():
            if not _PLAIN.fullmatch(name):
                raise ValueError(f"the storage context contains a file {name!r}, which does not belong to an index")
            (folder / name).write_bytes(base64.b64decode(content, validate=True))
        memory = open_memory(folder, embed_model, runtime)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(memory, shutil.rmtree, str(folder), True)
    return memory
