"""The backbone over tiny real models: equivalences, and errors for wrong input."""

import copy
import json
import logging
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from compmem.backbone import AdapterConfig, Backbone, MemoryConfig, Prompt
from compmem.backbone import backbone as backbone_module
from compmem.backbone.attention import attention
from compmem.backbone.batching import padded_batches, run_or_halve
from compmem.backbone.prune import all_states
from compmem.backbone.stop import StopDetector, is_repeating
from compmem.errors import CheckpointError
from compmem.schema import KVStates

FAMILIES = ("qwen2", "qwen3", "llama", "mistral")
MEMORY = MemoryConfig(ratio=4, window=16, own=("q", "k", "v", "o"))


def tokens(length, seed=0):
    return torch.randint(3, 259, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def close(mine, theirs, atol=2e-4):
    torch.testing.assert_close(mine, theirs, atol=atol, rtol=0)


def close_states(mine, theirs):
    close(mine.keys, theirs.keys)
    close(mine.values, theirs.values)


def randomize(backbone, part, scale=0.2):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in backbone.parameters(part).values():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)


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


@torch.inference_mode()
def test_decoding_is_what_reading_everything_again_would_choose(tiny_backbone):
    backbone = tiny_backbone("llama", memory=MEMORY)
    blocks, text = [backbone.compress([tokens(30)]), []], [tokens(6, 1), tokens(9, 2)]
    written = backbone.generate(text, blocks, max_new_tokens=6, stop_ids=(), start=20)
    for row in range(2):
        sofar = list(text[row])
        for token in written[row]:
            assert backbone.logits(backbone.read([sofar], [blocks[row]], start=20)[0, -1]).argmax() == token
            sofar.append(token)


@torch.inference_mode()
def test_sampling_follows_the_distribution(tiny_backbone):
    backbone = tiny_backbone()
    prompt, rows = tokens(5), 4000
    probabilities = torch.softmax(backbone.logits(backbone.read([prompt])[0, -1]) / 2.0, -1)
    drawn = backbone.generate([prompt] * rows, max_new_tokens=1, temperature=2.0, seeds=range(rows), stop_ids=())
    counts = torch.bincount(torch.tensor(drawn)[:, 0], minlength=259) / rows
    assert (counts - probabilities).abs().max() < 0.03


@torch.inference_mode()
def test_streaming_gives_the_tokens_of_generate_and_stops_where_it_stops(tiny_backbone):
    backbone = tiny_backbone(memory=MEMORY)
    [states] = backbone.compress([tokens(30)])
    prompt = tokens(7)
    [free] = backbone.generate([prompt], [[states]], max_new_tokens=10, stop_ids=())
    assert list(backbone.stream(prompt, [states], max_new_tokens=10, stop_ids=())) == free
    end = free[4]
    cut = free[: free.index(end)]
    assert backbone.generate([prompt, prompt], [[states], []], max_new_tokens=10, stop_ids=(end,))[0] == cut
    assert list(backbone.stream(prompt, [states], max_new_tokens=10, stop_ids=(end,))) == cut
    assert backbone.generate([], max_new_tokens=4) == []


def test_a_stop_string_may_span_tokens(tiny_tokenizer):
    stop = StopDetector(tiny_tokenizer, (2,), ("</b>", "zz"))
    written = tiny_tokenizer.encode("a <b>x</b> and more")
    kept = stop.append(written[:7])
    kept += stop.append(written[7:])
    assert (tiny_tokenizer.decode(kept), stop.done, stop.append([5])) == ("a <b>x</b>", True, [])


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


# --- folders


@torch.inference_mode()
def test_a_saved_backbone_is_the_one_loaded(tiny_backbone, tmp_path):
    backbone = tiny_backbone("qwen3", memory=MEMORY, tie_word_embeddings=True)
    backbone.add_adapter("memory", AdapterConfig(rank=3, targets=("q", "up")))
    backbone.add_adapter("reasoner", AdapterConfig(rank=2))
    backbone.add_gate()
    for part in ("memory", "reasoner", "gate"):
        randomize(backbone, part)
    backbone.save(tmp_path / "whole")
    backbone.save(tmp_path / "added", base=str(tmp_path / "whole"))
    for name in ("whole", "added"):
        loaded = Backbone.load(tmp_path / name, device="cpu")
        assert (loaded.memory, loaded.adapters) == (backbone.memory, backbone.adapters)
        assert loaded.fingerprint() == backbone.fingerprint()
        for mine, theirs in zip(loaded.compress([tokens(40)]), backbone.compress([tokens(40)]), strict=True):
            assert torch.equal(mine.keys, theirs.keys)
            assert torch.equal(mine.values, theirs.values)
        assert torch.equal(loaded.score([[5, 6]], [[mine]], [7]), backbone.score([[5, 6]], [[mine]], [7]))
    assert not (tmp_path / "added" / "config.json").exists()


