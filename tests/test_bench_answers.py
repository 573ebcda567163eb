"""Answers of one scripted chat model over a corpus, by every system."""

import json

import pytest
from typer.testing import CliRunner

from compmem_research.bench.answers import Settings, measure
from compmem_research.bench.answers_model import Completion
from compmem_research.bench.answers_report import BASELINES, pages, summary
from compmem_research.bench.answers_systems import SYSTEMS
from compmem_research.bench.commands import app
from compmem_research.bench.report import report
from compmem_research.metrics import without_citations
from tests.test_cli import endpoint  # noqa: F401
from tests.test_tasks import PARAGRAPHS, QUESTION, write

ASKED = {
    **QUESTION, "question": "Who insures the building that Acme rents?", "answer": "Lloyd", "paragraphs": PARAGRAPHS,
}  # fmt: skip
FILLING = [
    {"title": f"Town {n}", "sentences": [f"Town {n} has a mill and {n} bridges."], "supporting": []} for n in range(9)
]
SHORT = "In one word, {please}."


class Scripted:
    """A model that names the insurer only if it reads of it; in step-by-step reading it follows the format."""

    def __init__(self, fails=False):
        self.heard, self.fails = [], fails

    def __call__(self, messages):
        told = messages[-1]["content"]
        everything = "\n".join(m["content"] for m in messages)
        self.heard.append(everything)
        if self.fails:
            raise OSError("the server is gone")
        if "<update>" in told:
            said = "<check>yes</check><update>Lloyd insures it.</update><next>end</next>"
        elif "Lloyd" in everything:
            said = "Lloyd [2]"
        else:
            said = "SEARCH: who insures the Harbour Building" if "SEARCH:" in told else "I do not know"
        return Completion(text=said, prompt_tokens=len(everything.split()), completion_tokens=len(said.split()))


@pytest.fixture
def data(tmp_path):
    more = {**ASKED, "id": "q2", "paragraphs": FILLING}
    nothing = {**ASKED, "id": "q3", "answer": "", "paragraphs": PARAGRAPHS[2:]}
    return write(tmp_path / "own.jsonl", ASKED, more, nothing)


def measured(data, tmp_path, model, **changes):
    settings = Settings(**{"model": "m", "systems": tuple(SYSTEMS), "k": 2, "instruction": SHORT, **changes})
    return measure([data], [None], settings, model, rows=tmp_path / "run.jsonl", report_error=lambda line: None)


def test_every_system_asks_the_same_model_with_as_many_passages_and_the_same_words(data, tmp_path):
    model = Scripted()
    result = measured(data, tmp_path, model)
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert len(rows) == 2 * len(SYSTEMS), "a question without an answer is not asked"
    assert all(SHORT in told for told in model.heard if "<update>" not in told)
    by_system = {name: [row for row in rows if row["system"] == name] for name in SYSTEMS}
    assert {
        row["blocks"] for name in ("llamaindex", "langchain", "bm25", "fused", "loop") for row in by_system[name]
    } == {2}
    for name in ("none", "llamaindex", "langchain", "bm25", "fused", "loop"):
        assert [row["calls"] for row in by_system[name]] == [1, 1]
        assert all(row["prompt_tokens"] > row["completion_tokens"] > 0 for row in by_system[name])
    assert all(row["calls"] > 1 for row in by_system["steps"])
    [own] = result["answers"]
    assert own["systems"]["none"]["f1"] == 0 and "in_context" not in own["systems"]["none"]
    assert own["systems"]["loop"]["f1"] == own["systems"]["loop"]["in_context"] == 100, "a mark is no part of an answer"
    assert {(pair["ours"], pair["plain"], pair["questions"]) for pair in own["paired"]} == {
        (ours, plain, 2) for ours in ("fused", "loop", "loop-cite", "loop-ask") for plain in BASELINES
    }


def test_the_instruction_is_in_no_search(data, tmp_path):
    loud = "Lloyd mill bridges zoo weather animals town " * 3
    plain, told = Scripted(), Scripted()
    searching = ("llamaindex", "langchain", "bm25", "fused", "loop")
    measured(data, tmp_path / "a", plain, systems=searching, instruction="")
    measured(data, tmp_path / "b", told, systems=searching, instruction=loud)
    assert [heard.replace(f" {loud}".rstrip(), "") for heard in told.heard] == plain.heard


def test_a_run_goes_on_where_it_was_and_only_with_the_same_settings(data, tmp_path):
    broken = measured(data, tmp_path, Scripted(fails=True), systems=("loop",))
    assert (broken["failed"], broken["answers"][0]["systems"]) == (2, {})
    first = measured(data, tmp_path, Scripted(), systems=("loop",), limit=1)
    assert first["answers"][0]["systems"]["loop"]["questions"] == 1
    with (tmp_path / "run.jsonl").open("a") as file:
        file.write('{"cut off')
    again = Scripted()
    both = measured(data, tmp_path, again, systems=("loop", "none"))
    assert len(again.heard) == 3
    assert {name: row["questions"] for name, row in both["answers"][0]["systems"].items()} == {"loop": 2, "none": 2}
    unheard = Scripted()
    assert measured(data, tmp_path, unheard, systems=("loop", "none")) == both and not unheard.heard
    other = Scripted()
    assert measured(data, tmp_path, other, systems=("loop",), k=1)["failed"] == 0
    assert len(other.heard) == 2


def test_pairs_are_over_the_questions_that_both_answered():
    row = {"data": "d", "em": 0.0, "calls": 1, "rounds": 0, "prompt_tokens": 9, "completion_tokens": 1,
           "retrieval_seconds": 0.0, "fingerprint": "a"}  # fmt: skip
    rows = [{**row, "system": "loop", "id": str(n), "f1": 0.75, "seconds": 3.0} for n in range(40)]
    rows += [{**row, "system": "llamaindex", "id": str(n), "f1": 0.25, "seconds": 2.0} for n in range(30)]
    [pair] = summary(rows)["paired"]
    assert pair == {
        "ours": "loop",
        "plain": "llamaindex",
        "questions": 30,
        "f1": 50.0,
        "95%": [50.0, 50.0],
        "time": 1.5,
    }
    other = [{**row, "fingerprint": "b"} if row["system"] == "loop" else row for row in rows]
    assert summary(other)["paired"] == [{name: value for name, value in pair.items() if name != "time"}]
    assert without_citations("Lloyd [2], of London [1, 3].") == "Lloyd, of London."


def test_the_command_asks_the_server_that_the_environment_names(data, tmp_path, endpoint, monkeypatch):  # noqa: F811
    monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{endpoint.server_port}/v1")
    monkeypatch.setenv("OPENAI_MODEL", "small")
    out = tmp_path / "results" / "answers.json"
    done = CliRunner().invoke(
        app, ["answers", "--data", str(data), "--systems", "none,loop", "--limit", "1", "--out", str(out), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert [body["model"] for _, _, body in endpoint.seen] == ["small"] * 2
    assert all(body["temperature"] == 0 and body["max_tokens"] == 64 for _, _, body in endpoint.seen)
    kept = json.loads(out.read_text())
    assert kept["failed"] == 0 and set(kept["answers"][0]["systems"]) == {"none", "loop"}
    assert "| loop | 1 |" in "\n".join(pages(kept)) and "## answers" in report(out.parent)


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="unknown system 'rag': there are none, llamaindex"):
        Settings(model="m", systems=("rag",))
    with pytest.raises(ValueError, match="k=0 must be at least 1"):
        Settings(model="m", systems=("loop",), k=0)
