"""Rewards, advantages and objectives of reinforcement learning, by hand on small trajectories."""

from dataclasses import replace

import pytest
import torch

from compmem.schema import Chunk, Document
from compmem_research.tasks.sample import Sample, Span
from compmem_research.training.rollouts.evidence import Evidence
from compmem_research.training.rollouts.objective import Objective, Replies, divergence, policy_loss
from compmem_research.training.rollouts.policy_batch import (
    figures_of,
    group_advantages,
    mixed_advantages,
    step_advantages,
    turn_advantages,
)
from compmem_research.training.rollouts.rewards import EARLY, LATE, reward, well_formed
from compmem_research.training.rollouts.trajectory import Step, Trajectory, Turn

SAMPLE = Sample(id="q", task="t", question="Who?", answers=("Anna Bel",), documents=(), evidence=())
EVIDENCE = (False, True, False, True, False)


def run(checks, *, answer="Anna Bel", formed=True, enough=3):
    steps = tuple(Step(evidence=e, check=c, formed=formed) for e, c in zip(EVIDENCE, checks, strict=False))
    return Trajectory(steps=steps, enough=enough, answer=answer)


@pytest.mark.parametrize(
    ("trajectory", "outcome", "exits", "formed", "update"),
    [
        (run([False, True, False, True]), 1.0, 0.0, 1.0, (1.0,) * 4),
        (run([False, True]), 1.0, EARLY, 1.0, (1.0, 1.0)),
        (run([False, True, False, True, False]), 1.0, LATE, 1.0, (1.0,) * 5),
        (run([True, True, False, False]), 1.0, 0.0, 1.0, (-1.0, 1.0, 1.0, -1.0)),
        (run([False, True, False, True], answer="Bel"), 0.0, 0.0, 1.0, (1.0,) * 4),
        (run([False, True, False, True], formed=False), 1.0, 0.0, 0.0, (1.0,) * 4),
    ],
    ids=["exact", "early", "late", "wrong check", "wrong answer", "malformed"],
)
def test_rewards_of_trajectories_written_by_hand(trajectory, outcome, exits, formed, update):
    worth = reward(trajectory, SAMPLE)
    assert (worth.outcome, worth.exit, worth.format, worth.update) == (outcome, exits, formed, update)
    assert worth.total(("outcome", "exit", "format", "update")) == outcome + exits + formed
    assert worth.total(("outcome",)) == outcome


def test_published_exit_rewards():
    assert (EARLY, LATE) == (-0.75, -0.5)


def test_a_malformed_answer_costs_the_format_reward():
    steps = (Step(evidence=True, check=True),)
    assert reward(Trajectory(steps=steps, enough=0, answer="", formed=False), SAMPLE).format == 0.0


def test_the_exact_outcome_forgives_case_and_articles_alone():
    assert reward(run([], answer="the anna bel."), SAMPLE).outcome == 1.0
    assert reward(run([], answer="It is Anna Bel"), SAMPLE).outcome == 0.0
    assert reward(run([], answer="It is Anna Bel"), SAMPLE, "score").outcome == 1.0
    assert reward(run([], answer="It is Anna Bel"), SAMPLE, "f1").outcome == pytest.approx(2 / 3)


def test_what_cannot_be_answered_is_right_where_nothing_was_found():
    none = Sample(id="q", task="t", question="?", answers=("x",), documents=(), evidence=(), metric="unanswerable")
    assert reward(Trajectory(steps=(), enough=0, answer="", found=False), none).outcome == 1.0
    assert reward(Trajectory(steps=(), enough=0, answer="x", found=True), none).outcome == 0.0


def chained():
    """A context of four chunks: the second fact comes before the first."""
    document = Document(id="d", text="aaaabbbbccccdddd")
    spans = (Span(document="d", start=8, end=12), Span(document="d", start=4, end=8))
    sample = Sample(id="q", task="t", question="?", answers=("x",), documents=(document,), evidence=spans)
    return sample, [Chunk(text=document.text[a : a + 4], document_id="d", start=a) for a in (0, 4, 8, 12)]


def test_a_fact_is_due_once_those_before_it_are_known():
    any_, due = Evidence(*chained(), "any"), Evidence(*chained(), "due")
    assert any_.all == (0, 1)
    assert [any_.supports(n, (1,)) for n in range(4)] == [False, True, True, False]
    assert [due.supports(n, (0, 1)) for n in range(4)] == [False, False, True, False]
    assert [due.supports(n, (1,)) for n in range(4)] == [False, True, False, False]
    assert (due.open_after(1, (0, 1)), due.open_after(2, (0, 1)), due.open_after(1, (1,))) == ((0, 1), (1,), ())


