import re
import subprocess
import sys
from itertools import pairwise
from random import Random

import pytest

from compmem.schema import Chunk, Document
from compmem_research.tasks import haystack
from compmem_research.tasks.haystack import Filler, split_of, written
from compmem_research.tasks.multihop import Passage
from compmem_research.tasks.names import draw, has_role
from compmem_research.tasks.relations import OPENINGS, RELATIONS
from compmem_research.tasks.synthetic_facts import WorldConfig, Worlds
from compmem_research.tasks.templates import reworded


def count(texts):
    return [len(text.split()) for text in texts]


@pytest.fixture(scope="module", autouse=True)
def little_filler():
    """By default thousands of passages are made up at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(haystack, "_FIRST_DRAW", 512)
        yield


@pytest.fixture(scope="module")
def filler():
    return Filler(count)


def passages(number):
    return [
        Passage(title=f"Page {i}", sentences=(f"Page {i} opens here. " + f"It goes on about {i}. " * (5 + i % 9),))
        for i in range(number)
    ]


def texts_of(sample):
    return {d.id: d.text for d in sample.documents}


@pytest.mark.parametrize("split", ["train", "eval"])
@pytest.mark.parametrize("hops", [1, 2, 3])
def test_each_fact_is_said_where_its_span_is(filler, split, hops):
    for sample in Worlds(WorldConfig(split=split, hops=(hops,), tokens=400), filler).samples(40):
        texts = texts_of(sample)
        assert len(sample.facts) == len(sample.evidence) == hops
        for fact, span in zip(sample.facts, sample.evidence, strict=True):
            sentence = texts[span.document][span.start : span.end]
            assert fact.subject in sentence
            assert fact.object in sentence
            assert sentence.endswith(".")
        for before, after in pairwise(sample.facts):
            assert before.object == after.subject
        assert sample.answers == (sample.facts[-1].object,)
        assert sample.facts[0].subject in sample.question
        assert not any(f.object in sample.question for f in sample.facts)


def test_the_answer_follows_from_the_text_alone(filler):
    """Reading the whole context by the templates finds one object for each subject and relation of the chain."""
    name = r"([A-Z][a-z]+(?: (?:[A-Z][a-z]+|of))*)"
    statements = {r.name: r.train.statements for r in RELATIONS}
    found = 0
    for sample in Worlds(WorldConfig(tokens=300, distractors=6, hops=(2,), seed=1), filler).samples(40):
        text = sample.joined().documents[0].text
        for fact in sample.facts:
            said = statements[fact.relation]
            forms = [*said, *(form[0].lower() + form[1:] for form in said if not form.startswith("{"))]
            around = [form.format(s=fact.subject, o="\0").split("\0") for form in forms]
            forms = [name.join(map(re.escape, parts)) for parts in around if all(part in text for part in parts)]
            said = {o for form in forms for o in re.findall(rf"(?<!\w){form}", text)}
            assert said == {fact.object}
            found += 1
    assert found == 80


def test_distractors_stand_where_they_are_said_to(filler):
    close = 0
    for sample in Worlds(WorldConfig(tokens=500, hops=(1, 2), similar=1.0), filler).samples(30):
        assert [len(own) for own in sample.distractors] == [3] * len(sample.facts)
        for own in (sample, sample.joined()):
            texts = texts_of(own)
            for fact, spans in zip(own.facts, own.distractors, strict=True):
                said = [texts[s.document][s.start : s.end] for s in spans]
                assert all(sentence.endswith(".") for sentence in said)
                close += sum(fact.subject in sentence or fact.object in sentence for sentence in said)
                assert not any(fact.subject in sentence and fact.object in sentence for sentence in said)
        chunks = [Chunk(document_id=d.id, text=d.text) for d in sample.documents]
        for chunk in chunks:
            held = any(s.document == chunk.document_id for s in sample.distractors[0])
            assert sample.is_distractor(chunk, 0) == held
        assert not sample.is_distractor(chunks[0], 2)
    assert close > 60


def test_a_contrast_comes_close_and_is_not_answered(filler):
    same = 0
    for sample in Worlds(WorldConfig(tokens=500, hops=(1, 2)), filler).samples(60):
        first, *rest = sample.contrasts
        assert len(sample.contrasts) == len(sample.facts)
        about = sample.facts[0].subject in first
        same += about
        assert all(sample.facts[0].subject in question for question in rest if question)
        assert not any(fact.object in question for fact in sample.facts for question in sample.contrasts)
        assert sample.question not in sample.contrasts
    assert 20 < same < 60


def test_distractors_resemble_the_chain(filler):
    seen = {"other subject": 0, "other relation": 0, "turned round": 0}
    for sample in Worlds(WorldConfig(tokens=400, hops=(1,), similar=1.0), filler).samples(60):
        text, fact = sample.joined().documents[0].text, sample.facts[0]
        seen["other relation"] += text.count(fact.subject) > 1
        seen["turned round"] += text.count(fact.object) > 1
        parts = [p for p in fact.subject.split() if p[0].isupper() and p != "The"]
        seen["other subject"] += any(text.count(p) > text.count(fact.subject) for p in parts)
    assert min(seen.values()) > 20
    bare = Worlds(WorldConfig(tokens=400, hops=(1,), distractors=0), filler).sample(0)
    assert bare.joined().documents[0].text.count(bare.facts[0].subject) == 1


@pytest.mark.parametrize("tokens", [60, 400, 5000])
@pytest.mark.parametrize("given", [None, 600])
def test_contexts_have_the_asked_length(filler, tokens, given):
    filler = Filler(count, passages(given)) if given else filler
    for sample in Worlds(WorldConfig(tokens=tokens, hops=(1,), distractors=1), filler).samples(20):
        assert 0.98 * tokens - 2 <= sample.tokens <= tokens
        assert sample.tokens == count([sample.joined().documents[0].text])[0]
        assert len(texts_of(sample)) == len(sample.documents)


def test_a_sample_depends_on_its_number_and_settings_alone(filler):
    config = WorldConfig(tokens=300, seed=3)
    make = (
        "from compmem_research.tasks import haystack; haystack._FIRST_DRAW = 512;"
        "from compmem_research.tasks.haystack import Filler;"
        "from compmem_research.tasks.synthetic_facts import WorldConfig, Worlds;"
        "w = Worlds(WorldConfig(tokens=300, seed=3), Filler(lambda ts: [len(t.split()) for t in ts]));"
        "w.samples(3); print(w.sample(7))"
    )
    told = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True).stdout.strip()
    Worlds(WorldConfig(tokens=60_000), filler).sample(0)
    assert len(filler._pieces["train"]) > 512
    assert told == str(Worlds(config, filler).sample(7))
    assert told != str(Worlds(WorldConfig(tokens=300, seed=4), filler).sample(7))
    assert Worlds(config, filler).sample(7) in [s for s, _ in zip(Worlds(config, filler), range(8), strict=False)]


def test_wordings_of_training_and_evaluation_are_disjoint():
    train, held = set(), set()
    for relation in RELATIONS:
        for wordings, split in ((train, "train"), (held, "eval")):
            wording = relation.wording(split)
            wordings |= {*wording.statements, *wording.questions, *wording.phrases}
            assert all(t.count("{s}") == 1 and t.count("{o}") == 1 for t in wording.statements)
            assert all(t.count("{s}") == 1 and "{o}" not in t for t in (*wording.questions, *wording.phrases))
            assert all(t[0].isupper() or t[0] == "{" for t in (*wording.statements, *wording.questions))
            assert all(t.endswith(end) for t, end in [(t, ".") for t in wording.statements])
    assert not train & held
    assert set(OPENINGS["train"]) & set(OPENINGS["eval"]) == {""}


def names_in(samples):
    return {n for s in samples for f in s.facts for n in (f.subject, f.object)}


@pytest.mark.parametrize("syllables", [1, 2])
def test_names_of_training_and_evaluation_are_disjoint(filler, syllables):
    def names(split):
        config = WorldConfig(split=split, tokens=120, syllables=syllables, distractors=1)
        return names_in(Worlds(config, filler).samples(250))

    train, held = names("train"), names("eval")
    assert len(train) > 500
    assert not train & held
    assert all(has_role(n, "train") and not has_role(n, "eval") for n in train)


def test_filler_of_training_and_evaluation_is_disjoint(filler):
    made_up, given = filler, Filler(count, passages(400))
    for filler, tokens in ((given, 2000), (made_up, 30_000)):
        train = {p.document.text for p in filler.take("train", tokens, Random(0))}
        held = {p.document.text for p in filler.take("eval", tokens, Random(0))}
        assert train
        assert held
        assert not train & held
    assert {split_of(p.document) for p in given.take("eval", 2000, Random(1))[:-1]} == {"eval"}


def test_the_names_of_filler_are_no_names_of_questions(filler):
    drawn = {draw(Random(i), "person", "train filler").name for i in range(200)}
    assert not any(has_role(n, role) for n in drawn for role in ("train", "eval", "eval filler"))


def test_an_unanswerable_world_lacks_the_last_fact(filler):
    for sample in Worlds(WorldConfig(tokens=400, hops=(2,), unanswerable=1.0), filler).samples(30):
        assert sample.metric == "unanswerable"
        assert len(sample.facts) == len(sample.evidence) == 1
    some = Worlds(WorldConfig(tokens=400, unanswerable=0.5), filler).samples(60)
    assert 15 < sum(s.metric == "unanswerable" for s in some) < 45


def test_few_wordings_make_worlds_easy(filler):
    birth = next(r for r in RELATIONS if r.name == "birthplace")
    samples = Worlds(WorldConfig(tokens=200, hops=(1,), wordings=1, distractors=1), filler).samples(100)
    asked = [s for s in samples if s.facts[0].relation == "birthplace"]
    assert asked
    for sample in asked:
        fact, span = sample.facts[0], sample.evidence[0]
        assert sample.question == birth.train.questions[0].format(s=fact.subject)
        said = birth.train.statements[0].format(s=fact.subject, o=fact.object)
        assert texts_of(sample)[span.document][span.start : span.end] == said
        assert fact.note == f"{fact.subject}, birthplace: {fact.object}."


def test_joined_keeps_the_facts(filler):
    sample = Worlds(WorldConfig(tokens=300), filler).sample(1)
    joined = sample.joined()
    text = joined.documents[0].text
    for fact, span in zip(joined.facts, joined.evidence, strict=True):
        assert fact.object in text[span.start : span.end]


def test_written_is_what_joined_makes():
    assert written(Document(title="T", text="x")) == "T\nx\n\n"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"split": "test"}, "split='test'; it is 'train' or 'eval'"),
        ({"hops": (4,)}, r"hops=\(4,\); each is 1, 2 or 3"),
        ({"hops": ()}, r"hops=\(\); each is"),
        ({"tokens": 0}, "tokens=0; at least 1"),
        ({"distractors": -1}, "distractors=-1; at least 0"),
        ({"wordings": 0}, "wordings=0; at least 1"),
        ({"similar": 1.5}, "similar=1.5; it is a share"),
    ],
)
def test_wrong_settings_are_named(setting, message):
    with pytest.raises(ValueError, match=message):
        WorldConfig(**setting)


def test_contexts_that_cannot_be_made_are_named(filler):
    with pytest.raises(ValueError, match="tokens=5, but the facts alone have"):
        Worlds(WorldConfig(tokens=5), filler).sample(0)
    with pytest.raises(ValueError, match=r"\d+ tokens of filler for 'train', but the passages have"):
        Worlds(WorldConfig(tokens=5000), Filler(count, passages(3))).sample(0)


def test_things_are_named_with_what_they_are():
    kinds = {"{s}": "film", "{o}": "city"}
    assert reworded(["{s} was shot in {o}."], kinds) == (
        "{s} was shot in {o}.",
        "{s} was shot in the city of {o}.",
        "The film {s} was shot in {o}.",
        "The film {s} was shot in the city of {o}.",
    )
    assert reworded(["the film {s}"], kinds) == ("the film {s}",)
    assert reworded(["Who made {s}?"], {"{s}": "film"}, excluded=["Who made the film {s}?"]) == ("Who made {s}?",)
