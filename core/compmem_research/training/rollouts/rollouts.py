"""Rollouts: the loop itself, run for many questions and their groups at once, with the tokens of every turn.

Each rollout is the loop with the settings of a published system, so training matches the real loop; or only the answer
from recalled chunks, where the loop is run by another reader. Chunks are compressed once per question, whatever the
group's size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from compmem.backbone import Backbone
from compmem.config import LoopConfig
from compmem.readers import OVERHEAD, LatentPrompts, StepPrompts, without_thinking
from compmem.schema import KVStates
from compmem_research.training.engine.device import precision
from compmem_research.training.rollouts.evidence import Evidence, Labels
from compmem_research.training.rollouts.loops import Loop, Loops, SampledReply
from compmem_research.training.rollouts.questions import Context
from compmem_research.training.rollouts.rewards import well_formed
from compmem_research.training.rollouts.trajectory import Step, Trajectory, Turn

System = Literal["gru-mem", "lychee", "answer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSettings:
    """Settings of rollouts.

    Raises:
        ValueError: A value is out of its range.
    """

    system: System = "gru-mem"
    """A scan in document order whose replies have an update gate (and an exit gate), or overwrite the memory; or the
    answer from all chunks at once, without steps."""
    exit_gate: bool = True
    """Stop if the reply says so (2602.10560, with and without)."""
    group: int = 8
    """Rollouts per question."""
    temperature: float = 1.0
    memory_tokens: int = 1024
    """Most tokens of working memory."""
    overhead: int = OVERHEAD
    """Tokens of a structured reply besides the memory."""
    answer_tokens: int = 512
    """Most tokens of an answer."""
    labels: Labels = "any"
    """Chunks that count as evidence: all that contain any, or only the next one of the chain."""

    def __post_init__(self) -> None:
        if self.system not in get_args(System):
            raise ValueError(f"system={self.system!r} must be one of {', '.join(get_args(System))}")
        if self.labels not in get_args(Labels):
            raise ValueError(f"labels={self.labels!r} must be one of {', '.join(get_args(Labels))}")
        if min(self.group, self.memory_tokens, self.answer_tokens) < 1 or self.overhead < 0:
            raise ValueError("group, memory_tokens and answer_tokens must be at least 1, overhead not negative")
        if self.temperature < 0:
            raise ValueError(f"temperature={self.temperature!r} must not be negative")

    @property
    def steps(self) -> bool:
        """Whether the chunks are read in steps."""
        return self.system != "answer"

    @property
    def gates(self) -> bool:
        """Whether replies are structured."""
        return self.system == "gru-mem"

    @property
    def step_tokens(self) -> int:
        """Most tokens of a step's reply."""
        return self.memory_tokens + (self.overhead if self.gates else 0)

    @property
    def recall(self) -> LoopConfig:
        """The loop's settings."""
        if self.gates:
            return LoopConfig.gru_mem(exit_gate=self.exit_gate, memory_tokens=self.memory_tokens)
        return LoopConfig.lychee(gate=False, memory_tokens=self.memory_tokens)


