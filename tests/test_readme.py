"""What the README shows is what happens."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_first_example_prints_what_it_says(capsys):
    pattern = r"```python\n(from compmem import Document, MemoryIndex.*?)```"
    code = re.search(pattern, README.read_text("utf-8"), re.DOTALL).group(1)
    exec(compile(code, "README.md", "exec"), {})  # our own file
    said = [line.split("# ", 1)[1].strip() for line in code.splitlines() if line.startswith("print(")]
    assert capsys.readouterr().out.strip().splitlines() == said
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_its_first_screen_is_the_two_commands():
    head = README.read_text("utf-8").splitlines()[:12]
    assert any(line.startswith("make demo") for line in head)
    assert any(line.startswith("make test") for line in head)


def test_its_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#:]+)\)", README.read_text("utf-8")):
        assert (README.parent / target).exists(), target
