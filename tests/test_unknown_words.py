"""Words of a question that no block has."""

import pytest

from compmem import Document, MemoryIndex, RecallConfig
from compmem.gate import parse_block, unknown_share
from compmem.retrieval.query import QueryAnalyzer
from compmem.schema import Chunk, MemoryBlock
from compmem.text.question_parts import asking
from tests.hashing import HashEncoder
from tests.test_gate import StubIndex

TEXTS = {
    "Acme": "Acme rents the Harbour Building. It makes rockets.",
    "Harbour Building": "The Harbour Building is insured by Lloyd. It was built in 1920.",
    "Zoo": "Animals live in the zoo.",
}


def share(question: str, texts: dict[str, str] = TEXTS) -> float:
    encoder = HashEncoder()
    chunks = [Chunk(text=text, title=title, sentences=((0, len(text)),)) for title, text in texts.items()]
    blocks = [parse_block(MemoryBlock(chunk=c, vectors=encoder.encode([c.text, c.text]))) for c in chunks]
    return unknown_share(QueryAnalyzer(question, encoder, StubIndex(texts)).analyze(""), blocks)


@pytest.mark.parametrize(
    "question",
    [
        "Who insures the building that Acme rents?",
        "Where do animals live?",
        "What rokcets does Acme make?",  # typing errors: letters that changed places, one too many, one too few
        "Where do anihmals live?",
        "Where do anmals live?",
        "Hello! I hope somebody is awake. Where do animals live? Thanks!",
        "I have a question: where do animals live?",
        "Wer versichert das Haus von Acme?",
        "Zorblatt tractor",
        "?",
    ],
)
def test_no_word_of_these_questions_is_unknown(question):
    assert share(question) == 0.0


def test_the_share_of_unknown_words_is_by_weight():
    assert share("How much does the Zorblatt tractor weigh?") == 1.0
    some, most = share("Where do zorblatts live?"), share("Where do zorblatts and tractors live?")
    assert 0.4 < some < most < 0.8
    assert share("what about lot 19205?") > share("what about 1920?")


def test_other_words_count_half_where_all_names_are_known():
    assert share("What does Acme cost?") < share("What does Zorblatt cost?") / 2
    assert share("What do Acme and Zorblatt cost?") > share("What do Acme and Lloyd cost?")


def test_other_words_count_half_where_a_code_is_known():
    texts = TEXTS | {"Code": "The codes of the 412 doors for 10000 cats are 73518 and mx730 since 1920."}
    known, part, *others = (share(f"Find what is assigned {n}", texts) for n in (73518, "MX730", 1920, 412, 10000))
    assert 0.3 < known < 0.5
    assert part == pytest.approx(known, rel=0.05)
    assert others == pytest.approx([2 * known] * 3, rel=0.05)


def test_long_words_are_not_compared_by_letters():
    word = "z" * 5000
    assert share(f"Where do {word}a live?", {**TEXTS, "Long": f"The {word}b is in the house."}) > 0.3


def test_english_words_are_not_unknown_in_texts_of_another_language():
    assert share("How much does the tractor of Acme weigh?", {"Acme": "Acme mietet das Hafenhaus."}) == 0.0


def test_what_a_text_asks_are_its_sentences_with_question_marks():
    assert asking("Hi! Where is it? And who owns it? Thanks.").split() == "Where is it? And who owns it?".split()
    assert asking("One question: where is it?").strip() == "where is it?"
    assert asking("Tell me where it is.") == "Tell me where it is."
    assert asking("") == ""


@pytest.fixture(scope="module")
def index() -> MemoryIndex:
    made = MemoryIndex.create()
    made.add([
        Document(
            id="a",
            title="Project Heron",
            text="Project Heron renews the billing system. Its budget is 240,000 euros, and Mia Sander leads it.",
        ),
        Document(
            id="b",
            title="Travel policy",
            text="Employees book trains in second class. The hotel may cost 140 euros a night.",
        ),
    ])  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("What is the budget of Project Heron?", True),
        ("Who leads Project Heron?", True),
        ("Who leads Project Heronn?", True),
        ("what may hotels cost per night", True),
        ("What does the tuition at Velden college cost?", False),
        ("who leads the parish choir of Dornach", False),
    ],
)
def test_nothing_is_quoted_about_what_no_document_names(index, question, found):
    answer = index.answer(question)
    assert answer.found == found
    assert bool(answer.sources) == found
    assert index.recall(question, 1)  # a ranking has the nearest all the same
    assert index.answer(question, RecallConfig(cite=True), chat=lambda messages: "It is 1.").found == found
