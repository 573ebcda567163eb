"""KV states of a different number for each head: the choice, reading them, and their files."""

from dataclasses import replace

import pytest
import torch

from compmem import CorruptStoreError, Document, IndexConfig, LoopConfig, MemoryIndex
from compmem.backbone import Backbone, fuse_blocks, stream_parallel
from compmem.backbone.decoder import Context
from compmem.backbone.kvzip import Repetition, repetition_scores
from compmem.backbone.prune import all_states
from compmem.backbone.rotary import rotate
from compmem.kv_format import KEY_GROUP_STATES, checksum, pack, unpack
from compmem.schema import KVStates
from compmem.store.folder import Folder
from compmem.store.kv import KVSegments, write_segment
from tests.backbones import close, close_states, tokens
from tests.hashing import HashEncoder

CHUNKS = [tokens(61, 1), tokens(9, 2), tokens(30, 3), tokens(1, 4)]


def equal_budgets_apart(states):
    """Blocks with equal budgets in the form of those without."""
    count = states.keys.shape[2]
    return KVStates(
        keys=states.keys.flatten(0, 2),
        values=states.values.flatten(0, 2),
        positions=torch.arange(count).repeat(states.keys[..., 0, 0].numel()).int(),
        lengths=torch.full(states.keys.shape[:2], count).int(),
    )


