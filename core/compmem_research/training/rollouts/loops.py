"""The loops of many questions, run together.

Each is the loop of `compmem.loop` and waits when it requests to read blocks. The replies for all waiting loops are
generated as one batch; finished loops leave it. Rollouts and evaluation both use this, so training and measurements
match the real loop.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from compmem.backbone import Backbone
from compmem.config import LoopConfig
from compmem.gate import BackboneGate
from compmem.loop.loop import LoopResult, Outcome, ReadRequest, ScoreRequest, recall_loop
from compmem.readers import Reply, StepPrompts, parse_step_reply, without_thinking
from compmem.schema import Chunk, KVStates, MemoryBlock, Reading, Step, WorkingMemory
from compmem_research.training.engine.device import precision


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledReply:
    """The reply to one prompt."""

    memory: WorkingMemory = field(default_factory=WorkingMemory)
    """The working memory in the prompt."""
    prompt: Sequence[int]
    ids: Sequence[int]
    """The sampled tokens, with the end token if there is one."""
    text: str
    ended: bool
    """Whether the reply is complete."""
    reply: Reply | None = None
    """The parsed reply of a step."""


class Loop:
    """One question's loop over its own blocks: not started, waiting for a read, or finished.

    Args:
        backbone: Its gate scores the blocks, if it has one and the settings use it; otherwise all are accepted.
        question: What is asked.
        chunks: The chunks of all blocks.
        states: The KV states of all blocks.
        config: The loop's settings.
        threshold: Blocks with a lower score are rejected. None: the gate's own.
        seed: Seed for sampling.

    Attributes:
        request: The request that it waits for.
        steps: Its steps so far.
        memory: The working memory at the end.
        answer: The answer; None if there was nothing to answer from.
    """

    def __init__(
        self, backbone: Backbone, question: str, chunks: Sequence[Chunk], states: Sequence[KVStates],
        config: LoopConfig, *, threshold: float | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.question = question
        self.request: ReadRequest | ScoreRequest | None = None
        self.steps: list[SampledReply] = []
        self.memory = WorkingMemory()
        self.answer: SampledReply | None = None
        self.rng = np.random.default_rng(seed)
        gate = (
            BackboneGate(backbone, question) if backbone.has_gate and config.gate in ("learned", "question") else None
        )
        limit = threshold if threshold is not None else gate.threshold if gate else 0.0
        self._loop = recall_loop(
            _BlockContext(backbone, gate, chunks, states, blind=config.gate == "question"),
            config, limit if gate else 0.0, can_score=True,
        )  # fmt: skip

    @property
    def text(self) -> str:
        """The answer's text; empty if there is none."""
        return without_thinking(self.answer.text).strip() if self.answer else ""

    def record(self, written: SampledReply) -> None:
        """Record a step and continue with its parsed reply; if invalid, with the same memory and closed gates."""
        self.steps.append(written)
        before, reply = written.memory, written.reply
        if reply is None:
            self.advance(Reading(memory=before, update=False, exit=False))
            return
        notes = WorkingMemory(text=reply.update) if reply.update else before
        self.advance(Reading(memory=notes, update=reply.check, exit=reply.end))

    def advance(self, reading: Reading | Outcome = None) -> None:
        """Run until it requests a read or scores, or to its end."""
        try:
            asked = self._loop.send(reading)
            while isinstance(asked, Step):
                asked = self._loop.send(None)
        except StopIteration as end:
            result: LoopResult = end.value
            self.request, self.memory = None, result.memory
            return
        self.request = asked


@dataclass(frozen=True, slots=True)
class _BlockContext:
    """Blocks in memory, as the loop sees them; without a gate every block is accepted."""

    backbone: Backbone
    gate: BackboneGate | None
    chunks: Sequence[Chunk]
    states: Sequence[KVStates]
    blind: bool = False
    """The gate does not see the working memory."""

    def propose(self, memory: str) -> list[int]:
        return list(range(len(self.chunks)))

    def score(self, memory: str, blocks: Sequence[int]) -> list[float]:
        if self.gate is None or not blocks:
            return [1.0] * len(blocks)
        return self.gate.probabilities("" if self.blind else memory, [self.states[n] for n in blocks])

    def subjects(self, blocks: Sequence[int]) -> list[str]:
        return [self.chunks[n].document_id for n in blocks]

    def lacks_words(self, memory: WorkingMemory) -> bool:
        return False

    def linked(self, memory: WorkingMemory) -> list[int]:
        return []

    def fetch(self, blocks: Sequence[int]) -> list[MemoryBlock]:
        return [MemoryBlock(chunk=self.chunks[n], kv=self.states[n]) for n in blocks]

    def count_tokens(self, text: str) -> int:
        return len(self.backbone.encode(text))

    @property
    def needs_requery(self) -> bool:
        return True

    @property
    def answerable(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True, slots=True)
