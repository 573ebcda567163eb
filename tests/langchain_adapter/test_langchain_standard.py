"""The complete conformance suites of langchain-tests: nothing overridden, nothing expected to fail."""

import pytest
from langchain_core.documents import Document
from langchain_tests.integration_tests import RetrieversIntegrationTests
from langchain_tests.integration_tests.indexer import AsyncDocumentIndexTestSuite, DocumentIndexerTestSuite

from langchain_compmem import CompMemRetriever
from tests.frameworks_langchain import WORLD, make_index


class TestDocumentIndex(DocumentIndexerTestSuite):
    @pytest.fixture
    def index(self, tmp_path):
        with make_index(tmp_path / "index") as index:
            yield CompMemRetriever(index=index)


class TestAsyncDocumentIndex(AsyncDocumentIndexTestSuite):
    @pytest.fixture
    async def index(self, tmp_path):
        with make_index(tmp_path / "index") as index:
            yield CompMemRetriever(index=index)


class TestSplittingDocumentIndex(DocumentIndexerTestSuite):
    @pytest.fixture
    def index(self, tmp_path):
        with make_index(tmp_path / "index") as index:
            yield CompMemRetriever(index=index, split=True)


class _Retriever(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _index(self, tmp_path):
        with make_index(tmp_path / "index") as index:
            CompMemRetriever(index=index).upsert([*WORLD, Document(page_content="Nothing to do with it.")])
            self.opened = index
            yield

    @property
    def retriever_constructor(self):
        return CompMemRetriever

    @property
    def retriever_query_example(self):
        return "Who invented the Orchid device?"


class TestRetriever(_Retriever):
    @property
    def retriever_constructor_params(self):
        return {"index": self.opened}


class TestRetrieverInOnePass(_Retriever):
    @property
    def retriever_constructor_params(self):
        return {"index": self.opened, "method": "gate"}
