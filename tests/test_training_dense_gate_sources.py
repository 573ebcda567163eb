"""The data of the dense gate: collections, their styles, tiny and tenant indexes, files."""

import dataclasses
import re
from collections import Counter
from random import Random

import numpy as np
import pytest

from compmem import index_models
from compmem_research.training.dense_gate import DenseGateTraining, sets
from compmem_research.training.dense_gate.collection import Collection, Query, passages, relevant_to
from compmem_research.training.dense_gate.pages import bodies, docstrings, sections, topics
from compmem_research.training.dense_gate.sets import (
    abstracts_in_parts,
    abstracts_titled,
    join_texts,
    reports,
    single,
    tiny_indexes,
    tiny_single,
)
from compmem_research.training.dense_gate.sources import Source, sources
from compmem_research.training.dense_gate.states import collect_states
from compmem_research.training.dense_gate.styles import restyle
from tests.dense_gate_training import NAMES, facts, paragraphs
from tests.hashing import HashEncoder
from tests.test_tasks import write


def chunks_of(document):
    return [dataclasses.replace(chunk, document_id=document.id) for chunk in document.chunks]


@pytest.fixture(scope="module")
def asked():
    return [a for hops in (1, 2) for a in collect_states(facts(f"group{hops}", hops), HashEncoder(), 2)]


def test_every_style_keeps_to_the_words_of_the_query():
    query, rng = "Which director of Ammonite films was born in Dortal?", Random(0)
    made = dict(restyle(query, rng) for _ in range(60))
    assert set(made) == {"keywords", "chatty", "typos", "lower"}
    assert query in made["chatty"]
    assert made["lower"] == query.lower().rstrip("?")
    assert set(made["keywords"].split()) <= set(query.rstrip("?").split())
    assert len(made["typos"].split()) == len(query.split())
    assert ("keywords", "") in {restyle("who is it", rng) for _ in range(20)}  # too few words are left


def test_long_passages_overlap_and_hold_every_text():
    nodes, where = join_texts(11, 5, Random(0))
    assert [len(n) for n in nodes] == [5, 5, 3]
    assert nodes[0][-1] == nodes[1][0]
    assert set(where) == set(range(11))
    assert all(text in nodes[n] for text, held in where.items() for n in held)


def test_collections_ask_of_texts_that_are_there(tmp_path):
    single_file = write(tmp_path / "single.jsonl", *(
        {"dataset": "nq_qed", "context": f"{n} was born in {n}dorf in the year {i}.", "question": f"where was {n} born", "answer": f"{n}dorf", "start": len(n) + 13}  # noqa: E501
        for i, n in enumerate(NAMES)
    ))  # fmt: skip
    report_file = write(tmp_path / "reports.jsonl", *(
        {"id": f"r{i}", "question": f"what are sales in {i}", "answer": "1", "paragraphs": paragraphs(("", f"Sales were {i}.", True), ("", f"Costs of {n}.", False))}  # noqa: E501
        for i, n in enumerate(NAMES)
    ))  # fmt: skip
    text = "\n".join(
        f"The valley of {w} holds rivers and forests where {w} farmers keep sheep and goats through long winters. "
        f"Rivers of this valley flood the forests in spring, and farmers of {w} then move their sheep to higher land. "
        "Many forests were cut when the farmers of other valleys came to settle along the rivers in later years."
        for w in ("north", "south", "east")
    )
    pages_file = write(tmp_path / "pages.jsonl", *({"title": n, "text": f"{n}\n{text}"} for n in NAMES))
    found = {
        "single": list(single(single_file, "nq_qed", 10, 6)),
        "long": list(single(single_file, "nq_qed", 10, 6, per_node=3)),
        "reports": list(reports(report_file, 40, whole=False)),
        "whole reports": list(reports(report_file, 40, whole=True)),
        "sections": list(sections(pages_file, 0, 8, 12, titled=True)),
        "docstrings": list(docstrings(20)),
    }
    for name, collections in found.items():
        assert collections, name
        assert sum(len(c.queries) for c in collections) > 0, name
        for collection in collections:
            chunks = [
                dataclasses.replace(c, document_id=d.id) if not isinstance(c, str) else None
                for d in collection.documents for c in d.chunks
            ]  # fmt: skip
            assert len({d.id for d in collection.documents}) == len(collection.documents)
            for query in collection.queries:
                assert query.text.strip()
                assert any(query.relevant(chunk) for chunk in chunks if chunk is not None), (name, query.text)
    assert len(found["single"][0].queries) == 6
    assert len(found["single"][0].documents) == 10
    assert len(found["whole reports"][-1].documents) <= len(NAMES)
    assert not list(single(single_file, "absent", 10, 6))
    [topical] = topics(pages_file, 0, 16, 12)
    assert len(topical.documents) == 48


