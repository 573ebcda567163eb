"""Rollouts and their likelihood: training matches the real loop, and the gradient reaches the compressor."""

import pytest
import torch

from compmem.backbone import AdapterConfig, MemoryConfig, chunk_ids
from compmem.config import LoopConfig
from compmem.loop.loop import LoopResult, ReadRequest, recall_loop
from compmem.readers.latent import LatentReader
from compmem.readers.latent_prompts import LatentPrompts, StepPrompts
from compmem.schema import Chunk, Document, MemoryBlock, WorkingMemory
from compmem_research.tasks.sample import Sample, Span
from compmem_research.training.rollouts.likelihood import frozen_copy, reply_likelihood
from compmem_research.training.rollouts.questions import Context
from compmem_research.training.rollouts.rewards import reward
from compmem_research.training.rollouts.rollouts import Rollouts, RolloutSettings
from compmem_research.training.rollouts.trajectory import Turn

PROMPTS = LatentPrompts(update="{question}|{memory}?", overwrite="{question}|{memory}!", answer="{question}|{memory}=")
MEMORY = MemoryConfig(ratio=4, window=16, own=("q", "k", "v"))


@pytest.fixture
def backbone(tiny_backbone):
    return tiny_backbone("qwen3", memory=MEMORY, seed=2)


def context(backbone, number=0, count=3):
    texts = [f"chunk {number}{n} says so" for n in range(count)]
    document = Document(id="d", text="".join(texts))
    spans = (Span(document="d", start=len(texts[0]), end=len(texts[0]) + 5),)
    sample = Sample(
        id=f"q{number}", task="t", question=f"w{number}?", answers=("x",), documents=(document,), evidence=spans
    )  # fmt: skip
    starts = [sum(map(len, texts[:n])) for n in range(count)]
    chunks = [Chunk(text=t, document_id="d", start=s) for t, s in zip(texts, starts, strict=True)]
    return Context.of(sample, chunks, backbone)


def settings(**changes):
    return RolloutSettings(**{"memory_tokens": 8, "overhead": 0, "answer_tokens": 6, **changes})


@pytest.mark.parametrize("system", ["lychee", "gru-mem"])
def test_batched_rollouts_are_those_one_by_one(backbone, system):
    rollouts = Rollouts(backbone, settings(system=system), PROMPTS, 4)
    contexts, seeds = [context(backbone, 0), context(backbone, 1, count=2)], [[1, 2], [3, 4]]
    together = rollouts.run(contexts, seeds)
    alone = [[rollouts.run([c], [[s]])[0][0] for s in own] for c, own in zip(contexts, seeds, strict=True)]
    assert together == alone
    assert together[0][0] != together[0][1], "another seed is another rollout"
    assert rollouts.run(contexts, seeds) == together
    assert [len(run.steps) for group in together for run in group] == [3, 3, 2, 2]


def test_a_greedy_rollout_is_the_loop_with_the_latent_reader(backbone):
    made = Rollouts(backbone, settings(system="lychee", temperature=0.0), PROMPTS, 4)
    asked = context(backbone)
    [[run]] = made.run([asked], [[0]])
    reader = LatentReader(backbone, prompts=PROMPTS, structured=False, memory_tokens=8, answer_tokens=6)
    states = backbone.compress([chunk_ids(backbone, c) for c in asked.chunks], ratio=4)
    source = Bench([MemoryBlock(chunk=c, kv=s) for c, s in zip(asked.chunks, states, strict=True)], backbone)
    loop, memories, reply = recall_loop(source, LoopConfig.lychee(gate=False, memory_tokens=8), 0.0), [], None
    with torch.no_grad():
        while True:
            try:
                wanted = loop.send(reply)
            except StopIteration as end:
                run_loop: LoopResult = end.value
                break
            reply = None
            if isinstance(wanted, ReadRequest):
                memories.append(wanted.memory.text)
                reply = reader.read(asked.sample.question, wanted.memory, wanted.blocks)
        answer = "".join(p for p in reader.write(asked.sample.question, run_loop.memory) if isinstance(p, str))
    assert [step.memory for step in run.steps] == memories
    assert run.answer == answer.strip()
    assert run.found and run.answer and run.steps[1].memory


