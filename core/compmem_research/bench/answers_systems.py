"""Systems that answer a question over a corpus with the same chat model: CompMem, and plain retrieval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from compmem.config import RecallConfig, SearchMethod
from compmem.index import MemoryIndex
from compmem.readers import ChatPrompts, ChatReader
from compmem.schema import Chunk, MemoryBlock, WorkingMemory
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


def nothing(setup: Setup) -> System:
    """The model alone, without passages."""
    return lambda question: SystemReply(text=setup.chat([{"role": "user", "content": setup.asked(question)}]))


def searched(setup: Setup, method: SearchMethod) -> System:
    """One search and one call with our prompt."""
    reader = setup.reader()

    def system(question: str) -> SystemReply:
        chunks = [r.chunk for r in setup.index.search(question, setup.k, method=method)]
        memory = WorkingMemory(blocks=tuple(MemoryBlock(chunk=c) for c in chunks))
        text = "".join(piece for piece in reader.write(question, memory) if isinstance(piece, str))
        return SystemReply(text=text, context=texts(chunks))

    return system


def looped(setup: Setup, config: RecallConfig) -> System:
    """The loop; the settings decide how the model is used."""
    config, chat = config.replace(writer_blocks=setup.k), setup.reader(cite=config.cite)

    def system(question: str) -> SystemReply:
        answer = setup.index.answer(question, config, chat=chat)
        return SystemReply(
            text=answer.text, context=texts([s.chunk for s in answer.sources]), rounds=answer.usage.rounds
        )

    return system


def texts(chunks: Sequence[Chunk]) -> tuple[str, ...]:
    """Chunks as text, each with its title."""
    return tuple(f"{chunk.title}\n{chunk.text}" for chunk in chunks)


def _llamaindex(setup: Setup) -> System:
    from compmem_research.bench.stock_llama_index import query_engine

    return query_engine(setup)


def _langchain(setup: Setup) -> System:
    from compmem_research.bench.stock_langchain import chain

    return chain(setup)


SYSTEMS: Final[dict[str, Callable[[Setup], System]]] = {
    "none": nothing,
    "llamaindex": _llamaindex,
    "langchain": _langchain,
    "bm25": lambda setup: searched(setup, "bm25"),
    "fused": lambda setup: searched(setup, "hybrid"),
    "loop": lambda setup: looped(setup, RecallConfig()),
    "loop-cite": lambda setup: looped(setup, RecallConfig(cite=True)),
    "loop-ask": lambda setup: looped(setup, RecallConfig(rounds=1)),
    "steps": lambda setup: looped(setup, RecallConfig(reader="chat")),
}
"""No context; the frameworks' plain RAG; BM25 and fused search with our prompt; the loop and one call; the same
with citations; the loop with requests for missing facts; the model in every step of the loop."""

BASELINES: Final = ("llamaindex", "langchain")
"""The baselines."""
