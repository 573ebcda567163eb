"""Blocks of a stock model that see one another: what is computed again, and that it is what reading the text gives."""

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from compmem import (
    Document,
    IndexConfig,
    LatentPrompts,
    LatentReader,
    LoopConfig,
    MemoryBlock,
    MemoryIndex,
    RecallConfig,
    WorkingMemory,
)
from compmem.backbone import AdapterConfig, MemoryConfig, chunk_ids, fuse_blocks, stream_parallel
from compmem.backbone.fusion import attention_to
from compmem.backbone.joined import JoinedBlocks
from compmem.backbone.prune import all_states
from compmem.kv_format import pack, unpack
from compmem.schema import Chunk
from tests.backbones import close, close_states, tokens
from tests.hashing import HashEncoder

TEXTS = [tokens(40, 1), tokens(25, 2), tokens(33, 3)]
ASKED = tokens(12, 4)
LATER = sum(map(len, TEXTS[1:]))


def fused(backbone, *methods, ratio=1, texts=TEXTS, pruning="attention", **settings):
    blocks = backbone.compress(texts, ratio=ratio, pruning=pruning)
    return fuse_blocks(backbone, blocks, texts, ASKED, methods=methods, **settings)


def logits(backbone, blocks):
    return backbone.logits(backbone.read([ASKED], [blocks])[0])


def over_text(backbone, texts=TEXTS):
    ids = [*backbone.chat_prefix_ids, *(i for text in texts for i in text), *ASKED]
    return backbone.model(torch.tensor([ids])).logits[0, -len(ASKED) :]


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3"])
@torch.inference_mode()
def test_all_tokens_computed_again_are_read_as_the_text(tiny_backbone, family):
    backbone = tiny_backbone(family, num_hidden_layers=3)
    text = over_text(backbone)
    alone = backbone.compress(TEXTS, ratio=1)
    assert (logits(backbone, alone) - text).abs().max() > 0.1, "independent blocks are not read as the text"
    for method in ("prophetkv", "cacheblend"):
        close(logits(backbone, fused(backbone, method, share=1.0)), text)
    close(logits(backbone, fused(backbone, "epic", first=1000)), text)
    # Graph-KV: with two blocks, the second stands behind all that there is.
    close(logits(backbone, fused(backbone, "graph-kv", texts=TEXTS[:2])), over_text(backbone, TEXTS[:2]))
    close(logits(backbone, alone[:1]), over_text(backbone, TEXTS[:1]))


@torch.inference_mode()
def test_one_block_is_read_as_its_text_in_bfloat16_too(tiny_backbone):
    backbone = tiny_backbone("llama")
    backbone.model.to(torch.bfloat16)
    text = tokens(200, 5)
    mine, theirs = logits(backbone, backbone.compress([text], ratio=1)), over_text(backbone, [text])
    # Keys are kept unrotated and rotated once, as the stock model rotates: only the order of sums differs.
    assert (mine - theirs).abs().mean() < 0.02 * theirs.float().std()


@torch.inference_mode()
def test_of_no_tokens_and_of_one_block_nothing_is_changed(tiny_backbone):
    backbone = tiny_backbone()
    before = backbone.compress(TEXTS, ratio=2)
    cases = [("none", {}), ("epic", {"first": 0}), ("prophetkv", {"share": 0.0}), ("cacheblend", {"share": 0.0})]
    for method, settings in cases:
        for new, old in zip(fused(backbone, method, ratio=2, **settings), before, strict=True):
            close_states(new, old)
    for method in ("prophetkv", "cacheblend"):
        [alone] = fused(backbone, method, texts=TEXTS[:1])
        close_states(alone, backbone.compress(TEXTS[:1], ratio=1)[0])
    [alone] = fused(backbone, "graph-kv", texts=TEXTS[:1])
    close_states(alone, backbone.compress(TEXTS[:1], ratio=1)[0])


