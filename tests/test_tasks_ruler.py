import re
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from typing import get_args

import pytest

from compmem_research.tasks import haystack
from compmem_research.tasks.contexts import Contexts
from compmem_research.tasks.haystack import Filler
from compmem_research.tasks.multihop import Corpus, Passage, Question
from compmem_research.tasks.ruler import TEMPLATES, Ruler, RulerTask

MADE = [t for t in get_args(RulerTask) if not t.startswith("qa")]
NIAH = [t for t in MADE if t.startswith("niah")]


def count(texts):
    return [len(re.findall(r"\w+|[^\w\s]", text)) + 2 for text in texts]


def tokens_of(text):
    return count([text])[0] - 2


@pytest.fixture(scope="module", autouse=True)
def little_filler():
    """By default thousands of passages are made up at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(haystack, "_FIRST_DRAW", 512)
        yield


@pytest.fixture(scope="module")
def filler():
    return Filler(count)


@pytest.fixture(scope="module")
def ruler(filler):
    return Ruler(filler)


def text_of(sample):
    return sample.joined().documents[0].text


@pytest.mark.parametrize("task", MADE)
@pytest.mark.parametrize("tokens", [2000, 12_000])
@pytest.mark.parametrize("split", ["train", "eval"])
def test_a_sample_has_the_asked_length_and_is_scored_by_all_its_answers(filler, task, tokens, split):
    for sample in Ruler(filler, split=split).samples(task, tokens, 3):
        assert 0.98 * tokens <= sample.tokens <= tokens
        assert sample.tokens == pytest.approx(tokens_of(text_of(sample)), rel=0.002)
        assert (sample.task, sample.metric) == (task, "all")
        assert sample.score(" and ".join(sample.answers)) == 1.0
        assert sample.score(sample.answers[0].upper()) == pytest.approx(1 / len(sample.answers))


@pytest.mark.parametrize(
    ("task", "needles", "answers", "key", "value"),
    [
        ("niah_single_1", 1, 1, r"[a-z]+-[a-z]+", r"\d{7}"),
        ("niah_single_2", 1, 1, r"[a-z]+-[a-z]+", r"\d{7}"),
        ("niah_single_3", 1, 1, r"[a-z]+-[a-z]+", r"[0-9a-f-]{36}"),
        ("niah_multikey_1", 4, 1, r"[a-z]+-[a-z]+", r"\d{7}"),
        ("niah_multikey_2", None, 1, r"[a-z]+-[a-z]+", r"\d{7}"),
        ("niah_multikey_3", None, 1, r"[0-9a-f-]{36}", r"[0-9a-f-]{36}"),
        ("niah_multivalue", 4, 4, r"[a-z]+-[a-z]+", r"\d{7}"),
        ("niah_multiquery", 4, 4, r"[a-z]+-[a-z]+", r"\d{7}"),
    ],
)
def test_needles_are_as_many_as_defined(ruler, task, needles, answers, key, value):
    needle = re.compile(rf"One hidden (?:number|code) that belongs to ({key}) is: ({value})\.")
    for sample in ruler.samples(task, 3000, 5):
        text = text_of(sample)
        told = needle.findall(text)
        if needles is None:
            assert all(needle.fullmatch(line) for line in text.split("\n"))
        else:
            assert len(told) == needles
        assert len(sample.answers) == len(set(sample.answers)) == len(sample.evidence) == answers
        assert all(text.count(a) == 1 for a in sample.answers)
        asked = {k for k, v in told if v in sample.answers}
        assert len(asked) == (4 if task == "niah_multiquery" else 1)
        assert all(k in sample.question for k in asked)
        assert [v for k, v in told if k in asked and v not in sample.answers] == []


@pytest.mark.parametrize("task", NIAH)
def test_evidence_is_the_needle_of_the_answer(ruler, task):
    for sample in ruler.samples(task, 2500, 5):
        texts = {d.id: d.text for d in sample.documents}
        for answer, span in zip(sample.answers, sample.evidence, strict=True):
            assert texts[span.document][span.start : span.end].endswith(f"is: {answer}.")
            assert texts[span.document][span.start : span.end].startswith("One hidden")


def test_needles_stand_all_over_the_haystack(ruler):
    places = [s.evidence[0].start / len(s.documents[0].text) for s in ruler.samples("niah_single_1", 3000, 60)]
    assert min(places) < 0.15
    assert max(places) > 0.85


def test_noise_is_one_paragraph_again_and_again(ruler):
    sample = ruler.sample("niah_single_1", 2000, 0)
    lines = Counter(sample.documents[0].text.split("\n"))
    assert len(lines) == 2
    assert lines[TEMPLATES["eval"].noise[0]] == lines.total() - 1 > 20


def test_variables_are_copied_in_order(ruler):
    for sample in ruler.samples("vt", 3000, 5):
        lines = [line for line in sample.documents[0].text.split("\n") if line != TEMPLATES["eval"].noise[0]]
        names = sample.answers
        assert len(set(names)) == 5
        assert all(re.fullmatch("[A-Z]{5}", n) for n in names)
        value = lines[0].removeprefix(f"VAR {names[0]} = ")
        assert re.fullmatch(r"\d{5}", value)
        assert value in sample.question
        assert lines[1:] == [f"VAR {new} = VAR {old}" for old, new in pairwise(names)]
        text = sample.documents[0].text
        assert [text[s.start : s.end] for s in sample.evidence] == lines


def test_common_words_are_as_common_as_defined(ruler):
    for sample in ruler.samples("cwe", 4000, 3):
        listed = re.findall(r"(\d+)\. (\w+)", sample.documents[0].text)
        assert [int(n) for n, _ in listed] == list(range(1, len(listed) + 1))
        times = Counter(w for _, w in listed)
        assert {w for w, n in times.items() if n == 30} == set(sample.answers)
        assert len(sample.answers) == 10
        assert {n for w, n in times.items() if w not in sample.answers} == {3}


def test_coded_words_follow_a_zeta_law(ruler):
    for sample in ruler.samples("fwe", 8000, 3):
        times = Counter(sample.documents[0].text.split())
        ranked = times.most_common()
        assert ranked[0][0] == "......"
        assert tuple(w for w, _ in ranked[1:4]) == sample.answers
        for rank, (_, n) in enumerate(ranked[:6], 1):
            assert n == pytest.approx(ranked[0][1] / rank**2, abs=1.01)
        assert all(re.fullmatch("[a-z]{6}", w) for w, _ in ranked[1:])


def contexts():
    passages = [Passage(title=f"T{i}", sentences=(f"Thing {i} weighs {1000 + i} stones.",)) for i in range(60)]
    question = Question(
        id="q", dataset="own", type="", question="How heavy is thing 7?", answers=("1007",), gold=frozenset([7]),
        support=((7, (0,)),),
    )  # fmt: skip
    return Contexts(Corpus(passages=tuple(passages), questions=(question,)), count)


def test_questions_are_asked_over_paragraphs(filler):
    sample = Ruler(filler, questions={"qa_1": contexts()}).sample("qa_1", 200, 0)
    assert (sample.task, sample.metric) == ("qa_1", "any")
    assert text_of(sample).count("1007") == 1
    assert sample.score("about 1007 stones") == 1.0
    assert 0.95 * 200 <= sample.tokens <= 200


def test_splits_share_no_keys_values_words_templates_or_noise(filler):
    def seen(split, tasks):
        samples = [s for t in tasks for s in Ruler(filler, split=split).samples(t, 2500, 6)]
        words = {w for s in samples for w in re.findall(r"[a-z]+-[a-z]+\b|[0-9a-f-]{36}|\d{7}|[A-Z]{5}", text_of(s))}
        return words | {a for s in samples for a in s.answers}

    train, held = seen("train", [*NIAH, "vt", "cwe", "fwe"]), seen("eval", [*NIAH, "vt", "cwe", "fwe"])
    assert len(train) > 500
    assert not train & held

    def told(split):
        t = TEMPLATES[split]
        many = (t.needles, t.asks_one, t.asks_all, t.asks_variables, t.asks_common, t.asks_coded)
        sentences = [s for noise in t.noise for s in re.split(r"(?<=\.) ", noise)]
        assigned = [text for pair in t.assignments for text in pair]
        return {*sentences, *assigned, *(text for texts in many for text in texts)}

    assert not told("train") & told("eval")


def listed_words(filler, split):
    sample = Ruler(filler, split=split).sample("cwe", 6000, 0)
    return set(re.findall(r"\. (\w+)", sample.documents[0].text))


def test_words_of_lists_are_disjoint(filler):
    assert not listed_words(filler, "train") & listed_words(filler, "eval")


def test_a_sample_depends_on_task_length_and_number_alone(ruler):
    make = (
        "from compmem_research.tasks import haystack; haystack._FIRST_DRAW = 512;"
        "import re; from compmem_research.tasks.haystack import Filler; from compmem_research.tasks.ruler import Ruler;"
        r"r = Ruler(Filler(lambda ts: [len(re.findall(r'\w+|[^\w\s]', t)) + 2 for t in ts]));"
        "print([r.sample(t, 1500, 2) for t in ('niah_multiquery', 'vt', 'cwe', 'fwe')])"
    )
    told = subprocess.run([sys.executable, "-c", make], capture_output=True, text=True, check=True).stdout.strip()
    assert told == str([ruler.sample(t, 1500, 2) for t in ("niah_multiquery", "vt", "cwe", "fwe")])


def test_what_cannot_be_made_is_named(filler, ruler):
    with pytest.raises(ValueError, match="task='niah_9'; it is one of niah_single_1"):
        ruler.sample("niah_9", 1000, 0)
    with pytest.raises(ValueError, match="split='test'"):
        Ruler(filler, split="test")
    with pytest.raises(ValueError, match="task='qa_2' needs paragraphs; give questions="):
        ruler.sample("qa_2", 1000, 0)
    with pytest.raises(ValueError, match="number=1, but 'qa_1' has 1 questions"):
        Ruler(filler, questions={"qa_1": contexts()}).sample("qa_1", 200, 1)
    with pytest.raises(ValueError, match="tokens=5, but the text that the question needs has"):
        ruler.sample("vt", 5, 0)
    with pytest.raises(ValueError, match="tokens=500, but the shortest text has"):
        ruler.sample("cwe", 500, 0)
