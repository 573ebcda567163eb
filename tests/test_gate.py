import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compmem import IndexConfig, MemoryIndex, RuntimeConfig
from compmem.errors import CheckpointError
from compmem.gate import (
    FEATURES,
    FIRST_FEATURES,
    LATER_FEATURES,
    QUESTION_FEATURES,
    GateHead,
    best_windows,
    features,
    first_features,
    later_features,
    parse_block,
    question_features,
)
from compmem.retrieval.query import QueryAnalyzer
from compmem.retrieval.ranking import SearchRanks, rank_of
from compmem.schema import Chunk, MemoryBlock
from compmem.text.tokenize import names_of, terms
from tests.hashing import HashEncoder

PASSAGES = {
    "Acme": "Acme rents the Harbour Building. It makes rockets.",
    "Harbour Building": "The Harbour Building is insured by Lloyd. It was built in 1920.",
    "Zoo": "Animals live in the zoo.",
    "Weather": "It rains in autumn. Snow falls in winter.",
}
QUESTION = "Who insures the building that Acme rents?"


class StubIndex:
    """Word statistics of a store with four passages."""

    def __init__(self, passages=PASSAGES):
        self.held = [set(terms(f"{t} {p}")) for t, p in passages.items()]
        self.names = {}
        for number, title in enumerate(passages):
            for name, _ in names_of(title, (), ""):
                self.names.setdefault(name, []).append(number)

    def __len__(self):
        return len(self.held)

    def prepare(self, names, terms):
        pass

    def document_frequency(self, asked):
        return {t: n for t in asked if (n := sum(t in held for held in self.held))}

    def blocks_by_name(self, asked):
        return {n: self.names[n] for n in asked if n in self.names}


@pytest.fixture
def blocks():
    encoder = HashEncoder()
    out = []
    for title, text in PASSAGES.items():
        edge = text.find(". ") + 1 or len(text)
        spans = tuple((a, b) for a, b in ((0, edge), (edge, len(text))) if text[a:b].strip())
        chunk = Chunk(text=text, title=title, sentences=spans)
        out.append(MemoryBlock(chunk=chunk, vectors=encoder.encode([text, *chunk.sentence_texts()])))
    return [parse_block(b) for b in out]


@pytest.fixture
def analyzer():
    return QueryAnalyzer(QUESTION, HashEncoder(), StubIndex())


def column(matrix, name):
    return matrix[:, FEATURES.index(name)]


def test_features_of_many_blocks_are_those_of_each(analyzer, blocks):
    view = analyzer.analyze("Acme: Acme rents the Harbour Building.")
    together = features(view, blocks)
    apart = np.concatenate([features(view, [b]) for b in blocks])
    assert together.shape == (4, len(FEATURES))
    np.testing.assert_allclose(together, apart, atol=1e-6)
    assert np.isfinite(together).all()
    assert features(view, []).shape == (0, len(FEATURES))


def test_a_name_in_the_question_and_a_name_in_the_memory_point_to_their_blocks(analyzer, blocks):
    before = features(analyzer.analyze(""), blocks)
    assert column(before, "named_in_question").tolist() == [1, 0, 0, 0]
    assert column(before, "named_in_memory").tolist() == [0, 0, 0, 0]
    after = features(analyzer.analyze("Acme: Acme rents the Harbour Building."), blocks)
    assert column(after, "named_in_memory").tolist() == [0, 1, 0, 0]
    assert column(after, "named_in_memory_capital")[1] == 1.0
    assert column(after, "named_in_memory_nearby")[1] > 0  # "rents" occurs near it, and is in the question
    assert column(after, "already_named")[0] == 1.0


def test_what_the_memory_covers_is_no_longer_missing(analyzer, blocks):
    before, after = (features(analyzer.analyze(m), blocks) for m in ("", "Acme: Acme rents the Harbour Building."))
    assert column(after, "coverage_missing")[0] < column(before, "coverage_missing")[0]
    assert column(after, "coverage_missing")[1] > column(before, "coverage_missing")[1]
    assert (column(after, "joint_sentence")[1] - column(before, "joint_sentence")[1]) > 0


