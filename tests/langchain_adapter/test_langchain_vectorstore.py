"""The vector store of the LangChain adapter: its conformance suite, and retrievers that need a vector store."""

import copy
import pickle

import pytest
from langchain_classic.retrievers import ContextualCompressionRetriever, EnsembleRetriever, ParentDocumentRetriever
from langchain_classic.retrievers.self_query.base import SelfQueryRetriever
from langchain_classic.storage import InMemoryStore
from langchain_core.documents import BaseDocumentCompressor, Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.indexing import InMemoryRecordManager, aindex, index
from langchain_core.runnables import RunnableLambda
from langchain_core.structured_query import Comparator, Comparison, Operation, Operator, StructuredQuery
from langchain_tests.integration_tests import VectorStoreIntegrationTests
from langchain_text_splitters import CharacterTextSplitter

from compmem import IndexConfig, MemoryIndex
from langchain_compmem import (
    CompMemReasoner,
    CompMemRetriever,
    CompMemTranslator,
    CompMemVectorStore,
    EmbeddingsEncoder,
)
from tests.frameworks_langchain import QUESTION, WORLD, HashingEncoder, make_index


class TestVectorStore(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path):
        config = IndexConfig(encoder=EmbeddingsEncoder(self.get_embeddings()))
        with MemoryIndex.create(tmp_path / "index", config) as made:
            yield CompMemVectorStore(made)


class TestVectorStoreInOnePass(VectorStoreIntegrationTests):
    @pytest.fixture
    def vectorstore(self, tmp_path):
        config = IndexConfig(encoder=EmbeddingsEncoder(self.get_embeddings()))
        with MemoryIndex.create(tmp_path / "index", config) as made:
            yield CompMemVectorStore(made, method="gate")


@pytest.fixture
def store(tmp_path):
    with make_index(tmp_path / "index") as made:
        store = CompMemVectorStore(made)
        store.add_documents(WORLD)
        yield store


def ids(documents):
    return [document.id for document in documents]


def test_the_loop_finds_what_one_document_says_of_another(store):
    found = store.similarity_search(QUESTION, k=2)
    assert set(ids(found)) == {"orchid", "marsh"}
    assert all(document in WORLD for document in found), "documents come back as they were given"


async def test_a_store_of_documents_needs_no_embeddings():
    config = IndexConfig(encoder=HashingEncoder())
    named = CompMemVectorStore.from_documents(WORLD, config=config)
    later = await CompMemVectorStore.afrom_documents(WORLD, config=config)
    texts = await CompMemVectorStore.afrom_texts([WORLD[0].page_content], ids=["orchid"], config=config)
    assert named.get_by_ids(["orchid"]) == later.get_by_ids(["orchid"]) == WORLD[:1]
    assert ids(texts.get_by_ids(["orchid"])) == ["orchid"]
    embeddings = DeterministicFakeEmbedding(size=8)
    assert CompMemVectorStore.from_documents(WORLD, embeddings).embeddings is embeddings
    assert (await CompMemVectorStore.afrom_documents(WORLD, embeddings)).embeddings is embeddings


async def test_scores_are_relevance_in_every_search(store):
    scored = store.similarity_search_with_score(QUESTION, 5)
    scores = [score for _, score in scored]
    assert scores == sorted(scores, reverse=True) and 0 <= scores[-1] < scores[0] <= 1
    assert scored == await store.asimilarity_search_with_score(QUESTION, 5)
    assert scored == store.similarity_search_with_relevance_scores(QUESTION, 5)
    cut = (scores[1] + scores[2]) / 2
    above = store.as_retriever(search_type="similarity_score_threshold", search_kwargs={"score_threshold": cut, "k": 5})
    assert ids(above.invoke(QUESTION)) == ids(await above.ainvoke(QUESTION)) == ids(d for d, _ in scored[:2])


async def test_filters_and_settings_of_a_search(store):
    person = {"tags": {"contains": "person"}}
    assert set(ids(store.similarity_search(QUESTION, filter=person))) == {"marsh", "veld"}
    assert ids(await store.as_retriever(search_kwargs={"filter": {"title": "Esk"}}).ainvoke(QUESTION)) == ["esk"]
    assert ids(CompMemVectorStore(store.retriever.index, filter={"title": "Esk"}).similarity_search("river")) == ["esk"]
    with pytest.raises(TypeError, match="top_k"):
        store.similarity_search(QUESTION, top_k=2)
    with pytest.raises(NotImplementedError):
        store.similarity_search_by_vector([0.0] * 64)