def test_the_fingerprint_is_of_what_makes_a_block(tiny_backbone, tmp_path):
    backbone = tiny_backbone(memory=MEMORY)
    backbone.save(tmp_path)
    first = backbone.fingerprint()
    assert Backbone.load(tmp_path, device="cpu", dtype="bfloat16").fingerprint() == first
    backbone.add_gate()
    backbone.add_adapter("reasoner", AdapterConfig())
    randomize(backbone, "gate")
    assert backbone.fingerprint() == first
    randomize(backbone, "memory")
    assert backbone.fingerprint() != first
    assert tiny_backbone(memory=MEMORY, seed=3).fingerprint() != first


@pytest.fixture
def lychee(saved_model):
    """A folder in the public format, with its names for parameters and settings."""
    folder = saved_model("qwen2")
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    for name, weight in list(weights.items()):
        for kind in ("k_proj", "v_proj"):
            if kind in name:
                weights[name.replace(kind, f"lychee_memory_{kind}")] = torch.randn(weight.shape, generator=generator)
    weights["model.lychee_memory_embed_tokens.weight"] = torch.randn(1, 64, generator=generator)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"ratio": [2, 4, 8], "window": 16, "stride": 16, "param": ["k", "v"], "attn": "full-coverage"}
    config = json.loads((folder / "config.json").read_text())
    change(folder, **{f"lychee_memory_{key}": value for key, value in settings.items()})
    return folder, weights, config


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def test_the_public_format_loads_as_it_is(lychee, caplog):
    folder, weights, _ = lychee
    with caplog.at_level(logging.WARNING):
        backbone = Backbone.load(folder, device="cpu")
    assert backbone.memory == MemoryConfig(ratio=4, window=16, own=("k", "v"), positions="unrotated")
    assert Backbone.load(folder, device="cpu", ratio=8).memory.ratio == 8
    assert torch.equal(backbone.decoder.memory_embedding, weights["model.lychee_memory_embed_tokens.weight"])
    theirs = weights["model.layers.1.self_attn.lychee_memory_v_proj.bias"]
    assert torch.equal(backbone.parameters("memory")["layers.1.own.v.bias"], theirs)
    assert not caplog.records


def test_a_tokenizer_is_what_its_file_says(saved_model, tiny_tokenizer):
    folder = saved_model("qwen2")
    assert Backbone.load(folder, device="cpu").encode("it's  12345") == tiny_tokenizer.encode("it's  12345")


# --- prompts


def test_a_prompt_is_tokenised_in_pieces_and_filled_with_ids(tiny_backbone):
    backbone = tiny_backbone()
    prompt = backbone.prompt("\nAsk: {question}\nMemory: {memory}\n")
    assert prompt.gaps == ("question", "memory")
    ids = prompt.fill(question=[7, 8], memory=[])
    assert len(ids) == len(prompt) + 2
    whole = prompt.fill(question=backbone.encode("who?"), memory=backbone.encode("x"))
    assert backbone.tokenizer.decode(whole) == "<|turn|>user\n\nAsk: who?\nMemory: x\n<|end|>\n<|turn|>assistant\n"
    with pytest.raises(ValueError, match=r"has the gaps \['memory', 'question'\], not \['question'\]"):
        prompt.fill(question=[1])


def test_without_a_chat_template_the_text_stands_alone_and_a_warning_says_so(tiny_tokenizer, caplog):
    plain = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer.backend_tokenizer, eos_token="<|end|>")
    with caplog.at_level(logging.WARNING):
        assert plain.decode(Prompt("Q: {q}\nA:", plain).fill(q=plain.encode("who?"))) == "Q: who?\nA:"
    assert "has no chat template" in caplog.text


