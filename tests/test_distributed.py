"""Building on Ray: the documents and vectors that one process makes, once each, and clear errors."""

import os
import sys

import pytest

from compmem import Document, IncompatibleStoreError, IndexConfig, MemoryIndex
from tests.hashing import HashEncoder

pytest.importorskip("ray", reason="Ray is not installed: pip install 'compmem[ray]'")

import pyarrow as pa

from compmem import distributed

CONFIG = IndexConfig(encoder=HashEncoder(), chunk_tokens=64)


def documents(version=0):
    """Twenty documents; every fifth differs in each version."""
    made = []
    for n in range(20):
        text = " ".join(f"House {n} has {i} doors." for i in range(n + 1))
        changed = f"Version {version}." if n % 5 == 0 else ""
        made.append(Document(id=f"d{n}", title=f"House {n}", text=text + changed, metadata={"even": n % 2 == 0}))
    return made


def contents(index):
    """The chunks of an index and their vectors, by name."""
    with index.store.snapshot() as snapshot:
        blocks = snapshot.blocks(snapshot.select(None))
    assert len({b.chunk.id for b in blocks}) == len(blocks)
    return {b.chunk.id: (b.chunk, b.vectors.tobytes()) for b in blocks}


@pytest.fixture(scope="module")
def cluster():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        with distributed.ray_cluster("local"):
            yield


@pytest.mark.slow  # a Ray cluster takes half a minute
@pytest.mark.timeout(600)
def test_a_dataset_makes_the_index_that_one_process_makes(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(distributed, "MAX_WRITERS", 1)
    counted = []
    settings = {"shards": 2, "config": CONFIG, "batch_size": 8, "on_batch": counted.append}
    assert distributed.build(distributed.dataset_of(documents()[:15]), tmp_path / "a", **settings) == 15
    assert sum(counted) == 15
    assert distributed.build(distributed.dataset_of(documents(1)), tmp_path / "a", **settings) == 3 + 5
    with (
        MemoryIndex.open(tmp_path / "a", encoder=CONFIG.encoder) as built,
        MemoryIndex.create(None, CONFIG) as whole,
    ):
        whole.add(documents(1))
        assert contents(built) == contents(whole)
        assert built.verify() == []
        before = len(built)
        twice = [*documents(1), Document(id="d3", text="Another text.")]
        with pytest.raises(ValueError, match=r"^document id 'd3' is given twice, with different content$"):
            distributed.add_dataset(built, distributed.dataset_of(twice), batch_size=4)
        assert len(built) == before
    with pytest.raises(IncompatibleStoreError, match="made with shards=2, not 3"):
        distributed.build(distributed.dataset_of(documents()), tmp_path / "a", **settings | {"shards": 3})


def test_rows_become_documents():
    rows = pa.table({
        "id": [1, 2], "text": ["One.", "Two."], "title": [None, "Second"], "other": [b"x", b"y"],
        "metadata": [{"year": 1990, "of": None}, None],
    })  # fmt: skip
    first, second = distributed._documents(rows)
    assert (first.id, first.title, first.text, first.metadata) == ("1", "", "One.", {"year": 1990})
    assert (second.id, second.title, second.metadata) == ("2", "Second", {})
    as_text = pa.table({"id": ["a"], "text": ["A."], "metadata": ['{"of": null}']})
    assert distributed._documents(as_text)[0].metadata == {"of": None}
    for columns, message in (
        ({"id": ["a"]}, "no column 'text'"),
        ({"id": [None], "text": ["A."]}, "document 'None': it has no id"),
        ({"id": ["a"], "text": [1]}, "document 'a': 'text' is missing or empty"),
        ({"id": ["a"], "text": ["A."], "metadata": ["{"]}, "document 'a': Expecting property name"),
        ({"id": ["a"], "text": ["A."], "metadata": ["[1]"]}, "'metadata' must be a JSON object"),
        ({"id": ["a", "a"], "text": ["A.", "B."]}, "given twice"),
    ):
        with pytest.raises(ValueError, match=message):
            distributed._documents(pa.table(columns))
    twice = pa.table({"id": ["a", "b", "a"], "text": ["A.", "B.", "A."]})
    assert [document.id for document in distributed._documents(twice)] == ["a", "b"]
    with pytest.raises(ValueError, match="split already"):
        distributed._row(Document(id="a", chunks=["One. ", "Two."]))


def test_addresses_of_ray_clients_are_refused():
    with (
        pytest.raises(ValueError, match="on a machine of the cluster"),
        distributed.ray_cluster("ray://10.0.0.1:10001"),
    ):
        pass
