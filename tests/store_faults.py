"""Entries of a store that processes write, checked against what they must be."""

import multiprocessing
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compmem.schema import Chunk, Document, KVStates, MemoryBlock
from compmem.store import FolderStore, Snapshot

DIM = 8
PROCESS = multiprocessing.get_context("fork")
# A forked child has none of its parent's OpenMP threads and would wait for them forever.
os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))
Entry = tuple[Document, list[MemoryBlock]]


def vector_of(text: str) -> np.ndarray:
    vector = np.random.default_rng(zlib.crc32(text.encode())).normal(size=DIM).astype(np.float32)
    return vector / np.linalg.norm(vector)


def entry(name: str, version: int, chunks: int = 3) -> Entry:
    """A document whose vectors and KV states are derived from its text."""
    texts = [f"{name} version {version} part {i}. And a second sentence of part {i}. " for i in range(chunks)]
    blocks = []
    for text in texts:
        middle = text.index(".") + 1
        parts = [text, text[:middle], text[middle:]]
        states = torch.full((1, 2, 3, 4), float(zlib.crc32(text.encode()) % 200)).to(torch.bfloat16)
        blocks.append(
            MemoryBlock(
                chunk=Chunk(text=text, sentences=((0, middle), (middle, len(text)))),
                vectors=np.stack([vector_of(part) for part in parts]),
                kv=KVStates(keys=states, values=states + 1),
            )
        )
    return Document(id=name, text="".join(texts), title=f"Title of {name}", metadata={"version": version}), blocks


def check(view: Snapshot) -> dict[str, int]:
    """Checks that every document of a view is whole and matches its text; returns their versions."""
    numbers = view.select(None)
    found: dict[str, list[str]] = {}
    versions: dict[str, int] = {}
    for block in view.blocks(numbers):
        found.setdefault(block.chunk.document_id, []).append(block.chunk.text)
        versions[block.chunk.document_id] = block.chunk.metadata["version"]
        parts = [block.chunk.text, *(block.chunk.text[a:b] for a, b in block.chunk.sentences)]
        assert np.abs(block.vectors - np.stack([vector_of(part) for part in parts])).max() < 0.02
        assert float(block.kv.keys[0, 0, 0, 0]) == zlib.crc32(block.chunk.text.encode()) % 200
    for name, texts in found.items():
        assert "".join(texts) == entry(name, versions[name], len(texts))[0].text
        assert len(texts) == 3
    scan = view.vectors()
    assert np.array_equal(scan.numbers, numbers)
    assert len(scan.floats()) == len(numbers)
    assert not len(numbers) or scan.floats().shape[1] == DIM
    assert {n for n, _ in view.lexical_index().bm25([["version"]], 10_000)[0]} == set(numbers.tolist())
    assert {info.id: info.metadata["version"] for info in view.documents()} == versions
    return versions


def in_a_child(work: Callable[..., None], *args: Any) -> None:
    """Runs the function in a separate process; its failure is the test's."""
    child = PROCESS.Process(target=work, args=args)
    child.start()
    child.join(120)
    assert child.exitcode == 0


def filled(path: Path, documents: int = 4) -> Path:
    with FolderStore.create(path, config={}, vectors="int8") as store:
        store.add([entry(f"d{n}", n) for n in range(documents)])
    return path