# --- bad input


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "gpt_neox"}, "is of the family 'gpt_neox'; supported are qwen2, qwen3, llama, mistral"),
        ({"use_sliding_window": True}, "uses sliding-window attention"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "uses 'dynamic' rotary positions"),
        ({"rope_parameters": "dynamic"}, "rotary positions no object"),
        ({"layer_types": 5}, "'layer_types' is no list"),
        ({"lychee_memory_attn": "step-expansion"}, "has lychee_memory_attn='step-expansion'; supported is"),
        ({"lychee_memory_stride": 8}, "a stride that differs from its window of 16"),
        ({"lychee_memory_window": 15, "lychee_memory_stride": 15}, "window=15 must be a multiple of ratio=4"),
        ({"lychee_memory_param": ["k", "v", "o"]}, "lacks 2 memory weights, such as 'model.layers.0.self_attn.lychee_"),
        ({"num_hidden_layers": 3, "layer_types": None}, "lacks 12 weights of the model"),
    ],
)
def test_a_folder_that_cannot_be_run_is_refused_by_name(lychee, fields, message):
    folder, _, _ = lychee
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message.replace("[", r"\[")):
        Backbone.load(folder, device="cpu")


def test_folders_that_are_no_model(tmp_path, tiny_backbone):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"contains no model: no config.json"):
        Backbone.load(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="is not a JSON object"):
        Backbone.load(tmp_path / "empty")
    tiny_backbone(memory=MEMORY).save(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "compmem.json").read_text())
    (tmp_path / "saved" / "compmem.json").write_text(json.dumps({**settings, "format": 9}))
    with pytest.raises(CheckpointError, match="has the format 9; supported is 1"):
        Backbone.load(tmp_path / "saved")
    (tmp_path / "saved" / "compmem.json").write_text(json.dumps({**settings, "memory": {"ratios": 4}}))
    with pytest.raises(CheckpointError, match=r"is invalid: .*ratios"):
        Backbone.load(tmp_path / "saved")
    roles = {**settings, "adapters": {"critic": {"rank": 2}}}
    (tmp_path / "saved" / "compmem.json").write_text(json.dumps(roles))
    with pytest.raises(CheckpointError, match=r"has the roles \['critic'\]; supported are"):
        Backbone.load(tmp_path / "saved")
    changed = {**settings["memory"], "own": ["q"]}
    (tmp_path / "saved" / "compmem.json").write_text(json.dumps({**settings, "memory": changed, "gate": True}))
    with pytest.raises(CheckpointError, match=r"lacks 2 memory weights, such as 'gate_head.bias'"):
        Backbone.load(tmp_path / "saved")
    (tmp_path / "saved" / "compmem.json").write_text(json.dumps(settings))
    weights = load_file(tmp_path / "saved" / "compmem.safetensors")
    save_file({**weights, "memory_embedding": torch.zeros(1, 32)}, tmp_path / "saved" / "compmem.safetensors")
    with pytest.raises(CheckpointError, match=r"'memory_embedding' .* has the shape \(1, 32\), not \(1, 64\)"):
        Backbone.load(tmp_path / "saved")
    (tmp_path / "saved" / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        Backbone.load(tmp_path / "saved")


def test_a_name_that_cannot_be_fetched(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        CheckpointError, match=r"'nobody/nothing' is neither a folder nor a \.gguf file, and no model of that"
    ):
        Backbone.load("nobody/nothing")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_devices_and_dtypes_that_are_not_there(saved_model):
    with pytest.raises(ValueError, match=r"device='cuda': torch sees no CUDA device here"):
        Backbone.load(saved_model(), device="cuda")
    with pytest.raises(ValueError, match=r"dtype='int3' must be one of float32, bfloat16, float16"):
        Backbone.load(saved_model(), dtype="int3")


@torch.inference_mode()
def test_what_does_not_fit_is_named(tiny_backbone):
    backbone = tiny_backbone(memory=MEMORY, max_position_embeddings=64)
    [states] = backbone.compress([tokens(40)])
    with pytest.raises(
        ValueError, match=r"prompt 0 of 50 tokens, behind 10 memory tokens and with 5 to write, is larger"
    ):
        backbone.generate([tokens(50)], [[states]], max_new_tokens=5)
    with pytest.raises(ValueError, match=r"chunk 1 of 300 tokens takes \d+: larger than the context of 64"):
        backbone.compress([tokens(5), tokens(300)])
    with pytest.raises(ValueError, match="chunk 0 has no tokens"):
        backbone.compress([[]])
    with pytest.raises(ValueError, match="prompt 0 has no tokens"):
        backbone.read([[]])
    with pytest.raises(ValueError, match="1 rows of blocks for 2 prompts"):
        backbone.read([[1], [2]], [[states]])
    with pytest.raises(ValueError, match="1 seeds for 2 prompts"):
        backbone.generate([[1], [2]], max_new_tokens=1, seeds=[0])
    with pytest.raises(ValueError, match="max_new_tokens=0 must be at least 1"):
        backbone.generate([[1]], max_new_tokens=0)
    with pytest.raises(ValueError, match=r"temperature=-1 must not be negative"):
        next(backbone.stream([1], max_new_tokens=1, temperature=-1))
    with pytest.raises(CheckpointError, match="no gate head"):
        backbone.score([[1]], [[states]], [2])
    other = tiny_backbone(memory=MEMORY, num_hidden_layers=3).compress([tokens(8)])
    with pytest.raises(ValueError, match=r"KV states of shape \(3, 2, 2, 16\) are of another backbone: .* 2 layers"):
        backbone.read([[1]], [other])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"ratio": 0}, "ratio=0 must be"), ({"window": 0}, "window=0"), ({"own": ("x",)}, "has ..x.."),
        ({"positions": "flat"}, "positions='flat'"), ({"ratio": 3}, "window=2048 must be a multiple of ratio=3"),
    ],
)  # fmt: skip
def test_memory_settings_are_checked(config, message):
    with pytest.raises(ValueError, match=message):
        MemoryConfig(**config)


