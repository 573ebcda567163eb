"""Faults: killed writers, full disks, flipped bytes."""

import itertools
import os
import random
import re
import resource
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from compmem.errors import CompMemError, CorruptStoreError, StoreError
from compmem.schema import Chunk, Document, KVStates, MemoryBlock
from compmem.store import FolderStore
from tests.store_faults import DIM, PROCESS, Entry, check, entry, filled, in_a_child

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills and limits processes")


def operate(store: FolderStore, n: int) -> None:
    """The n-th of an endless sequence of writes."""
    if n % 11 == 10:
        store.compact()
    elif n % 5 == 4:
        store.delete([f"d{(n * 7) % 20}", f"d{(n * 3) % 20}"])
    else:
        store.add([entry(f"d{(n * 3 + i) % 20}", n) for i in range(3)])


def expected(count: int) -> dict[str, int]:
    """The versions after that many writes."""
    out: dict[str, int] = {}
    for n in range(count):
        if n % 11 == 10:
            continue
        if n % 5 == 4:
            out.pop(f"d{(n * 7) % 20}", None)
            out.pop(f"d{(n * 3) % 20}", None)
        else:
            out |= {f"d{(n * 3 + i) % 20}": n for i in range(3)}
    return out


def write_for_ever(path: Path, start: int, reports: int) -> None:
    store = FolderStore.open(path)
    n = start
    while True:
        operate(store, n)
        n += 1
        os.write(reports, n.to_bytes(4, "little"))


