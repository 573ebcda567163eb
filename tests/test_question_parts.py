"""Questions that ask several things, and the answers to each."""

import asyncio

import pytest

from compmem import AnswerToken, Document, IndexConfig, LoopConfig, MemoryIndex, RecallConfig, Step
from compmem.loop.gates import DenseGate
from compmem.text.question_parts import question_parts, without_background
from tests.hashing import HashEncoder

READ_ONE = LoopConfig(threshold=0.0, max_steps=1, blocks_per_step=1)
BOTH = "When does the lease end, and who insures the building?"


def test_a_long_text_and_one_with_many_questions_are_one():
    assert question_parts(BOTH + " x" * 1000) == [BOTH + " x" * 1000]
    many = " and ".join(["Who runs the mill"] * 9)
    assert question_parts(many) == [many]


@pytest.mark.parametrize(
    ("asked", "parts"),
    [
        (BOTH, ["When does the lease end", "Who insures the building?"]),
        ("who pays for fuel and how long is the notice", ["who pays for fuel", "How long is the notice"]),
        ("Who runs Acme? Who runs Beta Corp?", ["Who runs Acme?", "Who runs Beta Corp?"]),
        ("Tell me when the lease ends and where the key is.", ["Tell me when the lease ends", "Where the key is."]),
        ("Is the roof covered? What is the excess?", ["Is the roof covered?", "What is the excess?"]),
        ("How many boats are there, when is the race, and what does a berth cost?",
         ["How many boats are there", "When is the race", "What does a berth cost?"]),
        ("Who rents the Mill, and in which year does the lease of Acme end?",
         ["Who rents the Mill", "In which year does the lease of Acme end?"]),
    ],
)  # fmt: skip
def test_a_text_is_cut_where_another_question_begins(asked, parts):
    assert question_parts(asked) == parts


@pytest.mark.parametrize(
    "asked",
    [
        "Who insures the building that Acme rents?",
        "Who is the man who founded Acme and who owns Beta?",
        "What does the director of the film that Alice made and which Bob sold earn?",
        "What is the city where Bob lived and where Carol worked?",
        "What happened in the town where Bob lived and when Carol left?",
        "What is the difference between what Acme says and what Beta says?",
        "Where and when was Marie Curie born?",
        "What did the ECDC and WHO regional office ask the countries?",
        "Where was Marie Curie born and why?",
        "Besides the river which the Tekeze turns into, where did Germany trade?",
        "Do the director of the film Where To? and the director of Going Home share a nationality?",
        "Why? Who? What? When? How? Where does it end?",
        "?" * 20_000,
        "what is it and " * 1000,
        "",
    ],
)
def test_one_question_stays_whole(asked):
    assert question_parts(asked) == [asked]


@pytest.mark.parametrize(
    ("asked", "alone"),
    [
        ("Who founded Acme and when did he die?", "Who founded Acme"),
        ("Who runs Acme and when was the company founded?", "Who runs Acme"),
        ("When does the lease end? Who signed it?", "When does the lease end?"),
    ],
)
def test_a_part_that_needs_another_one_is_asked_within_the_whole(asked, alone):
    assert question_parts(asked) == [alone, asked]


@pytest.mark.parametrize(
    ("asked", "alone"),
    [
        ("Good morning! I hope you are well. When does the lease end? Thanks a lot.", "When does the lease end?"),
        ("I talked to Bob Hill. Who pays for fuel? How long is the notice?",
         "Who pays for fuel? How long is the notice?"),
    ],
)  # fmt: skip
def test_the_sentences_that_ask_stand_alone(asked, alone):
    assert without_background(asked) == alone


@pytest.mark.parametrize(
    "asked",
    [
        "We are on version 3.2. How is the cache cleared?",
        "The pump leaks. What does it mean?",
        "The pump leaks. Why?",
        "Tell me about the lease. Thanks.",
        "What is the min. age for e.g. a trainee driver?",
        "What is the notice period\nfor a cook?",
        "When does the lease end?",
        "",
    ],
)
def test_they_do_not_without_what_they_refer_to(asked):
    assert without_background(asked) == ""


@pytest.fixture(scope="module")
def index():
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as made:
        made.add(
            [
                Document(id="lease", title="Lease", text="The lease ends in 2031. Rent is due in May."),
                Document(id="policy", title="Policy", text="Lloyd insures the building against fire."),
                *[Document(id=f"d{n}", title=f"Mill {n}", text=f"Mill {n} grinds rye every week.") for n in range(12)],
            ]
        )
        yield made


def asked(index, how, config, **models):
    async def all_of():
        return [event async for event in index.astream(BOTH, config, **models)]

    return asyncio.run(all_of()) if how == "async" else list(index.stream(BOTH, config, **models))


