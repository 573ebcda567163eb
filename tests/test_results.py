"""The committed results agree with the rows, settings and commands that are committed with them."""

import json
import shlex
from collections import Counter
from pathlib import Path

import pytest
import typer

from compmem_research.bench import answers_report, fusion_report
from compmem_research.bench.commands import app

RESULTS = Path(__file__).parents[1] / "core" / "results"
FOUND = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
FUSION = [name for name, made in FOUND.items() if "fusion" in made]
ANSWERS = [name for name, made in FOUND.items() if "answers" in made]


def test_both_kinds_of_results_are_committed():
    assert FUSION
    assert ANSWERS


def rows_of(name):
    return list(map(json.loads, (RESULTS / f"{name}.jsonl").read_text().splitlines()))


@pytest.mark.parametrize("name", [name for name in FUSION if (RESULTS / f"{name}.jsonl").exists()])
def test_rows_give_the_figures_beside_them(name):
    made, rows = FOUND[name], rows_of(name)
    systems, answered = {row["system"] for row in rows}, Counter(row["id"] for row in rows)
    complete = [row for row in rows if answered[row["id"]] == len(systems)]
    own = {row["model"]: made["settings"]["pruning"][0] for row in complete if row["pruning"] == "trained"}
    assert fusion_report.summary(complete, made["models"], own) == made["fusion"]


@pytest.mark.parametrize("name", ANSWERS)
def test_answers_give_the_figures_beside_them(name):
    made, rows = FOUND[name], rows_of(name)
    for one in made["answers"]:
        found = answers_report.summary([row for row in rows if row["data"] == one["data"]])
        assert found == {key: one[key] for key in found}


@pytest.mark.parametrize("name", [*FUSION, *ANSWERS])
def test_a_command_gives_the_settings_beside_it(name):
    made = FOUND[name]
    command, _, _ = made["command"].partition(" (")  # what follows in brackets is a remark
    _, _, which, *given = shlex.split(command)
    options = typer.main.get_command(app).commands[which].make_context(which, given).params
    for key, value in made["settings"].items():
        if options[key] is not None:  # else the default is that of the settings
            assert options[key] == (",".join(map(str, value)) if isinstance(value, list) else value), key