def test_adapter_settings_are_checked(tiny_backbone):
    with pytest.raises(ValueError, match="trained=True"):
        tiny_backbone().add_memory(MemoryConfig(trained=False))
    with pytest.raises(ValueError, match="rank=0"):
        AdapterConfig(rank=0)
    for targets in (("embed",), ()):
        with pytest.raises(ValueError, match="targets="):
            AdapterConfig(targets=targets)


def test_the_mask_is_on_the_device_of_the_queries():
    query, key = torch.empty(1, 4, 2, 8, device="meta"), torch.empty(1, 2, 10, 8, device="meta")
    assert attention(query, key, key, scale=1.0).shape == (1, 2, 32)


# --- memory of the device


def test_a_batch_that_does_not_fit_is_halved(caplog):
    sizes = []

    def run(items):
        sizes.append(len(items))
        if len(items) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return [item * 10 for item in items]

    with caplog.at_level(logging.WARNING):
        assert run_or_halve(run, list(range(7)), "a chunk") == [0, 10, 20, 30, 40, 50, 60]
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    assert "out of memory with a batch of 7" in caplog.text


def test_what_does_not_fit_even_alone_is_an_error_that_names_what_was_tried():
    def run(items):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")

    with pytest.raises(MemoryError, match=r"a chunk does not fit .* \(tried batches of 4, 2, 1\): CUDA out of memory"):
        run_or_halve(run, [1, 2, 3, 4], "a chunk")


@torch.inference_mode()
def test_generation_goes_on_in_halves(tiny_backbone, monkeypatch):
    backbone = tiny_backbone()
    prompts = [tokens(n) for n in (5, 9, 7)]
    expected, run = backbone.generate(prompts, max_new_tokens=4), backbone._engine.run

    def scarce(prefix, layout, *args, **kwargs):
        if len(layout.ids) > 1:
            raise torch.OutOfMemoryError("out")
        return run(prefix, layout, *args, **kwargs)

    monkeypatch.setattr(backbone._engine, "run", scarce)
    assert backbone.generate(prompts, max_new_tokens=4) == expected


def test_batches_hold_every_item_once_within_the_budget():
    sizes = [3, 50, 1, 7, 7, 2, 20]
    made = list(padded_batches(sizes, 20))
    assert sorted(i for batch in made for i in batch) == list(range(7))
    assert all(len(batch) == 1 or len(batch) * max(sizes[i] for i in batch) <= 20 for batch in made)


