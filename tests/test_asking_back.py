"""A chat model that writes from numbered blocks, asks for missing facts, and cites."""

import asyncio

import pytest

from compmem import AnswerToken, Document, IndexConfig, LoopConfig, MemoryIndex, RecallConfig, Request, Step
from compmem.cli.answer_page import answer_page
from compmem.cli.answer_text import cost_text
from compmem.loop.answering import citations
from compmem.readers.replies import MAX_REQUEST_CHARS, AnswerFilter
from tests.hashing import HashEncoder

DOCUMENTS = [
    Document(id="lease", title="Acme", text="Acme rents the Harbour Building. It makes rockets."),
    Document(id="policy", title="Harbour Building", text="The Harbour Building is insured by Lloyd."),
    *[Document(id=f"d{n}", title=f"Mill {n}", text=f"Mill {n} grinds rye for Acme every week.") for n in range(12)],
    Document(id="far", title="Zebra crossing", text="The zebra crossing was painted by Quentin Oak."),
]
QUESTION = "What does Acme rent?"


class Model:
    """Returns its replies in order, character by character, and records its prompts."""

    def __init__(self, *replies):
        self.replies, self.prompts = list(replies), []

    def __call__(self, messages):
        self.prompts.append(messages[-1]["content"])
        reply = self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]
        yield from reply


@pytest.fixture(scope="module")
def index():
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as made:
        made.add(DOCUMENTS)
        yield made


def asked(index, how, config, **models):
    """The events of one answer."""

    async def all_of():
        return [event async for event in index.astream(QUESTION, config, **models)]

    return asyncio.run(all_of()) if how == "async" else list(index.stream(QUESTION, config, **models))


def test_blocks_are_numbered_in_the_order_of_the_sources_and_quotes_are_marked(index):
    model = Model("The Harbour Building [1].")
    answer = index.answer("Who insures the building that Acme rents?", RecallConfig(writer_blocks=3), chat=model)
    [prompt] = model.prompts
    at = [prompt.index(f"<block>\n[{n}]\ntitle: {r.chunk.title}\n") for n, r in enumerate(answer.sources, start=1)]
    assert at == sorted(at) and len(at) == 3
    for evidence in answer.evidence:
        assert f"**{evidence.text}**" in prompt
    assert answer.evidence
    assert [r.cited for r in answer.sources] == [True, False, False]
    assert not any(r.cited for r in index.answer(QUESTION).sources)


@pytest.mark.parametrize("how", ["sync", "async"])
def test_what_is_missing_is_recalled_and_the_model_writes_again(index, how):
    model = Model("SEARCH: who painted the zebra crossing\nI cannot tell.", "Quentin Oak [2].")
    events = asked(index, how, RecallConfig(writer_blocks=2, rounds=1), chat=model)
    answer = events[-1]
    assert answer.text == "Quentin Oak [2]."
    assert "".join(e.text for e in events if isinstance(e, AnswerToken)).strip() == answer.text
    assert "zebra crossing was painted" not in model.prompts[0]
    assert "zebra crossing was painted" in model.prompts[1]
    assert "SEARCH:" in model.prompts[0] and "SEARCH:" not in model.prompts[1]
    assert (answer.usage.rounds, answer.usage.model_calls) == (1, 2)
    steps = [e for e in events if isinstance(e, Step)]
    assert tuple(steps) == answer.steps
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert {step.request for step in steps} == {"", "who painted the zebra crossing"}
    assert len({r.chunk.id for r in answer.sources}) == len(answer.sources)
    assert "1 follow-up search" in cost_text(answer.usage)
    assert "search for: who painted the zebra crossing" in answer_page(answer)


def test_a_model_asks_no_more_often_than_it_may(index):
    for rounds in (0, 1, 2):
        model = Model("SEARCH: the zebra")
        answer = index.answer(QUESTION, RecallConfig(rounds=rounds), chat=model)
        assert (answer.usage.rounds, len(model.prompts)) == (rounds, rounds + 1)
        assert answer.text == "The documents found do not say: the zebra"
    model = Model("SEARCH: the zebra\nAcme rents it.")
    assert index.answer(QUESTION, RecallConfig(rounds=0), chat=model).text == "Acme rents it."


def test_a_model_that_reads_in_every_step_is_not_asked_for_the_form(index):
    model = Model("<check>yes</check><update>Acme rents.</update><next>end</next>", "SEARCH: more")
    answer = index.answer(QUESTION, RecallConfig(reader="chat"), chat=model)
    assert (answer.text, answer.usage.rounds) == ("SEARCH: more", 0)
    model = Model("<check>yes</check><update>Acme rents.</update><next>end</next>")
    assert index.answer(QUESTION, LoopConfig.gru_mem(), chat=model).usage.model_calls > 1


def test_recalling_asks_no_model(index):
    model = Model("Never.")
    assert index.recall(QUESTION, 2, chat=model)
    assert model.prompts == []


@pytest.mark.parametrize(
    ("reply", "may_ask", "told", "wanted"),
    [
        ("SEARCH: the owner of Mill 3", True, "", "the owner of Mill 3"),
        ("**search**: the owner\n\nSo I wait.", True, "", "the owner"),
        ("<think>Hm.</think>\nSearch: (the owner)", True, "", "the owner"),
        ("```\nSEARCH: the owner\n```", True, "", "the owner"),
        ("**\nSEARCH: x\nLloyd.", False, "Lloyd.", ""),
        ("SEARCH:\nLloyd.", True, "Lloyd.", ""),
        ("SEARCH: x\n Lloyd.", False, "Lloyd.", ""),
        ("Sea", True, "Sea", ""),
        ("Searching is what they do.", True, "Searching is what they do.", ""),
        ("Search for the owner of Mill 3.\nHm.", True, "", "the owner of Mill 3."),
        ("Search for the owner", False, "Search for the owner", ""),
        ("Search forms", True, "Search forms", ""),
        ("S. Oak\nSEARCH: no", True, "S. Oak\nSEARCH: no", ""),
        ("SEARCH: " + "long " * 200, True, "", ("long " * 60).strip()),
    ],
)
def test_the_form_is_held_back_however_it_is_cut_into_pieces(reply, may_ask, told, wanted):
    for size in (1, 2, 7, len(reply)):
        written, heard = AnswerFilter(hold=False, from_blocks=True, may_ask=may_ask), []
        for at in range(0, len(reply), size):
            heard.append(written.feed(reply[at : at + size]))
        heard.append(written.rest())
        assert "".join(heard) == told
        assert [r.text for r in written.requests()] == ([wanted] if wanted else [])
        assert len(written.request) <= MAX_REQUEST_CHARS


def test_marks_are_numbers_in_brackets():
    assert citations("It is so [1][3], and so [2, 4]; not [a], [], [99999] or 5.") == {1, 2, 3, 4}


def test_a_writer_of_ones_own_may_ask_too(index):
    class Own:
        def write(self, question, memory):
            if memory.may_ask:
                yield Request(text="the zebra crossing")
            else:
                yield " ".join(sorted({b.chunk.document_id for b in memory.blocks} & {"lease", "far"}))

    answer = index.answer(QUESTION, RecallConfig(writer_blocks=4, rounds=1), writer=Own())
    assert (answer.text, answer.usage.rounds) == ("far lease", 1)