def test_an_answer_without_steps_is_written_behind_all_chunks(backbone):
    rollouts = Rollouts(backbone, settings(system="answer", temperature=0.0), PROMPTS, 4)
    asked = [context(backbone, 0), context(backbone, 1, count=2)]
    runs = [run for group in rollouts.run(asked, [[0, 1], [0]]) for run in group]
    assert runs[0] == runs[1], "greedy"
    for one, run in zip((asked[0], asked[1]), (runs[0], runs[2]), strict=True):
        prompt = StepPrompts(backbone, PROMPTS).from_blocks(one.sample.question)
        with torch.no_grad():
            [ids] = backbone.generate([prompt], [backbone.compress(one.ids, ratio=4)], max_new_tokens=6)
        assert run.answer == backbone.decode(ids).strip()
        assert run.turn.reply[: len(ids)] == ids
        assert (run.steps, run.turn.prompt, run.turn.chunks) == ((), prompt, tuple(one.ids))
        assert run.found
        assert run.formed == (len(ids) < 6 and bool(run.answer))
    worth = reward(runs[0], asked[0].sample)
    assert (worth.exit, worth.update) == (0.0, ())


class Bench:
    def __init__(self, blocks, backbone):
        self.blocks, self.backbone = blocks, backbone

    def propose(self, memory):
        return list(range(len(self.blocks)))

    def score(self, memory, blocks):
        return [1.0] * len(blocks)

    def fetch(self, blocks):
        return [self.blocks[n] for n in blocks]

    def count_tokens(self, text):
        return len(self.backbone.encode(text))


def say(backbone, monkeypatch, replies):
    """Makes the backbone write these replies for every prompt."""
    said = iter(replies)

    def generate(prompts, blocks=None, **_):
        return [backbone.encode(next(said)) for _ in prompts]

    monkeypatch.setattr(backbone, "generate", generate)


def reply(check, update, end):
    said, then = "yes" if check else "no", "end" if end else "continue"
    return f"<check>{said}</check><update>{update}</update><next>{then}</next>"


def test_gates_are_followed_and_labelled(backbone, monkeypatch):
    rollouts = Rollouts(backbone, settings(memory_tokens=200), PROMPTS, 4)
    say(backbone, monkeypatch, [reply(False, "a", False), reply(True, "b", True), "x"])
    [[run]] = rollouts.run([context(backbone)], [[0]])
    assert [(s.check, s.evidence, s.formed, s.memory) for s in run.steps] == [
        (False, False, True, ""),
        (True, True, True, ""),
    ]
    assert (run.enough, run.answer, run.found, run.formed) == (1, "x", True, True)
    end = backbone.tokenizer.eos_token_id
    assert run.turn.reply == [*backbone.encode("x"), end], "to end is an action"
    assert run.steps[0].turn.reply[-1] != end, "a step ends by its last tag"
    assert run.steps[1].turn.chunks == (chunk_ids(backbone, context(backbone).chunks[1]),)


def test_without_the_exit_gate_all_is_read(backbone, monkeypatch):
    rollouts = Rollouts(backbone, settings(memory_tokens=200, exit_gate=False), PROMPTS, 4)
    say(backbone, monkeypatch, [reply(True, "b", True)] * 3 + ["x"])
    [[run]] = rollouts.run([context(backbone)], [[0]])
    assert len(run.steps) == 3


def test_malformed_replies_keep_the_memory_and_are_told(backbone, monkeypatch):
    rollouts = Rollouts(backbone, settings(memory_tokens=200), PROMPTS, 4)
    say(backbone, monkeypatch, [reply(True, "b", False), "what?", "<check>yes</check><next>end</next>", "x"])
    [[run]] = rollouts.run([context(backbone)], [[0]])
    assert [(s.formed, s.memory) for s in run.steps] == [(True, ""), (False, "b"), (False, "b")]


def test_nothing_found_is_not_asked_about(backbone, monkeypatch):
    rollouts = Rollouts(backbone, settings(memory_tokens=200), PROMPTS, 4)
    say(backbone, monkeypatch, [reply(False, "", False)] * 3)
    [[run]] = rollouts.run([context(backbone)], [[0]])
    assert (run.answer, run.found, run.turn, len(run.turns)) == ("", False, None, 3)


def turns_of(backbone):
    chunks = [backbone.encode("the first chunk"), backbone.encode("another, longer chunk of text")]
    encode = backbone.encode
    return [
        Turn(prompt=encode("why?"), reply=encode("so."), chunks=(chunks[0],)),
        Turn(prompt=encode("who is it?"), reply=encode("nobody"), chunks=(chunks[1],)),
        Turn(prompt=encode("how?"), reply=encode("x")),
        Turn(prompt=encode("when?"), reply=encode("now"), chunks=(chunks[0],)),
        Turn(prompt=encode("both?"), reply=encode("no"), chunks=(chunks[1], chunks[0])),
    ]


def likelihood(backbone, turns, piece_tokens=10_000, **changes):
    return reply_likelihood(backbone, turns, ratio=4, piece_tokens=piece_tokens, **changes)