def test_a_large_batch_has_little_padding():
    sizes = [900, 880, 800, 500, 460, 100, 90, 30, 20, 5]
    made = list(padded_batches(sizes, 4096))
    assert made == [[0, 1, 2], [3, 4], [5, 6], [7, 8, 9]], "up to 256 tokens any padding is taken"
    assert list(padded_batches(sizes, 1600)) == [[0], [1], [2], [3, 4], [5, 6], [7, 8, 9]]
    assert list(padded_batches([], 16)) == []


# --- graphs


def check_fixed_slots(growing, fixed):
    prompts = [tokens(n, n) for n in (7, 19, 4)]
    blocks = [[states] for states in growing.compress([tokens(n, n) for n in (60, 33, 48)])]
    for _ in range(2):
        for options in ({}, {"temperature": 1.0, "seeds": [1, 2, 3]}):
            theirs = growing.generate(prompts, blocks, max_new_tokens=40, stop_ids=(), **options)
            assert fixed.generate(prompts, blocks, max_new_tokens=40, stop_ids=(), **options) == theirs
    alone = [
        growing.generate([p], [b], max_new_tokens=40, stop_ids=())[0] for p, b in zip(prompts, blocks, strict=True)
    ]
    streams = [fixed.stream(p, b, max_new_tokens=40, stop_ids=()) for p, b in zip(prompts, blocks, strict=True)]
    assert list(zip(*streams, strict=True)) == list(zip(*alone, strict=True))


@torch.inference_mode()
def test_slots_of_fixed_size_used_again_write_what_growing_ones_do(tiny_backbone, tiny_model, tiny_tokenizer):
    fixed = Backbone.from_model(tiny_model("qwen3"), tiny_tokenizer, graphs=True)
    check_fixed_slots(tiny_backbone("qwen3"), fixed)
    for count in range(1, 11):
        fixed.generate([tokens(3)] * count, max_new_tokens=2)
    assert len(fixed._engine._cached) == 8


@pytest.mark.gpu
@torch.inference_mode()
def test_graph_decoding_is_eager_decoding_token_for_token(saved_model):
    folder = saved_model("qwen3")
    check_fixed_slots(*(Backbone.load(folder, device="cuda", dtype="float32", graphs=g) for g in (False, True)))


@pytest.mark.gpu
@pytest.mark.parametrize("graphs", [False, True])
@torch.inference_mode()
def test_bfloat16_finds_a_kernel_for_blocks_of_unlike_length(saved_model, graphs):
    backbone = Backbone.load(saved_model("qwen3"), device="cuda", dtype="bfloat16", graphs=graphs)
    blocks = [[states] for states in backbone.compress([tokens(n, n) for n in (60, 33, 48)])]
    first, again = (
        backbone.generate([tokens(n, n) for n in (7, 19, 4)], blocks, max_new_tokens=40, stop_ids=()) for _ in range(2)
    )
    assert first == again
    assert [len(row) for row in first] == [40] * 3


@pytest.mark.parametrize(
    ("tokens", "ends"),
    [
        ([*range(9)] * 3, True),
        ([7] * 24, True),
        ([1, 2] * 12, True),
        ([3, *([*range(8)] * 3)], True),
        ([*range(128)] * 3, True),
        ([*range(129)] * 3, False),
        ([*range(8)] * 2, False),
        ([*([*range(8)] * 3), 9], False),
        ([7] * 23, False),
        ([], False),
    ],
)
def test_the_same_run_of_tokens_three_times_is_a_circle(tokens, ends):
    assert is_repeating(tokens) is ends


def test_a_row_that_goes_in_circles_ends_where_it_is_asked_to(tiny_backbone):
    backbone, prompt = tiny_backbone(), [5, 6, 7]
    backbone.decoder.lm_head.weight.data.zero_()  # always the first token
    with torch.inference_mode():
        [long] = backbone.generate([prompt], max_new_tokens=400, stop_ids=())
        [short] = backbone.generate([prompt], max_new_tokens=400, stop_ids=(), stop_on_repetition=True)
        streamed = list(backbone.stream(prompt, max_new_tokens=400, stop_ids=(), stop_on_repetition=True))
    assert len(long) == 400
    assert short == streamed == long[:24]
