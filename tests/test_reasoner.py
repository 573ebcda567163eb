"""The loop over five blocks whose relevance for each memory is known."""

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from compmem.config import IndexConfig, LoopConfig, RecallConfig
from compmem.errors import ReaderError
from compmem.loop import drivers
from compmem.loop.answering import Search, events
from compmem.loop.drivers import INLINE, THREADED, iterate, run_loop
from compmem.loop.loop import LoopResult, recall_loop
from compmem.loop.roles import make_loop, resolve_roles
from compmem.readers import ExtractiveReader
from compmem.retrieval.query import QueryAnalyzer
from compmem.schema import Answer, AnswerToken, Chunk, MemoryBlock, Reading, Step, Usage, WorkingMemory
from tests.hashing import HashEncoder
from tests.test_gate import StubIndex

TEXTS = ["zoo animals", "harbour insured by lloyd", "weather", "acme rents harbour", "cooking"]


class Bench:
    """Block 3 is relevant to the question; block 1 only once `harbour` is known."""

    needs_requery = True
    answerable = True

    def __init__(self):
        self.asked = []

    def propose(self, memory):
        self.asked.append(memory)
        return list(range(len(TEXTS)))

    def score(self, memory, blocks):
        clear = {3: 0.9, 1: 0.8 if "harbour" in memory else 0.2}
        return [clear.get(n, 0.05) for n in blocks]

    def fetch(self, blocks):
        return [MemoryBlock(chunk=Chunk(text=TEXTS[n], document_id=str(n))) for n in blocks]

    def subjects(self, blocks):
        return [str(n) for n in blocks]

    def lacks_words(self, memory):
        return bool(memory.evidence)

    def linked(self, memory):
        return []

    def count_tokens(self, text):
        return len(text.split())


class Keeper:
    """Appends what it reads; finds nothing in weather and cooking; stops at `lloyd`."""

    def __init__(self, fails_at=None):
        self.read_texts = []
        self.fails_at = fails_at

    def read(self, question, memory, blocks):
        texts = [b.chunk.text for b in blocks]
        self.read_texts.append(texts)
        if self.fails_at in texts:
            raise ReaderError("model is gone")
        new = WorkingMemory(text=" | ".join(filter(None, [memory.text, *texts])))
        useful = any(t in (TEXTS[1], TEXTS[3]) for t in texts)
        return Reading(memory=new, update=useful, exit="lloyd" in new.text, usage=Usage(model_calls=1))

    async def aread(self, question, memory, blocks):
        await asyncio.sleep(0)
        return self.read(question, memory, blocks)

    def write(self, question, memory):
        yield "from "
        yield memory.text
        yield Usage(model_calls=1, completion_tokens=3)

    async def awrite(self, question, memory):
        for piece in self.write(question, memory):
            yield piece


class Blank(Keeper):
    """Finds nothing in any block."""

    def read(self, question, memory, blocks):
        return replace(super().read(question, memory, blocks), update=False)


def one(loop, reader):
    """A search that answers any text with this loop."""

    @asynccontextmanager
    async def begin(text, seconds):
        yield Search(loop, reader)

    return begin


def run(config, reader=None, threshold=None, bench=None, **options):
    threshold = config.threshold if threshold is None else threshold
    loop = recall_loop(bench or Bench(), config, 0.5 if threshold is None else threshold, **options)
    *before, answer = iterate(events("who insures what acme rents?", one(loop, reader or Keeper())))
    assert isinstance(answer, Answer)
    assert all(isinstance(e, Step | AnswerToken) for e in before)
    return answer


def read_blocks(answer):
    return [int(r.chunk.document_id) for s in answer.steps for r in s.recalls]


def test_the_default_goes_back_to_a_block_it_had_turned_down():
    answer = run(RecallConfig())
    assert read_blocks(answer) == [3, 1]
    assert [s.backtracked for s in answer.steps] == [False, True]
    assert answer.stop_reason == "exit_gate"
    assert answer.text == "from acme rents harbour | harbour insured by lloyd"
    assert [int(s.chunk.document_id) for s in answer.sources] == [3, 1]
    assert answer.usage.model_calls == 3
    assert answer.usage.blocks_read == answer.usage.steps == 2


