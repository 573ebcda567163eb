"""The LlamaIndex index and its storage against the framework's own classes."""

import asyncio
import copy
import gc
import itertools
import logging
import os
import pickle
import shutil
import threading
from pathlib import Path

import fsspec
import pytest
from llama_index.core import StorageContext, VectorStoreIndex, load_index_from_storage
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.indices.base import BaseIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, NodeRelationship, RelatedNodeInfo, TextNode

import llama_index_compmem
from compmem import Document as CoreDocument
from compmem import IndexConfig, MemoryIndex, StoreError
from llama_index_compmem import CompMemIndex, CompMemRetriever, CompMemVectorStore
from llama_index_compmem.nodes import to_document
from tests.frameworks_llama_index import QUESTION, HashingEncoder, documents, make_index, names

TALE = " ".join(f"Item {n} of the {{0}} tale weighs {n} grams." for n in range(40))


def test_the_public_names_are_these():
    assert llama_index_compmem.__all__ == [
        "CompMemChatEngine",
        "CompMemIndex",
        "CompMemLLMError",
        "CompMemMetadata",
        "CompMemNodeParser",
        "CompMemQueryEngine",
        "CompMemRetriever",
        "CompMemStepEvent",
        "CompMemVectorStore",
        "recall_tool",
    ]
    assert issubclass(CompMemIndex, BaseIndex)
    assert issubclass(CompMemRetriever, BaseRetriever)


# The index


def test_from_documents_and_from_nodes_hold_the_same(index):
    nodes = [
        TextNode(
            text=d.text,
            metadata=d.metadata,
            relationships={NodeRelationship.SOURCE: RelatedNodeInfo(node_id=d.id_, hash=d.hash)},
        )
        for d in documents()
    ]
    made = CompMemIndex.from_nodes(nodes, config=IndexConfig(encoder=HashingEncoder()), show_progress=True)
    assert names(made.as_retriever(3).retrieve(QUESTION)) == names(index.as_retriever(3).retrieve(QUESTION))
    assert {n.node_id for n in nodes} == {d.id for d in made.memory.documents()}


def test_the_constructor_refuses_documents_and_nothing():
    with pytest.raises(ValueError, match="give nodes="):
        CompMemIndex()
    with pytest.raises((ValueError, TypeError)):
        CompMemIndex(nodes=["text"])


def test_documents_are_inserted_refreshed_and_deleted():
    index = make_index()
    index.insert(Document(doc_id="quarry", text="The Quarry of Dunmore was closed in 1971."))
    assert names(index.as_retriever(1).retrieve("When was the Quarry of Dunmore closed?")) == ["quarry"]
    changed = Document(doc_id="esk", text="The river Esk was renamed Ask.", metadata={"title": "Esk"})
    new = Document(doc_id="mill", text="The mill of Hob burnt down.")
    same = documents()[0]
    assert index.refresh_ref_docs([same, changed, new]) == [False, True, True]
    assert index.refresh_ref_docs([same, changed, new]) == [False, False, False]
    found = index.as_retriever(1).retrieve("What was the river Esk renamed?")
    assert found[0].node.get_content() == "The river Esk was renamed Ask."
    assert set(index.ref_doc_info) == {"orchid", "marsh", "tarnhill", "veld", "esk", "quarry", "mill"}
    assert index.ref_doc_info["orchid"].metadata["year"] == 1998
    index.delete_ref_doc("mill", delete_from_docstore=True)
    assert "mill" not in index.ref_doc_info
    assert index.docstore.get_document_hash("mill") is None
    assert index.refresh_ref_docs([new]) == [True]


async def test_many_documents_are_refreshed_by_one_look_at_the_index(monkeypatch):
    index = make_index()
    index.refresh_ref_docs([Document(doc_id=f"d{n}", text=TALE.format(n)) for n in range(6)])
    before = {name: index.ref_doc_info[name].node_ids for name in ("d0", "d5")}
    looks, documents_of = [], MemoryIndex.documents
    monkeypatch.setattr(MemoryIndex, "documents", lambda *args, **kw: looks.append(args) or documents_of(*args, **kw))
    for call in ("sync", "async"):
        looks.clear()
        changed = [Document(doc_id=f"d{n}", text=f"Tale {n}, {call}.") for n in range(5)]
        changed += [Document(doc_id="d0", text=f"The last tale, {call}."), Document(doc_id="d5", text=TALE.format(5))]
        made = index.refresh_ref_docs(changed) if call == "sync" else await index.arefresh_ref_docs(changed)
        assert (made, len(looks)) == ([True] * 6 + [False], 1)
    nodes = {n.node_id: n.get_content() for n in index.as_vector_store().get_nodes()}
    assert index.ref_doc_info["d0"].node_ids == before["d0"][:1], "the first node has taken the place of the old one"
    assert nodes[before["d0"][0]] == "The last tale, async."
    assert index.ref_doc_info["d5"].node_ids == before["d5"]


