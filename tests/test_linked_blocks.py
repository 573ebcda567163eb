"""Blocks that share nothing with a question but an identifier in what was found: a key that joins two tables."""

import pytest

from compmem import Chunk, Document, Evidence, IndexConfig, LoopConfig, MemoryIndex, WorkingMemory
from compmem.readers.identifiers import rare_identifiers
from compmem.retrieval.query import QueryAnalyzer
from tests.hashing import HashEncoder
from tests.test_gate import StubIndex

QUESTION = "Which supplier makes the spare part of Press 1?"
PARTS = {f"PT-{1000 + 7 * n}": f"Maker {n}" for n in range(60)}


@pytest.fixture(scope="module")
def index():
    """Each part is made by one firm, is needed by a machine, and has a page of its own."""
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as made:
        pages = [
            Document(id=part, title=part, text=f"{part} is a belt, from {maker}. Code {part} is in use.")
            for part, maker in PARTS.items()
        ]
        everywhere = [Document(id=f"list {n}", text=f"List {n}: DIN-9 applies.") for n in range(9)]
        made.add([Document(id="press", text="Press 1 needs the spare part PT-1014."), *pages, *everywhere])
        yield made


def linked(index, *notes, question=QUESTION, **settings):
    evidence = [Evidence.of(Chunk(text=text, document_id="d"), (0, len(text)), score) for text, score in notes]
    with index.question_context(question, None, LoopConfig(**settings)) as context:
        memory = WorkingMemory(text="\n".join(text for text, _ in notes), evidence=tuple(evidence))
        found = context.linked(memory) if context.lacks_words(memory) else []
        return [b.chunk.document_id for b in context.fetch(found)]


def test_the_blocks_with_a_rare_identifier_of_the_best_notes_are_found(index):
    assert linked(index, ("Press 1 needs PT-1014.", 0.8)) == ["press", "PT-1014"]
    assert linked(index, ("It needs PT-1014 and PT-1021.", 0.8), ("PT-1028 is old.", 0.8)) == [
        "press", "PT-1014", "PT-1021", "PT-1028",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("notes", "question"),
    [
        ([("PT-1014 is old.", 0.5), ("Press 1 is new.", 0.8)], QUESTION),
        ([("It needs PT-1014.", 0.8)], "Who makes PT-1014?"),
        ([("It follows DIN-9.", 0.8)], QUESTION),
        ([("PT-1014: 3", 0.8)], QUESTION),
        ([("NASA and NATO own Press 1.", 0.8)], QUESTION),
        ([("Press 1 needs PT-9999.", 0.8)], QUESTION),
        ([("Press 1 needs the spare part PT-1014.", 0.8)], "Which spare part does Press 1 need?"),
        ([], QUESTION),
    ],
    ids=[
        "not the best",
        "in the question",
        "common",
        "a label",
        "an abbreviation",
        "unknown",
        "nothing is missing",
        "no notes",
    ],
)
def test_others_lead_nowhere(index, notes, question):
    assert linked(index, *notes, question=question) == []


def test_an_answer_joins_two_documents_by_their_key(index):
    answer = index.answer(QUESTION, LoopConfig(threshold=0.9))
    assert "PT-1014 is a belt, from Maker 2." in answer.text
    assert [r.chunk.document_id for r in answer.sources] == ["press", "PT-1014"]
    filtered = index.answer(QUESTION, LoopConfig(threshold=0.9), filter={"no": "such"})
    assert not filtered.found


def test_a_block_that_no_signal_proposes_gets_a_score_of_the_gate(index):
    answer = index.answer(QUESTION, LoopConfig(threshold=0.1, first_stage=1, links=False))
    assert [r.chunk.document_id for r in answer.sources] == ["press", "PT-1014"]
    assert answer.steps[1].candidates == 0 and 0 < answer.sources[1].score < answer.sources[0].score


def test_variables_are_followed_from_value_to_value():
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as made:
        made.add(Document(id=f"d{n}", text=f"Note {n} is about the wool of the mill.") for n in range(30))
        made.add([
            Document(id="a", text="VAR KMQZA = 73518."), Document(id="b", text="VAR PLWSX = VAR KMQZA."),
            Document(id="c", text="VAR BHUTR = VAR PLWSX."), Document(id="d", text="VAR TYRWQ = 11111."),
        ])  # fmt: skip
        answer = made.answer("Find all variables that are assigned the value 73518 in the text above.")
    assert [s.chunk.document_id for s in answer.sources] == ["a", "b", "c"]
    assert "VAR BHUTR = VAR PLWSX." in answer.text


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("The client sets timeout = 5 and speaks HTTPS only.", []),
        ("SELECT name FROM users WHERE id = 5", []),
        ("if (speed == LIMIT) return TRUE;", []),
        ("SPEED = LIMIT;", ["LIMIT", "SPEED"]),
        ("X=LIMIT", ["LIMIT"]),
        ("LIMIT := MAXIMUM", ["LIMIT", "MAXIMUM"]),
        ("VAR KMQZA = VAR PLWSX", ["KMQZA", "PLWSX"]),
        ("Part MX-730 of the NATO list", ["MX-730"]),
    ],
)
def test_words_in_capitals_are_followed_only_beside_the_sign_of_an_assignment(text, names):
    analyzer = QueryAnalyzer("What is it?", HashEncoder(), StubIndex())
    evidence = [Evidence.of(Chunk(text=text), (0, len(text)), 1.0)]
    assert list(rare_identifiers(evidence, analyzer)) == names


def test_names_in_code_are_found():
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as made:
        made.add(Document(id=f"d{n}", text=f"Note {n} is about wool.") for n in range(30))
        made.add([Document(id="value", text="max_flow_rate = 4512.")])
        assert linked(made, ("The pump takes max_flow_rate.", 0.8), question="What does the pump weigh?") == ["value"]