@torch.inference_mode()
def test_each_method_chooses_its_tokens(tiny_backbone):
    backbone = tiny_backbone(num_hidden_layers=3)
    before, begin, count = backbone.compress(TEXTS, ratio=1), len(TEXTS[0]), round(0.2 * LATER)

    def chosen(blocks):
        """Tokens of the later blocks whose states in the last layer are new, by number in the joined text."""
        change = torch.cat([(a.keys[-1] - b.keys[-1]).abs().sum((0, 2)) for a, b in zip(blocks, before, strict=True)])
        return change.gt(1e-4).nonzero()[:, 0].tolist()

    second = begin + len(TEXTS[1])
    assert chosen(fused(backbone, "epic", first=4)) == [*range(begin, begin + 4), *range(second, second + 4)]
    lead = backbone.chat_prefix_ids
    parts, texts = [*all_states(backbone.decoder, backbone.rotary, [lead]), *before], [lead, *TEXTS]
    joined = JoinedBlocks.of(parts, texts, backbone.decoder.embed_tokens.weight)
    paid = attention_to(backbone.decoder, backbone.rotary, joined, ASKED)
    paid = torch.stack([paid[max(0, i - 2) : i + 3].mean() for i in range(len(paid))])[len(lead) + begin :]
    expected = sorted((begin + paid.topk(count).indices).tolist())
    assert chosen(fused(backbone, "prophetkv", share=0.2)) == expected
    whole = fused(backbone, "epic", first=1000)
    change = torch.cat([(a.values[1] - b.values[1]).square().sum((0, 2)) for a, b in zip(whole, before, strict=True)])
    assert chosen(fused(backbone, "cacheblend", share=0.2)) == sorted(change.topk(count).indices.tolist())
    assert chosen(fused(backbone, "cacheblend", "prophetkv", share=0.2)) == sorted(
        {*expected, *change.topk(count).indices.tolist()}
    )


@torch.inference_mode()
def test_the_attention_of_a_question_is_the_stock_models(tiny_backbone):
    backbone = tiny_backbone("llama", num_hidden_layers=3)
    text = [*backbone.chat_prefix_ids, *TEXTS[0]]
    states = all_states(backbone.decoder, backbone.rotary, [text])
    joined = JoinedBlocks.of(states, [text], backbone.decoder.embed_tokens.weight)
    backbone.model.set_attn_implementation("eager")
    weights = backbone.model(torch.tensor([text + ASKED]), output_attentions=True).attentions
    expected = torch.stack(weights)[:, 0, :, -len(ASKED) :, : len(text)].mean((1, 2)).sum(0)
    close(attention_to(backbone.decoder, backbone.rotary, joined, ASKED), 2 * expected, atol=1e-4)


@torch.inference_mode()
def test_graph_kv_encodes_every_later_block_behind_the_first_alone(tiny_backbone):
    backbone = tiny_backbone()
    one, two, three = fused(backbone, "graph-kv")
    pair = fused(backbone, "graph-kv", texts=[TEXTS[0], TEXTS[2]])
    close_states(one, backbone.compress(TEXTS[:1], ratio=1)[0])
    close_states(two, fused(backbone, "graph-kv", texts=TEXTS[:2])[1])
    close_states(three, pair[1])


