"""Questions composed of a fact in a lead and a question about one text."""

import numpy as np

from compmem_research.tasks.composed import answered, compose, facts, passage_of
from compmem_research.tasks.multihop import Passage, corpus_of
from compmem_research.tasks.singlehop import SingleHop


def lead(title, text):
    return Passage(title=title, sentences=(text,))


def single(question, answer, context, title=""):
    return SingleHop(
        id=question, dataset="own", title=title, context=context, question=question, answers=(answer,),
        start=context.find(answer),
    )  # fmt: skip


BIG_EYES = lead("Big Eyes (film)", "Big Eyes is a film directed by Tim Burton and written by Scott Alexander.")
SPOUSE = single(
    "Who is Tim Burton married to these days?", "Helena", "Tim Burton ( a director ) is married to Helena ."
)


def test_a_fact_and_a_question_about_the_same_name_make_one_question():
    (record,) = compose([BIG_EYES], [SPOUSE], np.random.default_rng(0), most=5)
    assert "Tim Burton" not in record["question"]
    assert "Big Eyes" in record["question"]
    assert record["question"].startswith("Who is ") and record["question"].endswith(" married to these days?")
    assert record["answer"] == "Helena"
    corpus = corpus_of([("here", record)])
    assert [corpus.passages[n].title for n in sorted(corpus.questions[0].gold)] == ["Big Eyes (film)", "Tim Burton"]


def test_a_chain_goes_through_the_lead_of_what_is_named():
    town = lead("Lund", "Lund is a village in the region Skane of some note.")
    man = lead("Olof Hansson", "Olof Hansson was born in Lund, and never left it.")
    asked = single("how many people live in Skane today", "many", "Many people live in Skane .")
    made = [compose([man, town], [asked], np.random.default_rng(s), most=5) for s in range(12)]
    chains = [r for records in made for r in records if r["type"] == "3hop"]
    assert chains
    assert "Olof Hansson" in chains[0]["question"] and "Lund" not in chains[0]["question"]
    assert [p["title"] for p in chains[0]["paragraphs"]][:2] == ["Olof Hansson", "Lund"]


def test_leads_say_what_is_what():
    found = {(f.named, f.described[0]) for f in facts([BIG_EYES])}
    assert ("tim burton", "the director of Big Eyes") in found
    assert ("scott alexander", "the author of Big Eyes") in found


def test_a_question_describes_its_answer_where_that_is_a_name():
    asked = [
        single("who wrote The Tide?", "Ann Poe", "Ann Poe wrote The Tide."),
        single("where is the red hall", "Kiel", "The red hall is in Kiel."),
        single("how many are there", "Nine", "Nine."),
        single("what colour has it", "blue", "It is blue."),
    ]
    assert [(n, d) for _, n, d in answered(asked)] == [
        ("ann poe", "the one who wrote The Tide"),
        ("kiel", "the place where is the red hall"),
    ]


def test_the_same_seed_composes_the_same_and_a_name_is_not_worn_out():
    questions = [
        single(f"What did Tim Burton do in {y}?", "x", f"In {y} Tim Burton did x .") for y in range(1990, 2010)
    ]
    leads = [lead(f"Film {i}", f"Film {i} is a film directed by Tim Burton.") for i in range(20)]
    one, two = (compose(leads, questions, np.random.default_rng(3), most=50, per_name=4) for _ in range(2))
    assert one == two
    assert len(one) == 4


def test_a_text_without_a_title_is_titled_by_what_it_is_about():
    assert passage_of(SPOUSE).title == "Tim Burton"
    assert passage_of(SPOUSE).text == "Tim Burton (a director) is married to Helena."
    about = single("q", "a", "By then the Red Army moved. Later the Red Army stopped.")
    assert passage_of(about).title == "Red Army"
    assert passage_of(single("q", "a", "nothing here", "Given")).title == "Given"
