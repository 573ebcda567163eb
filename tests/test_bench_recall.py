import json
from itertools import pairwise

import pytest
from typer.testing import CliRunner

from compmem_research.bench import external_stores, recall
from compmem_research.bench.commands import app
from compmem_research.bench.recall import measure
from compmem_research.bench.report import report
from tests.test_tasks import PARAGRAPHS, QUESTION, write

ASKED = {**QUESTION, "question": "Who insures the building that Acme rents?", "paragraphs": PARAGRAPHS}


def test_the_command_prints_every_system_side_by_side(tmp_path):
    data = write(tmp_path / "own.jsonl", ASKED)
    done = CliRunner().invoke(app, ["recall", "--data", str(data), "--json", "--out", str(tmp_path / "r" / "own.json")])
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout[done.stdout.index("{") :])
    assert set(printed["systems"]) == {"dense", "bm25", "fused", "one-shot gate", "loop"}
    for row in printed["systems"].values():
        assert set(row) >= {"recall@2", "recall@5", "recall@10", "ndcg@10", "seconds_per_question"}
        assert row["recall@5"] == 100.0
        assert not {"nothing_found", "false_alarms"} & set(row)  # every question has an answer
    assert printed["systems"]["loop"]["recall@2"] == 100.0
    assert printed["losses"] == {"proposed_at_first": 100.0, "proposed_ever": 100.0, "read": 100.0}
    assert printed["cutoffs"][0]["kept"] == 100.0
    assert all(a["kept"] >= b["kept"] and a["empty"] <= b["empty"] for a, b in pairwise(printed["cutoffs"]))
    saved = json.loads((tmp_path / "r" / "own.json").read_text())
    assert saved["systems"] == printed["systems"]
    assert str(tmp_path) not in saved["command"]


def test_several_files_are_measured_in_one_call_each_over_its_own_passages(tmp_path):
    own = write(tmp_path / "own.jsonl", ASKED)
    named = write(
        tmp_path / "named.jsonl", {**QUESTION, "question": "Who insures the harbour?", "gold_titles": ["Zoo"]}
    )
    passages = write(tmp_path / "passages.jsonl", {"title": "Zoo", "text": "It is insured by Lloyd."})
    call = ["recall", "--data", str(own), "--data", str(named), "--json"]
    out, kept = tmp_path / "both.json", tmp_path / "kept"
    whole = [*call, "--corpus", "-", "--corpus", str(passages), "--out", str(out), "--index", str(kept)]
    done = CliRunner().invoke(app, whole)
    assert done.exit_code == 0, done.output
    runs = json.loads(out.read_text())["runs"]
    assert [(run["data"], run["passages"]) for run in runs] == [("own.jsonl", 3), ("named.jsonl", 1)]
    assert sorted(folder.name for folder in kept.iterdir()) == ["named", "own"]
    page = report(tmp_path)
    assert page.index("### own.jsonl") < page.index("### named.jsonl")
    wrong = CliRunner().invoke(app, [*call, "--corpus", str(passages)])
    assert wrong.exit_code == 2
    assert "1 for 2" in wrong.output


def test_a_question_that_nothing_answers_counts_where_a_system_says_so_and_in_no_ranking(tmp_path):
    nothing = {**QUESTION, "id": "q2", "question": "Xyzzy plugh?", "answer": "", "answerable": False,
               "paragraphs": PARAGRAPHS[2:]}  # fmt: skip
    run = measure(write(tmp_path / "own.jsonl", ASKED, nothing))
    assert (run["questions"], run["unanswerable"]) == (2, 1)
    for row in run["systems"].values():
        assert row["recall@5"] == 100.0
        assert row["false_alarms"] == 0.0
    said = {name: row["nothing_found"] for name, row in run["systems"].items()}
    assert said == {"dense": 0.0, "bm25": 100.0, "fused": 0.0, "one-shot gate": 100.0, "loop": 100.0}
    alone = measure(write(tmp_path / "alone.jsonl", nothing))
    assert alone["losses"] == {}
    assert all("recall@5" not in row for row in alone["systems"].values())


@pytest.mark.parametrize("of", [recall, external_stores], ids=lambda of: of.__name__.rpartition(".")[2])
def test_a_file_without_questions_is_told_before_an_index_is_made(tmp_path, monkeypatch, of):
    monkeypatch.setattr(of, "kept_index", None)
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl: no question to ask"):
        of.measure(empty, write(tmp_path / "passages.jsonl", {"title": "Zoo", "text": "It is insured by Lloyd."}))
