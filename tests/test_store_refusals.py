"""What the store refuses: bad documents, vectors and states, folders and links that are not its own."""

import os
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compmem.errors import CorruptStoreError, IncompatibleStoreError, StoreError
from compmem.schema import Chunk, Document, KVStates, MemoryBlock
from compmem.store import FORMAT, FolderStore
from tests.store_entries import CONFIG, DIM, entry, everything, unit


@pytest.fixture
def store(tmp_path: Path):
    with FolderStore.create(tmp_path / "a.mem", config=CONFIG, vectors="int8") as made:
        yield made


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: entry("d", [""]), "document 'd' has no text"),
        (lambda: entry("d", [" \n\t "]), "document 'd' has no text"),
        (
            lambda: entry("d", ["a lone \ud800 surrogate"]),
            r"document 'd': its text has the lone surrogate '\\ud800' at 7",
        ),
        (lambda: entry("d\0", ["text"]), "its id must be a string without NUL"),
        (lambda: entry("d", ["text"], title="\udc00"), "its title has the lone surrogate"),
        (
            lambda: entry("d", ["text"], metadata={"bad": {1, 2}}),
            "document 'd': metadata 'bad' is not JSON: a value of type set",
        ),
        (lambda: entry("d", ["text"], metadata={"bad": float("inf")}), "metadata 'bad' is not JSON"),
        (
            lambda: entry("d", ["text"], metadata={"bad": {1: 2}}),
            "metadata 'bad' is not JSON: the key 1 is not a string",
        ),
        (
            lambda: entry("d", ["text"], metadata={"bad": np.complex64(3)}),
            "metadata 'bad' is not JSON: a value of type complex64",
        ),
        (lambda: entry("d", ["text"], metadata={"bad": "a\0b"}), "metadata 'bad' has a NUL"),
        (lambda: entry("d", ["text"], metadata={"bad": "\ud800"}), "metadata 'bad' is not JSON"),
        (
            lambda: (Document(id="d", text="text", metadata={1: 2}), entry("d", ["text"])[1]),
            "metadata 1: a key must be a string",
        ),
        (lambda: (Document(id="d", text="text"), []), "its chunks do not cover its text exactly"),
        (lambda: (Document(id="d", text="other"), entry("d", ["text"])[1]), "do not cover its text exactly"),
        (lambda: entry("d", ["text"], dim=DIM + 1), "vectors of 17 dimensions, but the index has 16"),
        (lambda: entry("d", ["text"], dim=None), "the index has vectors, but its blocks have none"),
    ],
)
def test_bad_documents_change_nothing(store: FolderStore, make: Any, message: str):
    store.add([entry("kept", ["Alpha one."])])
    before, generation = everything(store), store.generation
    document, blocks = make()
    with pytest.raises(ValueError, match=message):
        store.add([entry("good", ["Alpha too."]), (document, blocks)])
    assert everything(store) == before
    assert store.generation == generation
    assert store.verify() == []


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (unit(2, 0), r"vectors of shape \(2, 16\) for a chunk of 2 sentences"),
        (unit(3, 0)[0], r"vectors of shape \(16,\)"),
        (unit(3, 0) * 2, "finite and of length 1, but one has length 2"),
        (unit(3, 0) * np.nan, "finite and of length 1"),
    ],
)
def test_bad_vectors(store: FolderStore, vectors: np.ndarray, message: str):
    document, (block,) = entry("d", ["text here"])
    with pytest.raises(ValueError, match=message):
        store.add([(document, [MemoryBlock(chunk=block.chunk, vectors=vectors)])])


def test_bad_states(tmp_path: Path):
    document, (block,) = entry("d", ["text here"], dim=None)
    with FolderStore.create(tmp_path / "k", config={"memory": "kv"}, vectors="int8") as store:
        for keys, values, message in (
            (torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 5), "document 'd': KV states of shapes"),
            (torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), "KV states of shapes"),
            (torch.full((1, 1, 1, 1), torch.nan), torch.zeros(1, 1, 1, 1), "not finite"),
        ):
            with pytest.raises(ValueError, match=message):
                store.add([(document, [MemoryBlock(chunk=block.chunk, kv=KVStates(keys=keys, values=values))])])
        wrong = KVStates(keys=torch.zeros(1, 2, 3, 4), values=torch.zeros(1, 2, 3, 4), positions=torch.zeros(1, 2, 4))
        with pytest.raises(ValueError, match="positions of shape"):
            store.add([(document, [MemoryBlock(chunk=block.chunk, kv=wrong)])])
        assert store.verify() == []
        assert not list(store.path.glob("kv-*"))
        store.add([(document, [block])])
        with pytest.raises(ValueError, match="its blocks have vectors, but others in the index have none"):
            store.add([entry("e", ["text"])])


def test_the_same_id_twice_in_one_call(store: FolderStore):
    with pytest.raises(ValueError, match="document 'd' is given twice in one call"):
        store.add([entry("d", ["one"]), entry("d", ["two"])])
    assert store.info().documents == 0
    store.add([])
    assert store.generation == 0