async def test_marginal_relevance_leaves_twins_out(store):
    store.add_texts(["The Orchid device was invented by Dr Elena Marsh. It measures sap flow in plants!"], ids=["twin"])
    near = set(ids(store.similarity_search(QUESTION, k=5)))
    assert {"orchid", "twin"} <= near
    diverse = store.max_marginal_relevance_search(QUESTION, k=3, lambda_mult=0.3)
    assert len(diverse) == 3 and not {"orchid", "twin"} <= set(ids(diverse))
    assert await store.as_retriever(search_type="mmr", search_kwargs={"k": 3, "lambda_mult": 0.3}).ainvoke(
        QUESTION
    ) == diverse  # fmt: skip
    assert store.max_marginal_relevance_search(QUESTION, filter={"title": "nobody"}) == []


def test_texts_go_in_whole_or_not_at_all(store):
    assert store.add_texts((text for text in ("One mill.", "Two mills.")), ids=["1", "2"]) == ["1", "2"]
    assert ids(store.get_by_ids(["2", "nobody", "1"])) == ["2", "1"]
    for wrong in ({"ids": ["3"]}, {"metadatas": [{}]}):
        with pytest.raises(ValueError, match="for 2 documents"):
            store.add_texts(["Three mills.", "Four mills."], **wrong)
    assert len(store.get_by_ids([d.id for d in WORLD] + ["1", "2", "3"])) == len(WORLD) + 2
    assert store.add_texts(["A forge.", " \n", "A kiln."], ids=["a", "b", "c"]) == ["a", "c"]
    assert store.delete() is True
    assert store.similarity_search("mill") == []


async def test_made_from_documents_and_embeddings(tmp_path):
    embeddings = DeterministicFakeEmbedding(size=32)
    made = CompMemVectorStore.from_documents(WORLD, embeddings, path=tmp_path / "index")
    assert made.embeddings == embeddings
    assert made.as_retriever().tags == ["CompMemVectorStore", "DeterministicFakeEmbedding"]
    assert set(ids(made.similarity_search(QUESTION, k=9))) == set(ids(WORLD))
    other = await CompMemVectorStore.afrom_texts(["A mill."], embeddings, [{"year": 1}], ids=["mill"])
    assert other.get_by_ids(["mill"]) == [Document(id="mill", page_content="A mill.", metadata={"year": 1})]


def test_copies_search_the_same_index(store):
    for made in (copy.deepcopy(store), pickle.loads(pickle.dumps(store)), copy.copy(store)):
        assert made.similarity_search(QUESTION) == store.similarity_search(QUESTION)


async def test_in_a_parent_document_retriever(store):
    store.delete()
    text = "Tarnhill has a mill.\n\nThe mill was built by Ada Quill.\n\nAda Quill came from Esk."
    parents = ParentDocumentRetriever(
        vectorstore=store,
        docstore=InMemoryStore(),
        child_splitter=CharacterTextSplitter(chunk_size=40, chunk_overlap=0),
    )
    other = Document(page_content="Nobody mines here.", metadata={"source": "b"})
    parents.add_documents([Document(page_content=text, metadata={"source": "a"}), other])
    assert len(store.retriever.index) == 4, "the children were stored"
    found = parents.invoke("Who built the mill?")
    assert found[0] == Document(page_content=text, metadata={"source": "a"})
    assert await parents.ainvoke("Who built the mill?") == found


