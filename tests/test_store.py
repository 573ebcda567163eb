"""The store: documents are returned unchanged, one commit at a time, and filters decide what is visible."""

import json
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compmem.errors import CorruptStoreError, IncompatibleStoreError, StoreError
from compmem.schema import Chunk, Document, KVStates, MemoryBlock
from compmem.store import FORMAT, FolderStore, content_hash
from compmem.store.folder import Folder
from compmem.text.tokenize import content_terms, name, possible_names, terms

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


@pytest.fixture
def store(tmp_path: Path):
    with FolderStore.create(tmp_path / "a.mem", config=CONFIG, vectors="int8") as made:
        yield made


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


# Lexical index and names


def test_lexical_search_in_several_scripts(store: FolderStore):
    texts = {
        "en": "The insurances were paid by tenants.",
        "de": "Die Größe der Straße beträgt 12 Meter.",
        "ko": "서울은 대한민국의 수도이다.",
        "ja": "東京都は日本の首都です。",
        "zh": "北京是中国的首都。",
    }
    store.add([entry(language, [text], title=language.upper()) for language, text in texts.items()])

    def best(query: str) -> list[str]:
        with store.snapshot() as view:
            return [
                view.chunks([n])[0].document_id for n, _ in view.lexical_index().bm25([content_terms(query)], 10)[0]
            ]

    assert best("insurance tenant") == ["en"]
    assert best("groesse strasse")[:1] == ["de"]
    assert best("grosse")[:1] == ["de"]
    assert best("대한민국")[:1] == ["ko"]
    assert best("東京")[:1] == ["ja"]
    assert best("中国的首都")[:1] == ["zh"]
    assert best("nothing") == []


def test_lexical_ranks_limits_and_weighs_titles(store: FolderStore):
    store.add(
        [
            entry("body", ["Saturn and other words, filler filler filler filler."]),
            entry("title", ["Some other words, filler filler filler filler filler."], title="Saturn"),
            *(entry(f"x{i}", ["Other words, filler."], seed=i) for i in range(20)),
        ]
    )
    with store.snapshot() as view:
        found = view.lexical_index().bm25([["saturn", "saturn"]], 10)[0]
        assert [view.chunks([n])[0].document_id for n, _ in found] == ["title", "body"]
        assert found[0][1] > found[1][1] > 0
        assert len(view.lexical_index().bm25([["filler"]], 3)[0]) == 3
        assert view.lexical_index().bm25([["filler"]], 0)[0] == []
        assert view.lexical_index().bm25([[]], 3)[0] == []
        assert [n for n, _ in view.lexical_index(np.array([5, 7])).bm25([["filler", "saturn"]], 9)[0]] == [5, 7]
        assert view.lexical_index(np.array([], np.int64)).bm25([["filler"]], 9)[0] == []
        assert view.lexical_index().document_frequency(["filler", "saturn", "no"]) == {
            "filler": 22,
            "saturn": 2,
            "no": 0,
        }


@pytest.mark.parametrize("term", ['"', '" OR "', "a*", "NEAR(a b)", "title:x", "-", "\0", "\ud800", "", "x" * 100_000])
def test_terms_are_never_query_syntax(store: FolderStore, term: str):
    store.add([entry("d", ["a b c NEAR title x"])])
    with store.snapshot() as view:
        assert all(n == 1 for n, _ in view.lexical_index().bm25([[term, "near"]], 5)[0])
        assert view.lexical_index().bm25([["near"]], 5)[0]
        view.lexical_index().phrases([[term]], 5)
        view.lexical_index().blocks_by_name([term])


def test_phrases(store: FolderStore):
    store.add([entry("d", ["The old house stood. ", "A house, old and grey. ", "Old houses."])])
    with store.snapshot() as view:
        assert view.lexical_index().phrases([["old", "house"]], 5)[0] == [1, 3]
        assert view.lexical_index().phrases([["old", "house"]], 1)[0] == [1]
        assert view.lexical_index(np.array([2, 3])).phrases([["old", "house"]], 5)[0] == [3]
        assert view.lexical_index().phrases([[]], 5)[0] == []