@pytest.mark.parametrize("how", ["sync", "async"])
@pytest.mark.parametrize("call", ["update", "refresh"])
async def test_a_document_that_cannot_be_stored_leaves_the_old_one(how, call):
    index = make_index()
    wrong = Document(doc_id="esk", text="Fish.", metadata={"tags": {"a"}})
    changed = Document(doc_id="veld", text="Jonas Veld is a baker again.")

    async def replace(documents):
        if call == "update":
            for document in documents:
                made = index.update_ref_doc(document) if how == "sync" else await index.aupdate_ref_doc(document)
        else:
            made = index.refresh_ref_docs(documents) if how == "sync" else await index.arefresh_ref_docs(documents)
        return made

    with pytest.raises(ValueError, match="cannot be stored as JSON"):
        await replace([wrong] if call == "update" else [changed, wrong])
    texts = {n.metadata["title"]: n.get_content() for n in index.as_vector_store().get_nodes()}
    assert len(index.ref_doc_info) == 5
    assert texts["Esk"] == documents()[4].text and texts["Jonas Veld"] == documents()[3].text
    assert index.refresh_ref_docs(documents()) == [False] * 5
    await replace([changed])
    assert index.refresh_ref_docs([changed]) == [False]
    assert len(index.ref_doc_info) == 5 == len(index.memory)
    assert names(index.as_retriever(1).retrieve("Who is a baker again?")) == ["veld"]


@pytest.mark.parametrize("path", [True, False])
def test_a_document_is_never_missing_while_it_is_replaced(path, tmp_path):
    encoder = HashingEncoder()
    index = CompMemIndex.from_documents(
        [Document(doc_id="d", text=TALE.format("old")), *documents()],
        path=tmp_path / "world.mem" if path else None,
        config=IndexConfig(encoder=encoder, chunk_tokens=64),
    )
    before = index.ref_doc_info["d"].node_ids
    assert len(before) > 3
    encoder.seconds = 0.05
    seen, done = [], threading.Event()

    def watch():
        while not done.is_set():
            seen.append(frozenset(n.get_content() for n in index.as_vector_store().get_nodes(before[:1])))

    watcher = threading.Thread(target=watch)
    watcher.start()
    index.update_ref_doc(Document(doc_id="d", text=TALE.format("new")))
    done.set()
    watcher.join()
    assert all(seen) and len(set(seen)) <= 2, "the old node, and then the new one"
    after = index.as_vector_store().get_nodes(index.ref_doc_info["d"].node_ids)
    assert [n.node_id for n in after] == before and all("new" in n.get_content() for n in after)
    for one, following in itertools.pairwise(after):
        assert one.next_node.node_id == following.node_id and following.prev_node.node_id == one.node_id
    index.update_ref_doc(Document(doc_id="d", text="It is short now."))
    assert index.ref_doc_info["d"].node_ids == before[:1] == index.docstore.get_ref_doc_info("d").node_ids
    index.update_ref_doc(Document(doc_id="d", text=" "))
    assert "d" not in index.ref_doc_info and len(index.ref_doc_info) == 5


def test_ids_that_mean_something_are_those_of_the_splitter():
    splitter = SentenceSplitter(chunk_size=256, chunk_overlap=0, id_func=lambda i, doc: f"{doc.text[:3]}-{i}")
    made = CompMemIndex.from_documents(
        [Document(doc_id="d", text="One thing.")], embed_model=HashingEncoder(), transformations=[splitter]
    )
    made.update_ref_doc(Document(doc_id="d", text="Two things."))
    assert [d.id for d in made.memory.documents()] == ["Two-0"]
    assert made.docstore.get_node("Two-0").get_content() == "Two things."


def test_nodes_are_inserted_and_deleted():
    index = make_index()
    index.insert_nodes([TextNode(id_="a", text="Anvil Rock is red."), TextNode(id_="b", text="Beacon Hill is green.")])
    assert index.as_retriever(1).retrieve("Anvil Rock")[0].node.node_id == "a"
    index.delete_nodes(["a", "no such node"], delete_from_docstore=True)
    assert "a" not in {d.id for d in index.memory.documents()}
    assert index.docstore.get_node("b").get_content() == "Beacon Hill is green."
    with pytest.raises(ValueError, match="a not found"):
        index.docstore.get_node("a")


