"""An index for the tests of a module, none of which may ask for LlamaIndex's default model."""

import pytest
from llama_index.core import Settings

from tests.frameworks_llama_index import make_index


@pytest.fixture(scope="module")
def index():
    return make_index()


@pytest.fixture(autouse=True)
def _no_llm():
    Settings._llm = None
    yield
    assert Settings._llm is None, "something asked for Settings.llm"
