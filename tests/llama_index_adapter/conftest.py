"""An index for the tests of a module, none of which may ask for LlamaIndex's default model."""

import os
import subprocess
import sys

import pytest
from llama_index.core import Settings

from tests.frameworks_llama_index import make_index


@pytest.fixture(scope="module")
def index():
    return make_index()


@pytest.fixture
def run_python():
    """Run code in a process of its own and return what it printed; more arguments are in its `sys.argv`."""

    def run(code, *arguments, timeout=240):
        there = {**os.environ, "PYTHONPATH": os.pathsep.join(["core", "."])}
        program = [sys.executable, "-c", code, *map(str, arguments)]
        done = subprocess.run(program, capture_output=True, text=True, check=False, env=there, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


@pytest.fixture(autouse=True)
def _no_llm():
    Settings._llm = None
    yield
    assert Settings._llm is None, "something asked for Settings.llm"