async def test_the_async_half_does_the_same():
    index = make_index(encoder=HashingEncoder(seconds=0.05))
    ticks, running = [], True

    async def tick():
        while running:
            ticks.append(1)
            await asyncio.sleep(0.005)

    task = asyncio.create_task(tick())
    await index.ainsert_nodes([TextNode(id_="a", text="Anvil Rock is red.")])
    await index.ainsert(Document(doc_id="b", text="Beacon Hill is green."))
    assert await index.arefresh_ref_docs([documents()[0]]) == [False]
    await index.adelete_ref_doc("b", delete_from_docstore=True)
    await index.adelete_nodes(["a"])
    running = False
    await task
    assert len(ticks) > 10, "the event loop was blocked"
    assert len(index.memory) == 5


def test_deleting_what_is_not_there_warns(index, caplog):
    with caplog.at_level(logging.WARNING):
        index.delete_ref_doc("nobody")
    assert "nobody not found" in caplog.text


def test_nodes_without_text_are_left_out_with_a_warning(caplog):
    with caplog.at_level(logging.WARNING):
        made = CompMemIndex.from_nodes(
            [TextNode(text=" "), TextNode(text="Anvil Rock is red.")], embed_model=HashingEncoder()
        )
    assert "1 nodes have no text" in caplog.text
    assert len(made.memory) == 1


def test_an_index_of_no_nodes_can_be_asked():
    empty = CompMemIndex.from_nodes([], embed_model=HashingEncoder())
    assert empty.as_retriever().retrieve(QUESTION) == []
    empty.insert(documents()[0])
    assert names(empty.as_retriever().retrieve(QUESTION)) == ["orchid"]


def test_an_embedding_model_of_the_framework_serves_as_encoder():
    made = make_index(encoder=MockEmbedding(embed_dim=8))
    assert made.memory.info().dim == 8
    assert len(made.as_retriever(3).retrieve(QUESTION)) == 3


@pytest.mark.parametrize("name", ["default", "local", "local:BAAI/bge-small-en-v1.5", "clip:ViT-B/32"])
def test_a_name_that_only_the_framework_knows_is_refused(name, tmp_path):
    for make in (
        lambda: CompMemIndex.from_documents(documents(), embed_model=name),
        lambda: CompMemIndex.from_memory(tmp_path, embed_model=name),
        lambda: CompMemRetriever.from_retriever(make_index().as_retriever(), embed_model=name),
    ):
        with pytest.raises(ValueError, match=rf"pass resolve_embed_model\('{name}'\), or the name of a"):
            make()


def test_metadata_that_cannot_be_kept_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'compmem:node' is reserved for CompMem"):
        CompMemIndex.from_nodes([TextNode(text="x", metadata={"compmem:node": 1})], embed_model=HashingEncoder())
    node = TextNode(id_="odd", text="x", metadata={"when": object()})
    with pytest.raises(ValueError, match="odd"):
        CompMemIndex.from_nodes([node], embed_model=HashingEncoder(), path=tmp_path / "never")
    assert not (tmp_path / "never").exists()


# Storage


def reload(folder, **options):
    return load_index_from_storage(
        StorageContext.from_defaults(persist_dir=str(folder)), embed_model=HashingEncoder(), **options
    )


def test_persisting_gives_the_same_class_back_wherever_the_folder_is_moved(index, tmp_path):
    index.storage_context.persist(tmp_path / "here")
    shutil.move(tmp_path / "here", tmp_path / "there")
    loaded = reload(tmp_path / "there")
    assert type(loaded) is CompMemIndex
    before, after = index.as_retriever(4).retrieve(QUESTION), loaded.as_retriever(4).retrieve(QUESTION)
    assert [(n.node.node_id, n.score) for n in before] == [(n.node.node_id, n.score) for n in after]
    assert loaded.refresh_ref_docs(documents()) == [False] * 5
    loaded.insert(Document(doc_id="mill", text="The mill of Hob burnt down."))
    loaded.storage_context.persist(tmp_path / "again")
    assert "mill" in reload(tmp_path / "again").ref_doc_info
    assert "mill" not in index.ref_doc_info


