"""Index folders that would keep a reader or a writer busy for ever, or fill its memory."""

import os
import sqlite3
import struct
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from compmem import Document, MemoryIndex
from compmem.errors import CorruptStoreError
from compmem.store import FolderStore
from tests.frameworks_langchain import HashingEncoder, make_index

REFERENCES = 500
"""References of a page to the next one."""


def grow_table(database: Path, table: str, levels: int) -> None:
    """Put pages over the only page of a table, each of which refers to the one below many times."""
    with closing(sqlite3.connect(database)) as raw:
        raw.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (root,) = raw.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        size, pages = (raw.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count"))
    data = bytearray(database.read_bytes())
    top = slice((root - 1) * size, root * size)
    assert data[top][0] == 13, "a leaf of a table"

    def page_over(child: int) -> bytes:
        cells = (struct.pack(">I", child) + b"\x7f") * REFERENCES  # a child and the largest key below it
        start = size - len(cells)
        head = struct.pack(">BHHHBI", 5, 0, REFERENCES, start, 0, child)
        places = struct.pack(f">{REFERENCES}H", *range(start, size, 5))
        return (head + places).ljust(start, b"\0") + cells

    data += data[top]
    for _ in range(levels - 1):
        pages += 1
        data += page_over(pages)
    pages += 1
    data[top] = page_over(pages)
    data[28:32] = struct.pack(">I", pages)
    data[92:96] = data[24:28]  # the number of pages is valid
    database.write_bytes(data)


@pytest.mark.parametrize("act", [len, MemoryIndex.info, lambda index: index.recall("Alpha 7?")])
def test_blocks_that_are_told_again_and_again_are_a_corrupt_store(tmp_path: Path, act: Callable[[MemoryIndex], object]):
    refused_when_grown(tmp_path / "s", "blocks", act)


def test_documents_that_are_told_again_and_again_are_a_corrupt_store(tmp_path: Path):
    refused_when_grown(tmp_path / "s", "documents", MemoryIndex.documents)


def refused_when_grown(path: Path, table: str, act: Callable[[MemoryIndex], object]) -> None:
    with make_index(path) as index:
        index.add([Document(id=f"d{n}", text=f"Alpha {n} one.") for n in range(60)])
    grow_table(path / "manifest.sqlite", table, levels=3)
    assert (path / "manifest.sqlite").stat().st_size < 200_000
    began = time.process_time()
    with (
        MemoryIndex.open(path, encoder=HashingEncoder()) as index,
        pytest.raises(CorruptStoreError, match="file of this size"),
    ):
        act(index)
    assert time.process_time() - began < 60, "60 * 500**3 rows take minutes"


@pytest.mark.skipif(os.name != "posix", reason="FIFOs")
def test_a_writer_does_not_wait_at_what_another_left_in_the_folder(tmp_path: Path):
    path = tmp_path / "s"
    with make_index(path) as index:
        index.add([Document(id="a", text="Alpha one.")])
        os.mkfifo(path / "new-compmem-x")
        (path / "chunks-000099.bin").mkdir()
        index.add([Document(id="b", text="Beta two.")])
        index.compact()
        assert len(index) == 2 and not (path / "new-compmem-x").exists()
    with FolderStore.open(path) as store:
        assert not store.verify()