def test_names(store: FolderStore):
    store.add(
        [
            entry("a", ["class json.Decoder is here.\n", "x"], title="Json (module)"),
            entry("b", ["“Premises” means the house."], title="Lease"),
            entry("c", [f"Part {i}. " for i in range(100)], title="Long"),
        ]
    )
    with store.snapshot() as view:
        asked = ["json module", "json", "premises", "lease", "part 1", "json decoder", "nothing", name("LEASE")]
        found = view.lexical_index().blocks_by_name(asked)
        assert found["json module"] == found["json"] == [(1, "title"), (2, "title")]
        assert found["premises"] == [(3, "term")]
        assert found["lease"] == [(3, "title")]
        assert found["json decoder"] == [(1, "term")]
        assert (2, "heading") in found["part 1"]
        assert "nothing" not in found
        assert len(view.lexical_index().blocks_by_name(["long"], per_name=7)["long"]) == 7
        asked = possible_names("what does the lease say of the premises?")
        assert view.lexical_index().blocks_by_name(asked).keys() == {"lease", "premises"}
        strange = [
            "\0",
            "\ud800",
            "",
            "'",
            '"',
            "\\",
            "]",
            "null",
            "1",
            "lease\0",
            "x" * 100_000,
            *map(str, range(10_000)),
        ]
        assert view.lexical_index().blocks_by_name(["long", *strange, "lease"], 1) == {
            "long": [(4, "title")],
            "lease": [(3, "title")],
        }
    store.delete(["b"])
    with store.snapshot() as view:
        assert view.lexical_index().blocks_by_name(["premises", "lease"]) == {}
    assert store.verify() == []


def test_names_are_compared_as_text_whatever_their_characters(store: FolderStore):
    titles = ["007", "\U00020000\u0301x", "null", "1e3", "Straße 東京"]
    store.add([entry(f"d{i}", ["A text."], title=title, seed=i) for i, title in enumerate(titles)])
    with store.snapshot() as view:
        asked = [name(title) for title in reversed(titles)]
        assert list(view.lexical_index().blocks_by_name(asked)) == asked
        assert view.lexical_index().blocks_by_name(["7", "1000", "0"]) == {}


def test_another_cut_of_terms_is_indexed_anew(store: FolderStore):
    store.add([entry("d", ["Alpha one."]), entry("e", ["Beta two."])])
    with closing(sqlite3.connect(store.path / "manifest.sqlite")) as raw, raw:
        raw.execute("UPDATE manifest SET value = '\"of another version\"' WHERE name = 'terms'")
        raw.execute("INSERT INTO lexical(lexical, rowid, title, body) VALUES ('delete', 1, '', 'part 0 alpha one')")
        raw.execute("INSERT INTO lexical(rowid, title, body) VALUES (1, '', 'teil 0 alpha eins')")
    store.delete(["e"])
    with store.snapshot() as view:
        assert view.lexical_index().bm25([["one"]], 5)[0][0][0] == 1
        assert view.lexical_index().bm25([["eins"]], 5)[0] == []
    assert store.verify() == []


# Filters

RECORDS: list[dict[str, Any]] = [
    {},
    {"year": 2024, "lang": "en", "tags": ["a", "b"], "ok": True},
    {"year": 2020.5, "lang": "DE", "tags": [], "ok": False},
    {"year": "2024", "lang": "", "tags": ["b", 1, None], "ok": 1},
    {"year": None, "lang": "Straße", "tags": "ab", "and": 1, "or": [1], "not": "x"},
    {"document_id": "own", "title": 7, 'odd "key" \\ $.x': 1, "": "empty", "nested": {"a": 1}},
]


@pytest.fixture(scope="module")
def filtered():
    with FolderStore.create(None, config={}, vectors="int8") as store:
        store.add(
            [entry(f"r{i}", ["Text. "], title=f"T{i}", dim=None, metadata=record) for i, record in enumerate(RECORDS)]
        )
        yield store


