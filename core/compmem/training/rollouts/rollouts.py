"""Rollouts: the loop itself, run for many questions and their groups at once, every turn's tokens kept.

Each rollout is the loop of `reasoner.py` under the settings of a published system, so what is trained is what runs
later. A rollout waits where the loop asks for a chunk to be read; all that wait are decoded as one batch, and those
that end drop out of it. Chunks are compressed once a question, whatever the group's size.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from compmem.backbone import Backbone
from compmem.config import RecallConfig
from compmem.readers.latent import OVERHEAD, LatentPrompts
from compmem.readers.replies import spoken, understand
from compmem.reasoner import Gathered, Read, gather
from compmem.schema import KVStates, MemoryBlock, Reading, WorkingMemory
from compmem.training.rollouts.evidence import Evidence, Labels
from compmem.training.rollouts.questions import Context
from compmem.training.rollouts.rewards import well_formed
from compmem.training.rollouts.trajectory import Step, Trajectory, Turn
from compmem.training.running.device import precision

System = Literal["gru-mem", "lychee"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RolloutSettings:
    """How rollouts are made.

    Raises:
        ValueError: A value is out of its range.
    """

    system: System = "gru-mem"
    """A scan in document order whose replies have an update gate (and an exit gate), or overwrite the memory."""
    exit_gate: bool = True
    """Stop where the reply says so (2602.10560, with and without)."""
    group: int = 8
    """Rollouts of one question."""
    temperature: float = 1.0
    memory_tokens: int = 1024
    """Most tokens of working memory."""
    overhead: int = OVERHEAD
    """Tokens of a structured reply beside the memory."""
    answer_tokens: int = 512
    """Most tokens of an answer."""
    labels: Labels = "any"
    """Which chunks count as evidence: all that hold any, or those whose turn has come."""

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
    def gates(self) -> bool:
        """Whether replies are structured."""
        return self.system == "gru-mem"

    @property
    def recall(self) -> RecallConfig:
        """The loop's settings."""
        if self.gates:
            return RecallConfig.gru_mem(exit_gate=self.exit_gate, memory_tokens=self.memory_tokens)
        return RecallConfig.lychee(gate=False, memory_tokens=self.memory_tokens)


class Rollouts:
    """Makes rollouts with a backbone's present weights, without gradients.

    Args:
        backbone: The policy.
        settings: How.
        prompts: What it is told.
        ratio: Compression ratio.
    """

    def __init__(self, backbone: Backbone, settings: RolloutSettings, prompts: LatentPrompts, ratio: int) -> None:
        self.backbone = backbone
        self.settings = settings
        self.nothing = prompts.nothing
        self._ratio = ratio
        self._step = backbone.prompt(prompts.update if settings.gates else prompts.overwrite)
        self._answer = backbone.prompt(prompts.answer)
        end = backbone.tokenizer.eos_token_id
        self._ends = backbone.end_ids if end is None else (int(end),)

    def run(self, contexts: Sequence[Context], seeds: Sequence[Sequence[int]]) -> list[list[Trajectory]]:
        """The trajectories of each question's group, one for each of its seeds.

        Raises:
            ValueError: A step is larger than the model's context.
            MemoryError: One step alone does not fit on the device.
        """
        with torch.no_grad(), precision(self.backbone):
            rollouts = [
                _Rollout(context, states, seed, self)
                for context, states, own in zip(contexts, self._compressed(contexts), seeds, strict=True)
                for seed in own
            ]
            while waiting := [rollout for rollout in rollouts if rollout.asked is not None]:
                self._read(waiting)
            self._conclude([rollout for rollout in rollouts if rollout.memory.text.strip()])
        made = iter(rollouts)
        return [[next(made).trajectory() for _ in own] for own in seeds]

    def _compressed(self, contexts: Sequence[Context]) -> list[list[KVStates]]:
        """The memory of every chunk; each different one is compressed once."""
        distinct = list(dict.fromkeys(tuple(ids) for context in contexts for ids in context.ids))
        states = dict(zip(distinct, self.backbone.compress(distinct, ratio=self._ratio), strict=True))
        return [[states[tuple(ids)] for ids in context.ids] for context in contexts]

    def _read(self, rollouts: Sequence["_Rollout"]) -> None:
        """One step of every rollout that waits for one."""
        settings = self.settings
        prompts = [self._step.fill(**self._gaps(rollout, rollout.wanted.memory)) for rollout in rollouts]
        turns = self._written(
            rollouts, prompts,
            blocks=[[r.states[r.number]] for r in rollouts],
            most=settings.memory_tokens + settings.overhead if settings.gates else settings.memory_tokens,
            stop=("</next>",) if settings.gates else (),
        )  # fmt: skip
        for rollout, (turn, ended) in zip(rollouts, turns, strict=True):
            rollout.take(turn, self.backbone.decode(turn.reply), ended)

    def _conclude(self, rollouts: Sequence["_Rollout"]) -> None:
        """The answer of every rollout that has notes to answer from."""
        if not rollouts:
            return
        prompts = [self._answer.fill(**self._gaps(rollout, rollout.memory)) for rollout in rollouts]
        turns = self._written(rollouts, prompts, blocks=None, most=self.settings.answer_tokens, stop=())
        for rollout, (turn, ended) in zip(rollouts, turns, strict=True):
            rollout.conclude(turn, spoken(self.backbone.decode(turn.reply)), ended)

    def _gaps(self, rollout: "_Rollout", memory: WorkingMemory) -> dict[str, list[int]]:
        encode = self.backbone.encode
        notes = encode(memory.text if memory.text.strip() else self.nothing)
        return {"question": rollout.question, "memory": notes}

    def _written(
        self,
        rollouts: Sequence["_Rollout"],
        prompts: Sequence[Sequence[int]],
        *,
        blocks: Sequence[Sequence[KVStates]] | None,
        most: int,
        stop: tuple[str, ...],
    ) -> Iterator[tuple[Turn, bool]]:
        """The reply to each prompt, and whether it came to its end."""
        room = [
            self.backbone.context - len(prompt) - (blocks[row][0].keys.shape[2] if blocks else 0)
            for row, prompt in enumerate(prompts)
        ]
        # Where there is no room at all the backbone refuses, and says why.
        most = max(1, min(most, *room))
        replies = self.backbone.generate(
            prompts, blocks, max_new_tokens=most, stop_ids=self._ends, stop_strings=stop,
            temperature=self.settings.temperature, seeds=[rollout.draw() for rollout in rollouts],
        )  # fmt: skip
        for row, (rollout, prompt, reply) in enumerate(zip(rollouts, prompts, replies, strict=True)):
            said = self.backbone.decode(reply)
            stopped = any(mark in said for mark in stop)
            ended = stopped or len(reply) < most
            # Ending is an action as well: the policy is to learn when.
            drawn = reply if stopped or not ended else [*reply, self._ends[0]]
            chunk = rollout.context.ids[rollout.number] if blocks else ()
            assert blocks is None or blocks[row], "a step reads a chunk"
            yield Turn(prompt=prompt, reply=drawn, chunk=chunk), ended