def test_without_backtracking_or_asking_again_the_second_hop_is_lost():
    assert read_blocks(run(LoopConfig(backtrack=False))) == [3]
    assert read_blocks(run(LoopConfig(requery=False))) == [3]


class Fading(Bench):
    """Block 1 is relevant to the question alone, and no longer once `harbour` is known."""

    def score(self, memory, blocks):
        clear = {3: 0.9, 1: 0.1 if "harbour" in memory else 0.6}
        return [clear.get(n, 0.05) for n in blocks]


def test_a_block_that_was_likely_once_is_read_in_the_end():
    answer = run(RecallConfig(), bench=Fading())
    assert read_blocks(answer) == [3, 1]
    assert [recall.score for step in answer.steps for recall in step.recalls] == [0.9, 0.1]
    assert read_blocks(run(LoopConfig(threshold=0.7), bench=Fading())) == [3]
    assert read_blocks(run(LoopConfig(backtrack=False), bench=Fading())) == [3]


def test_memagent_reads_all_in_order_and_always_overwrites():
    answer = run(LoopConfig.memagent(), threshold=0.0)
    assert read_blocks(answer) == [0, 1, 2, 3, 4]
    assert answer.working_memory.count("|") == 4
    assert answer.stop_reason == "exhausted"


def test_gru_mem_keeps_its_memory_where_nothing_was_found_and_stops_when_it_may():
    scan = run(LoopConfig.gru_mem(exit_gate=False), threshold=0.0)
    assert read_blocks(scan) == [0, 1, 2, 3, 4]
    assert scan.working_memory == "harbour insured by lloyd | acme rents harbour"
    early = run(LoopConfig.gru_mem(), threshold=0.0)
    assert read_blocks(early) == [0, 1]
    assert early.stop_reason == "exit_gate"


def test_lychee_gates_in_one_pass_with_the_memory_so_far():
    answer = run(LoopConfig.lychee())
    assert read_blocks(answer) == [3]  # block 1 came before its clue, and this loop does not go back
    assert run(LoopConfig.lychee(gate=False), threshold=0.0).usage.blocks_read == 5


class Weigher(Keeper):
    """Scores blocks with given values, and records how it reads them."""

    can_score = True

    def __init__(self, odds):
        super().__init__()
        self.odds = odds
        self.weighed = []
        self.insisted = []

    def score_blocks(self, question, memory, blocks):
        self.weighed.append((memory.text, [int(b.chunk.document_id) for b in blocks]))
        return None if self.odds is None else [self.odds.get(int(b.chunk.document_id), -9.0) for b in blocks]

    def read(self, question, memory, blocks, *, relevant=False):
        self.insisted.append(relevant)
        reading = super().read(question, memory, blocks)
        return replace(reading, update=True) if relevant else reading

    async def aread(self, question, memory, blocks, *, relevant=False):
        return self.read(question, memory, blocks, relevant=relevant)


def test_a_reader_that_weighs_reads_what_it_finds_likeliest_as_one_that_helps():
    reader = Weigher({1: 2.0, 3: 0.5, 2: -0.3})
    answer = run(LoopConfig(exit_gate=False), reader, can_score=True)
    # The gate alone would read 3 and then 1. All unread blocks are scored again with each new memory.
    assert read_blocks(answer) == [1, 3, 2]
    assert reader.weighed[0] == ("", [3, 1, 0, 2, 4])
    assert [blocks for _, blocks in reader.weighed] == [[3, 1, 0, 2, 4], [3, 0, 2, 4], [0, 2, 4], [0, 4]]
    assert reader.insisted == [True] * 3
    assert all(step.updated for step in answer.steps)
    assert [step.backtracked for step in answer.steps] == [True, False, True]
    assert (answer.stop_reason, answer.usage.blocks_scored) == ("exhausted", 5 + 4 + 3 + 2)