def test_topical_requests_say_it_in_other_words_than_the_passages(tmp_path):
    lead = "A valley is a long hollow between hills where water gathers on its way down to lakes, far from the sea."
    body = "Farmers keep sheep and goats on the slopes, and in winter they bring them into barns near houses. " * 3
    text = "\n".join((lead, "History.", f"Early years. {body}", body, "Economy and trade.", f"Markets. {body}"))
    pages_file = write(tmp_path / "pages.jsonl", *({"title": n, "text": f"{n}\n{text}"} for n in NAMES))
    abstract_file = write(tmp_path / "abstracts.jsonl", *(
        {"id": n, "question": f"Does {n} help?", "answer": f"Our study found that {n} helps all of the patients. So.",
         "paragraphs": [{"title": "", "sentences": [f"{n} was given on day {i}." for i in range(9)], "supporting": []}]}
        for n in NAMES
    ))  # fmt: skip
    [plain], [titled] = (list(bodies(pages_file, 0, 16, 99, titled=titled)) for titled in (False, True))
    assert {d.title for d in plain.documents} == {""}
    assert {d.title for d in titled.documents} == {"History", "Economy and trade"}
    assert not any(lead in c.text for d in plain.documents for c in d.chunks)
    relevant = Counter((q.part, sum(any(map(q.relevant, placed(d))) for d in plain.documents)) for q in plain.queries)
    assert {(part, count) for part, count in relevant} == {("", 3), ("bodies_headed", 1), ("bodies_headed", 2)}
    [parts] = abstracts_in_parts(abstract_file, 10)
    assert {sum(any(map(q.relevant, placed(d))) for d in parts.documents) for q in parts.queries} == {3}
    [under] = abstracts_titled(abstract_file, 10)
    assert {d.title for d in under.documents} == {f"Does {n} help?" for n in NAMES}
    assert all("found that" in q.text and not q.text.endswith("So.") for q in under.queries)


def placed(document):
    return [dataclasses.replace(c, document_id=document.id) for c in document.chunks]


def test_every_index_of_a_source_is_encoded_alike_by_an_encoder_loaded_once(monkeypatch):
    loaded = []

    def load_encoder(name, **settings):
        loaded.append(name)
        return wrapped(HashEncoder(), **settings)

    wrapped = index_models.load_encoder
    monkeypatch.setattr(index_models, "load_encoder", load_encoder)
    text = "Bel rents a house. It is red."

    def collections():
        for _ in range(3):
            yield Collection(
                documents=passages([("", text)]), queries=[Query(text="a house", relevant=relevant_to({0}))]
            )

    looks = [a.first_pass.own for a in collect_states(Source("same", "same", collections), None, 1)]
    assert len(loaded) == 1
    assert len(looks) == 3
    assert all(np.array_equal(first_pass, looks[0]) for first_pass in looks)


