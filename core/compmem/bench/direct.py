"""What full context and one-shot RAG do with a language model: the texts go into the prompt of the answer."""

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import torch

from compmem.backbone import Backbone
from compmem.readers import ChatModel, ChatReader
from compmem.readers.chat import ChatPrompts
from compmem.schema import MemoryBlock, Message, Reading, Usage, WorkingMemory

PROMPTS: Final = ChatPrompts(
    answer="""\
<question>
{question}
</question>

Documents:
<memory>
{memory}
</memory>

Answer the question from these documents alone, as briefly as it allows: a name, a number or one sentence.
"""
)


class DirectReader:
    """Keeps the texts as they are, and asks the model once. A reader of the loop."""

    def __init__(self, chat: ChatModel) -> None:
        self._chat = ChatReader(chat, prompts=PROMPTS, memory_tokens=1 << 30)

    def read(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> Reading:
        """The memory with the blocks' titles and texts behind it."""
        texts = [memory.text] if memory.text else []
        texts += [f"{b.chunk.title}\n{b.chunk.text}".strip() for b in blocks]
        return Reading(memory=WorkingMemory(text="\n\n".join(texts)), update=True, exit=False)

    async def aread(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> Reading:
        """The same: it never waits for anything."""
        return self.read(question, memory, blocks)

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Usage]:
        """The model's answer, and last what it cost."""
        yield from self._chat.write(question, memory)

    async def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Usage]:
        """The same without blocking the event loop."""
        async for piece in self._chat.awrite(question, memory):
            yield piece


@dataclass(frozen=True, slots=True)
class BackboneChat:
    """A backbone as a chat model: raw text in one turn, without memory tokens and adapters."""

    backbone: Backbone
    most_tokens: int = 1280
    """Most tokens of a reply."""

    def __call__(self, messages: Sequence[Message]) -> str:
        """The reply.

        Raises:
            ValueError: The messages are larger than the backbone's context.
        """
        said = self.backbone.encode("\n\n".join(m["content"] for m in messages))
        prompt = self.backbone.prompt("{text}").fill(text=said)
        room = max(1, min(self.most_tokens, self.backbone.context - len(prompt)))
        with torch.inference_mode():
            [written] = self.backbone.generate([prompt], max_new_tokens=room, role=None)
        return self.backbone.decode(written)
