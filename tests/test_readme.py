"""The code in README and docs runs and gives the results shown."""

import json
import re
from pathlib import Path

import pytest
from sybil.document import Document
from sybil.parsers.markdown import PythonCodeBlockParser

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_CODE = [page for page in PAGES if "```python" in page.read_text("utf-8")]


def test_the_first_example_prints_what_it_says(capsys):
    pattern = r"```python\n(from compmem import Document, MemoryIndex.*?)```"
    code = re.search(pattern, README.read_text("utf-8"), re.DOTALL).group(1)
    exec(compile(code, "README.md", "exec"), {})  # our own file
    said = [line.split("# ", 1)[1].strip() for line in code.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.strip().splitlines() == said
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_the_first_screen_says_what_it_is_and_shows_a_gain():
    head = README.read_text("utf-8").splitlines()[:30]
    assert any("questions that need several facts" in line for line in head)
    assert any("plots/recall.png" in line for line in head)
    assert any(line == "```python" for line in head)


def test_the_make_commands_that_pages_show_are_targets_of_the_makefile():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    pages = "\n".join(page.read_text("utf-8") for page in PAGES)
    code = "\n".join(re.findall(r"```sh\n.*?```|`make .*?`", pages, re.DOTALL))
    shown = {target for words in re.findall(r"make ((?:[a-z-]+ ?)+)", code) for target in words.split()}
    assert {"demo", "test"} <= shown <= targets


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = list(Document.parse(str(page), PythonCodeBlockParser()).examples())
    assert examples
    for example in examples:
        example.evaluate()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_its_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#:]+)[)#]", page.read_text("utf-8")):
        assert (page.parent / target).exists(), target


def test_the_figures_of_the_readme_are_those_of_the_results():
    text = README.read_text("utf-8")
    for name in ("2wiki", "hotpotqa", "musique"):
        systems = json.loads((ROOT / "core" / "results" / f"recall_{name}.json").read_text())["systems"]
        for row in systems.values():
            assert f"{row['recall@2']:.1f} / {row['recall@5']:.1f}" in text
    for entry in json.loads((ROOT / "core" / "results" / "domains.json").read_text())["sets"]:
        if entry["style"] == "as asked":
            for row in entry["systems"].values():
                assert f"{row['recall@5']:.1f} / {row['ndcg@10']:.1f}" in text, entry["set"]