def test_each_memory_line_is_encoded_once(blocks):
    class Counting(HashEncoder):
        seen = 0

        def encode(self, texts):
            self.seen += len(texts)
            return super().encode(texts)

    encoder = Counting()
    analyzer = QueryAnalyzer(QUESTION, encoder, StubIndex())
    analyzer.analyze("one line")
    analyzer.analyze("one line\nanother line")
    assert encoder.seen == 3


def search_ranks(count):
    """As if both searches had returned all blocks in this order."""
    places = np.arange(1, count + 1)
    return SearchRanks(places, places, (1 / places).astype(np.float32))


def identity(network, name, names):
    """Makes this feature the network's logit: gelu(x) - gelu(-x) is x."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.one[:, names.index(name), :2] = torch.tensor([1.0, -1.0])
        network.two[:, :2, :2] = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
        network.out[:, :2, 0] = torch.tensor([1.0, -1.0])


def test_the_shipped_gate_prefers_what_the_question_needs_next(analyzer, blocks):
    gate = GateHead.load()
    rows, places = (
        np.arange(4),
        SearchRanks(np.array([1, 2, 4, 3]), np.array([1, 2, 0, 0]), np.array([3, 2, 0, 0], "f")),
    )
    look = gate.first_pass(features(analyzer.analyze(""), blocks), places, rows)
    assert ((look.probabilities >= 0) & (look.probabilities <= 1)).all()
    assert look.probabilities.argmax() == 0
    assert 0 <= look.more <= 1
    assert 0 <= look.found <= 1
    left = features(analyzer.analyze("Acme: Acme rents the Harbour Building."), blocks[1:])
    said = np.array([*look.logits, *look.logits[1:]], np.float32)
    then = gate.later_pass(left, said, np.ones(3, bool), np.arange(3))
    assert then.argmax() == 0  # the building


def test_a_saved_gate_is_the_gate(tmp_path, analyzer, blocks):
    torch.manual_seed(0)
    gate = GateHead(hidden=16, heads=2)
    gate.threshold, gate.more_threshold, gate.found_threshold = 0.3, 0.2, 0.1
    gate.calibration.copy_(torch.tensor([[2.0, 1.0], [1.0, 0.5], [0.5, 0.0], [3.0, -1.0]]))
    gate.save(tmp_path / "gate.safetensors")
    again = GateHead.load(tmp_path / "gate.safetensors")
    seen = features(analyzer.analyze(""), blocks)
    one, two = (g.first_pass(seen, search_ranks(4), np.arange(4)) for g in (gate, again))
    assert np.array_equal(one.probabilities, two.probabilities)
    assert (one.more, one.found) == (two.more, two.found)
    said = np.array([*one.logits, *one.logits], np.float32)
    assert np.array_equal(*(g.later_pass(seen, said, np.ones(4, bool), np.arange(4)) for g in (gate, again)))
    assert (again.threshold, again.more_threshold, again.found_threshold) == (0.3, 0.2, 0.1)


def test_equal_values_share_the_best_of_their_ranks():
    assert rank_of(np.array([0.5, 2.0, 0.5, 0.1, 2.0], np.float32)).tolist() == [2, 0, 2, 4, 0]
    assert rank_of(np.zeros(3, np.float32)).tolist() == [0, 0, 0]
    assert rank_of(np.zeros(0, np.float32)).tolist() == []


def test_where_a_block_stands_does_not_depend_on_the_order_of_the_list(analyzer, blocks):
    own, places = features(analyzer.analyze(""), blocks), search_ranks(4)
    order = np.array([2, 0, 3, 1])
    np.testing.assert_allclose(
        first_features(own[order], places.take(order)), first_features(own, places)[order], atol=1e-6
    )
    said = np.array([3.0, 1.0, -1.0, -2.0], np.float32)
    seen = np.array([True, True, False, True])
    later = later_features(own, np.concatenate([said, said]), seen, np.arange(4))
    moved = later_features(own[order], np.concatenate([said, said[order]]), seen[order], np.arange(4))
    np.testing.assert_allclose(moved, later[order], atol=1e-6)
    whole = question_features(own, first_features(own, places), said)
    again = question_features(own[order], first_features(own[order], places.take(order)), said[order])
    np.testing.assert_allclose(again, whole, atol=1e-6)


def test_a_list_of_one_block_and_an_empty_one_have_features(analyzer, blocks):
    own = features(analyzer.analyze(""), blocks[:1])
    first = first_features(own, search_ranks(1))
    assert first.shape == (1, len(FIRST_FEATURES))
    later = later_features(own, np.array([1.0, 1.0], np.float32), np.array([True]), np.array([0]))
    assert later.shape == (1, len(LATER_FEATURES))
    whole = question_features(own, first, np.array([1.0], np.float32))
    assert whole.shape == (len(QUESTION_FEATURES),)
    assert all(np.isfinite(x).all() for x in (first, later, whole))
    none = SearchRanks(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert first_features(own[:0], none).shape == (0, len(FIRST_FEATURES))


def test_a_block_that_no_search_returned_stands_behind_those_that_one_did(analyzer, blocks):
    own = features(analyzer.analyze(""), blocks)
    places = SearchRanks(np.array([1, 0, 0, 2]), np.array([0, 1, 0, 2]), np.array([0, 5, 0, 1], np.float32))
    seen = first_features(own, places)
    fused = seen[:, FIRST_FEATURES.index("fused_score")]
    assert fused[2] == 0
    assert fused[3] > max(fused[0], fused[1]) > 0  # in both searches
    assert seen[:, FIRST_FEATURES.index("dense_reciprocal_rank")].tolist() == [1, 0, 0, 0.5]


def test_a_block_is_worth_what_its_best_window_is(analyzer, blocks):
    best, top = best_windows(np.array([0.0, 3.0, 3.0, -1.0, 2.0], np.float32), np.array([0, 0, 0, 1, 2]))
    assert best.tolist() == [3, -1, 2]
    assert top.tolist() == [1, 3, 4]
    gate = GateHead(hidden=4)
    identity(gate.first, "coverage", FIRST_FEATURES)
    own = features(analyzer.analyze(""), blocks)
    rows = np.array([0, 0, 1, 1])
    look = gate.first_pass(own, search_ranks(2).take(rows), rows)
    coverage = own[:, FEATURES.index("coverage")]
    np.testing.assert_allclose(look.logits, [coverage[:2].max(), coverage[2:].max()], atol=1e-6)


def test_a_later_look_can_keep_what_the_first_was_sure_of(analyzer, blocks):
    """A wrong read changes question and memory, but the gate still sees the first score of a block."""
    gate = GateHead(hidden=4)
    identity(gate.later, "first_logit", LATER_FEATURES)
    own = features(analyzer.analyze("Zoo: Animals live in the zoo."), blocks[:2] + blocks[3:])
    said, sure = [-3.0, 4.0, -2.0, -4.0], [-3.0, 4.0, -4.0]  # the third block was read, by mistake
    again = gate.later_pass(own, np.array([*said, *sure], np.float32), np.ones(3, bool), np.arange(3))
    np.testing.assert_allclose(again, 1 / (1 + np.exp(-np.array(sure) / 4)), atol=1e-6)
    assert again.argmax() == 1


def test_a_block_that_the_first_look_did_not_see_is_told_apart(analyzer, blocks):
    own = features(analyzer.analyze("Acme: Acme rents the Harbour Building."), blocks[:2])
    seen = later_features(own, np.array([2.0, -1.0, 2.0, -1.0], np.float32), np.array([True, False]), np.arange(2))
    column = {n: seen[:, LATER_FEATURES.index(n)].tolist() for n in ("first_seen", "first_reciprocal", "first_margin")}
    assert column == {"first_seen": [1, 0], "first_reciprocal": [1, 0.5], "first_margin": [0, 0.75]}


def test_the_mean_of_the_heads_is_the_network():
    torch.manual_seed(0)
    network = GateHead(hidden=8, heads=3).question
    network.fit_scale(torch.randn(50, len(QUESTION_FEATURES)) * 3 + 1)
    x = torch.randn(5, len(QUESTION_FEATURES))
    each = network.each(x)
    assert each.shape == (3, 5, 2)
    assert not torch.allclose(each[0], each[1])
    torch.testing.assert_close(network(x), each.mean(0))
    far = torch.full_like(x, 1e6)
    torch.testing.assert_close(network(far), network(10 * far))  # cut where nothing was learned


def test_an_index_is_asked_with_the_gate_that_the_settings_name(tmp_path):
    own = GateHead.load()
    own.threshold = 0.123
    own.save(tmp_path / "own.safetensors")
    runtime = RuntimeConfig(gate=str(tmp_path / "own.safetensors"))
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder()), runtime=runtime) as index:
        assert index.gate.threshold == pytest.approx(0.123)
    (tmp_path / "own.safetensors").write_bytes(b"no tensors")
    with (
        MemoryIndex.create(None, IndexConfig(encoder=HashEncoder()), runtime=runtime) as index,
        pytest.raises(CheckpointError, match="is not a gate"),
    ):
        _ = index.gate


def test_files_that_are_no_gate_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        GateHead.load(tmp_path / "missing.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="other"):
        GateHead.load(tmp_path / "other.safetensors")
    facts = {"format": "compmem-dense-gate/1", "features": '["length"]', "hidden": "4", "threshold": "0.5"}
    save_file({"x": torch.zeros(1)}, tmp_path / "former.safetensors", metadata=facts)
    with pytest.raises(CheckpointError, match="compmem-dense-gate/1"):
        GateHead.load(tmp_path / "former.safetensors")
    facts = {"format": "compmem-dense-gate/3", "features": '{"first": ["length"]}', "hidden": "4", "heads": "1"}
    save_file({"x": torch.zeros(1)}, tmp_path / "old.safetensors", metadata=facts)
    with pytest.raises(CheckpointError, match="other features"):
        GateHead.load(tmp_path / "old.safetensors")


def test_a_name_that_no_block_answers_to_still_leads_on():
    """Two pages speak of Jane Roe and none is about her."""
    encoder = HashEncoder()
    said = {
        "Big Eyes": "Big Eyes was directed by Jane Roe in Oslo.",
        "The Fall": "The Fall is a play by Jane Roe and her spouse Ann Poe.",
        "The Rise": "The Rise is a play by John Doe and his spouse Ida Low.",
    }
    blocks = []
    for title, text in said.items():
        chunk = Chunk(text=text, title=title, sentences=((0, len(text)),))
        blocks.append(parse_block(MemoryBlock(chunk=chunk, vectors=encoder.encode([text, text]))))
    analyzer = QueryAnalyzer("Who is the spouse of the person who directed Big Eyes?", encoder, StubIndex(said))
    before = features(analyzer.analyze(""), blocks)
    assert not column(before, "spoken").any()
    after = features(analyzer.analyze("Big Eyes: Big Eyes was directed by Jane Roe in Oslo."), blocks)
    for name in ("spoken_weight", "spoken_nearby", "fresh_capital"):
        assert column(after, name)[1] > column(after, name)[2] == 0
    assert column(after, "fresh_missing")[1] > 0  # the sentence that names her says "spouse", which is still missing
    assert column(after, "asked_spoken").tolist() == pytest.approx([1 / 3, 0, 0])