def check_whole() -> None:
    """Refuse sharded weights: rollouts run between the steps, where a process has no more than its shard.

    Raises:
        ValueError: The run was launched with FSDP.
    """
    from accelerate.state import AcceleratorState

    if str(AcceleratorState().distributed_type) == "DistributedType.FSDP":
        raise ValueError("rollouts need whole weights on every process: launch without FSDP, and train adapters")


def drawn_seeds(seed: int, number: int, count: int) -> list[int]:
    """Seeds for so many rollouts of the question of a number."""
    return [int(s) for s in np.random.default_rng((seed, number, 1)).integers(1 << 62, size=count)]


class _Rollout:
    """One run of the loop, waiting for a chunk to be read or at its end."""

    def __init__(self, context: Context, states: Sequence[KVStates], seed: int, rollouts: Rollouts) -> None:
        self.context = context
        self.states = states
        self.question = rollouts.backbone.encode(context.sample.question)
        self.memory = WorkingMemory()
        self.asked: Read | None = None
        self.number = -1
        self._settings = rollouts.settings
        self._rng = np.random.default_rng(seed)
        self._evidence = Evidence(context.sample, context.chunks, rollouts.settings.labels)
        self._open = self._evidence.all
        self._steps: list[Step] = []
        self._last: tuple[str, Turn | None, bool] = ("", None, True)
        self._loop = gather(_Scan(context, rollouts.backbone), rollouts.settings.recall, 0.0)
        self._advance(None)

    @property
    def wanted(self) -> Read:
        """What the loop waits for."""
        assert self.asked is not None, "only those that wait are read"
        return self.asked

    def draw(self) -> int:
        """A seed for the next turn."""
        return int(self._rng.integers(1 << 62))

    def take(self, turn: Turn, text: str, ended: bool) -> None:
        """Hand the loop its reply, and keep the step."""
        before = self.wanted.memory
        reply = understand(text, structured=self._settings.gates)
        check = reply is not None and reply.check
        formed = reply is not None and (not self._settings.gates or well_formed(text))
        evidence = self._evidence.supports(self.number, self._open)
        if check:
            self._open = self._evidence.open_after(self.number, self._open)
        self._steps.append(
            Step(
                evidence=evidence, check=check, formed=formed and ended, memory=before.text, number=self.number,
                turn=turn,
            )
        )  # fmt: skip
        if reply is None:
            self._advance(Reading(memory=before, update=False, exit=False))
            return
        notes = WorkingMemory(text=reply.update) if reply.update else before
        self._advance(Reading(memory=notes, update=reply.check, exit=reply.end))

    def conclude(self, turn: Turn, answer: str, ended: bool) -> None:
        """Keep the answer."""
        self._last = (answer.strip(), turn, ended and bool(answer.strip()))

    def trajectory(self) -> Trajectory:
        """What came of it."""
        answer, turn, formed = self._last
        order = range(len(self.context.chunks))
        return Trajectory(
            steps=tuple(self._steps),
            enough=self._evidence.enough(order, [step.check for step in self._steps]),
            answer=answer,
            found=bool(self.memory.text.strip()),
            formed=formed,
            turn=turn,
        )

    def _advance(self, reading: Reading | None) -> None:
        """Run the loop until it wants something read, or to its end."""
        try:
            asked = self._loop.send(reading)
            while not isinstance(asked, Read):
                asked = self._loop.send(None)
        except StopIteration as end:
            gathered: Gathered = end.value
            self.memory, self.asked = gathered.memory, None
            return
        self.asked = asked
        self.number += 1


@dataclass(frozen=True, slots=True)
class _Scan:
    """A context as the loop sees it: every chunk, in document order."""

    context: Context
    backbone: Backbone

    def propose(self, memory: str) -> list[int]:
        return list(range(len(self.context.chunks)))

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        return [1.0] * len(blocks)

    def fetch(self, blocks: Sequence[int]) -> list[MemoryBlock]:
        return [MemoryBlock(chunk=self.context.chunks[n]) for n in blocks]

    def count_tokens(self, text: str) -> int:
        return len(self.backbone.encode(text))
