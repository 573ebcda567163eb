"""CompMem: index documents once, then answer multi-hop questions with a gate and a working memory."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from compmem.config import IndexConfig, LoopConfig, RecallConfig, RecallMethod, RuntimeConfig
from compmem.errors import (
    CheckpointError,
    CompMemError,
    CorruptStoreError,
    IncompatibleStoreError,
    ReaderError,
    StoreError,
    StoreLockedError,
    WorkerError,
)
from compmem.listing import Listing
from compmem.reader_proxy import ReaderProxy
from compmem.schema import (
    Answer,
    AnswerModels,
    AnswerToken,
    Chunk,
    Document,
    Encoder,
    Event,
    Evidence,
    MemoryBlock,
    Reader,
    Reading,
    Recall,
    Request,
    ScoringReader,
    Step,
    Usage,
    WorkingMemory,
    Writer,
)

if TYPE_CHECKING:
    from compmem.base_index import BaseIndex
    from compmem.external_index import ExternalIndex
    from compmem.index import MemoryIndex
    from compmem.readers import ChatPrompts, ChatReader, LatentPrompts, LatentReader
    from compmem.store import DocumentInfo, StoreInfo

__version__ = "0.1.0"

# These import torch, so they are loaded on first access.
_LATER = {
    "BaseIndex": "compmem.base_index",
    "ExternalIndex": "compmem.external_index",
    "MemoryIndex": "compmem.index",
    "ChatPrompts": "compmem.readers",
    "ChatReader": "compmem.readers",
    "LatentPrompts": "compmem.readers",
    "LatentReader": "compmem.readers",
    "DocumentInfo": "compmem.store",
    "StoreInfo": "compmem.store",
}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(_LATER[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


__all__ = [
    "Answer",
    "AnswerModels",
    "AnswerToken",
    "BaseIndex",
    "ChatPrompts",
    "ChatReader",
    "CheckpointError",
    "Chunk",
    "CompMemError",
    "CorruptStoreError",
    "Document",
    "DocumentInfo",
    "Encoder",
    "Event",
    "Evidence",
    "ExternalIndex",
    "IncompatibleStoreError",
    "IndexConfig",
    "LatentPrompts",
    "LatentReader",
    "Listing",
    "LoopConfig",
    "MemoryBlock",
    "MemoryIndex",
    "Reader",
    "ReaderError",
    "ReaderProxy",
    "Reading",
    "Recall",
    "RecallConfig",
    "RecallMethod",
    "Request",
    "RuntimeConfig",
    "ScoringReader",
    "Step",
    "StoreError",
    "StoreInfo",
    "StoreLockedError",
    "Usage",
    "WorkerError",
    "WorkingMemory",
    "Writer",
]
