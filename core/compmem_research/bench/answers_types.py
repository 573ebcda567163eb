"""What the systems of the comparison share: their settings, their replies and chunks as text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compmem.index import MemoryIndex
from compmem.readers import ChatPrompts, ChatReader
from compmem.schema import Chunk
from compmem_research.bench.answers_model import MeteredChat


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemReply:
    """A system's answer, and the passages in the model's prompt."""

    text: str
    context: tuple[str, ...] = ()
    rounds: int = 0
    """Requests of the model for missing facts."""


System = Callable[[str], SystemReply]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """Settings that all systems share."""

    index: MemoryIndex
    chat: MeteredChat
    k: int = 5
    """Passages that the model sees."""
    instruction: str = ""
    """Asks for short answers: the same text after the question in every system's prompt, but in no search query."""
    max_tokens: int = 64
    """Most tokens of a reply."""
    context_window: int = 4096
    """Context window of the model in tokens."""

    def asked(self, question: str) -> str:
        """The question with the instruction, for the model."""
        return f"{question} {self.instruction}".strip()

    def reader(self, *, cite: bool = False) -> ChatReader:
        """Our reader, with the default prompts and the instruction."""
        words = f" {self.instruction}".rstrip().replace("{", "{{").replace("}", "}}")
        plain = ChatPrompts()
        told = {
            name: getattr(plain, name).replace("{question}", "{question}" + words) for name in ("from_blocks", "answer")
        }
        limit = self.context_window - self.max_tokens
        return ChatReader(self.chat, prompts=replace(plain, **told), prompt_tokens=limit, cite=cite)


def texts(chunks: Sequence[Chunk]) -> tuple[str, ...]:
    """Chunks as text, each with its title."""
    return tuple(f"{chunk.title}\n{chunk.text}" for chunk in chunks)