@pytest.mark.parametrize("ratio", [2, 4])
@torch.inference_mode()
def test_the_best_states_of_all_heads_are_kept_within_one_budget(tiny_backbone, ratio):
    backbone = tiny_backbone(num_hidden_layers=3)
    lead = len(backbone.chat_prefix_ids)
    whole = all_states(backbone.decoder, backbone.rotary, [backbone.chat_prefix_ids + chunk for chunk in CHUNKS])
    scores = repetition_scores(backbone.decoder, backbone.rotary, whole, CHUNKS, Repetition(backbone.prompt))
    equal = backbone.compress(CHUNKS, ratio=ratio, pruning="kvzip")
    kept = backbone.compress(CHUNKS, ratio=ratio, pruning="kvzip-heads")
    for chunk, all_of_it, score, states, other in zip(CHUNKS, whole, scores, kept, equal, strict=True):
        budget = -(-len(chunk) // ratio)
        assert states.slots == other.slots == budget
        assert states.keys.numel() == other.keys.numel(), "as many states as with equal budgets"
        if len(chunk) == 1:
            assert states.lengths is states.positions is None
            continue
        least = max(1, budget // 5)
        assert states.lengths.shape == (3, 2)
        assert int(states.lengths.min()) >= least
        assert int(states.lengths.max()) > budget > int(states.lengths.min())
        # Of each head its best fifth of an equal budget; of all others, the best.
        safe = {(h, i) for h, s in enumerate(score.flatten(0, 1)) for i in s.topk(least).indices.tolist()}
        rest = sorted(((float(x), divmod(n, len(chunk))) for n, x in enumerate(score.flatten())), reverse=True)
        expected = safe | {place for _, place in [r for r in rest if r[1] not in safe][: 6 * budget - len(safe)]}
        heads = torch.arange(6).repeat_interleave(states.lengths.flatten())
        places = list(zip(heads.tolist(), states.positions.tolist(), strict=True))
        assert places == sorted(expected)
        where = heads, states.positions.long() + lead
        close(states.keys, all_of_it.keys.flatten(0, 1)[where], atol=0)
        close(states.values, all_of_it.values.flatten(0, 1)[where], atol=0)
        [alone] = backbone.compress([chunk], ratio=ratio, pruning="kvzip-heads")
        assert torch.equal(alone.lengths, states.lengths)
        assert torch.equal(alone.positions, states.positions)


@torch.inference_mode()
def test_at_ratio_1_nothing_is_pruned(tiny_backbone):
    backbone = tiny_backbone()
    for mine, theirs in zip(
        backbone.compress(CHUNKS, ratio=1, pruning="kvzip-heads"), backbone.compress(CHUNKS, ratio=1), strict=True
    ):
        assert torch.equal(mine.keys, theirs.keys)
        assert torch.equal(mine.values, theirs.values)
        assert mine.lengths is mine.positions is None


class Masked(Context):
    """A prompt behind blocks of which no state is removed: those that a head does not keep are masked."""

    def __init__(self, backbone, whole, kept):
        self._rotary = backbone.rotary
        self._keys = torch.cat([states.keys for states in whole], dim=2)
        self._values = torch.cat([states.values for states in whole], dim=2)
        layers, heads, count = self._keys.shape[:3]
        self._places = torch.full((layers, heads, count), -1)
        start = self._behind = 0
        for full, states in zip(whole, kept, strict=True):
            lengths, at = states.lengths, 0
            for layer in range(layers):
                for head in range(heads):
                    many = int(lengths[layer, head]) if lengths is not None else full.keys.shape[2]
                    for i in range(many):
                        place = int(states.positions[at]) if lengths is not None else i
                        self._places[layer, head, start + place] = self._behind + i * states.slots // many
                        at += 1
            start, self._behind = start + full.keys.shape[2], self._behind + states.slots

    def attend(self, layer, query, key, value, *, scale, dropout):
        count, groups = query.shape[2], query.shape[1] // key.shape[1]
        cos, sin = self._rotary(self._behind + count, key)
        place, causal = self._places[layer], torch.ones(count, count, dtype=torch.bool).tril()
        out = []
        for head in range(query.shape[1]):
            own = head // groups
            old = rotate(self._keys[layer, own], cos[place[own].clamp(min=0)], sin[place[own].clamp(min=0)])
            keys = torch.cat((old, rotate(key[0, own], cos[self._behind :], sin[self._behind :])))
            values = torch.cat((self._values[layer, own], value[0, own]))
            seen = torch.cat(((place[own] >= 0).expand(count, -1), causal), dim=1)
            scores = rotate(query[0, head], cos[self._behind :], sin[self._behind :]) @ keys.T * scale
            out.append(scores.masked_fill(~seen, -torch.inf).softmax(-1) @ values)
        return torch.stack(out)[None].transpose(1, 2).flatten(2)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@torch.inference_mode()
def test_padded_heads_are_read_as_whole_blocks_with_a_mask(tiny_backbone, tiny_model, tiny_tokenizer, family):
    backbone = tiny_backbone(family, num_hidden_layers=3)
    fixed = Backbone.from_model(tiny_model(family, num_hidden_layers=3), tiny_tokenizer, graphs=True)
    whole = backbone.compress(CHUNKS, ratio=1)
    kept = backbone.compress(CHUNKS, ratio=4, pruning="kvzip-heads")
    head = all_states(backbone.decoder, backbone.rotary, [backbone.chat_prefix_ids])
    chosen, prompts = ([0, 1], [2], [3, 0, 2]), [tokens(12, 5), tokens(1, 6), tokens(7, 7)]
    blocks = [[kept[number] for number in numbers] for numbers in chosen]

    def next_logits(row, more=()):
        """What a full-length pass with a mask gives behind this row."""
        full = [*head, *(whole[number] for number in chosen[row])]
        context = Masked(backbone, full, [*head, *blocks[row]])
        return backbone.logits(backbone.decoder(torch.tensor([[*prompts[row], *more]]), context)[0])

    together = backbone.read(prompts, blocks)
    for row, prompt in enumerate(prompts):
        close(backbone.logits(together[row, : len(prompt)]), next_logits(row))
    written = []
    for row in range(len(prompts)):
        made = list[int]()
        for _ in range(12):
            made.append(int(next_logits(row, made)[-1].argmax()))
        written.append(made)
    for one in (backbone, fixed, fixed):
        assert one.generate(prompts, blocks, max_new_tokens=12, stop_ids=()) == written
        for prompt, row, made in zip(prompts, blocks, written, strict=True):
            assert list(one.stream(prompt, row, max_new_tokens=12, stop_ids=())) == made
    equal = backbone.compress(CHUNKS, ratio=4)
    assert backbone.generate(prompts, [[equal[n] for n in row] for row in chosen], max_new_tokens=12) != written
    assert fixed.generate(prompts, [], max_new_tokens=3) == backbone.generate(prompts, [], max_new_tokens=3)


@torch.inference_mode()
def test_heads_of_equal_length_are_read_as_the_equal_form(tiny_backbone):
    backbone, prompts = tiny_backbone(num_hidden_layers=3), [tokens(12, 5), tokens(7, 7)]
    equal = backbone.compress(CHUNKS[:3], ratio=4)
    rows = [equal[:2], equal[2:]]
    apart = [[equal_budgets_apart(states) for states in row] for row in rows]
    close(backbone.read(prompts, apart), backbone.read(prompts, rows), atol=1e-5)
    mixed = [[rows[0][0], apart[0][1]], apart[1]]
    close(backbone.log_odds(prompts, mixed, 5, 6), backbone.log_odds(prompts, rows, 5, 6), atol=1e-4)


# Files


@pytest.fixture
def one_block(tiny_backbone):
    with torch.inference_mode():
        return tiny_backbone().compress(CHUNKS[:1], ratio=4, pruning="kvzip-heads")[0]


@pytest.mark.parametrize(("kind", "size"), [("bf16", 2), ("int8", 1), ("int4", 0.5)])
def test_a_block_is_stored_without_padding_and_each_head_with_its_own_scales(tmp_path, one_block, kind, size):
    folder, parts = Folder(tmp_path), pack(one_block, kind)
    written = write_segment(folder, 1, {7: parts})
    read = KVSegments(folder).read(1, 7, written)
    assert checksum(read) == checksum(parts)
    found = unpack(read)
    assert torch.equal(found.lengths, one_block.lengths)
    assert torch.equal(found.positions, one_block.positions)
    sizes = one_block.lengths.flatten().tolist()
    for name in ("keys", "values"):
        heads = zip(getattr(found, name).split(sizes), getattr(one_block, name).split(sizes), strict=True)
        for mine, theirs in heads:
            alone = KVStates(keys=theirs[None, None], values=theirs[None, None])
            assert torch.equal(mine, getattr(unpack(pack(alone, kind)), name)[0, 0])
    taken = sum(part.nbytes for name, part in parts.items() if "scales" not in name)
    states = one_block.slots * one_block.lengths.numel()
    assert taken == states * (2 * 16 * size + 4) + 4 * one_block.lengths.numel()


def refused(tmp_path, parts):
    """A segment with such a block is refused when the block is read; parts that are None are left out."""
    folder = Folder(tmp_path)
    block = {name: part.contiguous() for name, part in parts.items() if part is not None}
    size = write_segment(folder, 1, {7: block})
    with pytest.raises(CorruptStoreError, match="block 7"):
        KVSegments(folder).read(1, 7, size)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: {"lengths": p["lengths"] * torch.tensor([[0, 1], [1, 1]], dtype=torch.int32)},
        lambda p: {"lengths": p["lengths"] + torch.tensor([[1, 0], [0, 0]], dtype=torch.int32)},
        lambda p: {"lengths": p["lengths"] + torch.tensor([[-99, 99], [0, 0]], dtype=torch.int32)},
        lambda p: {"lengths": torch.full((4, 2), 2**30, dtype=torch.int32)},
        lambda p: {"lengths": p["lengths"].flatten()},
        lambda p: {"lengths": p["lengths"].long()},
        lambda p: {"lengths": p["lengths"][:0]},
        lambda p: {"positions": p["positions"].flip(0)},
        lambda p: {"positions": p["positions"] - 61},
        lambda p: {"positions": p["positions"][1:]},
        lambda p: {"positions": None},
        lambda p: {"lengths": None},
        lambda p: {"values": p["values"][1:]},
        lambda p: {"key_scales": p["key_scales"].repeat(1, 1, 64, 1)},
    ],
    ids=[
        "empty head", "too many", "negative", "sum overflows", "flat", "wrong type", "none", "descending",
        "negative positions", "few positions", "no positions", "no lengths", "few values", "wide scales",
    ],
)  # fmt: skip
def test_a_file_whose_lengths_do_not_fit_is_refused(tmp_path, one_block, spoil):
    parts = pack(one_block, "int8")
    refused(tmp_path, parts | spoil(parts))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda p: {"key_scales": p["key_scales"][1:]},
        lambda p: {"key_scales": p["key_scales"][:, :1]},
        lambda p: {"key_scales": p["key_scales"].float()},
        lambda p: {"value_scales": p["value_scales"][1:]},
        lambda p: {"value_scales": p["value_scales"].repeat(1, 1, 64)},
        lambda p: {"value_scales": None},
        lambda p: {"keys": p["keys"][:, 1:]},
        lambda p: {"keys": p["keys"].view(torch.int8)},
        lambda p: {"lengths": p["lengths"] + torch.tensor([[1, -1], [0, 0]], dtype=torch.int32)},
    ],
    ids=[
        "few runs", "no least", "wrong type", "few values", "wide scales", "no scales", "few channels", "signed",
        "other lengths",
    ],
)  # fmt: skip
def test_a_file_of_half_bytes_that_do_not_fit_is_refused(tmp_path, one_block, spoil):
    parts = pack(one_block, "int4")
    refused(tmp_path, parts | spoil(parts))


