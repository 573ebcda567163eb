"""The store: documents are returned unchanged, one commit at a time."""

import json
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compmem.errors import StoreError
from compmem.schema import Chunk, Document, MemoryBlock
from compmem.store import FORMAT, FolderStore, content_hash
from compmem.store.folder import Folder
from tests.store_entries import CONFIG, DIM, entry, everything, unit


@pytest.fixture
def store(tmp_path: Path):
    with FolderStore.create(tmp_path / "a.mem", config=CONFIG, vectors="int8") as made:
        yield made


def test_what_goes_in_comes_out(store: FolderStore):
    document, blocks = entry(
        "d", ["Alpha one. Beta. ", "Gamma two. Delta."], title="Greek", metadata={"year": 2024, "tags": ["a", None]}
    )
    store.add([(document, blocks)])
    with store.snapshot() as view:
        assert len(view) == 2
        got = view.blocks(view.document_blocks("d"))
        for block, made in zip(got, blocks, strict=True):
            assert block.chunk.text == made.chunk.text
            assert block.chunk.start == made.chunk.start
            assert block.chunk.sentences == made.chunk.sentences
            assert block.chunk.headings == made.chunk.headings
            assert (block.chunk.title, block.chunk.document_id) == ("Greek", "d")
            assert block.chunk.metadata == {"year": 2024, "tags": ["a", None]}
            assert block.kv is None
            assert np.abs(block.vectors - made.vectors).max() < 0.01
            assert np.allclose(np.linalg.norm(block.vectors, axis=1), 1, atol=1e-6)
        assert np.array_equal(view.vectors().floats(), np.stack([b.vectors[0] for b in got]))
        assert np.array_equal(view.vectors().of(view.select(None)[::-1]), view.vectors().floats()[::-1])
        back = view.document("d")
        assert (back.text, back.title, back.metadata) == (document.text, document.title, document.metadata)
        assert view.document("e") is None
        assert view.document_blocks("e") == []
        (info,) = view.documents()
        assert (info.id, info.characters, info.chunks) == ("d", len(document.text), 2)
    assert store.hashes(["d", "e"]) == {"d": content_hash(document, [b.chunk for b in blocks])}
    assert store.verify() == []


def test_chunks_come_in_the_order_asked(store: FolderStore):
    store.add([entry("d", [f"Text {i}. " for i in range(5)])])
    with store.snapshot() as view:
        assert [c.ordinal for c in view.chunks([4, 2, 2, 5])] == [3, 1, 1, 4]
        with pytest.raises(ValueError, match="block 9 is not in this snapshot"):
            view.chunks([1, 9])


@pytest.mark.parametrize(("kind", "error"), [("int8", 0.01), ("fp16", 0.001)])
def test_vectors_survive_in_both_types(tmp_path: Path, kind: Any, error: float):
    vectors = unit(64, 1, 384)
    with FolderStore.create(tmp_path / "v", config=CONFIG, vectors=kind) as store:
        chunk = Chunk(text="x" * 63, sentences=tuple((i, i + 1) for i in range(63)))
        store.add([(Document(id="d", text=chunk.text), [MemoryBlock(chunk=chunk, vectors=vectors)])])
        with store.snapshot() as view:
            back = view.blocks([1])[0].vectors
            assert np.abs(back - vectors).max() < error
            assert (back * vectors).sum(axis=1).min() > 0.9999 - error / 100
            values, scales = view.vectors().stored()
            assert (scales is None) == (kind == "fp16")
            dense = values.astype(np.float32) * (1 if scales is None else scales[:, None])
            assert np.array_equal(dense, back[:1])