class Rollouts:
    """Runs rollouts with a backbone's current weights, without gradients.

    Args:
        backbone: The policy.
        settings: The settings.
        prompts: The prompts.
        ratio: Compression ratio.
    """

    def __init__(self, backbone: Backbone, settings: RolloutSettings, prompts: LatentPrompts, ratio: int) -> None:
        self.backbone = backbone
        self.settings = settings
        self._ratio = ratio
        end = backbone.tokenizer.eos_token_id
        self._loops = Loops(
            prompts=StepPrompts(backbone, prompts, structured=settings.gates),
            step_tokens=settings.step_tokens,
            answer_tokens=settings.answer_tokens,
            ends=backbone.end_ids if end is None else (int(end),),
            temperature=settings.temperature,
        )

    def run(self, contexts: Sequence[Context], seeds: Sequence[Sequence[int]]) -> list[list[Trajectory]]:
        """The trajectories of each question's group, one for each of its seeds.

        Raises:
            ValueError: A step is longer than the model's context.
            MemoryError: A single step does not fit on the device.
        """
        compressed = self._compressed(contexts)
        if not self.settings.steps:
            return self._answered(contexts, compressed, seeds)
        recall = self.settings.recall
        groups = [
            [Loop(self.backbone, c.sample.question, c.chunks, states, recall, seed=seed) for seed in own]
            for c, states, own in zip(contexts, compressed, seeds, strict=True)
        ]
        self._loops.run([loop for group in groups for loop in group])
        return [
            [self._trajectory(context, loop) for loop in group] for context, group in zip(contexts, groups, strict=True)
        ]

    def _answered(
        self, contexts: Sequence[Context], compressed: Sequence[list[KVStates]], seeds: Sequence[Sequence[int]]
    ) -> list[list[Trajectory]]:
        rows = [(c, s, seed) for c, s, own in zip(contexts, compressed, seeds, strict=True) for seed in own]
        asked, states, drawn = zip(*rows, strict=True)
        made = iter(self._loops.answers([c.sample.question for c in asked], states, drawn))
        return [[_answer(next(made), context.ids) for _ in own] for context, own in zip(contexts, seeds, strict=True)]

    def _compressed(self, contexts: Sequence[Context]) -> list[list[KVStates]]:
        """The memory of every chunk; each distinct one is compressed once."""
        distinct = list(dict.fromkeys(tuple(ids) for context in contexts for ids in context.ids))
        with torch.no_grad(), precision(self.backbone):
            states = dict(zip(distinct, self.backbone.compress(distinct, ratio=self._ratio), strict=True))
        return [[states[tuple(ids)] for ids in context.ids] for context in contexts]

    def _trajectory(self, context: Context, loop: Loop) -> Trajectory:
        """The result of a loop; its steps are the chunks in document order."""
        evidence = Evidence(context.sample, context.chunks, self.settings.labels)
        open_, steps = evidence.all, list[Step]()
        for number, step in enumerate(loop.steps):
            check = step.reply is not None and step.reply.check
            formed = step.reply is not None and (not self.settings.gates or well_formed(step.text))
            steps.append(
                Step(
                    evidence=evidence.supports(number, open_), check=check, formed=formed and step.ended,
                    memory=step.memory.text, number=number, turn=_turn(step, [context.ids[number]]),
                )
            )  # fmt: skip
            if check:
                open_ = evidence.open_after(number, open_)
        last = loop.answer
        return Trajectory(
            steps=tuple(steps),
            enough=evidence.enough(range(len(context.chunks)), [step.check for step in steps]),
            answer=loop.text,
            found=last is not None,
            formed=last is None or (last.ended and bool(loop.text)),
            turn=_turn(last) if last else None,
        )


def _answer(written: SampledReply, chunks: Sequence[Sequence[int]]) -> Trajectory:
    """The result of an answer without steps: there is no right step to stop."""
    text = without_thinking(written.text).strip()
    formed = written.ended and bool(text)
    return Trajectory(steps=(), enough=-1, answer=text, formed=formed, turn=_turn(written, chunks))


def _turn(written: SampledReply, chunks: Sequence[Sequence[int]] = ()) -> Turn:
    return Turn(prompt=written.prompt, reply=written.ids, chunks=tuple(chunks))


def check_not_sharded() -> None:
    """Refuse sharded weights: rollouts run between the steps, when a process has only its shard.

    Raises:
        ValueError: The run was launched with FSDP.
    """
    from accelerate.state import AcceleratorState

    if str(AcceleratorState().distributed_type) == "DistributedType.FSDP":
        raise ValueError("rollouts need whole weights on every process: launch without FSDP, and train adapters")


def drawn_seeds(seed: int, number: int, count: int) -> list[int]:
    """Seeds for the rollouts of one question."""
    return [int(s) for s in np.random.default_rng((seed, number, 1)).integers(1 << 62, size=count)]