def test_keys_of_a_long_head_are_rounded_in_runs():
    keys = torch.randn(1, 1, 3 * KEY_GROUP_STATES, 8, generator=torch.Generator().manual_seed(0))
    keys[..., 2 * KEY_GROUP_STATES :, :] *= 100  # a run of large keys does not spoil the others
    keys[..., 3] += 50  # nor a channel that is always large
    found = unpack(pack(KVStates(keys=keys, values=keys), "int4"))
    error = (found.keys - keys).abs()[0, 0]
    assert error[: 2 * KEY_GROUP_STATES].max() < 0.3
    assert error[: 2 * KEY_GROUP_STATES, :3].max() < 0.25
    assert (found.values - keys).abs()[0, 0, : 2 * KEY_GROUP_STATES].max() > 1, "values have one scale for all channels"
    same = KVStates(keys=torch.full((1, 1, 2, 4), 3.0), values=torch.zeros(1, 1, 2, 4))
    assert torch.equal(unpack(pack(same, "int4")).keys, same.keys.bfloat16())
    with pytest.raises(ValueError, match="even number of channels"):
        pack(KVStates(keys=torch.ones(1, 1, 2, 3), values=torch.ones(1, 1, 2, 3)), "int4")


def test_an_empty_block_of_a_stranger_is_refused(tmp_path):
    empty = torch.empty(1 << 20, 1 << 20, 0, 2, dtype=torch.bfloat16)
    refused(tmp_path, {"keys": empty, "values": empty})