def test_nul_bytes_in_text_are_kept(store: FolderStore):
    store.add([entry("d", ["Alpha\0beta. ", "\0"], title="T\0itle")])
    with store.snapshot() as view:
        assert view.document("d").text == "Alpha\0beta. \0"
        assert view.document("d").title == "T\0itle"
        assert view.lexical_index().bm25([["beta"]], 5)[0][0][0] == 1
    store.delete(["d"])
    assert store.verify() == []


@pytest.mark.slow
def test_a_50_mb_single_line():
    line = ("x" * 63 + " ") * (50 << 14) + "last"
    with FolderStore.create(None, config={}, vectors="int8") as store:
        chunks = [Chunk(text=line[:1000]), Chunk(text=line[1000:])]
        store.add([(Document(id="big", text=line), [MemoryBlock(chunk=chunk) for chunk in chunks])])
        with store.snapshot() as view:
            assert view.document("big").text == line
            assert [n for n, _ in view.lexical_index().bm25([["last"]], 5)[0]] == [2]
            begin = time.perf_counter()
            assert view.chunks([1])[0].end == 1000
            assert time.perf_counter() - begin < 0.1, "a chunk is read without its document"


def test_paths(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(ValueError, match="is a file; an index is a folder"):
        FolderStore.create(file, config={}, vectors="int8")
    with pytest.raises(StoreError, match="is a file, not the folder of an index"):
        FolderStore.open(file)
    with pytest.raises(StoreError, match=r"missing' has no index: create one with `compmem add` or MemoryIndex.create"):
        FolderStore.open(tmp_path / "missing")
    (tmp_path / "lost").mkdir()
    (tmp_path / "lost" / "chunks-000000.bin").touch()
    with pytest.raises(StoreError, match=r"has an index without its manifest\.sqlite: it cannot be opened"):
        FolderStore.open(tmp_path / "lost")
    with pytest.raises(ValueError, match="is not empty and has no index"):
        FolderStore.create(tmp_path, config={}, vectors="int8")
    FolderStore.create(tmp_path / "deep" / "er", config={}, vectors="int8").close()
    with pytest.raises(ValueError, match="has an index already"):
        FolderStore.create(tmp_path / "deep" / "er", config={}, vectors="int8")
    for bad, message in (
        ({"config": {"x": object()}, "vectors": "int8"}, "'config' is not JSON"),
        ({"config": {}, "vectors": "int4"}, "vectors='int4' must be one of 'int8', 'fp16'"),
        ({"config": {"kv": "fp8"}, "vectors": "int8"}, "kv='fp8' must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            FolderStore.create(tmp_path / "new", **bad)
    assert not (tmp_path / "new").exists()


def test_leftovers_of_a_dead_create_are_no_obstacle(tmp_path: Path):
    (tmp_path / "writer.lock").touch()
    (tmp_path / "new-compmem-1a").mkdir()
    (tmp_path / "new-compmem-1a" / "manifest.sqlite").write_bytes(b"half")
    with FolderStore.create(tmp_path, config={}, vectors="int8") as store:
        assert store.verify() == []


def test_a_write_removes_what_a_killed_one_left(tmp_path: Path):
    with FolderStore.create(tmp_path / "s", config={}, vectors="int8") as store:
        (tmp_path / "s" / "new-compmem-1a").mkdir()
        (tmp_path / "s" / "new-compmem-1a" / "kv-000001.bin").write_bytes(b"half")
        (tmp_path / "mine").mkdir()
        (tmp_path / "s" / "new-compmem-2b").symlink_to(tmp_path / "mine")
        store.add([entry("d", ["Alpha one."])])
        assert not (tmp_path / "s" / "new-compmem-1a").exists()
        assert (tmp_path / "mine").exists()


def test_another_format_is_refused(tmp_path: Path):
    FolderStore.create(tmp_path / "s", config={}, vectors="int8").close()
    with closing(sqlite3.connect(tmp_path / "s" / "manifest.sqlite")) as raw:
        raw.execute(f"PRAGMA user_version={FORMAT + 6}")
    with pytest.raises(
        IncompatibleStoreError, match=f"has format {FORMAT + 6}, but this version of compmem reads format {FORMAT}"
    ):
        FolderStore.open(tmp_path / "s")


@pytest.mark.parametrize(
    "spoil",
    [
        "DROP TABLE texts",
        "DROP TABLE manifest",
        "CREATE TRIGGER t AFTER INSERT ON texts BEGIN DELETE FROM blocks; END",
        "CREATE VIEW v AS SELECT 1",
        "UPDATE manifest SET value = '{\"generation\": -1}' WHERE name = 'state'",
        "UPDATE manifest SET value = '[]' WHERE name = 'state'",
        "UPDATE manifest SET value = '{' WHERE name = 'config'",
        "UPDATE manifest SET value = '[]' WHERE name = 'config'",
        "DELETE FROM manifest",
        "PRAGMA application_id=7",
    ],
)
def test_a_strangers_manifest_is_refused(tmp_path: Path, spoil: str):
    FolderStore.create(tmp_path / "s", config={}, vectors="int8").close()
    with closing(sqlite3.connect(tmp_path / "s" / "manifest.sqlite")) as raw, raw:
        raw.execute(spoil)
    with pytest.raises(CorruptStoreError):
        FolderStore.open(tmp_path / "s")


def test_bytes_that_are_no_database(tmp_path: Path):
    (tmp_path / "manifest.sqlite").write_bytes(b"hello" * 1000)
    with pytest.raises(CorruptStoreError, match="not a database"):
        FolderStore.open(tmp_path)


@pytest.mark.parametrize(
    "spoil",
    [
        "UPDATE blocks SET row = 99",
        "UPDATE blocks SET row = -5",
        "UPDATE blocks SET row = 'x'",
        "UPDATE blocks SET sentence_row = -1",
        "UPDATE blocks SET sentence_rows = 1000000000",
        "UPDATE texts SET headings = '{}'",
        "UPDATE texts SET spans = x'00'",
        "UPDATE texts SET text = 'other'",
        "UPDATE documents SET metadata = '[]'",
        "UPDATE documents SET metadata = 'x'",
        "UPDATE segments SET rows = 5",
        "DELETE FROM segments",
    ],
)
def test_a_strangers_rows_are_found(tmp_path: Path, spoil: str):
    with FolderStore.create(tmp_path / "s", config={}, vectors="int8") as store:
        store.add([entry("d", ["Alpha one."])])
    with closing(sqlite3.connect(tmp_path / "s" / "manifest.sqlite")) as raw, raw:
        raw.execute(spoil)
    with FolderStore.open(tmp_path / "s") as store:
        assert store.verify() != []
        with store.snapshot() as view, pytest.raises(CorruptStoreError):
            assert view.blocks([1]) and view.vectors().floats() is None


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
@pytest.mark.parametrize("file", ["manifest.sqlite", "chunks-000000.bin", "sentences-000000.bin"])
def test_links_are_not_followed(tmp_path: Path, file: str):
    with FolderStore.create(tmp_path / "s", config={}, vectors="int8") as store:
        store.add([entry("d", ["Alpha one."])])
    (tmp_path / "s" / file).rename(tmp_path / "outside")
    (tmp_path / "s" / file).symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match=r"not a plain file|cannot write"), FolderStore.open(tmp_path / "s") as store:
        store.add([entry("e", ["Beta."])])
    if file == "manifest.sqlite":
        return
    with FolderStore.open(tmp_path / "s") as store, store.snapshot() as view:
        assert "not a plain file" in " ".join(store.verify())
        with pytest.raises(CorruptStoreError, match="not a plain file"):
            view.blocks([1])


@pytest.mark.parametrize(
    "file", ["manifest.sqlite-wal", "manifest.sqlite-shm", "manifest.sqlite-journal", "writer.lock"]
)
def test_what_a_link_points_to_stays_as_it_is(tmp_path: Path, file: str):
    FolderStore.create(tmp_path / "s", config={}, vectors="int8").close()
    outside = tmp_path / "outside"
    outside.write_text("precious")
    (tmp_path / "s" / file).unlink(missing_ok=True)
    (tmp_path / "s" / file).symlink_to(outside)
    refused = pytest.raises(CorruptStoreError, match=f"{file}.* not (a plain file|belong to this index)")
    with refused, FolderStore.open(tmp_path / "s") as store:
        store.add([entry("e", ["Beta."])])
    assert outside.read_text() == "precious"


READ_ONLY = """
    import mmap, os, sys
    from compmem.errors import StoreError
    from compmem.schema import Chunk, Document, MemoryBlock
    from compmem.store import FolderStore
    if os.geteuid() == 0:
        os.setuid(65534)
    store = FolderStore.open(sys.argv[1])
    with store.snapshot() as view:
        print(view.chunks(view.select({"year": 2024}))[0].text, len(view.blocks([1])[0].vectors), store.verify())
    try:
        store.add([(Document(id="e", text="x"), [MemoryBlock(chunk=Chunk(text="x"))])])
    except StoreError as error:
        print(type(error).__name__, error)
"""


def test_a_read_only_folder_is_read(tmp_path: Path):
    folder = tmp_path / "s"
    with FolderStore.create(folder, config={}, vectors="int8") as store:
        store.add([entry("d", ["Alpha one."], metadata={"year": 2024})])
    for parent in [folder, *folder.parents]:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o055)
    folder.chmod(0o555)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(READ_ONLY), str(folder)],
        capture_output=True, text=True, env=os.environ | {"PYTHONPATH": "core", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    folder.chmod(0o755)
    assert "Alpha one. 3 []" in done.stdout, done.stderr
    assert "StoreError cannot lock" in done.stdout, done.stderr