def test_it_reads_nothing_that_it_finds_too_unlikely():
    assert read_blocks(run(LoopConfig(reader_threshold=0.4), Weigher({3: -0.41}), can_score=True)) == []
    assert read_blocks(run(LoopConfig(reader_threshold=0.4, max_steps=1), Weigher({3: -0.40}), can_score=True)) == [3]
    assert read_blocks(run(LoopConfig(reader_threshold=0.0, exit_gate=False), Weigher({}), can_score=True)) == [
        0,
        1,
        2,
        3,
        4,
    ]


def test_where_reading_changes_nothing_the_next_likely_block_is_read():
    class Forgetful(Weigher):
        def read(self, question, memory, blocks, *, relevant=False):
            return replace(super().read(question, memory, blocks), memory=memory)

    reader = Forgetful({3: 3.0, 0: 2.0})
    assert read_blocks(run(RecallConfig(), reader, can_score=True)) == [3, 0]
    assert len(reader.weighed) == 1


@pytest.mark.parametrize(
    "config",
    [
        LoopConfig(reader_threshold=None), LoopConfig(backtrack=False), LoopConfig(update_gate=False),
        LoopConfig(blocks_per_step=2), LoopConfig.lychee(), LoopConfig.gru_mem(), LoopConfig.memagent(),
    ],
    ids=["off", "no way back", "no update gate", "several blocks", "lychee", "gru-mem", "memagent"],
)  # fmt: skip
def test_loops_that_do_not_weigh(config):
    reader = Weigher({0: 9.0})
    run(config, reader, can_score=True)
    assert (reader.weighed, any(reader.insisted)) == ([], False)


def test_where_the_reader_cannot_tell_the_gate_decides():
    reader = Weigher(None)
    assert read_blocks(run(RecallConfig(), reader, can_score=True)) == [3, 1]
    assert (len(reader.weighed), reader.insisted) == (1, [False, False])
    assert read_blocks(run(RecallConfig(), Weigher({0: 9.0}))) == [3, 1]


def test_without_a_gate_too_many_blocks_are_not_weighed(monkeypatch):
    monkeypatch.setattr("compmem.loop.loop.SCORED_AT_ONCE", 2)
    monkeypatch.setattr(Bench, "score", lambda self, memory, blocks: [1.0] * len(blocks))
    reader = Weigher({4: 9.0})
    assert read_blocks(run(RecallConfig(), reader, can_score=True)) == [0, 1]
    assert reader.weighed == []


def test_at_most_so_many_blocks_are_weighed_at_once(monkeypatch):
    monkeypatch.setattr("compmem.loop.loop.SCORED_AT_ONCE", 2)
    reader = Weigher({0: 9.0, 1: 1.0})
    assert read_blocks(run(RecallConfig(max_steps=1), reader, can_score=True)) == [1]
    assert reader.weighed == [("", [3, 1])]


def test_one_shot_rag_reads_k_at_once():
    answer = run(LoopConfig.rag(k=2))
    assert [[int(r.chunk.document_id) for r in s.recalls] for s in answer.steps] == [[3, 1]]


def test_several_blocks_a_step():
    assert len(run(LoopConfig(blocks_per_step=5, threshold=0.0, exit_gate=False)).steps) == 1


def test_document_order_with_backtracking_passes_again_over_what_was_turned_down():
    answer = run(LoopConfig(order="document", exit_gate=False))
    assert read_blocks(answer) == [3, 1]


def test_budgets_end_the_loop_and_the_answer_is_written_all_the_same():
    assert run(RecallConfig(max_steps=1)).stop_reason == "steps"
    ticks = iter(range(100))
    slow = run(RecallConfig(max_seconds=4.0), clock=lambda: float(next(ticks)))
    assert slow.stop_reason == "seconds"
    assert slow.text.startswith("from")
    small = run(LoopConfig(memory_tokens=3, exit_gate=False))
    assert small.working_memory == "insured by lloyd"