@torch.inference_mode()
def test_parallel_blocks_all_stand_right_behind_the_head(tiny_backbone):
    backbone = tiny_backbone("llama")
    lead = backbone.chat_prefix_ids
    prompt, texts = [*lead, *ASKED], [*TEXTS[:2], TEXTS[0]]
    blocks = backbone.compress(texts, ratio=1)
    settings = {"max_new_tokens": 6, "temperature": 0.8, "scale": 0.7}
    alone = {"max_new_tokens": 6, "temperature": 1.0, "scale": 1.0}
    assert list(stream_parallel(backbone, prompt, blocks[:1], **alone)) == list(
        backbone.stream(prompt, blocks[:1], max_new_tokens=6)
    )
    assert list(stream_parallel(backbone, prompt, blocks[:2], **settings)) == list(
        stream_parallel(backbone, prompt, blocks[1::-1], **settings)
    ), "their order decides nothing"

    # The stock model at the same positions, its attention as the paper puts it: two softmaxes, merged.
    ids = [*lead, *(i for text in texts for i in text), *ASKED]
    places = [*range(len(lead)), *(len(lead) + i for text in texts for i in range(len(text)))]
    kinds = [-1] * len(lead) + [n for n, text in enumerate(texts) for _ in text]

    def scaled(module, query, key, value, mask, scaling, **rest):
        kind = torch.tensor(kinds + [9] * (len(ids) - len(kinds)))
        asking, in_block = (kind == 9)[:, None], (kind >= 0) & (kind < 9)
        seen = ((kind[:, None] == kind) | (kind == -1) | asking) & torch.ones(len(ids), len(ids)).tril().bool()
        key, value = key.repeat_interleave(2, dim=1), value.repeat_interleave(2, dim=1)
        scores = (query @ key.transpose(2, 3) * scaling).masked_fill(~seen, -torch.inf)
        near, far = scores.masked_fill(in_block, -torch.inf), scores.masked_fill(~in_block, -torch.inf) / 0.8
        merged = torch.stack((0.7 * 0.8 * far.logsumexp(-1), near.logsumexp(-1)), -1).softmax(-1)
        both = merged[..., :1] * (far.softmax(-1).nan_to_num() @ value) + merged[..., 1:] * (near.softmax(-1) @ value)
        return torch.where(asking, both, scores.softmax(-1) @ value).transpose(1, 2), None

    ALL_ATTENTION_FUNCTIONS.register("scaled", scaled)
    backbone.model.set_attn_implementation("scaled")
    longest, said = max(map(len, texts)), []
    for _ in range(6):
        behind = range(len(lead) + longest, len(lead) + longest + len(ids) - len(kinds))
        logits = backbone.model(torch.tensor([ids]), position_ids=torch.tensor([[*places, *behind]])).logits[0, -1]
        said.append(int(logits.argmax()))
        ids.append(said[-1])
    assert not set(said) & set(backbone.end_ids)
    assert list(stream_parallel(backbone, prompt, blocks, **settings)) == said


@torch.inference_mode()
def test_pruned_blocks_keep_their_tokens_and_take_new_states(tiny_backbone):
    backbone = tiny_backbone(num_hidden_layers=3)
    whole, kept = backbone.compress(TEXTS, ratio=1), backbone.compress(TEXTS, ratio=4)
    for full, some in zip(whole, kept, strict=True):
        index = some.positions.long()[..., None].expand_as(some.keys)
        close(some.keys, full.keys.gather(2, index), atol=0)
        close(some.values, full.values.gather(2, index), atol=0)
    first = fused(backbone, "graph-kv", ratio=4)
    # The second block's tokens all see the first block's pruned states; what was pruned of it stays so.
    for new, old in zip(first, kept, strict=True):
        assert torch.equal(new.positions, old.positions)
    behind = fused(backbone, "graph-kv", ratio=4, texts=TEXTS[:2])[1]
    close_states(first[1], behind)


@pytest.mark.parametrize("pruning", ["attention", "kvzip-heads"])
@torch.inference_mode()
def test_a_token_that_is_computed_again_has_its_states_in_every_head(tiny_backbone, pruning):
    backbone = tiny_backbone(num_hidden_layers=3)
    kept = [heads_of(states) for states in backbone.compress(TEXTS, ratio=4, pruning=pruning)]
    made = [heads_of(states) for states in fused(backbone, "epic", ratio=4, pruning=pruning, first=3)]
    for number, (old, new) in enumerate(zip(kept, made, strict=True)):
        again = set(range(3)) if number else set()
        for one, other in zip(old, new, strict=True):
            assert list(other) == sorted(one.keys() | again), "in the order of the text"
            assert all(torch.equal(other[place], one[place]) for place in one.keys() - again)
    # Of a block that was pruned, also the first one's tokens can be asked for: what is missing there is missing.
    asked = [heads_of(states) for states in fused(backbone, "prophetkv", ratio=4, pruning=pruning, share=0.5)]
    everywhere = [set.intersection(*(set(head) for head in block)) for block in asked]
    assert sum(map(len, everywhere)) >= round(0.5 * sum(map(len, TEXTS)))
    assert everywhere[0]


