"""The backbone over tiny real models: computes, compresses and reads as the stock model."""

import copy
import weakref

import pytest
import torch

from compmem.backbone import AdapterConfig, Backbone, MemoryConfig
from compmem.backbone import backbone as backbone_module
from compmem.backbone.attention import attention
from compmem.backbone.prune import all_states
from compmem.schema import KVStates
from tests.backbones import MEMORY, close, close_states, randomize, tokens

FAMILIES = ("qwen2", "qwen3", "llama", "mistral")


def stock_answer(backbone, prompt):
    """The output of the stock model's own loop; it keeps the end token."""
    written = backbone.model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False)
    return written[0, len(prompt) :].tolist()


# --- the stock model, run by us


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_without_memory_it_computes_what_the_stock_model_computes(tiny_backbone, family):
    backbone = tiny_backbone(family)
    prompts = [tokens(9, 1), tokens(30, 2), tokens(17, 3)]
    logits = backbone.logits(backbone.read(prompts))
    for row, prompt in enumerate(prompts):
        close(logits[row, : len(prompt)], backbone.model(torch.tensor([prompt])).logits[0])
        [written] = backbone.generate([prompt], max_new_tokens=12, stop_ids=())
        stock = stock_answer(backbone, prompt)
        assert written[: len(stock)] == stock


def test_scaled_rotary_positions_are_the_stock_models(tiny_backbone):
    yarn = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
    backbone = tiny_backbone("qwen2", rope_parameters=yarn)
    prompt = tokens(40)
    close(backbone.logits(backbone.read([prompt]))[0], backbone.model(torch.tensor([prompt])).logits[0])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("queries", "slots"), [(1, 1), (1, 9), (7, 7), (7, 10), (3, 20)])
def test_attention_is_softmax_over_what_a_query_may_see(queries, slots, masked):
    generator = torch.Generator().manual_seed(slots)
    query = torch.randn(2, 6, queries, 8, generator=generator)
    key, value = (torch.randn(2, 2, slots, 8, generator=generator) for _ in range(2))
    seen = torch.ones(2, 1, queries, slots, dtype=torch.bool).tril(slots - queries)
    if masked:
        seen[1, :, :, 1 : 1 + slots // 3] = False
        seen[1, 0] |= torch.eye(slots, dtype=torch.bool)[-queries:]
    scores = query @ key.repeat_interleave(3, 1).transpose(2, 3) * 0.5
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ value.repeat_interleave(3, 1)
    mine = attention(query, key, value, scale=0.5, mask=seen if masked else None)
    close(mine, expected.transpose(1, 2).flatten(2), atol=1e-5)


@pytest.mark.parametrize("mask", [None, torch.ones(1, 1, 7, 10, dtype=torch.bool), torch.zeros(1, 2, 7, 10)])
def test_attention_in_bfloat16_has_the_gradients_of_float32(mask):
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(1, heads, n, 8, generator=generator) for heads, n in ((6, 7), (2, 10), (2, 10))]
    if mask is not None and mask.is_floating_point():
        mask = mask.bfloat16()
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        inputs = [x.bfloat16().to(dtype).requires_grad_() for x in parts]
        wanted = mask.to(dtype) if mask is not None and mask.is_floating_point() else mask
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = attention(*inputs, scale=0.4, mask=wanted)
        assert out.dtype == dtype
        out.sum().backward()
        found[dtype] = [out.detach().float(), *(x.grad.float() for x in inputs)]
    for narrow, wide in zip(found[torch.bfloat16], found[torch.float32], strict=True):
        torch.testing.assert_close(narrow, wide, atol=2e-2, rtol=2e-2)