def test_cancelling_stops_before_the_next_step():
    flags = iter([False, True])
    answer = run(LoopConfig(threshold=0.0, exit_gate=False), cancelled=lambda: next(flags))
    assert answer.stop_reason == "cancelled"
    assert len(answer.steps) == 1


def test_sync_and_async_are_one_loop():
    async def twin():
        loop = recall_loop(Bench(), RecallConfig(), 0.5)
        return [e async for e in events("q?", one(loop, Keeper()), THREADED)]

    *before, answer = asyncio.run(twin())
    *other_before, other = iterate(events("q?", one(recall_loop(Bench(), RecallConfig(), 0.5), Keeper()), INLINE))
    assert (answer.text, answer.sources, answer.working_memory) == (other.text, other.sources, other.working_memory)
    assert len(before) == len(other_before)


def test_weighing_is_the_same_sync_and_async():
    def loop():
        return recall_loop(Bench(), RecallConfig(), 0.5, can_score=True)

    async def twin():
        return [e async for e in events("q?", one(loop(), Weigher({3: 2.0, 1: 1.0})), THREADED)][-1]

    answer, other = asyncio.run(twin()), run(RecallConfig(), Weigher({3: 2.0, 1: 1.0}), can_score=True)
    found = asyncio.run(run_loop("q?", loop(), Weigher({3: 2.0, 1: 1.0}), THREADED))
    assert read_blocks(answer) == [3, 1]
    assert answer.working_memory == other.working_memory == found.memory.text


def test_gathering_leaves_the_answer_unwritten():
    found = drivers.run(run_loop("q?", recall_loop(Bench(), RecallConfig(), 0.5), Keeper()))
    again = asyncio.run(run_loop("q?", recall_loop(Bench(), RecallConfig(), 0.5), Keeper(), THREADED))
    assert isinstance(found, LoopResult)
    assert found.memory == again.memory
    assert found.scores[1] == 0.8
    assert found.usage.model_calls == 2


def test_a_failing_reader_tells_how_far_it_came():
    with pytest.raises(ReaderError, match="gone") as caught:
        run(RecallConfig(), reader=Keeper(fails_at=TEXTS[1]))
    assert [s.number for s in caught.value.steps] == [1]


def test_the_event_loop_is_never_blocked():
    class Slow(Bench):
        def score(self, memory, blocks):
            time.sleep(0.2)
            return super().score(memory, blocks)

    async def four():
        began = time.perf_counter()
        await asyncio.gather(
            *(run_loop("q?", recall_loop(Slow(), RecallConfig(), 0.5), Keeper(), THREADED) for _ in range(4))
        )
        return time.perf_counter() - began

    assert asyncio.run(four()) < 1.2  # two gatings each: 1.6 s one after the other


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reader": "oracle"}, "oracle"),
        ({"rounds": -1}, "rounds"),
        ({"threshold": 1.5}, "1.5"),
        ({"max_steps": 0}, "max_steps"),
        ({"max_seconds": 0}, "max_seconds"),
        ({"order": "random"}, "random"),
        ({"blocks_per_step": True}, "blocks_per_step"),
    ],
)
def test_settings_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        LoopConfig(**change)


@pytest.mark.parametrize("roles", [{"reader": "extractive"}, {"writer": "latent"}])
def test_a_chat_model_that_nobody_asks_is_refused(roles):
    kv = IndexConfig(memory="kv", backbone="tiny")
    with pytest.raises(ValueError, match=r"chat= is for .* with writer="):
        resolve_roles(RecallConfig(**roles), kv, lambda: True, chat=print)


class Once(Bench):
    """The first pass suffices."""

    needs_requery = False


class Unanswerable(Bench):
    """The gate finds that nothing answers."""

    answerable = False


def loop_over(context, **options):
    loop = recall_loop(context, RecallConfig(), 0.5, **options)
    return list(iterate(events("who insures what acme rents?", one(loop, Keeper()), INLINE)))[-1]


