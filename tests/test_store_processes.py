"""Writers, readers, forks and interrupts beside each other, and growth over many writes."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compmem.errors import StoreLockedError
from compmem.schema import Chunk, Document, MemoryBlock
from compmem.store import FolderStore, writing
from tests.store_faults import PROCESS, Entry, check, entry, filled, in_a_child

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills and limits processes")


def hold_the_lock(path: Path, ready: Any) -> None:
    with FolderStore.open(path) as store, store.writing():
        ready.set()
        time.sleep(60)


def test_a_second_writer_is_told_and_a_dead_one_leaves_no_lock(tmp_path: Path):
    path = filled(tmp_path / "s")
    ready = PROCESS.Event()
    child = PROCESS.Process(target=hold_the_lock, args=(path, ready), daemon=True)
    child.start()
    assert ready.wait(30)
    with FolderStore.open(path) as store:
        begin = time.perf_counter()
        with pytest.raises(StoreLockedError, match=r"another process is writing to the index .*wait for it to end"):
            store.add([entry("new", 1)])
        assert time.perf_counter() - begin < 5
        with store.snapshot() as view:
            assert len(check(view)) == 4
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        store.add([entry("new", 1)])
        assert store.verify() == []


def read_in_a_fork(store: FolderStore) -> None:
    with store.snapshot() as view:
        assert len(check(view)) == 4
    store.add([entry("forked", 1)])


def test_a_store_opened_before_a_fork_serves_both(tmp_path: Path):
    with FolderStore.open(filled(tmp_path / "s")) as store:
        with store.snapshot() as view:
            in_a_child(read_in_a_fork, store)
            assert len(check(view)) == 4
        with store.snapshot() as view:
            assert len(check(view)) == 5
        store.add([entry("after", 1)])
        assert store.verify() == []


def add_and_be_interrupted(store: FolderStore, name: str, *, committed: bool) -> None:
    with store._transaction() as connection:
        writing.insert(connection, store._folder, [entry(name, 1)], ("int8", "bf16"))
        if committed:
            connection.execute("COMMIT")
        raise KeyboardInterrupt


def test_an_interrupt_after_the_commit_takes_nothing_back(tmp_path: Path):
    """The transaction is committed, then an exception comes on the way out: the files it names must stay."""
    with FolderStore.open(filled(tmp_path / "s")) as store:
        with pytest.raises(KeyboardInterrupt):
            add_and_be_interrupted(store, "new", committed=True)
        assert store.verify() == []
        with store.snapshot() as view:
            assert len(check(view)) == 5
        with pytest.raises(KeyboardInterrupt):
            add_and_be_interrupted(store, "other", committed=False)
        assert len(list((tmp_path / "s").glob("kv-*"))) == 2
        with store.snapshot() as view:
            assert len(check(view)) == 5


def read_until(path: Path, end: float) -> None:
    last = rounds = 0
    with FolderStore.open(path) as store:
        while time.time() < end:
            rounds += read_once(store)
            assert store.generation >= last
            last = store.generation
    assert rounds > 0


def read_once(store: FolderStore) -> int:
    with store.snapshot() as view:
        first = check(view)
        pairs = {name[1:]: version for name, version in first.items() if name.startswith("a")}
        assert pairs == {name[1:]: version for name, version in first.items() if name.startswith("b")}
        assert check(view) == first, "a snapshot does not move"
    return 1


def write_until(store: FolderStore, end: float) -> int:
    n = 0
    while time.time() < end:
        pair = n % 6
        if n % 9 == 8:
            store.compact()
        elif n % 4 == 3:
            store.delete([f"a{pair}", f"b{pair}"])
        else:
            store.add([entry(f"a{pair}", n), entry(f"b{pair}", n)])
        n += 1
    return n


def eight_readers_and_a_writer(path: Path, seconds: float) -> None:
    with FolderStore.create(path, config={}, vectors="int8") as store:
        end = time.time() + seconds
        readers = [PROCESS.Process(target=read_until, args=(path, end)) for _ in range(4)]
        for reader in readers:
            reader.start()
        failures: list[BaseException] = []

        def read_in_a_thread() -> None:
            try:
                while time.time() < end:
                    read_once(store)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=read_in_a_thread) for _ in range(4)]
        for thread in threads:
            thread.start()
        written = write_until(store, end)
        for thread in threads:
            thread.join()
        for reader in readers:
            reader.join(60)
        assert failures == []
        assert [reader.exitcode for reader in readers] == [0] * 4
        assert written
        assert store.verify() == []
        store.compact()
        assert len(list(path.glob("chunks-*"))) == 1, "what readers held is swept at last"


def test_eight_readers_and_a_writer(tmp_path: Path):
    eight_readers_and_a_writer(tmp_path / "s", 3)


@pytest.mark.slow
def test_eight_readers_and_a_writer_for_a_minute(tmp_path: Path):
    eight_readers_and_a_writer(tmp_path / "s", 60)


def plain(n: int, dim: int = 384) -> Entry:
    make = np.random.default_rng(n)
    words = [f"w{int(i)}" for i in make.zipf(1.3, size=300) % 50_000]
    text = " ".join(words)
    spans = tuple((i, min(i + 140, len(text))) for i in range(0, len(text), 140))
    vectors = make.normal(size=(1 + len(spans), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    chunk = Chunk(text=text, sentences=spans)
    return Document(id=f"d{n}", text=text), [MemoryBlock(chunk=chunk, vectors=vectors)]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_growth_is_flat(tmp_path: Path):
    """100,000 chunks in batches of 64: the last tenth costs less than twice the first, in time and in bytes."""
    total, batch = 100_000, 64
    spent, sizes = [0.0], [0]
    with FolderStore.create(tmp_path / "s", config={}, vectors="int8") as store:
        for tenth in range(10):
            seconds = 0.0
            for at in range(tenth * total // 10, (tenth + 1) * total // 10, batch):
                documents = [plain(n) for n in range(at, min(at + batch, (tenth + 1) * total // 10))]
                begin = time.perf_counter()
                store.add(documents)
                seconds += time.perf_counter() - begin
            info = store.info()
            spent.append(seconds)
            sizes.append(info.vector_bytes + info.text_bytes)
        begin = time.perf_counter()
        with FolderStore.open(store.path) as again, again.snapshot() as view:
            assert len(view) == total
        opened = time.perf_counter() - begin
    grown = np.diff(sizes)
    assert spent[-1] < 2 * spent[1], spent
    assert grown[-1] < 2 * grown[0], grown
    assert opened < 1
