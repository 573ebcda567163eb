"""How a stock model's KV states are chosen: the scores are those of the papers, and an index remembers the method."""

import copy
from dataclasses import replace
from typing import get_args

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compmem import Document, IncompatibleStoreError, IndexConfig, MemoryIndex, index_models
from compmem.backbone import Backbone, MemoryConfig, chunk_ids, kvzip
from compmem.backbone.expected_attention import FUTURE_POSITIONS
from compmem.backbone.kvzip import Repetition, repetition_scores
from compmem.backbone.prune import all_states
from compmem.config import SHARED_BUDGET_METHODS, KVPruning
from compmem.provenance import record_provenance
from tests.backbones import close, close_states, tokens
from tests.hashing import HashEncoder

METHODS = [method for method in get_args(KVPruning) if method not in SHARED_BUDGET_METHODS]
"""Those with equally many states in each head."""
CHUNKS = [tokens(41, 1), tokens(9, 2), tokens(30, 3)]


def attended(backbone, ids):
    """Rotated queries and keys of each layer of the stock model, with a key for each query head."""
    seen = []

    def record(module, query, key, value, mask, scaling, **rest):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
        seen.append((query[0], key[0]))
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(
            ~torch.ones(len(ids), len(ids)).tril().bool(), -1e9
        )
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("recorded", record)
    backbone.model.set_attn_implementation("recorded")
    backbone.model(torch.tensor([ids]))
    return seen


@pytest.mark.parametrize(("family", "piece"), [("llama", 100), ("qwen3", 16)])
@torch.inference_mode()
def test_kvzip_scores_are_the_most_attention_while_the_text_is_repeated(tiny_backbone, monkeypatch, family, piece):
    monkeypatch.setattr(kvzip, "PIECE_TOKENS", piece)
    backbone = tiny_backbone(family, num_hidden_layers=3)
    lead, asking = backbone.chat_prefix_ids, Repetition(backbone.prompt)
    whole = all_states(backbone.decoder, backbone.rotary, [lead + chunk for chunk in CHUNKS])
    scores = repetition_scores(backbone.decoder, backbone.rotary, whole, CHUNKS, asking)
    for chunk, score in zip(CHUNKS, scores, strict=True):
        assert score.shape == (3, 2, len(chunk))
        for start in range(0, len(chunk), piece):
            own, said = chunk[start : start + piece], "Repeat the previous context exactly."
            if start:
                opening = backbone.decode(chunk[start - 8 : start])
                said = "Repeat the part of the previous context exactly, starting with"
            ids = asking.ids(chunk, start)
            assert ids[-len(own) :] == own
            assert said in backbone.decode(ids)
            assert not start or opening in backbone.decode(ids)
            ids = lead + chunk + ids
            begin, behind = len(lead) + start, len(lead) + len(chunk)
            # Of each query: the first tokens, the states of the piece, and the repetition up to it.
            seen = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()[behind:]
            seen[:, 4:begin] = seen[:, begin + len(own) : behind] = False
            for layer, (query, key) in enumerate(attended(backbone, ids)):
                paid = (query[:, behind:] @ key.transpose(1, 2) / 4).masked_fill(~seen, -torch.inf).softmax(-1)
                most = paid[..., begin : begin + len(own)].amax(1).view(2, 2, -1).amax(1)
                close(score[layer, :, start : start + len(own)], most, atol=1e-4)


