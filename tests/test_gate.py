import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from compmem.errors import CheckpointError
from compmem.gate import FEATURES, GateHead, digest, features
from compmem.schema import Chunk, MemoryBlock
from compmem.terms import names_of, terms
from compmem.view import Viewer
from tests.hashing import HashEncoder

PASSAGES = {
    "Acme": "Acme rents the Harbour Building. It makes rockets.",
    "Harbour Building": "The Harbour Building is insured by Lloyd. It was built in 1920.",
    "Zoo": "Animals live in the zoo.",
    "Weather": "It rains in autumn. Snow falls in winter.",
}
QUESTION = "Who insures the building that Acme rents?"


class Words:
    """What a store knows of words, of four passages."""

    def __init__(self, passages=PASSAGES):
        self.held = [set(terms(f"{t} {p}")) for t, p in passages.items()]
        self.names = {}
        for number, title in enumerate(passages):
            for name, _ in names_of(title, (), ""):
                self.names.setdefault(name, []).append(number)

    def __len__(self):
        return len(self.held)

    def document_frequency(self, asked):
        return {t: n for t in asked if (n := sum(t in held for held in self.held))}

    def named(self, asked):
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
    return [digest(b) for b in out]


@pytest.fixture
def viewer():
    return Viewer(QUESTION, HashEncoder(), Words())


def column(matrix, name):
    return matrix[:, FEATURES.index(name)]


def test_features_of_many_blocks_are_those_of_each(viewer, blocks):
    view = viewer.view("Acme: Acme rents the Harbour Building.")
    together = features(view, blocks)
    apart = np.concatenate([features(view, [b]) for b in blocks])
    assert together.shape == (4, len(FEATURES))
    np.testing.assert_allclose(together, apart, atol=1e-6)
    assert np.isfinite(together).all()
    assert features(view, []).shape == (0, len(FEATURES))


def test_a_name_in_the_question_and_a_name_in_the_memory_point_to_their_blocks(viewer, blocks):
    before = features(viewer.view(""), blocks)
    assert column(before, "named_in_question").tolist() == [1, 0, 0, 0]
    assert column(before, "named_in_memory").tolist() == [0, 0, 0, 0]
    after = features(viewer.view("Acme: Acme rents the Harbour Building."), blocks)
    assert column(after, "named_in_memory").tolist() == [0, 1, 0, 0]
    assert column(after, "named_in_memory_capital")[1] == 1.0
    assert column(after, "named_in_memory_nearby")[1] > 0  # "rents" is said of it, and asked for
    assert column(after, "already_named")[0] == 1.0


def test_what_the_memory_covers_is_no_longer_missing(viewer, blocks):
    before, after = (features(viewer.view(m), blocks) for m in ("", "Acme: Acme rents the Harbour Building."))
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
    viewer = Viewer(QUESTION, encoder, Words())
    viewer.view("one line")
    viewer.view("one line\nanother line")
    assert encoder.seen == 3


def test_the_shipped_gate_prefers_what_the_question_needs_next(viewer, blocks):
    gate = GateHead.load()
    with torch.inference_mode():
        first = gate.probabilities(features(viewer.view(""), blocks))
        then = gate.probabilities(features(viewer.view("Acme: Acme rents the Harbour Building."), blocks))
    assert ((first >= 0) & (first <= 1)).all()
    assert first.argmax() == 0
    assert then[1] > first[1]
    assert then[1] > max(then[2], then[3])


def test_a_saved_gate_is_the_gate(tmp_path, viewer, blocks):
    torch.manual_seed(0)
    gate = GateHead(hidden=16, threshold=0.3)
    gate.save(tmp_path / "gate.safetensors")
    again = GateHead.load(tmp_path / "gate.safetensors")
    seen = features(viewer.view(""), blocks)
    with torch.inference_mode():
        assert np.array_equal(gate.probabilities(seen), again.probabilities(seen))
    assert again.threshold == 0.3


def test_files_that_are_no_gate_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="missing"):
        GateHead.load(tmp_path / "missing.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="other"):
        GateHead.load(tmp_path / "other.safetensors")
    facts = {"format": "compmem-dense-gate/1", "features": '["length"]', "hidden": "4", "threshold": "0.5"}
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
        blocks.append(digest(MemoryBlock(chunk=chunk, vectors=encoder.encode([text, text]))))
    viewer = Viewer("Who is the spouse of the person who directed Big Eyes?", encoder, Words(said))
    before = features(viewer.view(""), blocks)
    assert not column(before, "spoken").any()
    after = features(viewer.view("Big Eyes: Big Eyes was directed by Jane Roe in Oslo."), blocks)
    for name in ("spoken_weight", "spoken_nearby", "fresh_capital"):
        assert column(after, name)[1] > column(after, name)[2] == 0
    assert column(after, "fresh_missing")[1] > 0  # the sentence that names her says "spouse", which is still missing
    assert column(after, "asked_spoken").tolist() == pytest.approx([1 / 3, 0, 0])