def heads_of(states):
    """Keys by position, of each head of all layers."""
    flat, sizes = states.keys.flatten(0, -2), states.lengths
    if sizes is None:
        sizes = torch.full(states.keys.shape[:2], states.keys.shape[2])
    parts = flat.split(sizes.flatten().tolist()), states.positions.flatten().split(sizes.flatten().tolist())
    return [dict(zip(places.tolist(), keys, strict=True)) for keys, places in zip(*parts, strict=True)]


@pytest.mark.parametrize("pruning", ["attention", "kvzip-heads"])
@torch.inference_mode()
def test_with_every_token_computed_again_nothing_of_the_compression_is_left(tiny_backbone, pruning):
    backbone = tiny_backbone("llama", num_hidden_layers=3)
    text = over_text(backbone)
    assert (logits(backbone, backbone.compress(TEXTS, ratio=4, pruning=pruning)) - text).abs().max() > 0.1
    close(logits(backbone, fused(backbone, "prophetkv", ratio=4, pruning=pruning, share=1.0)), text)
    [alone] = fused(backbone, "prophetkv", ratio=4, pruning=pruning, share=1.0, texts=TEXTS[:1])
    close(logits(backbone, [alone]), over_text(backbone, TEXTS[:1]))


@torch.inference_mode()
def test_selected_states_of_trained_memory_are_fused_with_what_the_reader_reads(tiny_backbone):
    def trained(pruning):
        backbone = tiny_backbone(memory=MemoryConfig(states="selected", own=(), pruning=pruning))
        backbone.add_adapter("reasoner", AdapterConfig(rank=2))
        with torch.no_grad():
            for parameter in backbone.parameters("reasoner").values():
                parameter.add_(torch.randn_like(parameter) * 0.1)
        return backbone

    backbone = trained("kvzip-heads")
    [lead] = all_states(backbone.decoder, backbone.rotary, [backbone.chat_prefix_ids])
    whole, behind = [i for text in TEXTS for i in text], len(backbone.chat_prefix_ids)
    text = backbone.read([whole + ASKED], [[lead]], start=behind)[0, -len(ASKED) :]
    blocks = fused(backbone, "prophetkv", ratio=4, pruning="kvzip-heads", share=1.0)
    close(backbone.read([ASKED], [[lead, *blocks]], start=behind + len(whole))[0], text)
    assert (
        text - backbone.read([whole + ASKED], [[lead]], start=behind, role=None)[0, -len(ASKED) :]
    ).abs().max() > 0.1
    few = fused(backbone, "prophetkv", ratio=4, pruning="kvzip-heads", share=0.2)
    assert sum(states.keys.numel() for states in few) < sum(states.keys.numel() for states in blocks)
    backbone = trained("attention")
    prompt, blocks = [*backbone.chat_prefix_ids, *ASKED], backbone.compress(TEXTS[:1], ratio=4)
    aside = list(stream_parallel(backbone, prompt, blocks, max_new_tokens=6, temperature=1.0, scale=1.0))
    assert aside == list(backbone.stream(prompt, blocks, max_new_tokens=6))
    assert aside != list(backbone.stream(prompt, blocks, max_new_tokens=6, role=None))


