import json
import math

import pytest

from compmem_research.bench import domains
from compmem_research.bench.domains import by_systems, difference, find_sets, measure
from compmem_research.bench.report import report
from compmem_research.bench.retrieval import SYSTEMS, Outcome, figures, kept_index
from compmem_research.bench.styles import STYLES, styled
from compmem_research.metrics import ndcg_at
from compmem_research.tasks.multihop import Question, read_corpus
from tests.hashing import HashEncoder
from tests.test_tasks import PARAGRAPHS, QUESTION, write

ASKED = {**QUESTION, "question": "Who insures the building that Acme rents?", "paragraphs": PARAGRAPHS}
NOTHING = {**QUESTION, "id": "n1", "question": "Xyzzy plugh?", "answer": "", "answerable": False,
           "paragraphs": [{"title": "Moon", "sentences": ["It is round."], "supporting": []}]}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A set over its own paragraphs with unanswerable questions, and one over a file of passages."""
    place = tmp_path / "sets"
    place.mkdir()
    write(place / "own.jsonl.gz", ASKED, {**ASKED, "id": "q2"})
    write(place / "own_unanswerable.jsonl.gz", NOTHING, {**NOTHING, "id": "n2"})
    write(place / "wiki_questions.jsonl", {**QUESTION, "question": "Who insures the zoo?", "gold_titles": ["Zoo"]})
    write(place / "wiki_corpus.jsonl", {"title": "Zoo", "text": "It is insured by Lloyd."}, {"title": "A", "text": "b"})
    return place


def question(gold):
    return Question(id="q", dataset="", type="", question="?", answers=("a",), gold=frozenset(gold))


def test_ndcg_is_what_the_formula_says_by_hand():
    gold = {1, 2, 3}
    best = 1 + 1 / math.log2(3) + 1 / 2
    assert ndcg_at([9, 1, 8, 2], gold, 10) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert ndcg_at([9, 1, 8, 2], gold, 2) == pytest.approx((1 / math.log2(3)) / (1 + 1 / math.log2(3)))
    assert ndcg_at([3, 1, 2], gold, 10) == 1.0
    assert ndcg_at([1, 1, 1], {1, 2}, 3) == pytest.approx(1 / (1 + 1 / math.log2(3)))  # an item counts once
    assert ndcg_at([], gold, 10) == 0.0


def test_a_folder_is_read_as_sets_each_with_what_lies_beside_it(folder):
    own, wiki = find_sets([folder])
    assert (own.name, [f.name for f in own.questions], own.corpus) == (
        "own", ["own.jsonl.gz", "own_unanswerable.jsonl.gz"], None,
    )  # fmt: skip
    assert (wiki.name, wiki.corpus) == ("wiki", folder / "wiki_corpus.jsonl")
    assert find_sets([folder / "own.jsonl.gz", folder]) == [own, wiki]
    other = folder / "other"
    other.mkdir()
    with pytest.raises(ValueError, match="no questions"):
        find_sets([other])
    write(other / "own.jsonl", ASKED)
    with pytest.raises(ValueError, match="two sets are named 'own'"):
        find_sets([folder, other])


def test_shares_are_counted_among_the_questions_they_are_about():
    asked = [question({0}), question({1, 2}), question(()), question(())]
    outcomes = [Outcome([0], 0.1, False), Outcome([5, 1], 0.2, True), Outcome([3], 0.3, True), Outcome([], 0.9, False)]
    row = figures(outcomes, asked)
    assert row["recall@2"] == 75.0
    assert row["ndcg@10"] == pytest.approx(100 * (1 + (1 / math.log2(3)) / (1 + 1 / math.log2(3))) / 2, abs=0.05)
    assert (row["nothing_found"], row["false_alarms"]) == (50.0, 50.0)
    assert (row["median_seconds"], row["seconds_per_question"]) == (0.25, 0.375)


def test_ours_are_compared_question_by_question_with_the_plain_system_that_is_best():
    asked = [question({0})] * 4
    hit, miss = Outcome([0], 0.1, None), Outcome([1], 0.1, None)
    outcomes = {"dense": [hit, miss, miss, miss], "bm25": [hit, hit, miss, miss], "fused": [miss] * 4,
                "loop": [hit, hit, hit, miss]}  # fmt: skip
    found = difference("loop", "recall@5", outcomes, asked)
    assert (found["to"], found["mean"]) == ("bm25", 25.0)
    low, high = found["95%"]
    assert low == 0.0  # never worse on a question, so in no resample of the pairs
    assert 25.0 < high <= 100.0


def test_a_run_goes_on_where_it_was_and_refuses_other_settings(folder, tmp_path, monkeypatch):
    out, kept, built = tmp_path / "r" / "domains.json", tmp_path / "kept", []
    monkeypatch.setattr(domains, "kept_index", lambda *given: built.append(given[1]) or kept_index(*given))

    def run(*paths, **settings):
        built.clear()
        return measure(paths, out, indices=kept, encoder=HashEncoder(), **settings)

    first = run(folder / "own.jsonl.gz")
    assert built == [kept / "own"]
    assert first == json.loads(out.read_text())
    again = run(folder)
    assert built == [kept / "wiki"]
    assert again["sets"][0] == first["sets"][0]
    run(folder)
    assert built == []
    write(folder / "wiki_corpus.jsonl", {"title": "Zoo", "text": "It is insured by Lloyd."})
    changed = run(folder)
    assert built == [kept / "wiki"]
    assert [(s["set"], s["passages"]) for s in changed["sets"]] == [("own", 4), ("wiki", 1)]
    styles = run(folder / "wiki_questions.jsonl", styles=tuple(STYLES))
    assert len(built) == 1
    assert [s["style"] for s in styles["sets"]] == ["as asked", "as asked", *STYLES]
    before = out.read_bytes()
    with pytest.raises(ValueError, match="limit=None, not 1"):
        run(folder, limit=1)
    assert out.read_bytes() == before


def test_questions_of_other_sets_are_asked_as_those_without_an_answer(folder, tmp_path):
    done = measure([folder], tmp_path / "d.json", foreign=True, encoder=HashEncoder())
    assert [(s["set"], s["questions"], s["unanswerable"], s["passages"]) for s in done["sets"]] == [
        ("own", 3, 1, 4), ("wiki", 3, 2, 2),
    ]  # fmt: skip
    assert all("nothing_found" in s["systems"]["loop"] and "recall@5" in s["systems"]["loop"] for s in done["sets"])
    with pytest.raises(ValueError, match="foreign"):
        measure([folder], tmp_path / "d.json", encoder=HashEncoder())
    few = measure([folder], tmp_path / "few.json", limit=1, foreign=True, encoder=HashEncoder())
    assert [(s["questions"], s["unanswerable"]) for s in few["sets"]] == [(2, 1), (2, 1)]


def test_every_system_is_on_the_page_with_its_losses(folder, tmp_path):
    results = tmp_path / "results"
    done = measure([folder], results / "domains.json", limit=1, encoder=HashEncoder())
    own = done["sets"][0]
    assert (own["questions"], own["unanswerable"], own["passages"]) == (2, 1, 4)
    assert set(own["systems"]) == set(SYSTEMS)
    assert own["systems"]["bm25"]["nothing_found"] == 100.0
    assert own["systems"]["dense"]["nothing_found"] == 0.0
    for entry, row in ((own, own["systems"]["loop"]), (own, own["systems"]["one-shot gate"])):
        assert set(row["difference"]) == {"recall@5", "ndcg@10"}
        assert "difference" not in entry["systems"]["fused"]
    own["systems"]["loop"].update({"recall@5": 12.3, "ndcg@10": 45.6, "recall@5 95%": [10.0, 15.0]})
    own["systems"]["loop"]["difference"]["recall@5"] = {"to": "bm25", "mean": -3.2, "95%": [-5.0, -1.4]}
    (results / "domains.json").write_text(json.dumps(done))
    page = report(results)
    summary = next(line for line in page.splitlines() if line.startswith("| own (2, 4) | as asked |"))
    assert summary.endswith("| 12.3 / 45.6 |")
    wiki = done["sets"][1]["systems"]["loop"]["recall@5"]
    assert f"| {(12.3 + wiki) / 2:.1f} / " in next(line for line in page.splitlines() if "mean over sets" in line)
    assert "| loop | 12.3 [10.0, 15.0] | -3.2 [-5.0, -1.4] (bm25) |" in page


def test_a_kept_index_is_brought_up_to_date(folder, tmp_path):
    data = folder / "own.jsonl.gz"
    task = read_corpus([data, folder / "own_unanswerable.jsonl.gz"])
    assert len(task.passages) == 4
    for corpus in (task, read_corpus(data)):
        index, _ = kept_index(corpus, tmp_path / "kept", HashEncoder())
        with index:
            assert len(index.documents()) == len(corpus.passages)
            assert by_systems(index, corpus.questions)["bm25"]["recall@5"] == 100.0


def test_styles_keep_the_seed_and_change_what_they_say():
    asked = "Which Building does Acme Incorporated rent in Rotterdam?"
    assert styled(asked, "as asked") == asked
    assert styled(asked, "two keywords") == "Incorporated Rotterdam"
    assert styled(asked, "lower case") == asked.lower()
    assert asked in styled(asked, "chatty") != asked
    for seed in range(20):
        mistyped = styled(asked, "typing errors", seed)
        assert mistyped == styled(asked, "typing errors", seed) != asked
        assert len(mistyped.split()) == len(asked.split())
        assert all(abs(len(a) - len(b)) <= 1 for a, b in zip(mistyped.split(), asked.split(), strict=True))
    assert len({styled(asked, "typing errors", seed) for seed in range(20)}) > 5
    assert {styled("Why?", style) for style in ("two keywords", "typing errors")} == {"Why?"}  # nothing to change