def test_needles_are_always_due():
    sample, chunks = chained()
    due = Evidence(replace(sample, task="niah_multivalue"), chunks, "due")
    assert [due.supports(n, (0, 1)) for n in range(4)] == [False, True, True, False]
    assert due.enough(range(4), [True] * 4) == 2


def test_where_to_stop():
    any_, due = Evidence(*chained(), "any"), Evidence(*chained(), "due")
    assert any_.enough(range(4), []) == 2
    assert due.enough(range(4), [True] * 4) == 3, "the second fact was not due when it was read"
    assert due.enough([2, 3, 1, 0], [True, False]) == 2
    assert due.enough([2, 3, 1, 0], [False] * 4) == 3


def test_group_advantages_have_no_mean():
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 2.0])
    plain = group_advantages(rewards, scale=False)
    assert torch.allclose(plain, rewards - 0.8)
    assert torch.allclose(group_advantages(rewards, scale=True), plain / rewards.std(correction=0), atol=1e-4)
    assert not group_advantages(torch.ones(4), scale=True).any(), "a group all alike teaches nothing"


def test_step_advantages_compare_those_still_running():
    rewards = torch.tensor([[1.0, -1.0, 1.0], [1.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    alive = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    made = step_advantages(rewards, alive)
    expected = [[2 / 3, -1.0, 0.0], [2 / 3, 1.0, 0.0], [-4 / 3, 0.0, 0.0]]
    assert torch.allclose(made, torch.tensor(expected))
    mixed = mixed_advantages(torch.tensor([1.0, 0.0, -1.0]), made, 0.9)
    assert torch.allclose(mixed[:, 0], torch.tensor([0.9 + 0.2 / 3, 0.2 / 3, -0.9 - 0.4 / 3]))


def test_every_turn_has_its_advantage_and_the_answer_the_trajectory_s():
    runs = [
        replace(run([False, True], enough=1), turn=Turn(prompt=[0], reply=[1])),
        run([True], enough=1, answer=""),
    ]
    worth = [reward(r, SAMPLE) for r in runs]
    used = ("outcome", "exit", "format", "update")
    whole = (2.0 - 0.25) / 2
    first, second = turn_advantages(runs, worth, used, alpha=0.9, scale=False)
    assert first == pytest.approx([0.9 * whole + 0.1 * 1.0, 0.9 * whole, whole])
    assert second == pytest.approx([-0.9 * whole - 0.1 * 1.0])
    plain, _ = turn_advantages(runs, worth, used, alpha=None, scale=False)
    assert plain == pytest.approx([whole] * 3)


def test_figures_are_sums_with_what_they_are_divided_by():
    runs = [run([False, True, False, True]), run([True, True]), run([False, True, False, True, False])]
    sums, counts = figures_of(runs, [reward(r, SAMPLE) for r in runs], ("outcome",))
    assert (sums["early"], sums["late"], sums["blocks_read"], counts["early"]) == (1, 1, 11, 3)
    assert (sums["reward_update"], counts["reward_update"]) == (9, 11)
    assert sums["reward"] == sums["outcome"] == 3


def toy(logits, tokens, advantages, shares, *, then=None):
    """Replies sampled from one distribution over three tokens."""
    now = torch.log_softmax(logits, -1)[tokens]
    return Replies(
        now=now, then=now.detach() if then is None else then, mask=torch.ones(tokens.shape, dtype=torch.bool),
        advantages=torch.tensor(advantages), shares=torch.tensor(shares),
    )  # fmt: skip


def test_an_on_policy_gspo_step_is_the_policy_gradient():
    logits = torch.tensor([0.2, -0.3, 0.5], requires_grad=True)
    tokens = torch.tensor([[0, 2], [1, 1], [2, 0]])
    advantages, shares = [0.7, -0.4, -0.3], [0.5, 0.5, 1.0]
    loss, clipped = policy_loss(toy(logits, tokens, advantages, shares), Objective(algorithm="gspo"))
    [gradient] = torch.autograd.grad(loss, logits)
    # d log p(token) / d logits = onehot(token) - p, averaged over the reply's tokens.
    p = torch.softmax(logits.detach(), -1)
    by_hand = torch.zeros(3)
    for reply, advantage, share in zip(tokens, advantages, shares, strict=True):
        for token in reply:
            by_hand -= share * advantage / len(reply) * (torch.eye(3)[token] - p)
    assert torch.allclose(gradient, by_hand, atol=1e-7)
    assert float(clipped) == 0


def test_an_on_policy_dapo_step_weighs_tokens_alike():
    logits = torch.tensor([0.2, -0.3, 0.5], requires_grad=True)
    replies = toy(logits, torch.tensor([[0, 2], [1, 1]]), [0.7, -0.4], [0.5, 0.5])
    replies.mask[1, 1] = False
    loss, _ = policy_loss(replies, Objective(algorithm="dapo"))
    [gradient] = torch.autograd.grad(loss, logits)
    p = torch.softmax(logits.detach(), -1)
    eye = torch.eye(3)
    by_hand = -0.7 * (eye[0] - p) - 0.7 * (eye[2] - p) + 0.4 * (eye[1] - p)
    assert torch.allclose(gradient, by_hand, atol=1e-7)


def ratios(*values):
    """Replies of one token each whose probability has changed by these ratios."""
    now = torch.log(torch.tensor([values])).T.requires_grad_()
    return now, torch.zeros(len(values), 1)


@pytest.mark.parametrize("algorithm", ["gspo", "dapo"])
def test_clipping_by_hand(algorithm):
    now, then = ratios(1.5, 1.5, 0.5, 0.5)
    replies = Replies(
        now=now, then=then, mask=torch.ones(4, 1, dtype=torch.bool), advantages=torch.tensor([1.0, -1.0, 1.0, -1.0]),
        shares=torch.ones(4),
    )  # fmt: skip
    loss, clipped = policy_loss(replies, Objective(algorithm=algorithm, clip=(0.2, 0.3)))
    assert loss.item() == pytest.approx(-(1.3 - 1.5 + 0.5 - 0.8))
    assert float(clipped) == 2
    [gradient] = torch.autograd.grad(loss, now)
    assert torch.allclose(gradient[:, 0], torch.tensor([0.0, 1.5, -0.5, 0.0]))


def test_the_sequence_ratio_is_a_geometric_mean():
    now = torch.log(torch.tensor([[2.0, 0.5, 7.0]])).requires_grad_()
    replies = Replies(
        now=now, then=torch.zeros(1, 3), mask=torch.tensor([[True, True, False]]), advantages=torch.tensor([1.0]),
        shares=torch.ones(1),
    )  # fmt: skip
    loss, clipped = policy_loss(replies, Objective(algorithm="gspo"))
    assert loss.item() == pytest.approx(-1.0)
    assert float(clipped) == 0


@pytest.mark.parametrize("algorithm", ["gspo", "dapo"])
def test_divergence_is_nothing_on_policy_and_never_negative(algorithm):
    logits = torch.tensor([0.2, -0.3, 0.5], requires_grad=True)
    replies = toy(logits, torch.tensor([[0, 2], [1, 1]]), [1.0, 1.0], [0.5, 0.5])
    same = divergence(replies, replies.now.detach(), algorithm)
    [gradient] = torch.autograd.grad(same, logits, retain_graph=True)
    assert same.item() == 0
    assert not gradient.any()
    apart = replies.now.detach() + torch.tensor([[0.3, -0.2], [0.0, 0.1]])
    each = torch.tensor([[0.3, -0.2], [0.0, 0.1]])
    each = each.exp() - each - 1
    expected = each.sum() if algorithm == "dapo" else each.mean(1).sum() / 2
    assert divergence(replies, apart, algorithm).item() == pytest.approx(float(expected), rel=1e-4)


def test_turns_of_a_trajectory_come_in_order():
    turns = [Turn(prompt=[n], reply=[n]) for n in range(3)]
    steps = tuple(Step(evidence=True, check=True, turn=turn) for turn in turns[:2])
    assert Trajectory(steps=steps, enough=0, answer="x", turn=turns[2]).turns == turns


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithm": "ppo"}, "must be 'gspo' or 'dapo'"),
        ({"clip": (0.2,)}, "two numbers"),
        ({"clip": (1.0, 0.2)}, "the first below 1"),
    ],
)
def test_objectives_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        Objective(**changes)


@pytest.mark.parametrize(
    ("reply", "formed"),
    [
        ("<check>yes</check><update>a note</update><next>end</next>", True),
        ("<think>so</think>\n<check> no </check>\n<update></update>\n<next>continue</next>\n", True),
        ("<check>no</next>", False),
        ("<check>yes</check><update>a note</update>", False),
        ("<check>maybe</check><update></update><next>end</next>", False),
        ("<check>yes</check><update>a</update><next>end</next> and more", False),
    ],
)
def test_the_format_asks_for_more_than_the_parser_forgives(reply, formed):
    assert well_formed(reply) == formed