def test_an_index_with_a_folder_is_named_by_it(tmp_path):
    made = make_index(path=tmp_path / "world.mem")
    made.storage_context.persist(tmp_path / "storage")
    made.insert(Document(doc_id="mill", text="The mill of Hob burnt down."))
    assert "mill" in reload(tmp_path / "storage").ref_doc_info
    shutil.move(tmp_path / "world.mem", tmp_path / "moved.mem")
    with pytest.raises(ValueError, match=r"world\.mem' has no index"):
        reload(tmp_path / "storage")
    assert "mill" in reload(tmp_path / "storage", path=tmp_path / "moved.mem").ref_doc_info


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_an_index_is_persisted_to_a_file_system_and_loaded(index, kind, tmp_path):
    fs, folder = fsspec.filesystem(kind), f"{tmp_path}/storage"
    context = StorageContext.from_defaults()
    plain = VectorStoreIndex.from_documents(documents(), storage_context=context, embed_model=MockEmbedding(8))
    plain.set_index_id("plain")
    for name in ("one", "two"):
        make_index(storage_context=context).set_index_id(name)
    if kind == "file":
        context.persist(folder)  # its files are replaced
    load_index_from_storage(context, index_id="two", embed_model=HashingEncoder()).delete_ref_doc("esk")
    context.persist(folder, fs=fs)
    loaded = StorageContext.from_defaults(persist_dir=folder, fs=fs)
    one = load_index_from_storage(loaded, index_id="one", embed_model=HashingEncoder())
    two = load_index_from_storage(loaded, index_id="two", embed_model=HashingEncoder())
    found = [(n.node.get_content(), n.score) for n in one.as_retriever(4).retrieve(QUESTION)]
    assert found == [(n.node.get_content(), n.score) for n in index.as_retriever(4).retrieve(QUESTION)]
    assert (len(one.memory), len(two.memory)) == (5, 4)
    vectors = load_index_from_storage(loaded, index_id="plain", embed_model=MockEmbedding(8))
    assert set(names(vectors.as_retriever(similarity_top_k=9).retrieve(QUESTION))) == set(index.ref_doc_info)
    one.delete_ref_doc("marsh")
    for options in ({"fs": fs}, {}) if kind == "file" else ({"fs": fs},):
        loaded.persist(folder, **options)
        again = StorageContext.from_defaults(persist_dir=folder, **options)
        assert len(load_index_from_storage(again, index_id="one", embed_model=HashingEncoder()).memory) == 4


def test_an_index_is_loaded_twice_from_one_storage_context(index, tmp_path):
    index.storage_context.persist(tmp_path)
    context = StorageContext.from_defaults(persist_dir=str(tmp_path))
    one, two = (load_index_from_storage(context, embed_model=HashingEncoder()) for _ in range(2))
    one.insert(Document(doc_id="mill", text="The mill of Hob burnt down."))
    assert "mill" in two.ref_doc_info, "they share the index, as two vector indexes share their store"
    context.persist(tmp_path / "again")
    assert "mill" in reload(tmp_path / "again").ref_doc_info


def test_a_loaded_index_keeps_its_folder_while_a_copy_uses_it(index, tmp_path):
    index.storage_context.persist(tmp_path)
    loaded = reload(tmp_path)
    folder, engine = loaded.memory.path, loaded.as_query_engine()
    answer = str(engine.query(QUESTION))
    copied, pickled = copy.deepcopy(engine), pickle.dumps(engine)
    assert loaded.memory.temporary and copied.memory.temporary
    loaded.memory.close()
    del loaded, engine
    gc.collect()
    again = pickle.loads(pickled)
    assert str(copied.query(QUESTION)) == str(again.query(QUESTION)) == answer
    del copied
    gc.collect()
    assert str(again.query(QUESTION)) == answer
    del again
    gc.collect()
    assert not folder.exists()
    with pytest.raises(StoreError, match="has no index"):
        pickle.loads(pickled)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_does_not_remove_the_folder_of_a_loaded_index(index, tmp_path, run_python):
    index.storage_context.persist(tmp_path)
    code = (
        "import os, sys\n"
        "from tests.llama_index_adapter.test_llama_index import *\n"
        "loaded = reload(sys.argv[1])\n"
        "child = os.fork()\n"
        "if not child: sys.exit()\n"
        "os.waitpid(child, 0)\n"
        "assert loaded.memory.path.exists() and len(loaded.as_retriever(3).retrieve(QUESTION)) == 3\n"
        "print(loaded.memory.path)\n"
    )
    assert not Path(run_python(code, tmp_path).strip()).exists(), "its parent does"


def test_a_context_with_a_store_of_its_own_is_loaded_without_it(tmp_path):
    store = CompMemVectorStore(MemoryIndex.create(tmp_path / "world.mem", IndexConfig(encoder=HashingEncoder())))
    CompMemIndex.from_documents(documents(), storage_context=StorageContext.from_defaults(vector_store=store))
    held = StorageContext.from_defaults(vector_store=store)
    CompMemIndex.from_memory(store.memory, storage_context=held).storage_context.persist(tmp_path / "storage")
    loaded = reload(tmp_path / "storage")
    assert len(loaded.ref_doc_info) == 5
    assert isinstance(loaded.storage_context.vector_store, CompMemVectorStore)
    loaded.storage_context.persist(tmp_path / "again")
    assert len(reload(tmp_path / "again").ref_doc_info) == 5


