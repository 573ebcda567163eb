"""Checkpoints in the public LycheeMemory format give the same results as the public code (2602.08382)."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from compmem.backbone import Backbone

REFERENCE = os.environ.get("LYCHEE_REFERENCE_DIR")
pytestmark = pytest.mark.skipif(REFERENCE is None, reason="LYCHEE_REFERENCE_DIR is not set")
FOLDERS = ("qkv-r4", "kv-r8", "qkvo-r16")


@pytest.fixture(scope="module", params=FOLDERS)
def checkpoint(request):
    folder = Path(REFERENCE) / request.param
    cases = json.loads((folder / "cases.json").read_text())["cases"]
    return Backbone.load(folder, device="cpu"), cases, load_file(folder / "expected.safetensors")


def recurrent(backbone, case):
    """The public code's loop: an update from each chunk's memory, then an answer from the working memory alone."""
    words = json.loads((Path(REFERENCE) / "templates.json").read_text())
    update, final = backbone.prompt(words["memory_update_template"]), backbone.prompt(words["final_answer_template"])
    special = {*backbone.end_ids, backbone.tokenizer.pad_token_id}
    text, size, question = case["text_ids"], case["chunk_size"], case["question_ids"]
    memory = backbone.encode(words["memory_init_text"])
    first = None
    for states in backbone.compress([text[i : i + size] for i in range(0, len(text), size)]):
        # The prompt after a partial chunk starts where that of a full one would.
        prompts, blocks, start = (
            [update.fill(prompt=question, memory=memory)],
            [[states]],
            size // backbone.memory.ratio,
        )
        if first is None:
            first = backbone.logits(backbone.read(prompts, blocks, start=start)[0, -1])
        [written] = backbone.generate(prompts, blocks, max_new_tokens=case["memory_size"], start=start)
        memory = [token for token in written if token not in special][-case["memory_size"] :]
    [answer] = backbone.generate([final.fill(prompt=question, memory=memory)], max_new_tokens=case["max_new_tokens"])
    return first, answer


@pytest.mark.parametrize("number", range(3))
@torch.inference_mode()
def test_states_logits_and_answers_are_the_public_codes(checkpoint, number):
    backbone, cases, expected = checkpoint
    case = cases[number]
    [states] = backbone.compress([case["text_ids"][: case["chunk_size"]]])
    for layer in range(backbone.shape[0]):
        for name, mine in (("key", states.keys), ("value", states.values)):
            theirs = expected[f"case{number}.chunk0.layer{layer}.{name}"][0]
            torch.testing.assert_close(mine[layer], theirs, atol=1e-4, rtol=0)
    first, answer = recurrent(backbone, case)
    torch.testing.assert_close(first, expected[f"case{number}.first_logits"][0], atol=1e-3, rtol=0)
    # The public code writes padding after a row that ends early.
    ended = [backbone.tokenizer.pad_token_id] if len(answer) < case["max_new_tokens"] else []
    assert answer + ended == case["answer_ids"]