@torch.inference_mode()
def test_kvzip_keeps_the_states_with_the_highest_scores(tiny_backbone):
    backbone = tiny_backbone()
    whole = all_states(backbone.decoder, backbone.rotary, [backbone.chat_prefix_ids + chunk for chunk in CHUNKS])
    scores = repetition_scores(backbone.decoder, backbone.rotary, whole, CHUNKS, Repetition(backbone.prompt))
    for chunk, score, states in zip(CHUNKS, scores, backbone.compress(CHUNKS, ratio=4, pruning="kvzip"), strict=True):
        places = score.topk(-(-len(chunk) // 4)).indices.sort().values
        assert torch.equal(states.positions.long(), places)


@torch.inference_mode()
def test_expected_attention_is_that_of_normal_queries_behind_an_average_rotation(tiny_backbone):
    backbone = tiny_backbone("llama", num_hidden_layers=2)
    chunk, lead, width = CHUNKS[0], backbone.chat_prefix_ids, 16
    ids, states = lead + chunk, backbone.compress([CHUNKS[0]], ratio=4, pruning="expected-attention")[0]
    attention, inputs = [layer.self_attn for layer in backbone.model.model.layers], []
    hooks = [a.q_proj.register_forward_hook(lambda _, given, made: inputs.append(given[0][0])) for a in attention]
    backbone.model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()

    def turns(start, count):
        """The rotation matrix of each of these positions."""
        cos, sin = backbone.model.model.rotary_emb(torch.zeros(1), torch.arange(start, start + count)[None])
        half = torch.eye(width)
        swapped = torch.cat((-half[width // 2 :], half[: width // 2]))
        return cos[0][:, :, None] * half + sin[0][:, :, None] * swapped

    average = turns(len(ids), FUTURE_POSITIONS).mean(0)
    for layer, (module, x) in enumerate(zip(attention, inputs, strict=True)):
        query = module.q_proj(x).view(len(ids), 4, width)[len(lead) :]
        key = (turns(0, len(ids)) @ module.k_proj(x).view(len(ids), 2, width, 1).transpose(0, 1))[..., 0]
        norms = module.v_proj(x).view(len(ids), 2, width)[len(lead) :].norm(dim=-1)
        for head in range(2):
            expected = torch.zeros(len(chunk))
            for reader in (2 * head, 2 * head + 1):
                mean = average @ query[:, reader].mean(0)
                covariance = average @ torch.cov(query[:, reader].T, correction=0) @ average.T
                exponents = [k @ mean / 4 + k @ covariance @ k / 32 for k in key[head, 4:]]
                expected += torch.stack(exponents).softmax(-1)[len(lead) - 4 :] / 2
            best = (expected * norms[:, head]).topk(-(-len(chunk) // 4)).indices.sort().values
            assert torch.equal(states.positions[layer, head].long(), best)


@torch.inference_mode()
def test_methods_keep_equally_much_and_at_ratio_1_everything(tiny_backbone):
    backbone = tiny_backbone(num_hidden_layers=3)
    whole = backbone.compress(CHUNKS, ratio=1)
    chosen = {}
    for method in METHODS:
        for states, all_of_it in zip(backbone.compress(CHUNKS, ratio=1, pruning=method), whole, strict=True):
            close(states.keys, all_of_it.keys, atol=0)
            assert states.positions is None
        kept = backbone.compress(CHUNKS, ratio=4, pruning=method)
        for chunk, states, all_of_it in zip(CHUNKS, kept, whole, strict=True):
            assert states.keys.shape == states.values.shape == (3, 2, -(-len(chunk) // 4), 16)
            assert (states.positions.diff(dim=-1) > 0).all()
            index = states.positions.long()[..., None].expand_as(states.keys)
            close(states.keys, all_of_it.keys.gather(2, index), atol=1e-5)
            close(states.values, all_of_it.values.gather(2, index), atol=1e-5)
            [alone] = backbone.compress([chunk], ratio=4, pruning=method)
            assert torch.equal(alone.positions, states.positions), "alone, again and in a batch: the same choice"
            close_states(alone, states)
        chosen[method] = torch.cat([states.positions.flatten() for states in kept])
    assert not torch.equal(chosen["attention"], chosen["kvzip"])
    assert not torch.equal(chosen["attention"], chosen["expected-attention"])


@pytest.mark.parametrize("method", ["kvzip", "expected-attention"])
@torch.inference_mode()
def test_without_a_prefix_every_head_keeps_the_first_tokens(tiny_backbone, method):
    bare = copy.deepcopy(tiny_backbone().tokenizer)
    bare.chat_template = bare.bos_token = None
    backbone = Backbone.from_model(tiny_backbone().model, bare)
    assert backbone.chat_prefix_ids == []
    for states in backbone.compress([tokens(60, 1), tokens(9, 2), tokens(2, 3)], ratio=4, pruning=method):
        sinks = min(4, max(1, states.keys.shape[2] // 4))
        assert (states.positions[..., :sinks] == torch.arange(sinks)).all()


def test_what_no_method_can_prune_is_refused(tiny_backbone):
    with pytest.raises(ValueError, match="kv_pruning='kvzip' is for stock models"):
        tiny_backbone(memory=MemoryConfig()).compress(CHUNKS, pruning="kvzip")
    with pytest.raises(ValueError, match="kv_pruning='snapkv' must be one of"):
        IndexConfig(kv_pruning="snapkv")
    # KVzip needs room for the repetition, the others do not.
    chunk = [tokens(600)]
    assert tiny_backbone().compress(chunk, ratio=4)[0].keys.shape[2] == 150
    with pytest.raises(ValueError, match=r"600 tokens takes 1\d\d\d: larger than the context of 1024"):
        tiny_backbone().compress(chunk, ratio=4, pruning="kvzip")


def test_an_index_remembers_how_its_states_were_chosen(tmp_path, tiny_backbone):
    backbone, text = tiny_backbone(), "Acme rents a house in Kiel, and Bolt sells rockets."
    config = IndexConfig(memory="kv", backbone="tiny", encoder=HashEncoder(), ratio=4, kv_pruning="kvzip")
    by_attention = replace(config, kv_pruning="attention")
    with MemoryIndex.create(tmp_path / "own", config, backbone=backbone) as index:
        index.add([Document(id="a", text=text)])
    with MemoryIndex.open(tmp_path / "own", encoder=HashEncoder(), backbone=backbone) as index:
        index.add([Document(id="b", text=text)])
        with index.store.snapshot() as snapshot:
            numbers = [number for name in ("a", "b") for number in snapshot.document_blocks(name)]
            blocks = snapshot.blocks(numbers)
        texts = [chunk_ids(backbone, block.chunk) for block in blocks]
        for block, made in zip(blocks, backbone.compress(texts, ratio=4, pruning="kvzip"), strict=True):
            assert torch.equal(block.kv.positions, made.positions)
        with MemoryIndex.create(None, by_attention, backbone=backbone) as other:
            provenance = other._models.provenance([])
        with pytest.raises(IncompatibleStoreError, match=r"made with pruning='kvzip', .* at pruning='attention' now"):
            record_provenance(index.store, provenance)
    with pytest.raises(IncompatibleStoreError, match="made with kv_pruning='kvzip', not 'attention'"):
        MemoryIndex.open_or_create(tmp_path / "own", by_attention, backbone=backbone)


def test_an_index_keeps_the_default_that_it_was_made_with(tmp_path, tiny_backbone, monkeypatch):
    backbone, document = tiny_backbone(), Document(id="a", text="Acme rents a house in Kiel, and Bolt sells rockets.")
    config = IndexConfig(memory="kv", backbone="tiny", encoder=HashEncoder(), ratio=4)
    with MemoryIndex.create(tmp_path / "own", config, backbone=backbone) as index:
        index.add([document])
    monkeypatch.setattr(index_models, "STOCK_PRUNING", "attention")
    for given in (config, replace(config, kv_pruning="kvzip-heads")):
        with MemoryIndex.open_or_create(tmp_path / "own", given, backbone=backbone) as index:
            assert index.config.kv_pruning == "kvzip-heads"
            index.add([replace(document, id=f"b{given.kv_pruning}")])
            with index.store.snapshot() as snapshot:
                assert all(block.kv.lengths is not None for block in snapshot.blocks(snapshot.select(None)))
    with pytest.raises(IncompatibleStoreError, match="made with kv_pruning='kvzip-heads', not 'attention'"):
        MemoryIndex.open_or_create(tmp_path / "own", replace(config, kv_pruning="attention"), backbone=backbone)
