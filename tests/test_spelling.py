"""Mistyped words of a question are replaced by words of the index."""

import pytest

from compmem import Document, IndexConfig, MemoryIndex
from compmem.retrieval.spelling import correct_spelling
from compmem.schema import Chunk
from compmem.store.transient import TransientLexicalIndex
from tests.hashing import HashEncoder

TEXTS = (
    "The government of England announced a policy on the temperature of schools.",
    "The goverment printed its letter of the year.",
    "Schools are cold. Bread is dear. The government pays.",
)


@pytest.fixture
def index():
    lexical_index = TransientLexicalIndex()
    for number, text in enumerate(TEXTS):
        lexical_index.add(number, Chunk(text=text, document_id=str(number)))
    yield lexical_index
    lexical_index.close()


@pytest.mark.parametrize(
    ("question", "corrected"),
    [
        ("What did the govrenment anounce?", "What did the government announce?"),
        ("the temmperature of Enlgand", "the temperature of England"),
        ("Temprature: schols?", "Temperature: schools?"),
        ("Which goverment?", "Which goverment?"),  # a block has it
        ("Why is the broad cold?", "Why is the broad cold?"),  # another letter in place of one
        ("What did the zovernment say?", "What did the zovernment say?"),  # another first letter
        ("What about climate and parliament?", "What about climate and parliament?"),
        ("tempertaure 2024 tempe", "temperature 2024 tempe"),
        ("", ""),
        ("東京 学校 Müller", "東京 学校 Müller"),
    ],
)
def test_a_word_that_no_block_has_becomes_one_that_blocks_have(index, question, corrected):
    assert correct_spelling(question, index) == corrected


def test_of_several_words_the_one_in_most_blocks_is_taken():
    lexical_index = TransientLexicalIndex()
    for number, text in enumerate(["a table", "a table", "one cable and tale"]):
        lexical_index.add(number, Chunk(text=text, document_id=str(number)))
    assert correct_spelling("the taable and the tabel", lexical_index) == "the table and the table"
    lexical_index.close()


def test_a_limited_number_of_words_is_looked_up(index):
    looked_up = []
    count = index.document_frequency
    index.document_frequency = lambda terms: looked_up.extend(terms) or count(terms)
    correct_spelling(" ".join(f"zz{letter * 30}" for letter in "abcdefghij"), index)
    assert len(looked_up) < 5 * 32 * 30


def test_a_mistyped_question_is_answered_as_the_right_one():
    with MemoryIndex.create(config=IndexConfig(encoder=HashEncoder())) as index:
        index.add([Document(id=str(number), text=text) for number, text in enumerate(TEXTS)])
        right, mistyped = "What is the temperature policy of England?", "What is the temprature polciy of Enlgand?"
        assert index.answer(mistyped).text == index.answer(right).text != ""
        assert index.search(mistyped) == index.search(right)


def test_a_filter_hides_the_words_of_other_documents():
    with MemoryIndex.create(config=IndexConfig(encoder=HashEncoder())) as index:
        index.add(
            [Document(id=str(n), text=text, metadata={"team": str(n)}) for n, text in enumerate(TEXTS)],
        )
        with index.question_context("the temprature", filter={"team": "2"}) as context:
            assert context.candidate_generator.analyzer.question == "the temprature"
        with index.question_context("the temprature", filter={"team": "0"}) as context:
            assert context.candidate_generator.analyzer.question == "the temperature"
