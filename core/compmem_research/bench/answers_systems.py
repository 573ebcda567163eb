"""Systems that answer a question over a corpus with the same chat model: CompMem, and plain retrieval."""

from collections.abc import Callable
from typing import Final

from compmem.config import RecallConfig, SearchMethod
from compmem.schema import MemoryBlock, WorkingMemory
from compmem_research.bench.answers_types import Setup, System, SystemReply, texts


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