# --- compression by memory tokens


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_batch_of_chunks_compresses_as_one_by_one(tiny_backbone, family):
    backbone = tiny_backbone(family, memory=MEMORY)
    chunks = [tokens(n, n) for n in (40, 16, 3, 64, 1, 33, 18, 47)]
    together = backbone.compress(chunks)
    for chunk, states in zip(chunks, together, strict=True):
        assert states.keys.shape == (2, 2, -(-len(chunk) // 4), 16)
        close_states(states, backbone.compress([chunk])[0])


def masked_window(backbone, raw, carried):
    """One window computed naively: every projection for every token, selected by a mask; all positions in one row."""
    ratio, model, decoder = backbone.memory.ratio, backbone.model.model, backbone.decoder
    ids, is_memory = [], []
    for i, token in enumerate(raw):
        ids, is_memory = [*ids, token], [*is_memory, False]
        if (i + 1) % ratio == 0 or i == len(raw) - 1:
            ids, is_memory = [*ids, 0], [*is_memory, True]
    mask = torch.tensor(is_memory)[:, None]
    x = torch.where(mask, decoder.memory_embedding, model.embed_tokens(torch.tensor(ids)))
    made = []
    for number, (stock, layer) in enumerate(zip(model.layers, decoder.layers, strict=True)):
        attn, normed = stock.self_attn, stock.input_layernorm(x)
        q, k, v = (
            torch.where(mask, layer.own[name](normed), getattr(attn, f"{name}_proj")(normed))
            .view(len(ids), -1, attn.head_dim)
            .transpose(0, 1)
            for name in "qkv"
        )
        made.append((k[:, mask[:, 0]], v[:, mask[:, 0]]))
        k, v = torch.cat((carried[number][0], k), 1), torch.cat((carried[number][1], v), 1)
        cos, sin = model.rotary_emb(x, torch.arange(k.shape[1])[None])

        def turn(s, c, n):
            return s * c + torch.cat((-s[..., 8:], s[..., :8]), -1) * n

        past = k.shape[1] - len(ids)
        q, k = turn(q, cos[0, past:], sin[0, past:]), turn(k, cos[0], sin[0])
        k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
        scores = (q @ k.transpose(1, 2)) * attn.scaling
        scores = scores.masked_fill(~torch.ones_like(scores, dtype=torch.bool).tril(past), -torch.inf)
        read = (scores.softmax(-1) @ v).transpose(0, 1).flatten(1)
        x = x + torch.where(mask, layer.own["o"](read), attn.o_proj(read))
        x = x + stock.mlp(stock.post_attention_layernorm(x))
    return [(torch.cat((a[0], b[0]), 1), torch.cat((a[1], b[1]), 1)) for a, b in zip(carried, made, strict=True)]


@torch.inference_mode()
def test_memory_states_are_those_of_a_masked_pass_over_each_window(tiny_backbone):
    backbone = tiny_backbone("qwen2", memory=MEMORY)
    chunk = tokens(42)
    carried = [(torch.empty(2, 0, 16), torch.empty(2, 0, 16)) for _ in range(2)]
    for start in range(0, len(chunk), 16):
        carried = masked_window(backbone, chunk[start : start + 16], carried)
    [states] = backbone.compress([chunk])
    close_states(
        states, KVStates(keys=torch.stack([k for k, _ in carried]), values=torch.stack([v for _, v in carried]))
    )


@torch.inference_mode()
def test_fresh_memory_tokens_and_fresh_adapters_change_nothing(tiny_backbone, tiny_model, tiny_tokenizer):
    plain, dressed = (Backbone.from_model(tiny_model(), tiny_tokenizer) for _ in range(2))
    plain.add_memory(MemoryConfig(window=16, own=()))
    dressed.add_memory(MEMORY)
    for role in ("memory", "reasoner", "gate"):
        dressed.add_adapter(role, AdapterConfig(targets=("q", "v", "gate", "up", "down")))
    close_states(dressed.compress([tokens(40)])[0], plain.compress([tokens(40)])[0])
    close(dressed.read([tokens(9)]), plain.read([tokens(9)]))


@torch.inference_mode()
def test_each_adapter_acts_in_its_role_alone(tiny_backbone):
    backbone = tiny_backbone(memory=MEMORY)
    for role in ("memory", "reasoner", "gate"):
        backbone.add_adapter(role, AdapterConfig(rank=2, targets=("k", "o", "down")))

    def seen():
        [states] = backbone.compress([tokens(30)])
        return [states.keys, backbone.read([tokens(9)]), backbone.read([tokens(9)], role="gate")]

    before = seen()
    for number, role in enumerate(("memory", "reasoner", "gate")):
        randomize(backbone, role)
        after = seen()
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert changed == [i == number for i in range(3)]
        before = after


@torch.inference_mode()
def test_another_ratio_may_be_asked_for(tiny_backbone):
    backbone = tiny_backbone(memory=MEMORY)
    assert backbone.compress([tokens(32)], ratio=8)[0].keys.shape[2] == 4
    with pytest.raises(ValueError, match="ratio=3 must divide the window of 16"):
        backbone.compress([tokens(32)], ratio=3)


# --- compression without training


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_at_ratio_1_an_untrained_backbone_answers_as_over_the_text(tiny_backbone, family):
    backbone = tiny_backbone(family)
    texts, prompts = [tokens(50, 1), tokens(21, 2)], [tokens(12, 3), tokens(5, 4)]
    blocks = [[states] for states in backbone.compress(texts, ratio=1)]
    lead = backbone.chat_prefix_ids
    assert lead, "the text stands in a chat turn"
    recalled = backbone.generate(prompts, blocks, max_new_tokens=12, stop_ids=())
    assert recalled == backbone.generate([lead + p for p in prompts], blocks, max_new_tokens=12, stop_ids=())
    assert recalled[0] == list(backbone.stream(prompts[0], blocks[0], max_new_tokens=12, stop_ids=()))
    for text, prompt, answer in zip(texts, prompts, recalled, strict=True):
        stock = stock_answer(backbone, lead + text + prompt)
        assert answer[: len(stock)] == stock
    hidden = backbone.read([lead + prompts[0], prompts[1]], blocks)
    for row, (text, prompt, skipped) in enumerate(zip(texts, prompts, (len(lead), 0), strict=True)):
        over = backbone.model.model(torch.tensor([lead + text + prompt])).last_hidden_state[0, -len(prompt) :]
        close(hidden[row, skipped : skipped + len(prompt)], over, atol=1e-4)
        assert not hidden[row, :skipped].any(), "the head was read in front of the block"
    odds = backbone.log_odds(prompts, blocks, 5, 6)
    for text, prompt, found in zip(texts, prompts, odds, strict=True):
        logits = backbone.model(torch.tensor([lead + text + prompt])).logits[0, -1]
        close(found, logits[5] - logits[6], atol=1e-4)


def test_the_prefix_is_computed_again_only_after_the_weights_changed(tiny_backbone, monkeypatch):
    backbone, run = tiny_backbone(), []
    monkeypatch.setattr(backbone_module, "all_states", lambda *given: run.append(given) or all_states(*given))
    [block] = backbone.compress([tokens(50, 1)], ratio=1)
    prompt = backbone.chat_prefix_ids + tokens(12, 3)

    def read():
        return backbone.read([prompt], [[block]])[0, -1]

    with torch.no_grad():
        first = read()
        assert torch.equal(read(), first)
        assert len(run) == 1
        for weight in backbone.decoder.parameters():
            weight.mul_(1.1)
        changed = read()
        assert not torch.allclose(changed, first)
        assert len(run) == 2
        backbone.free_caches()
        assert torch.equal(read(), changed)
        assert len(run) == 3
        with torch.autocast("cpu", torch.bfloat16):
            read()
        assert len(run) == 4
    assert read().requires_grad
    read()
    assert len(run) == 6, "with gradients always"


@torch.inference_mode()
def test_a_backbone_that_is_dropped_is_freed_at_once(tiny_backbone):
    backbone = tiny_backbone()
    backbone.generate([tokens(5, 4)], [backbone.compress([tokens(50, 1)], ratio=1)], max_new_tokens=2)
    freed = weakref.ref(backbone)
    del backbone
    assert freed() is None, "no cycle keeps its weights in memory"


@torch.inference_mode()
def test_pruning_keeps_the_first_tokens_and_states_of_the_text_in_order(tiny_backbone):
    backbone = tiny_backbone("qwen3")
    bare = copy.deepcopy(backbone.tokenizer)
    bare.chat_template = bare.bos_token = None
    backbone = Backbone.from_model(backbone.model, bare)
    assert backbone.chat_prefix_ids == []
    chunks = [tokens(60, 1), tokens(9, 2), tokens(2, 3)]
    whole, kept = backbone.compress(chunks, ratio=1), backbone.compress(chunks, ratio=4)
    for full, some in zip(whole, kept, strict=True):
        count = some.keys.shape[2]
        assert count == -(-full.keys.shape[2] // 4)
        places = (some.keys[..., None, :] - full.keys[..., None, :, :]).abs().sum(-1).argmin(-1)
        close(some.keys, full.keys.gather(2, places[..., None].expand_as(some.keys)), atol=1e-5)
        assert (places.diff(dim=-1) > 0).all()
        sinks = min(4, max(1, count // 4))
        assert (places[..., :sinks] == torch.arange(sinks)).all()
    for chunk, states in zip(chunks, kept, strict=True):
        close_states(states, backbone.compress([chunk], ratio=4)[0])


# --- reading


@pytest.mark.parametrize("positions", ["rotated", "unrotated"])
@torch.inference_mode()
def test_blocks_read_in_one_step_are_read_as_their_concatenation(tiny_backbone, positions):
    backbone = tiny_backbone(memory=MemoryConfig(window=16, positions=positions))
    parts = backbone.compress([tokens(40, 1), tokens(13, 2), tokens(20, 3)])
    whole = KVStates(keys=torch.cat([p.keys for p in parts], 2), values=torch.cat([p.values for p in parts], 2))
    close(backbone.read([tokens(8)], [parts]), backbone.read([tokens(8)], [[whole]]), atol=0)
    swapped = backbone.read([tokens(8)], [parts[::-1]])
    same = torch.allclose(swapped, backbone.read([tokens(8)], [parts]), atol=1e-5)
    assert same == (positions == "unrotated")


@torch.inference_mode()
def test_a_batch_reads_scores_and_writes_as_one_by_one(tiny_backbone):
    backbone = tiny_backbone(memory=MEMORY)
    backbone.add_gate()
    randomize(backbone, "gate")
    made = backbone.compress([tokens(n, n) for n in (40, 16, 30)])
    rows = [[made[0]], [], [made[1], made[2]], [made[2]]]
    prompts = [tokens(n, 50 + n) for n in (7, 19, 4, 11)]
    hidden, scores = backbone.read(prompts, rows), backbone.score(prompts, rows, tokens(3))
    written = backbone.generate(prompts, rows, max_new_tokens=8, stop_ids=())
    drawn = backbone.generate(prompts, rows, max_new_tokens=8, temperature=1.0, seeds=[3, 1, 4, 1])
    assert len(set(map(tuple, written))) == 4
    assert drawn != written
    for i, (prompt, blocks) in enumerate(zip(prompts, rows, strict=True)):
        close(hidden[i, : len(prompt)], backbone.read([prompt], [blocks])[0])
        close(scores[i], backbone.score([prompt], [blocks], tokens(3))[0])
        assert backbone.generate([prompt], [blocks], max_new_tokens=8, stop_ids=()) == [written[i]]
        alone = backbone.generate([prompt], [blocks], max_new_tokens=8, temperature=1.0, seeds=[[3, 1, 4, 1][i]])
        assert alone == [drawn[i]]


@torch.inference_mode()
@pytest.mark.parametrize("positions", ["rotated", "unrotated"])
def test_a_question_in_front_of_blocks_is_scored_as_if_all_was_read_in_a_row(tiny_backbone, positions):
    backbone = tiny_backbone(memory=MemoryConfig(window=16, positions=positions))
    backbone.add_gate()
    randomize(backbone, "gate")
    asked, probe = tokens(9, 1), tokens(4, 2)
    head = backbone.decoder.gate_head
    # Without a block, question and probe are one prompt.
    start = 5 if positions == "unrotated" else None
    close(
        backbone.score([asked], [[]], probe, start=start)[0],
        head(backbone.read([asked + probe], start=start)[0, -1])[0],
    )
    if positions == "rotated":
        with pytest.raises(ValueError, match="reads from position 0"):
            backbone.score([asked], [[]], probe, start=5)
    # Two blocks are their concatenation; another question gives another score.
    parts = backbone.compress([tokens(40, 3), tokens(13, 4)])
    whole = KVStates(keys=torch.cat([p.keys for p in parts], 2), values=torch.cat([p.values for p in parts], 2))
    close(backbone.score([asked], [parts], probe), backbone.score([asked], [[whole]], probe), atol=0)
    assert not torch.allclose(backbone.score([asked], [parts], probe), backbone.score([probe], [parts], probe))
    # The same question for several blocks is run once.
    runs = []
    backbone.decoder.register_forward_pre_hook(lambda module, args: runs.append(args[0].shape))
    backbone.score([asked] * 3, [[p] for p in (*parts, whole)], probe)
    assert [shape for shape in runs if shape[1] == len(asked)] == [(1, 9)]


@pytest.mark.parametrize("positions", ["rotated", "unrotated"])
@torch.inference_mode()
def test_a_prompt_that_was_read_before_is_read_as_if_it_stood_in_front(tiny_backbone, positions):
    backbone = tiny_backbone(memory=MemoryConfig(window=16, positions=positions))
    backbone.add_adapter("reasoner", AdapterConfig(rank=2, targets=("q", "v")))
    randomize(backbone, "reasoner")
    text, rest = [tokens(21, 1), tokens(9, 2)], tokens(4, 3)
    for role in ("reasoner", None):
        for prompt, states in zip(text, backbone.prompt_states(text, role=role), strict=True):
            whole = backbone.read([prompt + rest], role=role)[:, len(prompt) :]
            close(backbone.read([rest], [[states]], role=role, start=len(prompt)), whole)
    other = backbone.read([rest], [[states]], role="reasoner", start=len(prompt))
    assert not torch.allclose(other, backbone.read([prompt + rest])[:, len(prompt) :], atol=2e-4)


# --- gradients


def test_gradients_reach_the_memory_through_the_recalled_states(tiny_backbone):
    backbone = tiny_backbone("qwen3", memory=MEMORY)
    backbone.add_adapter("memory", AdapterConfig(rank=2))
    randomize(backbone, "memory", 0.05)
    backbone.decoder.double()
    chunks, prompt = [tokens(40, 1), tokens(22, 2)], tokens(9, 3)
    for parameter in backbone.parameters("base").values():
        parameter.requires_grad_(False)

    def loss():
        logits = backbone.logits(backbone.read([prompt], [backbone.compress(chunks)]))
        return torch.nn.functional.cross_entropy(logits[0, :-1], torch.tensor(prompt[1:]))

    loss().backward()
    memory = backbone.parameters("memory")
    gradients = {name: p.grad.clone() for name, p in memory.items() if p.grad is not None}
    # In the last layer, queries and outputs of memory tokens are not used: only their keys and values are kept.
    unread = ("own.q", "own.o", "memory_q", "memory_o")
    assert set(memory) - set(gradients) == {
        name for name in memory if name.startswith("layers.1.") and any(part in name for part in unread)
    }
    assert all(gradient.any() for gradient in gradients.values())
    for name in ("memory_embedding", "layers.0.own.k.weight", "layers.1.adapters.memory_v.up"):
        parameter, place = memory[name], int(gradients[name].abs().argmax())
        with torch.no_grad():
            flat, step = parameter.view(-1), 1e-3
            flat[place] += step
            above = loss()
            flat[place] -= 2 * step
            slope = (above - loss()) / (2 * step)
            flat[place] += step
        # The norms compute in float32 for all weights, hence the wide step.
        torch.testing.assert_close(gradients[name].view(-1)[place], slope, rtol=1e-2, atol=0)
    backbone.decoder.checkpointing = True
    for parameter in memory.values():
        parameter.grad = None
    loss().backward()
    for name, gradient in gradients.items():
        close(memory[name].grad, gradient, atol=1e-10)


def test_reading_after_inference_mode_still_trains(tiny_backbone):
    backbone = tiny_backbone(memory=MEMORY)
    with torch.inference_mode():
        backbone.generate([tokens(5)], [backbone.compress([tokens(20)])], max_new_tokens=3)
    backbone.read([tokens(5)], [backbone.compress([tokens(20)])]).sum().backward()
    assert backbone.parameters("memory")["memory_embedding"].grad.abs().sum() > 0


def test_the_mask_is_on_the_device_of_the_queries():
    query, key = torch.empty(1, 4, 2, 8, device="meta"), torch.empty(1, 2, 10, 8, device="meta")
    assert attention(query, key, key, scale=1.0).shape == (1, 2, 32)
