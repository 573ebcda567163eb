"""The latent reader: the backbone reads recalled blocks as KV states, writes the working memory and the answer.

The KV states of blocks precede the prompt as if the backbone had just read them; the prompt contains no text of blocks.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from functools import partial
from typing import Final

import torch

from compmem.backbone import Backbone, chunk_ids, fuse_blocks, stream_parallel
from compmem.config import KVFusion
from compmem.readers.answers import NOTHING_FOUND
from compmem.readers.latent_prompts import HELPS, LatentPrompts, StepPrompts
from compmem.readers.replies import ThinkingFilter, ends_untagged_thinking, parse_step_reply
from compmem.schema import KVStates, MemoryBlock, Reading, Usage, WorkingMemory
from compmem.threads import in_thread

OVERHEAD: Final = 256
"""Tokens of a structured reply besides the candidate memory: thoughts and tags."""


class LatentReader:
    """Reads blocks as KV states and writes with the backbone itself; needs KV memory.

    A malformed reply changes nothing and is counted in `Usage.malformed_replies`.

    Args:
        backbone: The backbone that compressed the blocks.
        prompts: The prompts. None: the checkpoint's own if it has a prompt file, else the default ones.
        structured: Ask for both gates. None: as in the prompts.
        memory_tokens: Maximum number of tokens of working memory that one step writes.
        answer_tokens: Maximum number of tokens of the answer.
        kv_fusion: How blocks that are read together see one another: see `LoopConfig`.
        full_chunk_tokens: Memory tokens of a full chunk, for checkpoints whose prompts always follow a full chunk's
            memory, even if a block is smaller. None: prompts directly follow the blocks.

    Raises:
        ValueError: A budget is below 1, or `kv_fusion` is given for memory tokens.
        CheckpointError: The checkpoint's prompt file cannot be used.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        prompts: LatentPrompts | None = None,
        structured: bool | None = None,
        memory_tokens: int = 1024,
        answer_tokens: int = 512,
        kv_fusion: KVFusion = "none",
        full_chunk_tokens: int | None = None,
    ) -> None:
        if memory_tokens < 1 or answer_tokens < 1:
            raise ValueError(f"memory_tokens={memory_tokens!r} and answer_tokens={answer_tokens!r} must be at least 1")
        if kv_fusion != "none" and backbone.memory.inserted:
            raise ValueError(f"kv_fusion={kv_fusion!r} cannot be used: memory tokens are no tokens of the text")
        self.backbone = backbone
        self.kv_fusion: KVFusion = kv_fusion
        self.prompts = prompts or LatentPrompts.from_backbone(backbone)
        self.structured = self.prompts.gates if structured is None else structured
        self.memory_tokens = memory_tokens
        self.answer_tokens = answer_tokens
        self._full_chunk_tokens = full_chunk_tokens
        self._turns = StepPrompts(backbone, self.prompts, structured=self.structured)
        self._thinks_untagged = False

    def read(
        self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], *, relevant: bool = False
    ) -> Reading:
        """The candidate memory and the two gates, after reading these blocks in one step.

        With `relevant`, the beginning of the reply is given: the blocks help. The backbone completes it.

        Raises:
            ValueError: A block has no KV states or those of another backbone, or the step is longer than the context.
            MemoryError: The step does not fit on the device.
        """
        states = self._fuse(question, blocks)
        prompt = self._turns.step(question, memory.text) + (self._turns.helps if relevant else [])
        start = self._prompt_start(states)
        max_tokens = self.memory_tokens + OVERHEAD if self.structured else self.memory_tokens
        with torch.inference_mode():
            most = self._available_tokens(prompt, states, start, max_tokens)
            ends = ("</next>",) if self.structured else ()
            if self._parallel(states):
                written = list(self._stream(prompt, states, most, ends))
            else:
                [written] = self.backbone.generate(
                    [prompt], [states], max_new_tokens=most, stop_strings=ends, stop_on_repetition=True, start=start
                )
        text = (HELPS if relevant else "") + self.backbone.decode(written)
        self._thinks_untagged = self._thinks_untagged or ends_untagged_thinking(text)
        reply = parse_step_reply(text, structured=self.structured)
        usage = _usage(prompt, written, malformed=reply is None)
        if reply is None:
            return Reading(memory=memory, update=False, exit=False, usage=usage)
        candidate = WorkingMemory(text=reply.update) if reply.update else memory
        return Reading(memory=candidate, update=reply.check, exit=reply.end, usage=usage)

    @property
    def can_score(self) -> bool:
        """Whether replies begin with whether a block helps: they have gates, and no thoughts before them."""
        return self._turns.can_score

    def score_blocks(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> list[float] | None:
        """Log-odds that each block, by itself, helps, before a reply is written.

        None if replies do not begin with that, or the context is full.

        Raises:
            ValueError: A block has no KV states or those of another backbone.
            MemoryError: A single block does not fit on the device.
        """
        states = [_states(block) for block in blocks]
        starts = (
            None if self._full_chunk_tokens is None else [max(self._full_chunk_tokens, one.slots) for one in states]
        )
        return self._turns.score_blocks(question, memory.text, states, starts=starts)

    async def aread(
        self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], *, relevant: bool = False
    ) -> Reading:
        """The same in a thread."""
        return await in_thread(partial(self.read, question, memory, blocks, relevant=relevant))

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Usage]:
        """The answer in pieces, and at the end its cost: from the memory's blocks if it has some, else from its text.

        If not all blocks fit in the context, the last ones are left out.

        Raises:
            ReaderError: The backbone gave an empty answer.
            ValueError: The prompt is longer than the context, or a block has no KV states or those of another backbone.
        """
        if memory.blocks:
            prompt = self._turns.from_blocks(question)
            states = self._fuse(question, self._fitting(memory.blocks, len(prompt)))
        elif memory.text.strip():
            prompt, states = self._turns.answer(question, memory.text), []
        else:
            yield from (NOTHING_FOUND, Usage())
            return
        start = self._prompt_start(states) if states else None
        most = self._available_tokens(prompt, states, start, self.answer_tokens)
        answer, written = ThinkingFilter(hold=self._thinks_untagged), list[int]()
        tokens = self._stream(prompt, states, most, start=start)
        for piece in _pieces(self.backbone, tokens, written):
            if text := answer.feed(piece):
                yield text
        if rest := answer.rest():
            yield rest
        yield _usage(prompt, written)

    async def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Usage]:
        """The same, each piece made in a thread."""
        pieces = self.write(question, memory)
        while (piece := await in_thread(next, pieces, None)) is not None:
            yield piece

    def _fitting(self, blocks: Sequence[MemoryBlock], prompt: int) -> Sequence[MemoryBlock]:
        """The first blocks that fit in the context together with a prompt and an answer; at least one."""
        room = self.backbone.context - prompt - self.answer_tokens
        while len(blocks) > 1 and self._size(blocks) > room:
            blocks = blocks[:-1]
        return blocks

    def _size(self, blocks: Sequence[MemoryBlock]) -> int:
        """Positions that blocks take; to be fused, those of their text."""
        states = [_states(block) for block in blocks]
        computed = self.kv_fusion not in ("none", "ape")
        text = sum(len(chunk_ids(self.backbone, block.chunk)) for block in blocks) if computed else 0
        return max(self._prompt_start(states) or _slots(states), text)

    def _parallel(self, states: Sequence[KVStates]) -> bool:
        return self.kv_fusion == "ape" and len(states) > 1

    def _stream(
        self, prompt: list[int], states: list[KVStates], most: int, ends: Sequence[str] = (), start: int | None = None
    ) -> Iterator[int]:
        if self._parallel(states):
            return stream_parallel(
                self.backbone, prompt, states, max_new_tokens=most, stop_strings=ends, stop_on_repetition=True
            )
        return self.backbone.stream(
            prompt, states, max_new_tokens=most, stop_strings=ends, stop_on_repetition=True, start=start
        )

    def _fuse(self, question: str, blocks: Sequence[MemoryBlock]) -> list[KVStates]:
        """The states of blocks that are read together."""
        states = [_states(block) for block in blocks]
        if self.kv_fusion in ("none", "ape"):
            return states
        texts = [chunk_ids(self.backbone, block.chunk) for block in blocks]
        with torch.inference_mode():
            return fuse_blocks(self.backbone, states, texts, self.backbone.encode(question), methods=(self.kv_fusion,))

    def _prompt_start(self, states: Sequence[KVStates]) -> int | None:
        if self._full_chunk_tokens is None:
            return None
        return max(self._full_chunk_tokens * len(states), _slots(states))

    def _available_tokens(
        self, prompt: Sequence[int], states: Sequence[KVStates], start: int | None, max_tokens: int
    ) -> int:
        """Tokens that may be written; 1 if the context is full, so that the backbone raises the error."""
        behind = _slots(states) if start is None else start
        return max(1, min(max_tokens, self.backbone.context - behind - len(prompt)))


def _slots(states: Sequence[KVStates]) -> int:
    return sum(s.slots for s in states)


def _states(block: MemoryBlock) -> KVStates:
    if block.kv is None:
        raise ValueError(
            f"block {block.chunk.id!r} has no KV states: the latent reader needs an index made with "
            "IndexConfig(memory='kv', backbone=...)"
        )
    return block.kv


def _pieces(backbone: Backbone, tokens: Iterator[int], written: list[int]) -> Iterator[str]:
    """The streamed text of tokens; a character made of several tokens comes with the last one."""
    passed = ""
    while True:
        # Entered for each token: a generator that waits in this mode would leave its caller in it.
        with torch.inference_mode():
            token = next(tokens, None)
        if token is None:
            break
        written.append(token)
        text = backbone.decode(written)
        if not text.endswith("\ufffd") and text.startswith(passed):
            yield text[len(passed) :]
            passed = text
    rest = backbone.decode(written)
    if len(rest) > len(passed):
        yield rest[len(passed) :]


def _usage(prompt: Sequence[int], written: Sequence[int], *, malformed: bool = False) -> Usage:
    return Usage(
        model_calls=1,
        prompt_tokens=len(prompt),
        completion_tokens=len(written),
        malformed_replies=int(malformed),
    )