def admitted(store: FolderStore, wanted: Any) -> list[int]:
    with store.snapshot() as view:
        numbers = (view.select(wanted) - 1).tolist()
        assert [int(d.id[1:]) for d in view.documents(wanted)] == numbers
        return numbers


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5]),
        ([], [0, 1, 2, 3, 4, 5]),
        ({"year": 2024}, [1]),
        ({"year": {"==": "2024"}}, [3]),
        ({"year": None}, [0, 4, 5]),
        ({"year": {"!=": 2024}}, [0, 2, 3, 4, 5]),
        ({"year": {">=": 2020, "<": 2024}}, [2]),
        ({"year": {">": "2"}}, [3]),
        ({"ok": True}, [1]),
        ({"ok": 1}, [3]),
        ({"ok": {"in": [False, None]}}, [0, 2, 4, 5]),
        ({"lang": {"not in": ["en", ""]}}, [0, 2, 4, 5]),
        ({"tags": {"any": ["a", 1]}}, [1, 3]),
        ({"tags": {"all": ["a", "b"]}}, [1]),
        ({"tags": {"all": []}}, [1, 2, 3]),
        ({"tags": {"any": []}}, []),
        ({"tags": {"contains": "b"}}, [1, 3, 4]),
        ({"tags": {"contains": None}}, [3]),
        ({"lang": {"text match": "d"}}, [2]),
        ({"lang": {"text match": "STRASSE"}}, [4]),
        ({"tags": {"is empty": True}}, [0, 2, 5]),
        ({"lang": {"is empty": False}}, [1, 2, 4]),
        ([{"year": {"is empty": False}}, {"tags": {"is empty": False}}], [1, 3]),
        ({"or": [{"year": 2024}, {"lang": "DE"}]}, [1, 2]),
        ({"not": {"or": [{"year": 2024}, {"lang": "DE"}]}}, [0, 3, 4, 5]),
        ({"and": [{"not": {"ok": True}}, {"not": {"not": {"lang": "DE"}}}]}, [2]),
        ({"and": {"==": 1}}, [4]),
        ({"or": {"any": [1]}}, [4]),
        ({"not": {"==": "x"}}, [4]),
        ({"document_id": {"in": ["r2", "r5", "own"]}}, [2, 5]),
        ({"document_id": {"!=": "r2"}}, [0, 1, 3, 4, 5]),
        ({"title": "T3"}, [3]),
        ({"title": 7}, [5]),
        ({'odd "key" \\ $.x': 1}, [5]),
        ({"": "empty"}, [5]),
        ({"x' OR 1=1 --": 1}, []),
        ({"lang": {"in": ["x"] * 5000 + ["en"]}}, [1]),
        ({"or": [{"year": i} for i in range(1900, 2100)]}, [1]),
    ],
)
def test_filters(filtered: FolderStore, wanted: Any, expected: list[int]):
    assert admitted(filtered, wanted) == expected


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"year": {"=~": 1}}, r"unknown filter operator '=~' for 'year'; there are ==, !=, >"),
        ({"year": {"==": 1, "near": 2}}, "unknown filter operator 'near'"),
        ({"year": {}}, "'year' has no operator; there are =="),
        ({"year": [1, 2]}, r"'year': '==' takes a string, a number, true, false or null, not \[1, 2\]"),
        ({"year": {">": True}}, "'>' takes a number or a string, not True"),
        ({"year": {">": None}}, "'>' takes a number or a string"),
        ({"year": {"<": float("nan")}}, "nan is not a JSON number"),
        ({"year": {"in": "abc"}}, "'in' takes a list, not 'abc'"),
        ({"year": {"any": 1}}, "'any' takes a list"),
        ({"year": {"all": [[1]]}}, "'all' takes a string, a number"),
        ({"year": {"text match": 1}}, "'text match' takes a string"),
        ({"year": {"is empty": 1}}, "'is empty' takes true or false"),
        ({"year": "a\0b"}, "NUL"),
        ({"and": {"x": 1}}, "'and' takes a list of filters"),
        ({"or": []}, "'or' takes a list of filters"),
        ({"not": 3}, "a filter is a mapping"),
        ({1: 2}, "filter key 1 must be a string"),
        ("year = 2024", "a filter is a mapping"),
    ],
)
def test_bad_filters(filtered: FolderStore, wanted: Any, message: str):
    with pytest.raises(ValueError, match=message):
        admitted(filtered, wanted)