@pytest.mark.parametrize(("kind", "error"), [("bf16", 0), ("int8", 0.03), ("int4", 0.3)])
def test_kv_states_survive(tmp_path: Path, kind: str, error: float):
    document, (first, second) = entry("d", ["one. two. ", "three."], kv=True, dim=None)
    positions = torch.arange(first.kv.keys.shape[2], dtype=torch.int32).expand(first.kv.keys.shape[:3])
    made = document, [replace(first, kv=replace(first.kv, positions=positions)), second]
    with FolderStore.create(None, config={"kv": kind}, vectors="int8") as store:
        store.add([made])
        store.add([entry("e", ["four."], kv=True, dim=None, seed=7)])
        for _ in range(2):
            with store.snapshot() as view:
                for block, original in zip(view.blocks(view.document_blocks("d")), made[1], strict=True):
                    assert block.vectors is None
                    assert block.kv.keys.dtype == torch.bfloat16
                    assert (block.kv.keys - original.kv.keys).abs().max() <= error
                    assert (block.kv.values - original.kv.values).abs().max() <= error
                found = [block.kv.positions for block in view.blocks(view.document_blocks("d"))]
                assert torch.equal(found[0], positions)
                assert found[1] is None
                assert len(view.vectors()) == 0
            assert store.verify() == []
            store.delete(["e"])
            store.compact()
        assert store.info().kv_bytes > 0


def test_compact_gives_bytes_back_and_keeps_the_rest(store: FolderStore):
    store.add([entry(f"d{i}", [f"Alpha {i}. Part. ", "Beta."], seed=i) for i in range(20)])
    store.delete([f"d{i}" for i in range(0, 20, 2)])
    before, info = everything(store), store.info()
    assert (info.documents, info.blocks, info.deleted) == (10, 20, 20)
    store.compact()
    after = store.info()
    assert everything(store) == before
    assert after.deleted == 0
    assert after.vector_bytes == info.vector_bytes // 2
    assert store.verify() == []
    assert sorted(os.listdir(store.path)) == sorted(
        {"chunks-000001.bin", "sentences-000001.bin", "writer.lock"}
        | {n for n in os.listdir(store.path) if n.startswith("manifest")}
    )
    store.add([entry("new", ["Alpha again."])])
    assert store.verify() == []


def test_compact_of_an_empty_store(store: FolderStore):
    store.compact()
    store.add([entry("d", ["Alpha."])])
    store.delete(["d"])
    store.compact()
    with store.snapshot() as view:
        assert len(view) == 0
        assert view.vectors().floats().shape == (0, DIM)
        assert view.lexical_index().bm25([["alpha"]], 5)[0] == []
    assert store.verify() == []


def test_snapshot_outlives_replace_delete_and_compact(store: FolderStore):
    store.add([entry("d", ["Alpha one. ", "Beta."]), entry("e", ["Gamma."], seed=5)])
    with store.snapshot() as old:
        store.add([entry("d", ["Other."], seed=9)])
        store.delete(["e"])
        store.compact()
        with store.snapshot() as new:
            assert [c.text for c in new.chunks(new.select(None))] == ["Other."]
        assert [c.text for c in old.chunks(old.select(None))] == ["Alpha one. ", "Beta.", "Gamma."]
        assert old.vectors().floats().shape == (3, DIM)
        assert old.blocks(old.select(None))[2].vectors.shape == (3, DIM)
        assert old.lexical_index().bm25([["gamma"]], 5)[0][0][0] == 3
        assert (store.path / "chunks-000000.bin").exists()
    store.add([entry("f", ["Delta."])])
    assert not (store.path / "chunks-000000.bin").exists(), "the next write sweeps what the old reader held"
    assert store.verify() == []


def test_a_write_succeeds_though_old_files_cannot_be_removed(store: FolderStore, monkeypatch, caplog):
    store.add([entry("d", ["Alpha one."])])
    with store.snapshot():
        store.compact()

    def failing(*args):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "sweep", failing)
        store.add([entry("e", ["Beta."])])
    assert "could not be removed" in caplog.text
    assert (store.path / "chunks-000000.bin").exists()
    store.add([entry("f", ["Gamma."])])
    assert not (store.path / "chunks-000000.bin").exists()
    assert store.verify() == []