class Loops:
    """Runs loops with a backbone's current weights, without gradients."""

    prompts: StepPrompts
    """The prompts."""
    step_tokens: int
    """Most tokens of a step's reply."""
    answer_tokens: int
    ends: Sequence[int]
    """Ids that end a reply."""
    temperature: float = 0.0
    """0 takes the most likely token."""

    def run(self, loops: Sequence[Loop]) -> None:
        """Run loops from the beginning to their answers.

        Raises:
            ValueError: A step is longer than the model's context.
            MemoryError: A single step does not fit on the device.
        """
        with torch.no_grad(), precision(self.prompts.backbone):
            for loop in loops:
                loop.advance()
            while any(loop.request is not None for loop in loops):
                for loop in loops:
                    if isinstance(loop.request, ScoreRequest):
                        memory, blocks = loop.request.memory.text, _states(loop.request.blocks)
                        loop.advance(self.prompts.score_blocks(loop.question, memory, blocks))
                waiting = [(loop, loop.request) for loop in loops if isinstance(loop.request, ReadRequest)]
                for loop, written in self._written(waiting):
                    loop.record(written)
            ends = [(loop, ReadRequest(loop.memory, ())) for loop in loops if loop.memory.text.strip()]
            for loop, written in self._written(ends):
                loop.answer = written

    def answers(
        self, questions: Sequence[str], blocks: Sequence[Sequence[KVStates]], seeds: Sequence[int]
    ) -> list[SampledReply]:
        """The answer to each question from all of its blocks, read at once without a loop.

        Raises:
            ValueError: An answer's prompt with its blocks is longer than the model's context.
            MemoryError: A single answer does not fit on the device.
        """
        prompts = [self.prompts.from_blocks(question) for question in questions]
        with torch.no_grad(), precision(self.prompts.backbone):
            return list(self._replies(prompts, blocks, self.answer_tokens, seeds, begun=[()] * len(prompts)))

    def _written(self, asked: Sequence[tuple[Loop, ReadRequest]]) -> Iterator[tuple[Loop, SampledReply]]:
        """A step of each loop after its blocks, or the answer if there are none."""
        if not asked:
            return
        structured = self.prompts.structured
        blocks = [_states(read.blocks) for _, read in asked]
        steps = any(blocks)
        fill, most = (self.prompts.step, self.step_tokens) if steps else (self.prompts.answer, self.answer_tokens)
        stop = ("</next>",) if steps and structured else ()
        begun = [self.prompts.helps if read.relevant else [] for _, read in asked]
        prompts = [
            [*fill(loop.question, read.memory.text), *start] for (loop, read), start in zip(asked, begun, strict=True)
        ]
        seeds = [int(loop.rng.integers(1 << 62)) for loop, _ in asked]
        made = self._replies(prompts, blocks if steps else None, most, seeds, begun=begun, stop=stop)
        for (loop, read), written in zip(asked, made, strict=True):
            reply = parse_step_reply(written.text, structured=structured) if steps else None
            yield loop, replace(written, memory=read.memory, reply=reply)

    def _replies(
        self, prompts: Sequence[Sequence[int]], blocks: Sequence[Sequence[KVStates]] | None, most: int,
        seeds: Sequence[int], *, begun: Sequence[Sequence[int]], stop: Sequence[str] = (),
    ) -> Iterator[SampledReply]:  # fmt: skip
        """The replies of at most this many tokens behind the blocks of each prompt, whose last tokens begin them."""
        backbone = self.prompts.backbone
        behind = [sum(b.slots for b in row) for row in blocks or [()] * len(prompts)]
        room = backbone.context - max(len(prompt) + size for prompt, size in zip(prompts, behind, strict=True))
        # If there is no space at all, the backbone raises the error.
        most = max(1, min(most, room))
        replies = backbone.generate(
            prompts, blocks, max_new_tokens=most, stop_ids=self.ends, stop_strings=stop, temperature=self.temperature,
            seeds=seeds,
        )  # fmt: skip
        for prompt, start, ids in zip(prompts, begun, replies, strict=True):
            text = backbone.decode([*start, *ids])
            stopped = any(mark in text for mark in stop)
            ended = stopped or len(ids) < most
            # Ending is an action too: the policy should learn when to end.
            drawn = [*ids, self.ends[0]] if ended and not stopped else ids
            yield SampledReply(prompt=prompt, ids=drawn, text=text, ended=ended)


def _states(blocks: Sequence[MemoryBlock]) -> list[KVStates]:
    return [block.kv for block in blocks if block.kv is not None]