def test_filters_may_be_nested_but_not_for_ever(filtered: FolderStore):
    def nested(levels: int) -> Any:
        wanted: Any = {"or": [{"year": i} for i in range(500)] + [{"year": {"all": ["x"] * 500}}, {"year": 2024}]}
        for _ in range(levels):
            wanted = {"not": {"and": [wanted, {}]}}
        return wanted

    assert admitted(filtered, nested(2)) == [1]
    assert admitted(filtered, nested(15)) == [0, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="32 levels deep"):
        admitted(filtered, nested(20))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.5, 1.0, -2.5]),
    st.sampled_from(["", "a", "A", "ab", "é", "1"]),
)
METADATA = st.dictionaries(
    st.sampled_from(["a", "b", "title", "k.e'y\""]), st.one_of(VALUES, st.lists(VALUES, max_size=3)), max_size=4
)
LEAVES = st.one_of(
    st.tuples(st.sampled_from(["==", "!=", "contains"]), VALUES),
    st.tuples(
        st.sampled_from([">", ">=", "<", "<="]), VALUES.filter(lambda v: v is not None and not isinstance(v, bool))
    ),
    st.tuples(st.sampled_from(["in", "not in", "any", "all"]), st.lists(VALUES, max_size=3)),
    st.tuples(st.just("text match"), st.sampled_from(["", "a", "AB", "É"])),
    st.tuples(st.just("is empty"), st.booleans()),
)
FILTERS = st.recursive(
    st.dictionaries(
        st.sampled_from(["a", "b", "title", "document_id", "k.e'y\""]),
        st.lists(LEAVES, min_size=1, max_size=2).map(dict),
        min_size=1,
        max_size=2,
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.builds(
            lambda word, parts: {word: parts}, st.sampled_from(["and", "or"]), st.lists(inner, min_size=1, max_size=3)
        ),
        st.builds(lambda part: {"not": part}, inner),
    ),
    max_leaves=6,
)


def holds(wanted: Any, data: dict[str, Any]) -> bool:
    """The meaning of a filter, computed naively."""
    if isinstance(wanted, list):
        return all(holds(part, data) for part in wanted)
    for key, value in wanted.items():
        if key in ("and", "or"):
            ok = (all if key == "and" else any)(holds(part, data) for part in value)
        else:
            ok = not holds(value, data) if key == "not" else all(leaf(o, data.get(key), v) for o, v in value.items())
        if not ok:
            return False
    return True


def leaf(operator: str, have: Any, v: Any) -> bool:
    def same(x: Any, y: Any) -> bool:
        return isinstance(x, bool) == isinstance(y, bool) and x == y

    def number(x: Any) -> bool:
        return isinstance(x, int | float) and not isinstance(x, bool)

    comparable = (number(have) and number(v)) or (isinstance(have, str) and isinstance(v, str))
    listed = have if isinstance(have, list) else None
    return {
        "==": lambda: not isinstance(have, list) and same(have, v),
        "!=": lambda: not leaf("==", have, v),
        ">": lambda: comparable and have > v,
        ">=": lambda: comparable and have >= v,
        "<": lambda: comparable and have < v,
        "<=": lambda: comparable and have <= v,
        "in": lambda: any(leaf("==", have, x) for x in v),
        "not in": lambda: not leaf("in", have, v),
        "any": lambda: listed is not None and any(same(x, y) for x in listed for y in v),
        "all": lambda: listed is not None and all(any(same(x, y) for x in listed) for y in v),
        "contains": lambda: leaf("any", have, [v]) or (isinstance(have, str) and isinstance(v, str) and v in have),
        "text match": lambda: isinstance(have, str) and v.casefold() in have.casefold(),
        "is empty": lambda: (have in (None, "") or have == []) == v,
    }[operator]()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(METADATA, min_size=1, max_size=6), st.lists(FILTERS, min_size=1, max_size=12))
def test_filters_mean_what_python_means(records: list[dict[str, Any]], filters: list[Any]):
    with FolderStore.create(None, config={}, vectors="int8") as store:
        store.add([entry(f"r{i}", ["x"], title=f"T{i}", dim=None, metadata=record) for i, record in enumerate(records)])
        for wanted in filters:
            own = [{"document_id": f"r{i}", "title": f"T{i}", **record} for i, record in enumerate(records)]
            assert admitted(store, wanted) == [i for i, data in enumerate(own) if holds(wanted, data)], wanted


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
