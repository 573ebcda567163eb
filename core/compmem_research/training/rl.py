"""Stage 2: reinforcement learning of compressor and reasoner through the recalled memory (2602.08382, algorithm 1).

Rollouts use the current weights. The update computes the likelihood of the replies again, starting with the chunks, so
the gradient reaches the compressor. GSPO with only the outcome reward is LycheeMemory's training, DAPO with all four
rewards and step advantages GRU-Mem's (2602.10560).
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from compmem.backbone import AdapterConfig, Backbone
from compmem.readers import LatentPrompts
from compmem_research.digests import backbone_digest
from compmem_research.training.engine.settings import decisive_settings
from compmem_research.training.engine.stage import HELD_OUT_START, save_added
from compmem_research.training.engine.trainer import RunSettings, Trainer
from compmem_research.training.rollouts.likelihood import frozen_copy, mask_of, reply_likelihood, run_tokens
from compmem_research.training.rollouts.objective import Objective, Replies, divergence, policy_loss
from compmem_research.training.rollouts.policy_batch import FIGURES, PolicyBatch, figures_of, turn_advantages
from compmem_research.training.rollouts.questions import ContextSource, QuestionSettings, context_source
from compmem_research.training.rollouts.rewards import Outcome, RewardPart, Rewards, reward
from compmem_research.training.rollouts.rollouts import Rollouts, RolloutSettings, check_not_sharded, drawn_seeds
from compmem_research.training.rollouts.trajectory import Trajectory, Turn

CACHED_SCORES = 512
"""Chunks whose importance scores are kept, so that an update does not compute those of its rollouts again."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RLTraining:
    """Settings of stage 2; `run.batch` counts questions.

    Raises:
        ValueError: A value is out of its range, or values contradict each other.
    """

    start: Path
    """Folder of a backbone that writes well-formed replies, or its name."""
    run: RunSettings
    questions: QuestionSettings = field(default_factory=QuestionSettings)
    rollouts: RolloutSettings = field(default_factory=RolloutSettings)
    objective: Objective = field(default_factory=Objective)
    rewards: tuple[RewardPart, ...] = ("outcome", "update", "exit", "format")
    """The rewards that are used; the others are only logged."""
    outcome: Outcome = "exact"
    scale: bool = False
    """Advantages in units of the group's deviation (2602.08382), or plain (2602.10560)."""
    alpha: float = 0.9
    """Share of the trajectory's advantage in a step's, if the update reward is used."""
    beta: float = 1e-3
    """Weight of the divergence from the reference, which is the policy at the start; 0: no reference is needed."""
    updates: int = 1
    """Update steps per rollout."""
    train: tuple[Literal["base", "reasoner"], ...] = ("reasoner",)
    """Trained parameters of the reading side. "base", for small backbones: all."""
    freeze_compressor: bool = False
    """Freeze the memory; otherwise it is trained through what is read from it."""
    adapter: AdapterConfig | None = None
    """Adapter of the reasoner, if the backbone has none yet."""
    memory_adapter: AdapterConfig | None = None
    """Adapter of the memory tokens, if the backbone has none yet."""
    ratio: int | None = None
    """Compression ratio. None: the checkpoint's own."""
    piece_tokens: int = 16384
    """Most tokens that the update runs at once."""
    held: int = 16
    """Questions of one measurement."""
    dtype: str | None = None
    """Dtype of the frozen weights. None: the checkpoint's own."""
    prompts: LatentPrompts | None = None
    """Prompts. None: the checkpoint's own."""

    def __post_init__(self) -> None:
        if unknown := set(self.rewards) - set(get_args(RewardPart)):
            raise ValueError(f"rewards={self.rewards!r} has {sorted(unknown)!r}; there are {get_args(RewardPart)!r}")
        if not self.rewards:
            raise ValueError("rewards=[] leaves nothing to learn from")
        if not 0 <= self.alpha <= 1 or self.beta < 0:
            raise ValueError(f"alpha={self.alpha!r} must be in [0, 1] and beta={self.beta!r} not negative")
        if min(self.updates, self.piece_tokens, self.held) < 1:
            raise ValueError("updates, piece_tokens and held must be at least 1")
        if self.run.checkpoint_every % self.updates:
            raise ValueError(
                f"checkpoint_every={self.run.checkpoint_every} must be a multiple of updates={self.updates}: "
                "rollouts are not kept with a checkpoint"
            )
        if self.run.workers:
            raise ValueError("rollouts need the model in this process: set workers=0")
        if self.rollouts.group < 2:
            raise ValueError(f"group={self.rollouts.group} must be at least 2: advantages compare")
        if not self.rollouts.steps and (unused := {"update", "exit"} & set(self.rewards)):
            raise ValueError(f"system='answer' has no steps: rewards has {sorted(unused)!r}")
        if self.freeze_compressor and "base" in self.train:
            raise ValueError("freeze_compressor: the compressor runs on the base too; train a reasoner's adapter")


