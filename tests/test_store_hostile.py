"""Untrusted, swapped and deleted folders, forks, dead rows: what the store refuses and what it preserves."""

import contextlib
import copy
import json
import os
import pickle
import shutil
import sqlite3
import struct
import threading
import time
import tracemalloc
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from compmem import locks
from compmem.errors import CorruptStoreError, StoreError
from compmem.schema import Chunk, Document, MemoryBlock
from compmem.store import FolderStore
from compmem.store.manifest import State
from compmem.store.vectors import SEGMENT_ROWS
from tests.frameworks_langchain import make_index

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links, FIFOs and forks")
DIM = 8


def entry(name: str, text: str = "Alpha one."):
    vectors = np.eye(1, DIM, dtype=np.float32)
    return Document(id=name, text=text), [MemoryBlock(chunk=Chunk(text=text), vectors=vectors)]


def filled(path: Path, text: str = "Alpha one.") -> Path:
    with FolderStore.create(path, config={}, vectors="int8") as store:
        store.add([entry("d", text)])
    return path


def plant_journal(database: Path, victim: Path) -> None:
    """A hot rollback journal that names a file which SQLite deletes when it replays the journal."""
    with closing(sqlite3.connect(database)) as raw:
        size, pages = (raw.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count"))
    magic, name = bytes.fromhex("d9d505f920a163d7"), str(victim).encode()
    head = (magic + struct.pack(">IIIII", 0, 0, pages, 512, size)).ljust(512, b"\0")
    tail = struct.pack(">I", 0x40000000 // size + 1) + name + struct.pack(">II", len(name), sum(name)) + magic
    Path(f"{database}-journal").write_bytes(head + tail)


def test_a_planted_journal_deletes_nothing(tmp_path: Path):
    path = filled(tmp_path / "s")
    open_before = FolderStore.open(path)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    plant_journal(path / "manifest.sqlite", victim)
    for act in (FolderStore.open, lambda _: open_before.info(), lambda _: open_before.add([entry("e")])):
        with pytest.raises(CorruptStoreError, match=r"manifest\.sqlite-journal"):
            act(path)
    open_before.close()
    assert victim.exists()


def test_a_reader_plays_no_journal_that_comes_after_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = filled(tmp_path / "s")
    victim = tmp_path / "victim"
    victim.write_text("precious")
    plant_journal(path / "manifest.sqlite", victim)
    monkeypatch.setattr("compmem.store.manifest.check_files", lambda folder: None)
    with pytest.raises(StoreError):
        FolderStore.open(path)
    assert victim.exists()


@pytest.mark.parametrize("name", ["manifest.sqlite", "manifest.sqlite-wal", "manifest.sqlite-shm", "chunks-000000.bin"])
@pytest.mark.parametrize("how", ["link", "hard link", "fifo"])
def test_a_file_that_is_another_one_is_refused(tmp_path: Path, name: str, how: str):
    path = filled(tmp_path / "s")
    file, other = path / name, tmp_path / "other"
    if file.exists():
        file.rename(other)
    else:
        other.write_bytes(b"x" * 100)
    before = other.read_bytes()
    {"link": file.symlink_to, "hard link": file.hardlink_to, "fifo": lambda _: os.mkfifo(file)}[how](other)
    with pytest.raises(CorruptStoreError, match=r"not a plain file|hard link"), FolderStore.open(path) as store:
        store.add([entry("e")])
    assert other.read_bytes() == before


def test_a_lock_with_another_name_is_not_touched(tmp_path: Path):
    path = filled(tmp_path / "s")
    other = tmp_path / "other"
    other.write_text("mine")
    (path / "writer.lock").unlink(missing_ok=True)
    (path / "writer.lock").hardlink_to(other)
    with FolderStore.open(path) as store, pytest.raises(CorruptStoreError, match="hard link"):
        store.add([entry("e")])
    assert other.read_text() == "mine"


def test_a_swapped_folder_is_not_taken_for_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    filled(tmp_path / "a" / "s", "Alpha.")
    filled(tmp_path / "b" / "s", "Omega.")
    monkeypatch.chdir(tmp_path / "a")
    with FolderStore.open("s") as store:
        monkeypatch.chdir(tmp_path / "b")
        with store.snapshot() as view:
            assert view.document("d").text == "Alpha."
        (tmp_path / "a" / "s").rename(tmp_path / "old")
        shutil.copytree(tmp_path / "b" / "s", tmp_path / "a" / "s")
        for act in (store.info, store.verify, lambda: store.add([entry("e")])):
            with pytest.raises(StoreError, match="no longer there"):
                act()
    with FolderStore.open(tmp_path / "a" / "s") as other:
        assert other.info().documents == 1


def test_writing_to_a_deleted_folder_makes_none(tmp_path: Path):
    path = filled(tmp_path / "s")
    with FolderStore.open(path) as store:
        shutil.rmtree(path)
        with pytest.raises(StoreError, match="no longer there"):
            store.add([entry("e")])
    assert not path.exists()


DEEP = "[" * 100_000 + "]" * 100_000
ODD = [None, True, -1, 2**63, 1e400, "x", [], {}, [[1]]]


def spoilt_facts(facts: dict[str, str]):
    """Each value of the manifest's facts, and each value within them, in turn missing, deep, unknown or odd."""
    for name, text in facts.items():
        yield name, None
        yield name, DEEP
        yield name, "{"
        value = json.loads(text)
        for odd in ODD:
            yield name, json.dumps(odd)
        if isinstance(value, dict):
            yield name, json.dumps({**value, "unknown": 1})
            for key in value:
                yield name, json.dumps({k: v for k, v in value.items() if k != key})
                for odd in ODD:
                    yield name, json.dumps({**value, key: odd})


def test_every_spoilt_fact_is_a_corrupt_store_or_harmless(tmp_path: Path):
    with make_index(tmp_path / "s") as index:
        index.add([Document(id="d", text="Alpha one.")])
    from compmem import MemoryIndex
    from tests.frameworks_langchain import HashingEncoder

    with closing(sqlite3.connect(tmp_path / "s" / "manifest.sqlite")) as raw:
        raw.execute("PRAGMA synchronous=OFF")
        facts = dict(raw.execute("SELECT name, value FROM manifest"))
        found = 0
        for name, text in spoilt_facts(facts):
            raw.execute("DELETE FROM manifest WHERE name = ?", (name,))
            if text is not None:
                raw.execute("INSERT INTO manifest VALUES (?, ?)", (name, text))
            raw.commit()
            try:
                with MemoryIndex.open(tmp_path / "s", encoder=HashingEncoder()) as index:
                    index.info()
                    found += bool(index.verify())
                    index.recall("Alpha?", k=1)
            except (StoreError, CorruptStoreError):
                found += 1
            raw.execute("INSERT OR REPLACE INTO manifest VALUES (?, ?)", (name, facts[name]))
            raw.commit()
    assert found > 100


@pytest.mark.parametrize("table", ["documents", "blocks", "texts", "segments"])
def test_every_spoilt_column_is_found_or_harmless(tmp_path: Path, table: str):
    whole = filled(tmp_path / "whole")
    with closing(sqlite3.connect(whole / "manifest.sqlite")) as raw:
        columns = [row[1] for row in raw.execute(f"PRAGMA table_info({table})")]
    found = 0
    for i, (column, odd) in enumerate((c, o) for c in columns for o in ("x'00ff'", "9223372036854775807", f"'{DEEP}'")):
        path = shutil.copytree(whole, tmp_path / str(i))
        with closing(sqlite3.connect(path / "manifest.sqlite")) as raw, contextlib.suppress(sqlite3.Error), raw:
            raw.execute(f"UPDATE {table} SET {column} = {odd}")
        try:
            with FolderStore.open(path) as store:
                store.info()
                found += bool(store.verify())
                with store.snapshot() as view:
                    view.blocks(view.select(None))
        except StoreError:
            found += 1
        for act in (lambda s: s.delete(["d"]), lambda s: s.add([entry("d", "Beta.")]), lambda s: s.add([entry("e")])):
            again = shutil.copytree(path, tmp_path / "again")
            with contextlib.suppress(StoreError), FolderStore.open(again) as store:
                act(store)
            shutil.rmtree(again)
    assert found >= len(columns)


@pytest.mark.parametrize("kind", ["int8", "fp16"])
@pytest.mark.parametrize("number", [np.nan, np.inf, 60_000.0])
def test_vectors_that_are_no_unit_vectors_are_a_corrupt_store(tmp_path: Path, kind, number):
    with FolderStore.create(tmp_path / "s", config={}, vectors=kind) as store:
        store.add([entry("d")])
    (file,) = (tmp_path / "s").glob("chunks-*")
    data = np.frombuffer(file.read_bytes(), np.uint8).copy()
    first = slice(0, 4) if kind == "int8" else slice(0, 2)
    data[first] = np.array([number], "<f4" if kind == "int8" else "<f2").view(np.uint8)
    file.write_bytes(data.tobytes())
    with closing(sqlite3.connect(tmp_path / "s" / "manifest.sqlite")) as raw, raw:
        raw.execute("UPDATE segments SET crc = ?", (zlib.crc32(data.tobytes()),))
        raw.execute("UPDATE blocks SET vector_crc = ?", (zlib.crc32(data.tobytes()),))
    with FolderStore.open(tmp_path / "s") as store:
        assert len(store.verify()) == 2
        with store.snapshot() as view:
            for act in (lambda: view.blocks([1]), lambda: view.vectors().floats()):
                with pytest.raises(CorruptStoreError, match="are no unit vectors"):
                    act()


def test_a_block_cannot_claim_more_vectors_than_it_has_sentences(tmp_path: Path):
    path, rows = filled(tmp_path / "s"), 200_000
    (file,) = path.glob("sentences-*")
    os.truncate(file, rows * (DIM + 4))
    crc = zlib.crc32(file.read_bytes(), zlib.crc32(next(path.glob("chunks-*")).read_bytes()))
    with closing(sqlite3.connect(path / "manifest.sqlite")) as raw, raw:
        state = json.loads(raw.execute("SELECT value FROM manifest WHERE name = 'state'").fetchone()[0])
        spoilt = json.dumps(state | {"sentence_rows": rows})
        raw.execute("UPDATE manifest SET value = ? WHERE name = 'state'", (spoilt,))
        raw.execute("UPDATE blocks SET sentence_row = 0, sentence_rows = ?, vector_crc = ?", (rows, crc))
    with FolderStore.open(path) as store, store.snapshot() as view:
        with pytest.raises(CorruptStoreError, match=r"0 sentences and 200000 vectors"):
            view.blocks([1])
        assert store.verify()


def test_a_segment_that_is_read_at_once_is_not_as_long_as_its_file_may_be(tmp_path: Path):
    path, rows = filled(tmp_path / "s"), SEGMENT_ROWS + 1
    (file,) = path.glob("chunks-*")
    os.truncate(file, rows * (DIM + 4))
    with closing(sqlite3.connect(path / "manifest.sqlite")) as raw, raw:
        raw.execute("UPDATE manifest SET value = json_set(value, '$.chunk_rows', ?) WHERE name = 'state'", (rows,))
        raw.execute("UPDATE segments SET rows = ?, crc = ?", (rows, zlib.crc32(file.read_bytes())))
    with FolderStore.open(path) as store, store.snapshot() as view:
        with pytest.raises(CorruptStoreError, match="8193 rows, not from 1 to 8192"):
            view.vectors().floats()
        assert store.verify()


@pytest.mark.parametrize("number", [0, 7, 2**62])
@pytest.mark.parametrize("spoil", ["UPDATE names SET block = ?", "UPDATE blocks SET number = ?"])
def test_a_block_that_only_one_table_has_is_a_corrupt_store(tmp_path: Path, spoil: str, number: int):
    from compmem import MemoryIndex
    from tests.frameworks_langchain import HashingEncoder

    with make_index(tmp_path / "s") as index:
        index.add([Document(id="d", title="Alpha", text="Alpha one.")])
    with closing(sqlite3.connect(tmp_path / "s" / "manifest.sqlite")) as raw, raw:
        raw.execute(spoil, (number,))
    with MemoryIndex.open(tmp_path / "s", encoder=HashingEncoder()) as index, pytest.raises(CorruptStoreError):
        index.recall("Who is Alpha?", k=1)


def test_a_generation_that_cannot_be_combined_with_those_of_other_shards_is_refused():
    for name, largest in (("generation", 2**48 - 1), ("next_block", 2**48)):
        State.parse(State(**{name: largest}).dump())
        with pytest.raises(CorruptStoreError, match=name):
            State.parse(State(**{name: largest + 1}).dump())


def test_a_table_of_the_lexical_index_that_is_another_one_is_refused(tmp_path: Path):
    path = filled(tmp_path / "s")
    with closing(sqlite3.connect(path / "manifest.sqlite")) as raw, raw:
        raw.execute("PRAGMA writable_schema=ON")
        made = "CREATE TABLE 'lexical_docsize'(id INTEGER PRIMARY KEY, sz BLOB AS (zeroblob(100)))"
        raw.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'lexical_docsize'", (made,))
    with pytest.raises(CorruptStoreError, match="are not those of an index"):
        FolderStore.open(path)


def test_metadata_is_read_once_for_a_document(tmp_path: Path):
    chunks = [f"Alpha {n}. " for n in range(200)]
    document = Document(id="d", chunks=chunks, metadata={"a": "x" * 200_000})
    with FolderStore.create(tmp_path / "s", config={}, vectors="int8") as store:
        store.add([(document, [MemoryBlock(chunk=Chunk(text=text)) for text in chunks])])
        with store.snapshot() as view:
            tracemalloc.start()
            assert view.document("d").metadata == document.metadata
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
    assert peak < 4e6


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"title": "x" * 1001}, "its title has 1,001 characters, but at most 1,000 can be kept"),
        ({"context": "x" * 10_001}, "its context has 10,001 characters"),
        ({"metadata": {"a": "x" * 300_000}}, "its metadata has 300,009 characters"),
    ],
)
def test_what_is_kept_with_every_chunk_is_bounded(fields, named):
    with make_index(None) as index, pytest.raises(ValueError, match=named):
        index.add([Document(id="d", text="Alpha one.", **fields)])