TENANTS = [
    {
        "id": f"q{n}", "question": f"Who insures what {name} rents?", "answer": "Lloyd",
        "paragraphs": [
            {"title": name, "sentences": [f"{name} rents {name} House."], "supporting": [0]},
            {"title": f"{name} House", "sentences": ["It is insured by Lloyd."], "supporting": [0]},
            {"title": f"{name} Zoo", "sentences": ["Animals live there."], "supporting": []},
        ],
    }
    for n, name in enumerate(NAMES)
]  # fmt: skip


def test_long_passages_hold_many_texts_of_about_the_same_length(tmp_path, monkeypatch):
    monkeypatch.setattr(sets, "LONG_PASSAGE_CHARS", (100, 300))
    made = list(sets.long_passages(write(tmp_path / "hops.jsonl", *TENANTS), None, len(TENANTS)))
    assert [len(collection.queries) for collection in made] == [8, 8]
    for collection, size in zip(made, sets.LONG_PASSAGE_CHARS, strict=True):
        texts = [c.text for d in collection.documents for c in chunks_of(d)]
        assert all(len(text) <= 1.2 * size for text in texts)
        assert sum(len(text) > size / 2 for text in texts) >= len(texts) - 1
        for query in collection.queries:
            name = re.search(r"what (\w+) rents", query.text)[1]
            relevant = "\n".join(c.text for d in collection.documents for c in chunks_of(d) if query.relevant(c))
            assert f"{name}\n{name} rents {name} House." in relevant
            assert f"{name} House\nIt is insured by Lloyd." in relevant
            assert query.chained


def test_tiny_indexes_hold_the_relevant_texts_and_a_few_others(tmp_path):
    made = list(tiny_indexes(write(tmp_path / "hops.jsonl", *TENANTS), len(TENANTS)))
    assert len(made) == len(TENANTS)
    sizes, titled = set(), set()
    for collection in made:
        (query,) = collection.queries
        name = re.search(r"what (\w+) rents", query.text)[1]
        relevant = [c.text for d in collection.documents for c in chunks_of(d) if query.relevant(c)]
        assert f"{name} rents {name} House." in relevant
        assert len(relevant) == 2
        assert query.chained
        sizes.add(len(collection.documents))
        titled.add(all(d.title for d in collection.documents))
    assert min(sizes) <= 3
    assert max(sizes) <= 6
    assert titled == {True, False}


def test_some_tiny_indexes_have_no_answer(tmp_path):
    asked = [
        {"id": name, "dataset": "nq_qed", "context": f"{name} is red.", "question": f"What is {name}?",
         "answer": "red", "start": -1}
        for name in NAMES
    ]  # fmt: skip
    made = list(tiny_single(write(tmp_path / "single.jsonl", *asked), "nq_qed", len(asked)))
    assert len(made) == len(asked)
    answered = Counter()
    for collection in made:
        (query,) = collection.queries
        relevant = [c.text for d in collection.documents for c in chunks_of(d) if query.relevant(c)]
        assert relevant in ([], [f"{query.text[8:-1]} is red."])
        assert 1 <= len(collection.documents) <= 5
        answered[bool(relevant)] += 1
    assert answered[True] > answered[False] > 0


def test_sources_are_those_of_the_files_given(tmp_path):
    settings = DenseGateTraining(out=tmp_path, docstrings=False, synthetic=False)
    assert sources(settings) == []
    full = sources(
        dataclasses.replace(
            settings,
            multihop=tmp_path,
            singlehop=tmp_path,
            clapnq=tmp_path,
            pubmedqa=tmp_path,
            tatqa=tmp_path,
            pages=(tmp_path / "a", tmp_path / "b"),
            docstrings=True,
            synthetic=True,
        )
    )
    by_name = {s.name: s for s in full}
    assert len(by_name) == len(full)
    assert by_name["composed"].touches("nq_qed")
    assert by_name["composed"].touches("multihop")
    assert not by_name["nq_qed"].touches("multihop")
    assert by_name["wiki_plain"].files == (tmp_path / "b",)
    assert by_name["ruler"].files == (tmp_path / "a",)