def train(settings: RLTraining) -> dict[str, Any]:
    """Train compressor and reasoner by reinforcement learning; returns the last metrics.

    Raises:
        CheckpointError: The backbone cannot be loaded, or a checkpoint not be read or written.
        ValueError: There is nothing to train, a data file is broken, or the weights are sharded.
    """
    trainer = Trainer(settings.run, asks=True)
    check_not_sharded()
    # A new adapter has random weights.
    torch.manual_seed(settings.run.seed)
    backbone = Backbone.load(settings.start, device=trainer.device, dtype=settings.dtype, ratio=settings.ratio)
    made_of = decisive_settings(settings, backbone_digest(backbone))
    if settings.adapter is not None and "reasoner" not in backbone.adapters:
        backbone.add_adapter("reasoner", settings.adapter)
    if settings.memory_adapter is not None and "memory" not in backbone.adapters:
        backbone.add_adapter("memory", settings.memory_adapter)
    draw = context_source(settings.questions, backbone, settings.run.seed)
    return trainer.run(RLStage(settings, backbone, draw), made_of)


class RLStage:
    """Stage 2 in the interface of the trainer.

    Args:
        settings: Settings of the stage.
        backbone: The policy, with the compressor.
        draw: Returns contexts by number.

    Raises:
        ValueError: There is nothing to train.
    """

    name = "rl"

    def __init__(self, settings: RLTraining, backbone: Backbone, draw: ContextSource) -> None:
        backbone.steps_trained |= settings.rollouts.steps
        backbone.cache_scores(CACHED_SCORES)
        self.backbone = backbone
        self.state: dict[str, float] = {}
        self._settings = settings
        self._draw = draw
        self._prompts = settings.prompts or LatentPrompts.from_backbone(backbone)
        self._ratio = settings.ratio or backbone.memory.ratio
        self._rollouts = Rollouts(backbone, settings.rollouts, self._prompts, self._ratio)
        self._greedy = Rollouts(backbone, replace(settings.rollouts, temperature=0.0), self._prompts, self._ratio)
        parts = (*settings.train, *(() if settings.freeze_compressor else ("memory",)))
        self._trained = {name: p for part in parts for name, p in backbone.parameters(part).items()}
        if not self._trained:
            raise ValueError("there is nothing to train: the backbone has no memory tokens and no reasoner's adapter")
        self._reference = frozen_copy(backbone, self._trained.values()) if settings.beta else None
        self._ahead: dict[int, PolicyBatch] = {}
        self.weights = {"policy": 1.0, **({"kl": settings.beta} if settings.beta else {})}
        self.weights |= dict.fromkeys(FIGURES, 0.0)

    def parameters(self) -> dict[str, Parameter]:
        """The trained parameters."""
        return self._trained

    def batch(self, step: int, rows: range) -> PolicyBatch:
        """The turns of these questions, from rollouts with the weights at the first step of the round."""
        if rows.start not in self._ahead:
            left = self._settings.updates - step % self._settings.updates
            stride = self._settings.run.batch * self._settings.run.accumulate * _processes()
            starts = [rows.start + later * stride for later in range(left)]
            made = self._roll_out([range(start, start + len(rows)) for start in starts])
            # A round that an interrupted run left unfinished is repeated.
            self._ahead |= dict(zip(starts, made, strict=True))
        return self._ahead.pop(rows.start)

    def losses(self, batch: PolicyBatch) -> dict[str, Tensor]:
        """The objective and the divergence with gradients, and the figures."""
        settings = self._settings
        now = self._likelihood(self.backbone, batch.turns)
        replies = Replies(
            now=now,
            then=now.detach() if batch.then is None else batch.then,
            mask=mask_of(batch.turns, now.device),
            advantages=batch.advantages,
            shares=batch.shares,
        )
        policy, clipped = policy_loss(replies, settings.objective)
        sums = {"policy": policy, "clipped": clipped}
        if batch.reference is not None:
            sums["kl"] = divergence(replies, batch.reference, settings.objective.algorithm)
        return sums | {name: torch.tensor(value, device=now.device) for name, value in batch.metrics.items()}

    def after(self, figures: Mapping[str, float]) -> bool:
        """False: prepared batches stay valid."""
        return False

    def measure(self, step: int) -> dict[str, float]:
        """Rewards of greedy rollouts of held-out questions."""
        contexts = [self._draw(HELD_OUT_START + number, True) for number in range(self._settings.held)]
        [*groups] = self._greedy.run(contexts, [[0]] * len(contexts))
        runs = [run for [run] in groups]
        rewards = [
            reward(run, context.sample, self._settings.outcome) for run, context in zip(runs, contexts, strict=True)
        ]
        sums, counts = figures_of(runs, rewards, self._settings.rewards)
        figures = {f"held_{name}": value / max(counts[name], 1e-9) for name, value in sums.items()}
        return {"held_answer": figures.pop("held_outcome"), **figures}

    def save(self, folder: Path) -> None:
        """Save the backbone with its training prompts."""
        save_added(self.backbone, self._trained, folder)
        self._prompts.write(folder)

    def _roll_out(self, batches: Sequence[range]) -> list[PolicyBatch]:
        """Rollouts of the questions of all batches at once; returns the data of each batch."""
        settings = self._settings
        began = time.monotonic()
        rows = [row for batch in batches for row in batch]
        contexts = [self._draw(row, False) for row in rows]
        seeds = [drawn_seeds(settings.run.seed, row, settings.rollouts.group) for row in rows]
        groups = self._rollouts.run(contexts, seeds)
        self.backbone.free_caches()
        seconds = (time.monotonic() - began) / len(batches)
        rewards = [
            [reward(run, context.sample, settings.outcome) for run in group]
            for group, context in zip(groups, contexts, strict=True)
        ]
        pairs = iter(zip(groups, rewards, strict=True))
        return [self._policy_batch([next(pairs) for _ in batch], seconds) for batch in batches]

    def _policy_batch(self, groups: Sequence[tuple[list[Trajectory], list[Rewards]]], seconds: float) -> PolicyBatch:
        settings = self._settings
        turns, advantages, shares = list[Turn](), list[float](), list[float]()
        for runs, rewards in groups:
            for run, own in zip(runs, self._advantages(runs, rewards), strict=True):
                turns += run.turns
                advantages += own
                shares += [1 / len(own)] * len(own)
        runs = [run for group, _ in groups for run in group]
        metrics, counts = figures_of(runs, [r for _, rewards in groups for r in rewards], settings.rewards)
        drawn = sum(len(turn.reply) for turn in turns)
        metrics |= {"rollout_tokens_per_second": drawn}
        divisor = len(runs) if settings.objective.algorithm == "gspo" else drawn
        counts |= {"rollout_tokens_per_second": seconds, **dict.fromkeys(("policy", "clipped", "kl"), divisor)}
        if not settings.beta:
            # Turns with zero advantage have no gradient; one is kept so that the loss has a graph.
            kept = [n for n, value in enumerate(advantages) if value] or [0]
            turns = [turns[n] for n in kept]
            advantages, shares = ([values[n] for n in kept] for values in (advantages, shares))
        device = self.backbone.device
        return PolicyBatch(
            turns=turns,
            advantages=torch.tensor(advantages, device=device),
            shares=torch.tensor(shares, device=device),
            metrics=metrics,
            counts=counts,
            tokens=sum(run_tokens(turn, self._ratio) for turn in turns),
            then=self._likelihood_of(self.backbone, turns) if settings.updates > 1 else None,
            reference=self._likelihood_of(self._reference, turns) if self._reference else None,
        )

    def _advantages(self, runs: Sequence[Trajectory], rewards: Sequence[Rewards]) -> list[list[float]]:
        settings = self._settings
        # Steps have their own advantages if they have their own rewards.
        alpha = settings.alpha if "update" in settings.rewards and settings.rollouts.gates else None
        return turn_advantages(runs, rewards, settings.rewards, alpha=alpha, scale=settings.scale)

    def _likelihood_of(self, backbone: Backbone, turns: Sequence[Turn]) -> Tensor:
        """Likelihoods without gradients, computed in the same way as in the update."""
        bf16 = self._settings.run.bf16
        with torch.no_grad(), torch.autocast(backbone.device.type, torch.bfloat16, enabled=bf16):
            return self._likelihood(backbone, turns)

    def _likelihood(self, backbone: Backbone, turns: Sequence[Turn]) -> Tensor:
        settings = self._settings
        return reply_likelihood(
            backbone, turns, ratio=self._ratio, piece_tokens=settings.piece_tokens,
            temperature=settings.rollouts.temperature or 1.0, role="reasoner",
            through_memory=not settings.freeze_compressor,
        )  # fmt: skip


def _processes() -> int:
    from accelerate import PartialState

    return int(PartialState().num_processes)
