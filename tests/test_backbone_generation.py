"""What a backbone writes: greedy, sampled, streamed, in halves and in fixed slots."""

import logging

import pytest
import torch

from compmem.backbone import Backbone
from compmem.backbone.batching import padded_batches, run_or_halve
from compmem.backbone.stop import StopDetector, is_repeating
from tests.backbones import MEMORY, tokens


@torch.inference_mode()
def test_decoding_is_what_reading_everything_again_would_choose(tiny_backbone):
    backbone = tiny_backbone("llama", memory=MEMORY)
    blocks, text = [backbone.compress([tokens(30)]), []], [tokens(6, 1), tokens(9, 2)]
    written = backbone.generate(text, blocks, max_new_tokens=6, stop_ids=(), start=20)
    assert [len(row) for row in written] == [6, 6]
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
