"""Entries with vectors and states, and everything that a store holds."""

from typing import Any

import numpy as np
import torch

from compmem.schema import Chunk, Document, KVStates, MemoryBlock
from compmem.store import FolderStore
from compmem.text.tokenize import terms

DIM = 16
CONFIG = {"memory": "dense", "kv": "bf16"}


def unit(rows: int, seed: int, dim: int = DIM) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def states(seed: int, tokens: int = 5) -> KVStates:
    make = torch.Generator().manual_seed(seed)
    keys, values = (torch.randn(2, 3, tokens, 4, generator=make).to(torch.bfloat16) for _ in range(2))
    return KVStates(keys=keys, values=values)


def entry(
    id: str,
    texts: list[str],
    *,
    title: str = "",
    kv: bool = False,
    dim: int | None = DIM,
    seed: int = 0,
    metadata: dict[str, Any] | None = None,
) -> tuple[Document, list[MemoryBlock]]:
    """A document with these chunks, each split into two sentences, with random vectors."""
    document = Document(id=id, text="".join(texts), title=title, metadata=metadata or {})
    blocks = []
    start = 0
    for i, text in enumerate(texts):
        half = len(text) // 2
        spans = ((0, half), (half, len(text))) if half else ()
        chunk = Chunk(
            text=text, document_id=id, ordinal=i, start=start, title=title, headings=(f"Part {i}",), sentences=spans
        )
        rows = None if dim is None else unit(1 + max(len(spans), 1), seed + i, dim)
        blocks.append(MemoryBlock(chunk=chunk, vectors=rows, kv=states(seed + i) if kv else None))
        start += len(text)
    return document, blocks


def everything(store: FolderStore) -> dict[str, Any]:
    """Everything that a reader can see, for comparisons."""
    with store.snapshot() as view:
        numbers = view.select(None).tolist()
        return {
            "texts": {
                c.id: (c.text, c.start, c.title, c.headings, c.sentences, dict(c.metadata))
                for c in view.chunks(numbers)
            },
            "vectors": {b.chunk.id: None if b.vectors is None else b.vectors.tobytes() for b in view.blocks(numbers)},
            "scan": view.vectors().floats().tobytes(),
            "lexical": [
                (view.chunks([n])[0].id, round(s, 9))
                for n, s in view.lexical_index().bm25([terms("alpha part one")], 100)[0]
            ],
        }