@torch.inference_mode()
def test_what_cannot_be_fused_is_refused(tiny_backbone):
    backbone = tiny_backbone()
    blocks = backbone.compress(TEXTS, ratio=2)

    def refused(message, blocks=blocks, texts=TEXTS, backbone=backbone):
        with pytest.raises(ValueError, match=message):
            fuse_blocks(backbone, blocks, texts, ASKED, methods=("epic",))

    refused("not those of its 3 tokens", texts=[[5, 6, 7], *TEXTS[1:]])
    refused("no positions", blocks=backbone.compress([text[1:] for text in TEXTS], ratio=1))
    refused("larger than the context", texts=[tokens(1020), *TEXTS[1:]])
    refused("another backbone", backbone=tiny_backbone(num_hidden_layers=1))
    refused("blocks of memory tokens", backbone=tiny_backbone(memory=MemoryConfig()))
    with pytest.raises(ValueError, match="kv_fusion='epic' cannot be used: memory tokens are no tokens"):
        LatentReader(tiny_backbone(memory=MemoryConfig()), kv_fusion="epic")
    with pytest.raises(ValueError, match="kv_fusion='mixed' must be one of"):
        LoopConfig(kv_fusion="mixed")


@pytest.mark.parametrize("kind", ["bf16", "int8"])
@torch.inference_mode()
def test_positions_are_stored_with_the_states(tiny_backbone, kind):
    [states] = tiny_backbone().compress(TEXTS[:1], ratio=4)
    assert torch.equal(unpack(pack(states, kind)).positions, states.positions)
    assert unpack(pack(tiny_backbone().compress(TEXTS[:1], ratio=1)[0], kind)).positions is None


@pytest.mark.parametrize("ratio", [1, 4])
def test_the_setting_reaches_what_writes_the_answer(tiny_backbone, ratio):
    config = IndexConfig(
        memory="kv", backbone="tiny", encoder=HashEncoder(), chunk_tokens=64, ratio=ratio, kv_pruning="attention"
    )
    documents = [Document(id=name, title=name, text=f"{name} rents a house in Kiel.") for name in ("Acme", "Bolt")]
    question = "Who rents a house in Kiel?"
    with MemoryIndex.create(None, config, backbone=tiny_backbone(num_hidden_layers=3)) as index:
        index.add(documents)
        backbone = index.backbone
        answers = {
            method: index.answer(question, LoopConfig(writer="latent", kv_fusion=method))
            for method in ("none", "graph-kv", "ape")
        }
        sources = [recall.block for recall in answers["none"].sources]
        with index.question_context(question, None, RecallConfig()) as context:
            blocks = context.fetch(sources)
    assert len(blocks) == 2
    prompt = backbone.prompt(LatentPrompts().from_blocks).fill(question=backbone.encode(question))
    texts = [chunk_ids(backbone, block.chunk) for block in blocks]
    with torch.inference_mode():
        states = fuse_blocks(backbone, [b.kv for b in blocks], texts, backbone.encode(question), methods=("graph-kv",))
        [written] = backbone.generate([prompt], [states], max_new_tokens=512, stop_on_repetition=True)
        blocks = [block.kv for block in blocks]
        aside = list(stream_parallel(backbone, prompt, blocks, max_new_tokens=512, stop_on_repetition=True))
    assert answers["ape"].text == backbone.decode(aside).strip() != answers["none"].text
    assert answers["graph-kv"].text == backbone.decode(written).strip() != answers["none"].text


def test_blocks_that_are_fused_fit_with_their_text(tiny_backbone):
    backbone = tiny_backbone()
    chunks = [Chunk(text="rockets " * 40), Chunk(text="houses " * 40), Chunk(text="Kiel " * 50)]
    states = backbone.compress([chunk_ids(backbone, chunk) for chunk in chunks], ratio=4)
    blocks = tuple(MemoryBlock(chunk=chunk, kv=kv) for chunk, kv in zip(chunks, states, strict=True))
    reader = LatentReader(backbone, answer_tokens=8, kv_fusion="epic")
    assert list(reader.write("x", WorkingMemory(blocks=blocks)))[-1].completion_tokens > 0
