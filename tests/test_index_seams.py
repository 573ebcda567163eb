"""Features of the index for adapters: it can be copied, and its reader can be wrapped."""

import copy
import pickle

from compmem import Answer, Document, LoopConfig, Step
from tests.frameworks_langchain import QUESTION, HashingEncoder, make_index


def _filled(path=None):
    index = make_index(path)
    index.add([Document(id="a", text="Tarnhill is a town."), Document(id="b", text="Elena Marsh invented the Orchid.")])
    return index


def test_a_copy_is_the_same_folder_opened_again(tmp_path):
    index = _filled(tmp_path / "index")
    for made in (copy.deepcopy(index), copy.copy(index), pickle.loads(pickle.dumps(index))):
        assert made is not index
        assert made.path == index.path
        assert isinstance(made.config.encoder, HashingEncoder)
        assert made.answer(QUESTION).text == index.answer(QUESTION).text
    index.add([Document(id="c", text="The river Esk.")])
    assert len(made) == 3


class _Counting:
    def __init__(self, inner):
        self.inner, self.read_calls = inner, []

    def read(self, question, memory, blocks):
        self.read_calls.append([block.chunk.document_id for block in blocks])
        return self.inner.read(question, memory, blocks)

    async def aread(self, question, memory, blocks):
        self.read_calls.append([block.chunk.document_id for block in blocks])
        return await self.inner.aread(question, memory, blocks)

    def write(self, question, memory):
        return self.inner.write(question, memory)

    def awrite(self, question, memory):
        return self.inner.awrite(question, memory)


async def test_what_wraps_the_reader_sees_every_reading():
    index, wrapped = _filled(), []

    def wrap(reader):
        wrapped.append(_Counting(reader))
        return wrapped[-1]

    config = LoopConfig(gate="off")
    events = list(index.stream(QUESTION, config, wrap=wrap))
    same = [event async for event in index.astream(QUESTION, config, wrap=wrap)]
    steps = [[r.chunk.document_id for r in e.recalls] for e in events if isinstance(e, Step)]
    assert wrapped[0].read_calls == wrapped[1].read_calls == steps != []
    assert isinstance(events[-1], Answer)
    assert events[-1].text == same[-1].text
