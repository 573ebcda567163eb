"""The library works without the research package and its dependencies."""

import subprocess
import sys

import pytest

WITHOUT_RESEARCH = """
import importlib, pkgutil, sys
for name in ("compmem_research", "peft", "accelerate", "matplotlib"):
    sys.modules[name] = None  # importing it raises ModuleNotFoundError
"""


def without_research(code):
    return subprocess.run([sys.executable, "-c", WITHOUT_RESEARCH + code], cwd="core", capture_output=True, text=True)


def test_every_module_of_the_product_loads():
    result = without_research(
        "import compmem\n"
        "names = [m.name for m in pkgutil.walk_packages(compmem.__path__, 'compmem.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(len(names))"
    )
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > 50


def test_names_that_load_later_are_listed():
    result = without_research(
        "import compmem\nassert set(compmem.__all__) <= set(dir(compmem))\nassert 'torch' not in sys.modules\n"
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("arguments", [["train", "--help"], ["train", "lm"], ["bench", "recall"]])
def test_a_research_command_says_what_to_install(arguments):
    result = without_research(f"sys.argv[1:] = {arguments!r}\nfrom compmem.cli import main\nmain()")
    assert result.returncode == 1
    assert result.stderr.startswith(f"error: `compmem {arguments[0]}` needs the package")
    assert f'pip install "compmem[{arguments[0]}]"' in result.stderr
    assert result.stderr.count("\n") == 1