@pytest.mark.parametrize("how", ["sync", "async"])
def test_each_part_is_searched_for_and_answered(index, how):
    *events, answer = asked(index, how, None)
    parts = question_parts(BOTH)
    alone = [index.answer(part) for part in parts]
    steps = [event for event in events if isinstance(event, Step)]
    assert (
        answer.text
        == " ".join(one.text for one in alone)
        == "The lease ends in 2031. Policy: Lloyd insures the building against fire."
    )
    assert "".join(event.text for event in events if isinstance(event, AnswerToken)) == answer.text
    assert [r.chunk.id for r in answer.sources] == [r.chunk.id for one in alone for r in one.sources]
    assert [s.request for s in steps] == [part for part, one in zip(parts, alone, strict=True) for _ in one.steps]
    assert [s.number for s in steps] == list(range(1, len(steps) + 1))
    assert answer.steps == tuple(steps) and answer.found


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_model_writes_one_answer_from_the_blocks_of_all_parts(index, how):
    prompts = []

    def chat(messages):
        prompts.append(messages[-1]["content"])
        return "In 2031, and Lloyd."

    *_, answer = asked(index, how, RecallConfig(writer_blocks=2), chat=chat)
    [prompt] = prompts
    assert BOTH in prompt and "ends in 2031" in prompt and "Lloyd insures" in prompt
    assert answer.text == "In 2031, and Lloyd."
    assert {r.chunk.document_id for r in answer.sources} == {"lease", "policy"}


def test_where_nothing_is_found_for_a_story_its_question_is_asked(index, monkeypatch):
    asked = "Who insures the building?"
    story = f"Hello, sorry to bother you again. {asked} It has been on my mind."
    plain = index.answer(asked)
    assert plain.found
    alone = property(lambda gate: gate._generator.analyzer.question == asked)
    monkeypatch.setattr(DenseGate, "answerable", alone)
    for told in (index.answer(story), asyncio.run(index.aanswer(story))):
        assert (told.text, told.sources, told.question, told.found) == (plain.text, plain.sources, story, True)
        assert {step.request for step in told.steps} == {asked}
    assert not index.answer(story, RecallConfig(decompose=False)).found
    prompts = []
    index.answer(story, chat=lambda messages: prompts.append(messages[-1]["content"]) or "Lloyd.")
    assert len(prompts) == 1 and story in prompts[0]


def test_recall_gives_each_part_its_share(index):
    steps = []
    found = index.recall(BOTH, 2, on_step=steps.append)
    assert {r.chunk.document_id for r in found} == {"lease", "policy"}
    assert [s.number for s in steps] == list(range(1, len(steps) + 1))
    assert [r.score for r in found] == sorted((r.score for r in found), reverse=True)
    assert len(index.recall(BOTH, 5)) == 5
    assert asyncio.run(index.arecall(BOTH, 2)) == found


def test_it_can_be_turned_off_and_a_part_without_an_answer_is_left_out(index):
    whole = index.answer(BOTH, LoopConfig(decompose=False))
    assert {step.request for step in whole.steps} == {""}
    assert {step.request for step in index.answer(BOTH, LoopConfig.rag()).steps} == {""}
    [lease, policy] = [index.answer(part).text for part in question_parts(BOTH)]
    assert index.answer(BOTH, filter={"no": "such"}).text == index.answer("Who?", filter={"no": "such"}).text
    assert index.answer(f"{BOTH} Who insures the building?").text == f"{lease} {policy}"


def test_a_yes_or_no_stands_behind_each_question_that_it_answers():
    with MemoryIndex.create(None, IndexConfig(encoder=HashEncoder())) as index:
        said = ("Are pets allowed in the office?\nYes.", "Are guests allowed in the lab?\nYes.")
        index.add([Document(id=str(n), title=f"Rule {n}", text=text) for n, text in enumerate(said)])
        pets, guests = "Rule 0: Are pets allowed in the office? Yes.", "Rule 1: Are guests allowed in the lab? Yes."
        answer = index.answer("Are pets allowed in the office? Are guests allowed in the lab?", READ_ONE)
        assert answer.text == f"{pets} {guests}"
        assert (
            index.answer("Are pets allowed in the office? Are any pets allowed in the office?", READ_ONE).text == pets
        )


def test_a_deadline_is_for_all_parts_together(index):
    async def late():
        return await index.aanswer(BOTH, RecallConfig(max_seconds=1e-6))

    for answer in (index.answer(BOTH, RecallConfig(max_seconds=1e-6)), asyncio.run(late())):
        assert (answer.stop_reason, answer.steps) == ("seconds", ())
