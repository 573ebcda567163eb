"""Which block the loop reads next, and what it says of the scores in the end."""

from dataclasses import replace

from compmem import Evidence, LoopConfig, RecallConfig
from compmem.loop import drivers
from compmem.loop.drivers import INLINE, run_loop
from compmem.loop.loop import recall_loop
from compmem.schema import Chunk, MemoryBlock
from tests.test_reasoner import TEXTS, Bench, Keeper


class Noting(Keeper):
    """Never ends the loop."""

    def read(self, question, memory, blocks):
        return replace(super().read(question, memory, blocks), exit=False)


class Quoting(Noting):
    """Has evidence for what it notes."""

    def read(self, question, memory, blocks):
        reading, quoted = super().read(question, memory, blocks), Evidence.of(blocks[0].chunk, (0, 3))
        return replace(reading, memory=replace(reading.memory, evidence=(*memory.evidence, quoted)))


def test_where_the_gate_finds_no_more_blocks_with_an_identifier_of_the_notes_are_read():
    class Linked(Bench):
        """Each block but the first names the one before it."""

        def linked(self, memory):
            return [0, 3, 2]

    loop = recall_loop(Linked(), RecallConfig(), 0.5)
    found = drivers.run(run_loop("q", loop, Quoting(), INLINE))
    assert [int(r.chunk.document_id) for r in found.update_recalls] == [3, 1]
    assert [[int(r.chunk.document_id) for r in step.recalls] for step in found.steps] == [[3], [1], [0], [2]]


def test_the_ranking_is_of_the_last_look_and_a_block_read_in_vain_falls_back():
    class Tempting(Bench):
        """Block 4 seems relevant once something is known, but is not."""

        def score(self, memory, blocks):
            clear = {3: 0.9, 4: 0.7 if memory else 0.1, 1: 0.6 if memory else 0.2}
            return [clear.get(n, 0.05) for n in blocks]

    found = drivers.run(run_loop("q", recall_loop(Tempting(), RecallConfig(), 0.5), Keeper(), INLINE))
    assert [int(r.chunk.document_id) for s in found.steps for r in s.recalls] == [3, 4, 1]
    assert {n: found.scores[n] for n in (3, 4, 1)} == {3: 0.9, 4: 0.1, 1: 0.6}


def test_notes_raise_no_score_under_a_title_that_was_read():
    class Long(Bench):
        """Blocks 3, 4 and 0 have one title, and all seem relevant once something is known."""

        def subjects(self, blocks):
            return ["manual" if n in (0, 3, 4) else str(n) for n in blocks]

        def fetch(self, blocks):
            pairs = zip(blocks, self.subjects(blocks), strict=True)
            return [MemoryBlock(chunk=Chunk(text=TEXTS[n], document_id=d)) for n, d in pairs]

        def score(self, memory, blocks):
            clear = {3: 0.9, 1: 0.8, 4: 0.6, 0: 0.7} if memory else {3: 0.9, 1: 0.1, 4: 0.3, 0: 0.2}
            return [clear.get(n, 0.01) for n in blocks]

    def read(trusts_gate, reader, **options):
        loop = recall_loop(Long(), RecallConfig(), 0.5, trusts_gate=trusts_gate, **options)
        found = drivers.run(run_loop("q", loop, reader, INLINE))
        return [r.block for step in found.steps for r in step.recalls], found.scores

    blocks, scores = read(True, Noting())
    assert blocks == [3, 1] and {n: scores[n] for n in (1, 4, 0)} == {1: 0.8, 4: 0.3, 0: 0.2}
    assert read(False, Noting())[0] == [3, 1, 0, 4], "the later scores count for a reader that trusts no gate"
    assert read(True, Quoting())[0] == [3, 1, 4, 0], "words are missing: the next best of the first pass"
    assert read(True, Quoting(), writer_blocks=4)[0] == read(True, Quoting(), writes=False)[0] == [3, 1]


def test_in_document_order_something_is_found_though_the_first_blocks_answer_nothing():
    class Late(Bench):
        answerable = False

    loop = recall_loop(Late(), LoopConfig(order="document"), 0.5, trusts_gate=True)
    assert drivers.run(run_loop("q", loop, Keeper(), INLINE)).answerable