def test_generation_grows_and_numbers_are_never_reused(store: FolderStore):
    seen = [store.generation]
    store.add([entry("d", ["Alpha."])])
    seen.append(store.generation)
    store.delete(["d"])
    seen.append(store.generation)
    store.put_meta("encoder", {"name": "x"})
    seen.append(store.generation)
    store.add([entry("d", ["Alpha."])])
    seen.append(store.generation)
    assert seen == sorted(set(seen))
    with store.snapshot() as view:
        assert view.select(None).tolist() == [2]
        assert view.generation == seen[-1]
    assert store.delete(["no such", "d", "d", "lone \ud800", "nul \0"]) == 1
    assert store.get_meta("encoder") == {"name": "x"}
    assert store.get_meta("other") is None
    with pytest.raises(ValueError, match="not JSON"):
        store.put_meta("bad", {1, 2})


def test_cached_arrays_follow_other_writers(tmp_path: Path):
    with (
        FolderStore.create(tmp_path / "s", config=CONFIG, vectors="int8") as writer,
        FolderStore.open(tmp_path / "s") as reader,
    ):
        for i in range(5):
            writer.add([entry(f"d{i}", ["Alpha. ", f"Text {i}."], seed=i)])
            with reader.snapshot() as view:
                assert view.select(None).tolist() == list(range(1, 2 * i + 3))
                assert len(view.vectors().floats()) == 2 * i + 2
        writer.delete(["d0", "d3"])
        with reader.snapshot() as view:
            assert view.select(None).tolist() == [3, 4, 5, 6, 9, 10]
            assert np.array_equal(view.vectors().floats(1, 3), np.stack([b.vectors[0] for b in view.blocks([4, 5])]))
            with pytest.raises(ValueError, match="has no vector"):
                view.vectors().of([1])


def test_config_and_info_survive_reopening(tmp_path: Path):
    FolderStore.create(tmp_path / "s", config={"a": [1, {"b": None}]}, vectors="fp16").close()
    with FolderStore.open(str(tmp_path / "s")) as store:
        assert store.config == {"a": [1, {"b": None}]}
        store.add([entry("d", ["Alpha one. Beta."], dim=8)])
        info = store.info()
        assert (info.documents, info.blocks, info.sentences, info.characters, info.dim) == (1, 1, 2, 16, 8)
        assert info.vector_bytes == 3 * 16
        assert info.format == FORMAT
        assert info.text_bytes > 0


def test_a_temporary_store_goes_when_closed():
    store = FolderStore.create(None, config={}, vectors="int8")
    store.add([entry("d", ["Alpha."])])
    store.close()
    assert not store.path.exists()
    with pytest.raises(StoreError, match="closed"):
        _ = store.generation


# Threads


def test_snapshots_nest_and_wander_between_threads(store: FolderStore):
    store.add([entry("d", ["Alpha one. ", "Beta."])])
    seen: list[int] = []
    with store.snapshot() as outer, store.snapshot() as inner:
        threads = [
            threading.Thread(target=lambda v=v: seen.append(len(v.chunks(v.select(None))))) for v in (outer, inner) * 4
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == [2] * 8


def test_a_view_does_not_outlive_its_block(store: FolderStore):
    store.add([entry("d", ["Alpha one."])])
    with store.snapshot() as view:
        rest = view.documents()
    with pytest.raises(StoreError, match="closed"):
        next(rest)
    with pytest.raises(StoreError, match="closed"):
        view.chunks([1])


def test_threads_add_at_once(store: FolderStore):
    def add(i: int) -> None:
        for j in range(5):
            store.add([entry(f"d{i}-{j}", ["Alpha. ", "Beta."], seed=i)])

    threads = [threading.Thread(target=add, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.info().blocks == 40
    assert store.verify() == []


def test_the_writers_lock_may_be_held_over_calls(store: FolderStore):
    with store.writing():
        store.add([entry("d", ["Alpha."])])
        with store.writing():
            store.delete(["d"])
        store.compact()
    assert json.loads(json.dumps(store.info().documents)) == 0