def test_a_spoilt_lexical_index_is_found_or_harmless(tmp_path: Path):
    from compmem import MemoryIndex
    from tests.frameworks_langchain import HashingEncoder

    with make_index(tmp_path / "s") as index:
        index.add([Document(id=f"d{n}", text=f"Alpha {n} and beta {n % 3}.", metadata={"n": n}) for n in range(40)])
    found = 0
    with closing(sqlite3.connect(tmp_path / "s" / "manifest.sqlite")) as raw:
        raw.execute("PRAGMA synchronous=OFF")
        for number, block in raw.execute("SELECT id, block FROM lexical_data").fetchall():
            for spoilt in (b"", b"\0", b"\xff" * len(block), block[:1], block[: len(block) // 2], block[:1] + b"\0"):
                raw.execute("UPDATE lexical_data SET block = ? WHERE id = ?", (spoilt, number))
                raw.commit()
                with MemoryIndex.open(tmp_path / "s", encoder=HashingEncoder()) as index:
                    for method in ("bm25", "hybrid", "gate"):
                        for wanted in (None, {"n": {"<": 20}}):
                            try:
                                index.search("alpha 7 beta", 5, method=method, filter=wanted)
                            except StoreError:
                                found += 1
            raw.execute("UPDATE lexical_data SET block = ? WHERE id = ?", (block, number))
            raw.commit()
    assert found > 10


def forked(work) -> int:
    """The exit code of a child; 99 if it hung."""
    child = os.fork()
    if not child:
        code = 1
        try:
            threading.Timer(20, os._exit, (99,)).start()
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_child_does_not_remove_its_parents_temporary_store():
    with FolderStore.create(None, config={}, vectors="int8") as store:
        store.add([entry("d")])
        assert forked(store.close) == 0
        assert store.verify() == []
    assert not store.path.exists()


@contextlib.contextmanager
def running(work):
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_fork_waits_once_for_the_locks_of_all_stores(monkeypatch):
    monkeypatch.setattr(locks, "MAX_WAIT_SECONDS", 0.5)
    made = [locks.Lock(forks_wait=True) for _ in range(8)]
    begun, done = threading.Event(), threading.Event()

    def hold() -> None:
        with contextlib.ExitStack() as held:
            for lock in made:
                held.enter_context(lock)
            begun.set()
            done.wait(30)

    with running(hold):
        assert begun.wait(30)
        start = time.monotonic()
        try:
            assert forked(lambda: made[0].__enter__()) == 0
            assert 0.4 < time.monotonic() - start < 2
        finally:
            done.set()


def test_a_writer_of_several_stores_and_a_fork_do_not_wait_for_each_other():
    made = [locks.Lock(forks_wait=True) for _ in range(8)]
    begun = threading.Event()

    def write() -> None:
        with made[0]:
            begun.set()
            while locks._no_fork_waiting.is_set():
                time.sleep(0.01)
            time.sleep(0.1)
            with contextlib.ExitStack() as held:
                for lock in made:
                    held.enter_context(lock)

    with running(write):
        assert begun.wait(30)
        start = time.monotonic()
        assert forked(lambda: made[0].__enter__()) == 0
    assert time.monotonic() - start < 5


def test_a_child_forked_while_a_thread_writes_can_write(tmp_path: Path):
    with FolderStore.create(tmp_path / "s", config={}, vectors="int8") as store:
        stop, begun = threading.Event(), threading.Event()

        def write() -> None:
            n = 0
            while not stop.is_set():
                with store.writing():
                    begun.set()
                    store.add([entry("t", f"Text {(n := n + 1)}.")])

        thread = threading.Thread(target=write)
        thread.start()
        try:
            for i in range(4):
                begun.clear()
                assert begun.wait(30)
                child = os.fork()
                if not child:
                    try:
                        threading.Timer(20, os._exit, (99,)).start()
                        for _ in range(40):
                            try:
                                store.add([entry(f"c{i}")])
                                os._exit(0)
                            except StoreError:
                                continue  # the parent's thread was quicker
                    finally:
                        os._exit(1)
                stop.set()
                thread.join()
                assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
                stop.clear()
                thread = threading.Thread(target=write)
                thread.start()
        finally:
            stop.set()
            thread.join()
        assert store.info().documents == 5
        assert store.verify() == []


def test_dead_blocks_and_log_are_bounded(tmp_path: Path):
    with FolderStore.create(tmp_path / "s", config={"compact_at": 0.5}, vectors="int8") as store:
        with store.snapshot():
            for n in range(270):
                store.add([entry("d", f"Text {n}.")])
            assert store.info().deleted == 269, "a reader is at work"
        store.add([entry("d", "Last.")])
        assert store.info().deleted == 0
        assert store.verify() == []
        assert store._folder.log.stat().st_size < 2 << 20
        assert len(list(store.path.glob("chunks-*"))) == 1
    with FolderStore.create(tmp_path / "t", config={"compact_at": None}, vectors="int8") as store:
        for n in range(120):
            store.add([entry("d", f"Text {n}.")])
        assert store.info().deleted == 119


def test_a_compaction_that_cannot_rewrite_the_manifest_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with FolderStore.open(filled(tmp_path / "s")) as store:

        def full() -> None:
            raise StoreError("the disk is full")

        monkeypatch.setattr(store._manifest, "vacuum", full)
        with pytest.raises(StoreError, match=r"is compacted.*the disk is full"):
            store.compact()
        assert store.verify() == []
        assert [file.name for file in store.path.glob("chunks-*")] == ["chunks-000001.bin"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda index: pickle.loads(pickle.dumps(index))])
def test_a_temporary_index_lives_as_long_as_any_copy(copied):
    index = make_index()
    index.add([Document(id="d", text="Alpha one.")])
    other = copied(index)
    index.close()
    assert other.temporary
    assert [d.id for d in other.documents()] == ["d"]
    other.close()
    assert not other.path.exists()
