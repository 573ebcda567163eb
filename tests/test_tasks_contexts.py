import subprocess
import sys
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest

from compmem_research.metrics import normalize
from compmem_research.tasks.contexts import LENGTHS, Contexts
from compmem_research.tasks.multihop import Passage, read_corpus
from tests.test_tasks import PARAGRAPHS, QUESTION, write


def count(texts):
    return [len(text.split()) for text in texts]


def text_of(name, at, words=60):
    return [f"The {name} {at} lies on hill {at}."] + [f"word{at * 7 % 31} {i}." for i in range((words - 8) // 2)]


def build(folder, questions=6, paragraphs=10, words=16):
    """Two-hop questions; passage 3 of each is the first hop although the file has it after the second."""
    lines = []
    for q in range(questions):
        titles = [f"House {q} {i}" for i in range(paragraphs)]
        given = [
            {"title": t, "sentences": text_of(t, q * paragraphs + i, words + 7 * i), "supporting": []}
            for i, t in enumerate(titles)
        ]
        given[1]["sentences"].insert(1, f" Its owner lives in Town{q}.")
        given[1]["supporting"] = [1]
        given[3]["sentences"].insert(0, f"House {q} 3 stands beside House {q} 1.")
        given[3]["supporting"] = [0, 2]
        lines.append({**QUESTION, "id": f"q{q}", "answer": f"Town{q}", "aliases": [], "paragraphs": given})
    return read_corpus(write(folder / "q.jsonl", *lines))


@pytest.fixture
def corpus(tmp_path):
    return build(tmp_path)


def place(sample, span):
    """Start and end of the span's document, as shares of the context."""
    sizes = count(f"{d.title}\n{d.text}" for d in sample.documents)
    ends = list(accumulate(sizes))
    at = [d.id for d in sample.documents].index(span.document)
    return (ends[at] - sizes[at]) / ends[-1], ends[at] / ends[-1]


def test_lengths_double():
    tokens = list(LENGTHS.values())
    assert tokens[0] == 7000
    assert all(b == 2 * a for a, b in pairwise(tokens))


@pytest.mark.parametrize("tokens", [1000, 1500, 3000])
def test_a_context_has_the_asked_length_and_each_document_once(corpus, tokens):
    samples = list(Contexts(corpus, count).samples(tokens))
    assert samples
    for sample in samples:
        assert 0.98 * tokens <= sample.tokens <= tokens
        assert sample.tokens == count([sample.joined().documents[0].text])[0]
        ids = [d.id for d in sample.documents]
        assert len(set(ids)) == len(ids)


def test_own_paragraphs_are_in_and_evidence_holds_the_facts_in_hop_order(corpus):
    samples = list(Contexts(corpus, count).samples(1500))
    assert samples
    for q, sample in enumerate(samples):
        assert {f"House {q} {i}" for i in range(10)} <= {d.title for d in sample.documents}
        texts = {d.id: d.text for d in sample.documents}
        said = [texts[s.document][s.start : s.end] for s in sample.evidence]
        assert said[0] == f"House {q} 3 stands beside House {q} 1."
        assert said[2] == f"Its owner lives in Town{q}."
        joined = sample.joined()
        assert [joined.documents[0].text[s.start : s.end] for s in joined.evidence] == said


def test_evidences_of_the_line_give_the_hop_order(tmp_path):
    line = {**QUESTION, "paragraphs": PARAGRAPHS}
    triples = [["harbour building", "insured by", "Lloyd"], ["Acme", "rents", "x"]]
    plain = read_corpus(write(tmp_path / "a.jsonl", line)).questions[0]
    ordered = read_corpus(write(tmp_path / "b.jsonl", {**line, "evidences": triples})).questions[0]
    assert plain.support == ((0, (0,)), (1, (0,)))
    assert ordered.support == ((1, (0,)), (0, (0,)))


def test_without_marked_sentences_the_passage_is_the_evidence(tmp_path):
    passages = write(tmp_path / "p.jsonl", {"title": "Acme", "text": "a b"}, {"title": "Zoo", "text": "z y"})
    corpus = read_corpus(write(tmp_path / "q.jsonl", {**QUESTION, "gold_titles": ["Zoo"]}), passages)
    sample = Contexts(corpus, count).samples(6)[0]
    assert [(s.start, s.end) for s in sample.evidence] == [(0, 3)]


def test_the_same_seed_gives_the_same_context_in_another_process(corpus, tmp_path):
    make = (
        "import sys; from pathlib import Path; from compmem_research.tasks.contexts import Contexts;"
        "from compmem_research.tasks.multihop import read_corpus;"
        "c = Contexts(read_corpus(Path(sys.argv[1])), lambda ts: [len(t.split()) for t in ts]);"
        "print([d.id for s in c.samples(1200) for d in s.documents])"
    )
    command = [sys.executable, "-c", make, str(tmp_path / "q.jsonl")]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    here = [d.id for s in Contexts(corpus, count).samples(1200) for d in s.documents]
    assert told == str(here)
    assert here != [d.id for s in Contexts(corpus, count, seed=1).samples(1200) for d in s.documents]


def test_evidence_stands_elsewhere_for_each_question(tmp_path):
    samples = Contexts(build(tmp_path, questions=40), count).samples(3000)
    starts = [place(s, s.evidence[0])[0] for s in samples]
    assert min(starts) < 0.2
    assert max(starts) > 0.8
    assert len(set(starts)) > 35


def test_evidence_stands_where_it_is_asked_to(corpus):
    contexts = Contexts(corpus, count)
    for first, last in zip(
        contexts.samples(2500, placement="first"), contexts.samples(2500, placement="last"), strict=True
    ):
        assert all(place(first, s)[1] <= 0.2 for s in first.evidence)
        assert all(place(last, s)[0] >= 0.8 for s in last.evidence)
    for sample in contexts.samples(2500, placement="reversed"):
        starts = [place(sample, s)[0] for s in sample.evidence]
        assert starts[0] == starts[1] > starts[2]
    anywhere = [place(s, s.evidence[0]) > place(s, s.evidence[2]) for s in contexts.samples(2500)]
    assert True in anywhere
    assert False in anywhere


@pytest.mark.parametrize(
    ("documents", "slots"),
    [
        (50, [0.20, 0.34, 0.52, 0.56, 0.72, 0.80, 0.82, 0.84, 0.86, 0.94]),
        (100, [0.04, 0.12, 0.22, 0.24, 0.53, 0.59, 0.76, 0.86, 0.90, 0.91]),
        (200, [0.03, 0.04, 0.08, 0.40, 0.43, 0.47, 0.54, 0.77, 0.88, 0.95]),
    ],
)
def test_memagent_slots_leak_as_published(tmp_path, documents, slots):
    """2507.02259: the own paragraphs of each question are at the same ten positions."""
    corpus = build(tmp_path, questions=21, words=12)
    samples = list(Contexts(corpus, count).samples(140 * documents, placement="memagent"))
    assert samples
    for q, sample in enumerate(samples):
        assert len(sample.documents) == documents
        own = [i for i, d in enumerate(sample.documents) if d.title.startswith(f"House {q} ")]
        assert [round(i / documents, 2) for i in own] == slots


def test_extra_passages_fill_up_from_a_length_on(corpus):
    extra = [Passage(title=f"Extra {i}", sentences=(" ".join(["filler"] * 40),)) for i in range(50)]
    contexts = Contexts(corpus, count, extra=[*corpus.passages, *extra])
    own = Contexts(corpus, count).tokens
    assert contexts.tokens == own + 50 * 42
    assert contexts.extras(contexts.samples(2500, 1)[0]) == 0
    longer = contexts.samples(own + 1000, 1)[0]
    assert contexts.extras(longer) in (22, 23)
    with pytest.raises(ValueError, match=r"tokens=20000, but all passages have \d+"):
        contexts.samples(20000, 1)


def test_unanswerable_contexts_hold_no_answer(corpus):
    told = Passage(title="Rumour", sentences=("Some say it is TOWN2!",))
    contexts = Contexts(replace(corpus, passages=(*corpus.passages, told)), count)
    samples = list(contexts.samples(2500, answerable=False))
    assert samples
    for sample in samples:
        assert sample.metric == "unanswerable"
        assert sample.evidence == ()
        assert sample.id.endswith("-unanswerable")
        said = normalize(sample.joined().documents[0].text).split()
        assert not any(normalize(a) in said for a in sample.answers)
        assert 0.98 * 2500 <= sample.tokens <= 2500


def test_wrong_settings_are_named(corpus):
    contexts = Contexts(corpus, count)
    with pytest.raises(ValueError, match="placement='middle'; it is one of anywhere, first"):
        contexts.samples(1000, placement="middle")
    with pytest.raises(ValueError, match="tokens=20, but the evidence alone has"):
        contexts.samples(20)
