"""An index of the documents of `tests.langchain_world`, and a retriever and a reasoner over it."""

import pytest

from langchain_compmem import CompMemReasoner, CompMemRetriever
from tests.langchain_world import world


@pytest.fixture(scope="module")
def unchanged(tmp_path_factory):
    """An index that no test changes."""
    with world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture
def retriever(unchanged):
    return CompMemRetriever(index=unchanged)


@pytest.fixture
def own(tmp_path):
    """A retriever over an index of the test's own, to be changed or with an encoder that waits."""
    with world(tmp_path) as made:
        yield CompMemRetriever(index=made)


@pytest.fixture
def reasoner(retriever):
    return CompMemReasoner(index=retriever.index)