def test_states_that_fit_no_head_or_another_backbone_are_refused(tiny_backbone, one_block):
    shorter = replace(one_block, lengths=one_block.lengths - 1)
    with pytest.raises(ValueError, match="lengths that do not fit"):
        pack(shorter, "bf16")
    for states, backbone in (
        (shorter, tiny_backbone()),
        (replace(one_block, lengths=one_block.lengths.flatten()), tiny_backbone()),
        (one_block, tiny_backbone(num_hidden_layers=3)),
    ):
        with pytest.raises(ValueError, match="another backbone"):
            backbone.read([tokens(3)], [[states]])


# The index


def test_an_index_with_one_budget_answers_after_it_is_opened_again(tmp_path, tiny_backbone):
    backbone, question = tiny_backbone(num_hidden_layers=3), "Who rents a house in Kiel?"
    documents = [Document(id=name, title=name, text=f"{name} rents a house in Kiel.") for name in ("Acme", "Bolt")]
    config = IndexConfig(memory="kv", backbone="tiny", encoder=HashEncoder(), ratio=4, kv_pruning="kvzip-heads")
    latent = LoopConfig(writer="latent")
    with MemoryIndex.create(tmp_path / "own", config, backbone=backbone) as index:
        index.add([*documents, Document(id="old", text="Dust sells rockets.")])
        size = index.info().kv_bytes
        index.delete(["old"])
        before = index.answer(question, latent)
        index.compact()
    with MemoryIndex.create(None, replace(config, kv_pruning="kvzip"), backbone=backbone) as other:
        other.add([*documents, Document(id="old", text="Dust sells rockets.")])
        assert other.info().kv_bytes <= size < 1.05 * other.info().kv_bytes
        other.delete(["old"])
        assert other.answer(question, latent).text != before.text
    with MemoryIndex.open(tmp_path / "own", encoder=HashEncoder(), backbone=backbone) as index:
        assert index.verify() == []
        assert index.answer(question, latent).text == before.text
        assert index.answer(question, LoopConfig(writer="latent", kv_fusion="graph-kv")).text != before.text
        with pytest.raises(ValueError, match="kv_fusion='ape' needs equally many KV states in each head"):
            index.answer(question, LoopConfig(writer="latent", kv_fusion="ape"))


@torch.inference_mode()
def test_blocks_of_one_budget_are_not_read_side_by_side(tiny_backbone):
    backbone = tiny_backbone()
    blocks = backbone.compress(CHUNKS[:2], ratio=4, pruning="kvzip-heads")
    with pytest.raises(ValueError, match="kv_fusion='ape' needs equally many"):
        next(stream_parallel(backbone, tokens(5), blocks, max_new_tokens=2))
    for new, old in zip(fuse_blocks(backbone, blocks, CHUNKS[:2], tokens(5), methods=("none",)), blocks, strict=True):
        close_states(new, old)
