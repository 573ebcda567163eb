"""A model in one `.gguf` file is the same as the folder that it was made from."""

import pytest
import torch

from compmem import CheckpointError, Document, IndexConfig, MemoryIndex, RuntimeConfig
from compmem.backbone import Backbone, size_on_disk

gguf = pytest.importorskip("gguf")
pytest.importorskip("accelerate")

SETTINGS = {"tie_word_embeddings": False, "vocab_size": 260}


def write_gguf(path, model, tokenizer):
    """A Qwen2 model in float32, as from llama.cpp's converter."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), "qwen2")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = tokenizer.get_vocab()
    tokens = [*sorted(vocabulary, key=vocabulary.get), "qz"]  # a reader wants at least one merge
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") else 1 for token in tokens])
    writer.add_token_merges(["q z"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        stem, kind = name.rsplit(".", 1)
        writer.add_tensor(f"{names.get_name(stem)}.{kind}", tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def file(tmp_path, tiny_model, tiny_tokenizer):
    path = tmp_path / "tiny.gguf"
    write_gguf(path, tiny_model("qwen2", **SETTINGS), tiny_tokenizer)
    return path


def test_it_computes_what_the_folder_does(file, saved_model):
    stock = Backbone.load(saved_model("qwen2", **SETTINGS))
    read = Backbone.load(file, dtype="float32")
    ids = torch.tensor([stock.tokenizer.encode("Acme rents the Harbour Building.")])
    assert read.tokenizer.encode("Acme rents the Harbour Building.") == ids[0].tolist()
    with torch.inference_mode():
        torch.testing.assert_close(read.model(ids).logits, stock.model(ids).logits)
    assert read.fingerprint() == stock.fingerprint()
    assert all(type(layer.mlp.up_proj) is torch.nn.Linear for layer in read.model.model.layers)  # dequantised


def test_an_index_over_it_is_found_again_from_anywhere(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = IndexConfig(memory="kv", backbone="tiny.gguf", encoder=None, chunk_tokens=64)
    with MemoryIndex.create("notes.mem", config, runtime=RuntimeConfig(dtype="float32")) as index:
        index.add([Document(id="a", text="Acme rents the Harbour Building.")])
    monkeypatch.chdir("/")
    with MemoryIndex.open(tmp_path / "notes.mem", runtime=RuntimeConfig(dtype="float32")) as index:
        assert index.config.backbone == str(file)
        assert index.recall("Who rents?", 1)


def test_what_cannot_be_read_is_a_checkpoint_error(file, tmp_path):
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(file.read_bytes()[:3000])
    other = tmp_path / "other.gguf"
    other.write_bytes(b"no model at all" * 100)
    for path, reason in ((cut, "cannot be loaded"), (other, "cannot be loaded"), (tmp_path / "x.gguf", "no file")):
        with pytest.raises(CheckpointError, match=reason):
            Backbone.load(path)


def test_its_size_is_told_without_loading_it(file, saved_model):
    assert size_on_disk(file) == file.stat().st_size
    folder = saved_model("qwen2")
    assert size_on_disk(folder) == (folder / "model.safetensors").stat().st_size
    assert size_on_disk(folder / "none") is None