async def test_in_a_self_query_retriever(store):
    wanted = Operation(
        Operator.OR,
        [
            Comparison(Comparator.CONTAIN, "tags", "river"),
            Operation(
                Operator.AND,
                [
                    Comparison(Comparator.GTE, "year", 1900),
                    Operation(Operator.NOT, [Comparison(Comparator.IN, "title", ["Jonas Veld", "Orchid device"])]),
                ],
            ),
        ],
    )
    asked = StructuredQuery(query="Elena Marsh", filter=wanted, limit=9)
    retriever = SelfQueryRetriever(
        vectorstore=store,
        query_constructor=RunnableLambda(lambda _: asked),
        structured_query_translator=CompMemTranslator(),
    )
    assert set(ids(retriever.invoke("anything"))) == {"esk", "marsh"}
    assert set(ids(await retriever.ainvoke("anything"))) == {"esk", "marsh"}
    born = Comparison(Comparator.LT, "born", {"type": "date", "date": "1970-01-01"})
    question, kwargs = CompMemTranslator().visit_structured_query(StructuredQuery(query="who", filter=born))
    assert (question, kwargs) == ("who", {"filter": {"born": {"<": "1970-01-01"}}})
    with pytest.raises(ValueError, match="disallowed comparator"):
        CompMemTranslator().visit_comparison(Comparison(Comparator.LIKE, "title", "%E%"))


def test_in_an_ensemble_and_under_compression(store):
    class First(BaseDocumentCompressor):
        def compress_documents(self, documents, query, callbacks=None):
            return list(documents)[:1]

    both = EnsembleRetriever(retrievers=[store.as_retriever(), CompMemRetriever(index=store.retriever.index)])
    assert len(both.invoke(QUESTION)) == 4
    squeezed = ContextualCompressionRetriever(base_compressor=First(), base_retriever=store.as_retriever())
    assert squeezed.invoke(QUESTION) == store.similarity_search(QUESTION, k=1)


@pytest.mark.parametrize("kind", [CompMemVectorStore, CompMemRetriever])
@pytest.mark.parametrize("cleanup", [None, "incremental", "full", "scoped_full"])
async def test_indexing_leaves_nothing_of_what_changed_or_went(kind, cleanup, tmp_path):
    def document(text, source):
        return Document(page_content=text, metadata={"source": source})

    first = [document("It costs 10 euros.", "price"), document("It is red.", "colour"), document("Old.", "gone")]
    # `gone` is not loaded again; the text of `price` has changed, `colour` is unchanged.
    second = [document("It costs 25 euros.", "price"), document("It is red.", "colour")]
    expected = {
        None: {"It costs 10 euros.", "It costs 25 euros.", "It is red.", "Old."},
        "incremental": {"It costs 25 euros.", "It is red.", "Old."},
        "scoped_full": {"It costs 25 euros.", "It is red.", "Old."},
        "full": {"It costs 25 euros.", "It is red."},
    }[cleanup]
    settings = {"cleanup": cleanup, "source_id_key": "source", "key_encoder": "sha256"}
    for way in ("sync", "async"):
        with make_index(tmp_path / way) as made:
            records = InMemoryRecordManager(namespace=way)
            destination = CompMemVectorStore(made) if kind is CompMemVectorStore else CompMemRetriever(index=made)
            records.create_schema()
            for documents in (first, second, second):
                if way == "sync":
                    done = index(documents, records, destination, **settings)
                else:
                    done = await aindex(documents, records, destination, **settings)
            assert (done["num_added"], done["num_skipped"], done["num_deleted"]) == (0, 2, 0)
            assert {made.get(info.id).text for info in made.documents()} == expected
            found = {recall.chunk.text for recall in made.recall("What does it cost?", 9)}
            assert found == expected


def test_a_path_is_an_index_that_is_created_the_first_time(tmp_path):
    folder = tmp_path / "new.mem"
    with CompMemVectorStore(folder).retriever.index as index:
        assert index.documents() == []
    with CompMemVectorStore(str(folder)).retriever.index as index:
        assert index.path == folder
    with pytest.raises(ValueError, match="not empty"):
        CompMemVectorStore(tmp_path)


async def test_a_minimum_score_goes_with_a_search(store):
    scores = [score for _, score in store.similarity_search_with_score(QUESTION, k=5)]
    least = sorted(scores)[-2]
    best = [score for score in scores if score >= least]
    assert 0 < len(best) < len(scores)
    assert len(store.similarity_search(QUESTION, k=5, min_score=least)) == len(best)
    assert len(await store.asimilarity_search(QUESTION, k=5, min_score=least)) == len(best)
    retriever = store.as_retriever(search_kwargs={"k": 5, "min_score": least})
    assert len(retriever.invoke(QUESTION)) == len(best)


def test_the_index_of_a_store_is_for_a_reasoner(store):
    assert "Tarnhill" in CompMemReasoner(index=store.index).invoke(QUESTION)["answer"]