def test_an_empty_index_becomes_an_index(tmp_path):
    for empty in (
        MemoryIndex.create(config=IndexConfig(encoder=HashingEncoder())),
        MemoryIndex.create(tmp_path / "empty.mem", IndexConfig(encoder=HashingEncoder())),
    ):
        made = CompMemIndex.from_memory(empty)
        assert made.memory is empty
        made.insert(documents()[0])
        assert names(made.as_retriever().retrieve(QUESTION)) == ["orchid"]


def test_two_indexes_share_a_storage_context(tmp_path):
    context = StorageContext.from_defaults()
    one, two = make_index(storage_context=context), make_index(storage_context=context)
    one.set_index_id("one")
    two.set_index_id("two")
    two.delete_ref_doc("esk")
    context.persist(tmp_path / "storage")
    assert len(reload(tmp_path / "storage", index_id="one").memory) == 5
    assert len(reload(tmp_path / "storage", index_id="two").memory) == 4
    other = StorageContext.from_dict(context.to_dict())
    assert len(load_index_from_storage(other, index_id="two", embed_model=HashingEncoder()).memory) == 4


def test_a_vector_index_of_the_framework_still_loads_as_itself(tmp_path):
    VectorStoreIndex.from_documents(documents(), embed_model=MockEmbedding(8)).storage_context.persist(tmp_path)
    loaded = load_index_from_storage(
        StorageContext.from_defaults(persist_dir=str(tmp_path)), embed_model=MockEmbedding(8)
    )
    assert type(loaded) is VectorStoreIndex


def test_a_storage_context_that_was_tampered_with_is_refused(index, tmp_path):
    index.storage_context.persist(tmp_path / "storage")
    store = next((tmp_path / "storage").glob("compmem-*__vector_store.json"))
    content = store.read_text()
    store.write_text(content.replace('"manifest.sqlite"', '"../evil.sqlite"'))
    with pytest.raises(ValueError, match=r"'\.\./evil\.sqlite', which does not belong to an index"):
        reload(tmp_path / "storage")
    store.write_text(content.replace('"manifest.sqlite": "', '"manifest.sqlite": "AAAA'))
    with pytest.raises(ValueError, match="manifest"):
        reload(tmp_path / "storage")
    store.unlink()
    with pytest.raises(ValueError, match="does not contain this index: give its folder as path="):
        reload(tmp_path / "storage")


def test_loading_with_another_embedding_model_is_refused(index, tmp_path):
    index.storage_context.persist(tmp_path)
    with pytest.raises(ValueError, match="embed_model="):
        load_index_from_storage(StorageContext.from_defaults(persist_dir=str(tmp_path)))


def test_a_compmem_index_made_by_other_means_becomes_an_index(tmp_path):
    core = MemoryIndex.create(tmp_path / "core.mem", IndexConfig(encoder=HashingEncoder()))
    core.add([CoreDocument(id="d", text="Anvil Rock is red. It stands in Dunmore.", metadata={"year": 1900})])
    made = CompMemIndex.from_memory(tmp_path / "core.mem", embed_model=HashingEncoder())
    (found,) = made.as_retriever().retrieve("What colour has Anvil Rock?")
    assert (found.node.node_id, found.node.ref_doc_id, found.node.metadata) == ("d#0", "d", {"year": 1900})
    assert made.ref_doc_info["d"].node_ids == ["d#0"]
    made.delete_ref_doc("d")
    assert len(made.memory) == 0


def test_an_index_opened_by_its_folder_knows_what_has_not_changed(tmp_path):
    make_index(path=tmp_path / "world.mem")
    opened = CompMemIndex.from_memory(tmp_path / "world.mem", embed_model=HashingEncoder())
    assert opened.refresh_ref_docs(documents()) == [False] * 5
    opened.delete_ref_doc("esk", delete_from_docstore=True)
    assert opened.refresh_ref_docs(documents()) == [False, False, False, False, True]
    with pytest.raises(ValueError, match="has no index"):
        CompMemIndex.from_memory(tmp_path / "nothing.mem")


def test_nodes_of_a_document_have_it_as_their_source():
    parent = RelatedNodeInfo(node_id="report")
    node = TextNode(text="Anvil Rock is red.", relationships={NodeRelationship.SOURCE: parent})
    assert to_document(node).source == "report"
    assert to_document(TextNode(text="Anvil Rock is red.")).source == ""
