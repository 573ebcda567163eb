"""Faults: killed writers, full disks, flipped bytes, concurrent writers, many readers."""

import itertools
import multiprocessing
import os
import random
import re
import resource
import signal
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compmem.errors import CompMemError, CorruptStoreError, StoreError, StoreLockedError
from compmem.schema import Chunk, Document, KVStates, MemoryBlock
from compmem.store import FolderStore, Snapshot, writing

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills and limits processes")

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


def in_a_child(work: Callable[..., None], *args: Any) -> None:
    """Runs the function in a separate process; its failure is the test's."""
    child = PROCESS.Process(target=work, args=args)
    child.start()
    child.join(120)
    assert child.exitcode == 0


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


def filled(path: Path, documents: int = 4) -> Path:
    with FolderStore.create(path, config={}, vectors="int8") as store:
        store.add([entry(f"d{n}", n) for n in range(documents)])
    return path


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
