"""An index can be copied, and recall reports its steps."""

import asyncio
import threading

import pytest

from compmem import Document, LoopConfig, MemoryIndex
from tests.frameworks_langchain import QUESTION, HashingEncoder, make_index


def _filled(path=None):
    index = make_index(path)
    index.add([Document(id="a", text="Tarnhill is a town."), Document(id="b", text="Elena Marsh invented the Orchid.")])
    return index


def test_a_copy_in_another_folder_is_whole_and_its_own(tmp_path):
    index = _filled(tmp_path / "one")
    index.copy_to(tmp_path / "two")
    index.delete(["a"])
    index.add([Document(id="c", text="The river Esk.")])
    with MemoryIndex.open(tmp_path / "two", encoder=HashingEncoder()) as copied:
        assert [d.id for d in copied.documents()] == ["a", "b"]
        assert copied.verify() == []
        copied.add([Document(id="d", text="Jonas Veld plays the cello.")])
        assert copied.recall("Who plays the cello?", k=1)[0].chunk.document_id == "d"
    assert [d.id for d in index.documents()] == ["b", "c"]


def test_an_empty_index_can_be_copied(tmp_path):
    make_index(tmp_path / "one").copy_to(tmp_path / "two")
    with MemoryIndex.open(tmp_path / "two", encoder=HashingEncoder()) as copied:
        assert len(copied) == 0


def test_a_copy_never_overwrites(tmp_path):
    index = _filled(tmp_path / "one")
    with pytest.raises(ValueError, match="has an index already"):
        index.copy_to(tmp_path / "one")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("x")
    with pytest.raises(ValueError, match="not empty"):
        index.copy_to(tmp_path / "full")


class _Noting:
    """A reader that records what it reads and in which thread."""

    def __init__(self):
        self.threads = []

    def read(self, question, memory, blocks):
        raise AssertionError("an async caller reads with aread")

    async def aread(self, question, memory, blocks):
        from compmem import Reading, WorkingMemory

        self.threads.append(threading.current_thread())
        text = "\n".join([memory.text, *(b.chunk.text for b in blocks)])
        return Reading(memory=WorkingMemory(text=text), update=True, exit=False)


def test_recalling_tells_of_each_step():
    index, seen, config = _filled(), [], LoopConfig(gate="off")
    found = index.recall(QUESTION, k=2, config=config, on_step=seen.append)
    assert [s.number for s in seen] == list(range(1, len(seen) + 1))
    assert {r.chunk.id for s in seen for r in s.recalls} <= {r.chunk.id for r in found}
    again = []
    assert asyncio.run(index.arecall(QUESTION, k=2, config=config, on_step=again.append)) == found
    assert [s.recalls for s in again] == [s.recalls for s in seen] != []


def test_recalling_with_a_reader_of_ones_own_tells_of_each_step_too():
    index, seen, reader = _filled(), [], _Noting()
    config = LoopConfig(gate="off")
    found = asyncio.run(index.arecall(QUESTION, k=2, config=config, on_step=seen.append, reader=reader))
    assert len(found) == 2
    assert len(seen) == len(reader.threads) == 2


def test_an_index_knows_whether_it_is_temporary(tmp_path):
    assert make_index().temporary
    assert not make_index(tmp_path / "index").temporary
