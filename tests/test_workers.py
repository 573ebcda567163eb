"""Adding with several processes: the index that one process makes, and clear errors where a worker cannot work."""

import json
import os
import signal
import sys

import pytest
import torch
from typer.testing import CliRunner

import compmem
from compmem import Document, IndexConfig, MemoryIndex, WorkerError
from compmem.cli import app
from compmem.ingest import pipeline
from tests.hashing import HashEncoder

WORDS = "lease harbour clock mill rent owner roof ship crane audit letter bridge".split()


def documents(count=40, version=0):
    """Documents of one to several chunks; every fifth differs in each version."""
    made = []
    for n in range(count):
        changed = version if n % 5 == 0 else 0
        lines = [f"The {WORDS[(n + i) % 12]} {n} of {changed} has a {WORDS[(n * i) % 12]}." for i in range(n % 30 + 1)]
        made.append(Document(id=f"d{n}", title=f"Note {n}", text=" ".join(lines), metadata={"number": n}))
    return made


def contents(index):
    """All that an index holds, in the order of its blocks."""
    with index.store.snapshot() as snapshot:
        blocks = snapshot.blocks(snapshot.select(None))
    return [(b.chunk, b.vectors.tobytes()) for b in blocks]


class KilledEncoder(HashEncoder):
    """An encoder whose process is killed when it is shown a text of document 31."""

    def encode(self, texts):
        if any(" 31 of" in text for text in texts):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(texts)


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    monkeypatch.setattr(pipeline, "TASK_CHARACTERS", 2000)


def test_workers_make_the_index_that_one_process_makes(tmp_path):
    config = IndexConfig(encoder=HashEncoder(), chunk_tokens=64)
    with (
        MemoryIndex.create(tmp_path / "one", config) as one,
        MemoryIndex.create(tmp_path / "many", config) as many,
    ):
        one.add(documents(30))
        many.add(documents(30))
        assert many.add(documents(40, version=1), workers=2) == one.add(documents(40, version=1)) == 16
        assert contents(many) == contents(one)
        assert many.verify() == []


@pytest.mark.skipif(os.name != "posix", reason="kills a process")
def test_a_killed_worker_is_an_error_and_adding_again_completes(tmp_path):
    with MemoryIndex.create(tmp_path / "a", IndexConfig(encoder=KilledEncoder(), chunk_tokens=64)) as index:
        with pytest.raises(WorkerError, match="add the same documents again"):
            index.add(documents(), workers=1)
        assert 0 < len(index.documents()) < 31
    harmless = type("KilledEncoder", (HashEncoder,), {})()  # an index keeps the name of its encoder's class
    with MemoryIndex.open(tmp_path / "a", encoder=harmless) as index:
        index.add(documents())
        assert [d.id for d in index.documents()] == [d.id for d in documents()]
        assert index.verify() == []


def test_what_is_wrong_is_told_as_in_one_process(tmp_path):
    with MemoryIndex.create(tmp_path / "a", IndexConfig(encoder=HashEncoder())) as index:
        with pytest.raises(ValueError, match="'empty' has no text"):
            index.add([Document(id="empty", text=" ")], workers=1)
        for number in (0, -1, True, "2"):
            with pytest.raises(ValueError, match="workers="):
                index.add(documents(), workers=number)
    local = type("Local", (HashEncoder,), {})()  # no other process finds this class
    with (
        MemoryIndex.create(tmp_path / "b", IndexConfig(encoder=local)) as index,
        pytest.raises(ValueError, match="cannot be sent"),
    ):
        index.add(documents(), workers=2)


@pytest.mark.slow
def test_workers_make_kv_memory(tmp_path):
    config = IndexConfig(memory="kv", backbone="embedded", chunk_tokens=96, encoder=None)
    with (
        MemoryIndex.create(tmp_path / "one", config) as one,
        MemoryIndex.create(tmp_path / "many", config) as many,
    ):
        one.add(documents(8))
        many.add(documents(8), workers=2)
        with one.store.snapshot() as left, many.store.snapshot() as right:
            numbers = left.select(None)
            for a, b in zip(left.kv_states(numbers), right.kv_states(right.select(None)), strict=True):
                assert torch.equal(a.keys, b.keys) and torch.equal(a.values, b.values)
        for fact in ("backbone", "kv written"):
            assert many.store.get_meta(fact) == one.store.get_meta(fact) is not None


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("option", [("--workers", "2"), ("--ray", "local")])
def test_the_command_adds_side_by_side(tmp_path, monkeypatch, option):
    if option[0] == "--ray":
        pytest.importorskip("ray", reason="Ray is not installed: pip install 'compmem[ray]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    for document in documents(6):
        (tmp_path / f"{document.id}.txt").write_text(document.text)
    (tmp_path / "more.jsonl").write_text('{"id": "line", "text": "The mill burned in 1920."}\n')
    (tmp_path / "bad.pdf").write_bytes(b"%PDF-1.7 and no more")
    for added in (7, 0):
        done = CliRunner().invoke(app, ["add", str(tmp_path / "a.mem"), str(tmp_path), *option, "--json"])
        assert done.exit_code == 1, done.output
        counts = json.loads(done.stdout)
        assert (counts["added"], counts["unchanged"], counts["documents"]) == (added, 7 - added, 7)
        assert [str(tmp_path / "bad.pdf") in error for error in counts["errors"]] == [True]


def test_without_ray_the_command_says_how_to_install_it_and_makes_no_index(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "compmem.distributed", raising=False)
    monkeypatch.delattr(compmem, "distributed", raising=False)
    (tmp_path / "a.txt").write_text("The mill burned in 1920.")
    done = CliRunner().invoke(app, ["add", str(tmp_path / "a.mem"), str(tmp_path / "a.txt"), "--ray", "local"])
    assert done.exit_code == 1
    assert "pip install 'compmem[ray]'" in " ".join(done.output.split())
    assert not (tmp_path / "a.mem").exists()