def test_likelihoods_are_those_of_the_turns_one_by_one(backbone):
    turns = turns_of(backbone)
    together = likelihood(backbone, turns)
    for row, turn in enumerate(turns):
        blocks = [backbone.compress(turn.chunks, ratio=4)] if turn.chunks else None
        hidden = backbone.read([[*turn.prompt, *turn.reply]], blocks)
        logs = torch.log_softmax(backbone.logits(hidden)[0], -1)
        expected = [logs[len(turn.prompt) - 1 + i, token] for i, token in enumerate(turn.reply)]
        assert torch.allclose(together[row, : len(turn.reply)], torch.stack(expected), atol=1e-5)
        assert not together[row, len(turn.reply) :].any()


def test_what_was_drawn_has_the_likelihood_it_was_drawn_with(backbone):
    rollouts = Rollouts(backbone, settings(system="lychee", temperature=0.0), PROMPTS, 4)
    [[run]] = rollouts.run([context(backbone)], [[0]])
    hot = likelihood(backbone, run.turns, temperature=0.05)
    cold = likelihood(backbone, run.turns, temperature=1.0)
    assert (hot[hot != 0] > cold[hot != 0]).all(), "the likeliest tokens gain as it cools"


def test_pieces_change_neither_value_nor_gradient(backbone):
    turns = turns_of(backbone)
    gradients = []
    for piece_tokens in (10_000, 40):
        made = likelihood(backbone, turns, piece_tokens)
        backbone.decoder.zero_grad()
        made.square().sum().backward()
        grads = [p.grad.clone() for p in backbone.parameters("memory").values() if p.grad is not None]
        gradients.append((made.detach(), torch.cat([g.flatten() for g in grads])))
    assert torch.allclose(gradients[0][0], gradients[1][0], atol=1e-5)
    assert gradients[0][1].abs().max() > 1
    assert torch.allclose(gradients[0][1], gradients[1][1], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["memory_embedding", "layers.0.own.v.weight", "layers.1.own.k.weight"])
def test_the_compressor_has_the_gradient_of_what_is_read_out_of_it(backbone, name):
    backbone.decoder.double()
    parameter = backbone.parameters("memory")[name]
    turns = turns_of(backbone)
    backbone.decoder.zero_grad()
    likelihood(backbone, turns).sum().backward()
    assert parameter.grad.abs().max() > 1e-3
    direction = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = float((parameter.grad * direction).sum())
    sides, step = [], 1e-3
    with torch.no_grad():
        for sign in (1, -1):
            parameter += sign * step * direction
            sides.append(float(likelihood(backbone, turns).sum()))
            parameter -= sign * step * direction
    assert (sides[0] - sides[1]) / (2 * step) == pytest.approx(expected, rel=1e-2)


def test_a_frozen_compressor_has_none(backbone):
    backbone.decoder.zero_grad()
    likelihood(backbone, turns_of(backbone), through_memory=False).sum().backward()
    memory = backbone.parameters("memory")
    assert memory
    assert all(p.grad is None for p in memory.values())


def test_the_reference_stays_and_shares_what_is_frozen(backbone):
    backbone.add_adapter("reasoner", AdapterConfig(rank=2))
    trained = backbone.parameters("reasoner") | backbone.parameters("memory")
    turns = turns_of(backbone)
    copied = frozen_copy(backbone, trained.values())
    before = likelihood(backbone, turns).detach()
    with torch.no_grad():
        for parameter in trained.values():
            parameter += 0.1
    assert torch.equal(likelihood(copied, turns), before)
    assert not torch.allclose(likelihood(backbone, turns), before)
    mine, its = dict(backbone.decoder.named_parameters()), dict(copied.decoder.named_parameters())
    assert {name for name in mine if mine[name] is not its[name]} == set(trained)


def test_what_does_not_fit_in_the_context_is_refused(tiny_backbone):
    small = tiny_backbone("qwen3", memory=MEMORY, max_position_embeddings=32)
    long = LatentPrompts(update="{question}{memory}" + "x" * 40, answer="{question}{memory}")
    rollouts = Rollouts(small, settings(), long, 4)
    with pytest.raises(ValueError, match="larger than the context of 32"):
        rollouts.run([context(small)], [[0]])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"system": "rag"}, "gru-mem"),
        ({"labels": "some"}, "any, due"),
        ({"group": 0}, "at least 1"),
        ({"temperature": -1.0}, "not be negative"),
    ],
)
def test_settings_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_an_unstructured_memory_is_cut_to_its_budget(backbone, monkeypatch):
    rollouts = Rollouts(backbone, settings(system="lychee"), PROMPTS, 4)
    say(backbone, monkeypatch, ["one two three four five", "y", "z", "x"])
    [[run]] = rollouts.run([context(backbone)], [[0]])
    assert run.steps[1].memory == "five"
    assert WorkingMemory(text="five").text == run.steps[1].memory