def test_where_the_first_look_suffices_the_gate_is_asked_once():
    context = Once()
    assert read_blocks(loop_over(context)) == [3]
    assert context.asked == [""]
    context = Once()
    found = drivers.run(run_loop("q", recall_loop(context, RecallConfig(), 0.5, writes=False), Keeper(), INLINE))
    assert found.steps == ()
    assert found.scores[3] == 0.9


def test_nothing_is_read_where_nothing_answers_unless_a_model_judges():
    refused = loop_over(Unanswerable(), trusts_gate=True)
    assert refused.steps == ()
    for judged in ({}, {"trusts_gate": True, "writer_blocks": 2}):
        assert read_blocks(loop_over(Unanswerable(), **judged)) == [3, 1]


def test_what_a_reader_overlooks_of_a_likely_block_is_kept_once_something_is_noted():
    class Blind(Keeper):
        """Finds something in the first block alone."""

        def read(self, question, memory, blocks):
            return replace(super().read(question, memory, blocks), update=not memory.text)

    class Many(Bench):
        """There are many more candidates."""

        def propose(self, memory):
            return list(range(25))

    for trusts, bench, kept in ((False, Many(), [3]), (True, Bench(), [3]), (True, Many(), [3, 1])):
        found = drivers.run(run_loop("q", recall_loop(bench, RecallConfig(), 0.5, trusts_gate=trusts), Blind(), INLINE))
        assert [int(r.chunk.document_id) for r in found.update_recalls] == kept
        assert [s.updated for s in found.steps] == [True, len(kept) == 2]


def test_what_a_reader_overlooks_of_a_likely_first_block_is_kept():
    class Doubtful(Bench):
        """No block is likely."""

        def score(self, memory, blocks):
            return [0.45] * len(blocks)

    first = recall_loop(Bench(), RecallConfig(), 0.4, trusts_gate=True)
    found = drivers.run(run_loop("q", first, Blank(), INLINE))
    assert [int(r.chunk.document_id) for r in found.update_recalls] == [3]
    for loop in (
        recall_loop(Bench(), RecallConfig(), 0.4),
        recall_loop(Doubtful(), RecallConfig(), 0.4, trusts_gate=True),
    ):
        assert drivers.run(run_loop("q", loop, Blank(), INLINE)).update_recalls == ()


def test_quotes_come_from_the_best_block_where_all_are_rejected_but_something_answers():
    class Doubtful(Bench):
        """Every block is below the threshold."""

        def score(self, memory, blocks):
            return [{3: 0.4, 1: 0.3}.get(n, 0.1) for n in blocks]

    class Hopeless(Doubtful):
        answerable = False

    def first_read(context, config=None, **options):
        reader = ExtractiveReader(QueryAnalyzer("who?", HashEncoder(), StubIndex()))
        request = next(make_loop(context, LoopConfig.complete(config), 0.5, reader, **options), None)
        return [int(block.chunk.document_id) for block in request.blocks] if request else []

    assert first_read(Doubtful()) == [3]
    assert first_read(Hopeless()) == []
    assert first_read(Doubtful(), RecallConfig(threshold=0.5)) == []
    assert first_read(Doubtful(), writes=False) == []


def test_a_writer_that_sees_few_blocks_sees_the_best_in_reading_order():
    def shown(most):
        loop = recall_loop(Bench(), LoopConfig(threshold=0.0, exit_gate=False), 0.0, writer_blocks=most)
        found = drivers.run(run_loop("q?", loop, Keeper(), INLINE))
        return [r.block for r in found.writer_recalls], [r.block for r in found.update_recalls], found.scores

    every, kept, scores = shown(5)
    assert every[: len(kept)] == kept
    for most in range(1, 5):
        few, _, _ = shown(most)
        assert len(few) == most
        best = set(sorted(kept, key=lambda n: -scores[n])[:most])
        assert few[: len(kept)] == [n for n in kept if n in best]
