"""Documents are split by the core by default, and checked before a folder is created."""

import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import Settings
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, NodeRelationship

from compmem import Document as CoreDocument
from compmem import IndexConfig, MemoryIndex
from langchain_compmem import CompMemRetriever
from llama_index_compmem import CompMemIndex
from tests.hashing import HashEncoder

SECTIONS = [f"# Part {n}\n\n" + " ".join(f"Sentence {n}.{m} tells of mill {m}." for m in range(12)) for n in range(4)]
TEXT = "\n\n".join(SECTIONS)
CONFIG = IndexConfig(encoder=HashEncoder(), chunk_tokens=64)


@pytest.fixture(autouse=True)
def plain_settings():
    Settings._transformations = Settings._node_parser = None
    yield
    Settings._transformations = Settings._node_parser = None


def chunks_of(text=TEXT):
    with MemoryIndex.create(None, CONFIG) as index:
        chunks = index.split(CoreDocument(text=text))
        assert len(index) == 0, "splitting keeps nothing"
        return chunks


def texts(index):
    return [chunk.text for document in index.documents() for chunk in index.chunks(document.id)]


def test_split_gives_the_chunks_that_add_would_make():
    with MemoryIndex.create(None, CONFIG) as index:
        index.add([CoreDocument(id="d", text=TEXT)])
        assert [c.text for c in index.chunks("d")] == [c.text for c in chunks_of()]
        assert index.split(CoreDocument(text=" \n ")) == []


def test_llama_index_splits_as_the_memory_does():
    SentenceSplitter()
    assert Settings.transformations, "asking for the framework's default names nothing"
    index = CompMemIndex.from_documents([Document(id_="d", text=TEXT, metadata={"year": 2024})], config=CONFIG)
    expected = chunks_of()
    assert len(expected) > 4
    assert texts(index.memory) == [c.text.strip() for c in expected]
    nodes = sorted((n.node for n in index.as_retriever(99).retrieve("mill")), key=lambda node: node.start_char_idx)
    assert [TEXT[n.start_char_idx : n.end_char_idx] for n in nodes] == [c.text.strip() for c in expected]
    assert {n.metadata["header_path"] for n in nodes} == {f"Part {n}" for n in range(4)}
    assert {(n.ref_doc_id, n.metadata["year"]) for n in nodes} == {("d", 2024)}
    assert nodes[0].next_node.node_id == nodes[1].node_id and NodeRelationship.PREVIOUS not in nodes[0].relationships
    index.insert(Document(id_="e", text=TEXT))
    assert texts(index.memory) == [c.text.strip() for c in expected] * 2
    unchanged, changed = Document(id_="e", text=TEXT), Document(id_="d", text=SECTIONS[0])
    assert index.refresh_ref_docs([unchanged, changed]) == [False, True]
    assert len(index.memory) == len(expected) + len(chunks_of(SECTIONS[0]))


@pytest.mark.parametrize("named", ["argument", "settings", "chunk size"])
def test_transformations_that_are_named_are_kept(named):
    splitter = SentenceSplitter(chunk_size=200, chunk_overlap=0)
    given = {"transformations": [splitter]} if named == "argument" else {}
    if named == "settings":
        Settings.transformations = [splitter]
    elif named == "chunk size":
        Settings.chunk_size = 200
        Settings.chunk_overlap = 0
    document = Document(id_="d", text=TEXT)
    index = CompMemIndex.from_documents([document], config=CONFIG, **given)
    expected = [node.text for node in splitter([document])]
    assert texts(index.memory) == expected
    index.insert(Document(id_="e", text=TEXT))
    assert texts(index.memory) == expected * 2


def test_langchain_splits_unless_told_otherwise():
    document = LangChainDocument(id="d", page_content=TEXT, metadata={"year": 2024})
    made = CompMemRetriever.from_documents([document], config=CONFIG, k=99)
    assert texts(made.own) == [c.text for c in chunks_of()]
    assert made.get(["d"]) == [document]
    whole = CompMemRetriever.from_documents([document], config=CONFIG, split=False)
    assert texts(whole.own) == [TEXT]


def test_metadata_that_cannot_be_kept_is_refused_before_a_folder_is_made(tmp_path):
    good, bad = {"year": 2024}, {"what": object()}
    folder = tmp_path / "memory"
    with pytest.raises(ValueError, match="cannot be stored as JSON"):
        CompMemIndex.from_documents(
            [Document(text="a", metadata=good), Document(text="b", metadata=bad)], path=folder, config=CONFIG
        )
    documents = [LangChainDocument(page_content=text, metadata=m) for text, m in (("a", good), ("b", bad))]
    with pytest.raises(ValueError, match="is not JSON: a value of type object"):
        CompMemRetriever.from_documents(documents, path=folder, config=CONFIG)
    with pytest.raises(ValueError, match="is not JSON"):
        CompMemRetriever.from_documents(
            [LangChainDocument(page_content="a", metadata={"x": float("nan")})], path=folder, config=CONFIG
        )
    assert not folder.exists()


def test_metadata_that_is_nested_too_deeply_is_not_json():
    deep = []
    for _ in range(3000):
        deep = [deep]
    with pytest.raises(ValueError, match="cannot be stored as JSON"):
        CompMemIndex.from_documents([Document(text="a", metadata={"x": deep})], config=CONFIG)
    for name in ("a", None):
        document = LangChainDocument(id=name, page_content="a", metadata={"x": deep})
        with pytest.raises(ValueError, match="is not JSON"):
            CompMemRetriever.from_documents([document], config=CONFIG)
        with (
            CompMemRetriever.from_documents([], config=CONFIG).own as index,
            pytest.raises(ValueError, match="is not JSON"),
        ):
            CompMemRetriever(index=index).upsert([document])