def run_killed(path: Path, start: int, seconds: float) -> int:
    """Writes of a process that is killed after its first write and some seconds; returns how many completed."""
    receive, send = os.pipe()
    child = PROCESS.Process(target=write_for_ever, args=(path, start, send), daemon=True)
    child.start()
    os.close(send)
    first = os.read(receive, 4)
    time.sleep(seconds)
    assert child.pid is not None
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    rest = b"".join(iter(lambda: os.read(receive, 1 << 16), b""))
    os.close(receive)
    reports = (first + rest)[: (len(first + rest)) // 4 * 4]
    return int.from_bytes(reports[-4:], "little")


def killed_at_random_moments(path: Path, moments: int) -> None:
    FolderStore.create(path, config={}, vectors="int8").close()
    chance = random.Random(7)
    done = 0
    for moment in range(moments):
        returned = run_killed(path, done, chance.uniform(0, 0.25))
        with FolderStore.open(path) as store:
            with store.snapshot() as view:
                versions = check(view)
            assert store.verify() == []
            assert versions in (expected(returned), expected(returned + 1)), f"moment {moment}, {returned} returned"
            done = returned if versions == expected(returned) else returned + 1


def test_a_killed_writer_leaves_whole_documents(tmp_path: Path):
    killed_at_random_moments(tmp_path / "s", 8)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_writer_killed_200_times_leaves_whole_documents(tmp_path: Path):
    killed_at_random_moments(tmp_path / "s", 200)


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    """Limits the size of this process's files, which has the effect of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def add_for_ever(store: FolderStore, make: Callable[[int], Entry]) -> None:
    for n in itertools.count(3):
        store.add([make(n)])


def fill(path: Path, make: Callable[[int], Entry], limit: str) -> None:
    with FolderStore.open(path) as store:
        store.add([make(n) for n in range(3)])
        store.compact()
        with store.snapshot() as view:
            before = [
                (b.chunk, None if b.vectors is None else b.vectors.tobytes()) for b in view.blocks(view.select(None))
            ]
        files = sorted(path.glob(limit), key=lambda file: file.stat().st_size)
        size = max(files[-1].stat().st_size, 1 << 15) + 64
        with file_limit(size):
            with pytest.raises(StoreError, match=r"cannot (read or )?write .* nothing has changed"):
                add_for_ever(store, make)
            kept = store.info().documents
            assert store.verify() == []
            with store.snapshot() as view:
                now = [
                    (b.chunk, None if b.vectors is None else b.vectors.tobytes())
                    for b in view.blocks(view.select(None))
                ]
            assert now[: len(before)] == before
        store.add([make(1000)])
        assert store.info().documents == kept + 1
        assert store.verify() == []


def wide(n: int) -> Entry:
    document, blocks = entry(f"d{n}", n, 1)
    vectors = np.eye(3, 4096, n, dtype=np.float32)
    return document, [MemoryBlock(chunk=block.chunk, vectors=vectors) for block in blocks]


def long(n: int) -> Entry:
    text = f"{n} " + "word " * 2000
    return Document(id=f"d{n}", text=text), [MemoryBlock(chunk=Chunk(text=text))]


def deep(n: int) -> Entry:
    states = torch.ones(2, 2, 64 * (n + 1), 64)
    chunk = Chunk(text=f"text {n}")
    return Document(id=f"d{n}", text=chunk.text), [MemoryBlock(chunk=chunk, kv=KVStates(keys=states, values=states))]


@pytest.mark.parametrize(
    ("make", "limit"),
    [(wide, "sentences-*"), (long, "manifest.sqlite"), (deep, "kv-*")],
    ids=["vectors", "manifest", "kv"],
)
def test_a_full_disk_leaves_the_old_state(tmp_path: Path, make: Callable[[int], Entry], limit: str):
    FolderStore.create(tmp_path / "s", config={}, vectors="int8").close()
    in_a_child(fill, tmp_path / "s", make, limit)


def compact_on_a_full_disk(path: Path) -> None:
    with FolderStore.open(path) as store:
        with file_limit(1 << 15), pytest.raises(StoreError, match="nothing has changed"):
            store.compact()
        with store.snapshot() as view:
            assert len(check(view)) == 20
        assert store.verify() == []
        store.compact()
        assert store.verify() == []


def test_compacting_on_a_full_disk(tmp_path: Path):
    with FolderStore.create(tmp_path / "s", config={}, vectors="int8") as store:
        store.add([entry(f"d{n}", n) for n in range(30)])
        store.delete([f"d{n}" for n in range(20, 30)])
    in_a_child(compact_on_a_full_disk, tmp_path / "s")


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(offset)
        (byte,) = stream.read(1)
        stream.seek(offset)
        stream.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize(
    ("pattern", "offset", "message"),
    [
        ("chunks-*", 5 * (DIM + 4) + 6, "the vectors of block 6 of document 'd1' do not match their checksum"),
        ("sentences-*", 11 * (DIM + 4), "the vectors of block 6 of document 'd1' do not match their checksum"),
        ("kv-*", -1, "the KV states of block .* of document .* do not match their checksum"),
    ],
)
def test_a_flipped_byte_is_found(tmp_path: Path, pattern: str, offset: int, message: str):
    (file,) = filled(tmp_path / "s").glob(pattern)
    flip(file, offset % file.stat().st_size)
    with FolderStore.open(tmp_path / "s") as store:
        problems = store.verify()
        assert any(re.search(message, problem) for problem in problems), problems
        with store.snapshot() as view:
            view.chunks(view.select(None))
            with pytest.raises(CorruptStoreError, match=message):
                view.blocks(view.select(None))
            if pattern == "chunks-*":
                with pytest.raises(CorruptStoreError, match="whole-chunk vectors 0 to 12 do not match"):
                    view.vectors().floats(0, 1)
            else:
                assert len(view.vectors().floats()) == 12
        with pytest.raises(CorruptStoreError, match=message):
            store.compact()
        assert store.verify() == problems, "a failed compaction has changed nothing"


@pytest.mark.parametrize("pattern", ["chunks-*", "sentences-*", "kv-*"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_cut_or_missing_file_is_found(tmp_path: Path, pattern: str, how: str):
    (file,) = filled(tmp_path / "s").glob(pattern)
    if how == "gone":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size - 1)
    with FolderStore.open(tmp_path / "s") as store:
        assert any(file.name in problem for problem in store.verify())
        with store.snapshot() as view, pytest.raises(CorruptStoreError, match=file.name):
            view.blocks([12])


def test_flipped_bytes_of_the_manifest_are_found_or_harmless(tmp_path: Path):
    manifest = filled(tmp_path / "s", 8) / "manifest.sqlite"
    whole = manifest.read_bytes()
    with FolderStore.open(tmp_path / "s") as store, store.snapshot() as view:
        expected = check(view)
    chance = random.Random(3)
    found = 0
    for _ in range(60):
        flip(manifest, chance.randrange(len(whole)))
        try:
            with FolderStore.open(tmp_path / "s") as store:
                if store.verify():
                    found += 1
                else:
                    with store.snapshot() as view:
                        assert check(view) == expected
        except CompMemError:
            found += 1
        manifest.write_bytes(whole)
    assert found > 3


def test_a_text_that_was_changed_is_found(tmp_path: Path):
    path = filled(tmp_path / "s")
    with closing(sqlite3.connect(path / "manifest.sqlite")) as raw, raw:
        raw.execute("UPDATE documents SET title = 'Another' WHERE id = 'd2'")
        raw.execute("UPDATE texts SET text = replace(text, 'second', 'third') WHERE number = 2")
    with FolderStore.open(path) as store:
        problems = "\n".join(store.verify())
    assert "document 'd2' does not match its hash" in problems
    assert "the text of block 2 of document 'd0' does not match its checksum" in problems
    assert "lexical index" in problems


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        ("DELETE FROM documents WHERE id = 'd1'", "3 blocks without a document: 4, 5, 6"),
        ("DELETE FROM texts WHERE number = 4", "1 blocks without a text: 4"),
        ("DELETE FROM blocks WHERE number = 4", "1 texts without a block: 4"),
        ("DELETE FROM names WHERE block = 4", "the names of block 4 of document 'd1' do not match its text"),
        ("INSERT INTO names VALUES ('x', 0, 99)", "1 names without a block: 99"),
        ("UPDATE blocks SET row = 0 WHERE number = 2", "2 blocks whose vector another block has: 1, 2"),
        ("DELETE FROM kv", "12 blocks in a KV segment that is not listed"),
        (
            "INSERT INTO lexical(rowid, body) VALUES (99, 'ghost')",
            "lexical index: 1 terms do not match the texts, such as 'ghost'",
        ),
    ],
)
def test_orphans_are_found(tmp_path: Path, spoil: str, message: str):
    path = filled(tmp_path / "s")
    with closing(sqlite3.connect(path / "manifest.sqlite")) as raw, raw:
        raw.execute(spoil)
    with FolderStore.open(path) as store:
        assert message in "\n".join(store.verify())
