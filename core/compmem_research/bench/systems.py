"""The measured systems: settings of the same loop, each with the memory that it reads.

A system is named `SYSTEM` or `SYSTEM:READER`. Without a language model the extractive reader is used, so that retrieval
can be compared on any CPU; with one, `:chat` and `:latent` are the systems as published.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from compmem.config import LoopConfig

Layout = Literal["passages", "chunks"]
"""Layouts of blocks: a passage of at most 256 tokens with its title, or 4096 tokens of one joined text."""

Ranking = Literal["loop", "dense", "bm25", "fused", "micro"]
"""The order of blocks: the loop's own candidates and gate, or a fixed ranking by the question alone."""

ReaderKind = Literal["extractive", "chat", "latent"]

EVERYTHING = 1 << 30
"""A number of blocks or tokens larger than any context."""

RECALLED = 8
"""Blocks that one-shot RAG reads, and the cutoff of recall (2602.08382, table 3)."""

TRUNCATED = 32_768
"""Tokens of the truncated context: its beginning and its end, half each (2507.02259 removes the middle)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class System:
    """A measured system."""

    name: str
    about: str
    config: LoopConfig
    layout: Layout = "passages"
    ranking: Ranking = "loop"
    keeps: bool = True
    """It keeps its memory between questions; otherwise it reads the text again for each question."""
    scans: bool = False
    """Its steps grow with the context; for long contexts, a sample of them is timed."""
    direct: bool = False
    """A language model is called once, for the answer, with all blocks in the prompt; it takes no notes."""
    most_tokens: int | None = None
    """Tokens of the context that it sees."""
    readers: tuple[ReaderKind, ...] = ("extractive", "chat")


@dataclass(frozen=True, slots=True)
class SystemRun:
    """A system with a reader."""

    system: System
    reader: ReaderKind

    @property
    def name(self) -> str:
        """Its name on the command line and in results."""
        return self.system.name if self.reader == "extractive" else f"{self.system.name}:{self.reader}"


def _scan(name: str, about: str, config: LoopConfig, **settings: Any) -> System:
    return System(name=name, about=about, config=config, layout="chunks", scans=True, **settings)


_WHOLE = LoopConfig.memagent(blocks_per_step=EVERYTHING, memory_tokens=EVERYTHING, writer_blocks=EVERYTHING)
_RAG = LoopConfig.rag(RECALLED, memory_tokens=EVERYTHING, writer_blocks=RECALLED)
_OURS = LoopConfig()
_ALL: tuple[ReaderKind, ...] = ("extractive", "chat", "latent")
_LATENT: tuple[ReaderKind, ...] = ("extractive", "latent")

ONCE = "compmem-once"
"""The loop without a model's notes; it needs a model to write the answer."""

SYSTEMS = {s.name: s for s in (
    _scan("full-context", "everything read at once", _WHOLE, keeps=False, direct=True),
    System(
        name="truncation", about=f"the first and last {TRUNCATED // 2} tokens read at once", config=_WHOLE,
        layout="chunks", keeps=False, direct=True, most_tokens=TRUNCATED,
    ),
    System(name="rag-bm25", about="BM25, 8 passages read at once", config=_RAG, ranking="bm25", direct=True),
    System(name="rag-dense", about="nearest 8 passages read at once", config=_RAG, ranking="dense", direct=True),
    System(name="rag-fused", about="both by reciprocal rank", config=_RAG, ranking="fused", direct=True, readers=_ALL),
    _scan("memagent", "MemAgent: every chunk in order, memory overwritten", LoopConfig.memagent(), keeps=False),
    _scan("gru-mem", "GRU-Mem with its exit gate", LoopConfig.gru_mem(), keeps=False),
    _scan("gru-mem-no-exit", "GRU-Mem to the end", LoopConfig.gru_mem(exit_gate=False), keeps=False),
    _scan("lychee", "LycheeMemory: every chunk gated at 0.5, in order", LoopConfig.lychee(), readers=_LATENT),
    _scan("lychee-no-gate", "LycheeMemory: every block read", LoopConfig.lychee(gate=False), readers=_LATENT),
    System(name="compmem", about="CompMem at its defaults", config=_OURS, readers=_ALL),
    System(
        name=ONCE, about="the loop quotes, a model answers from 8 recalled passages",
        config=_OURS.replace(writer_blocks=RECALLED), direct=True, readers=("chat", "latent"),
    ),
    System(
        name="compmem-no-backtracking", about="rejected blocks stay rejected", config=_OURS.replace(backtrack=False)
    ),
    System(name="compmem-no-links", about="no candidates by name", config=_OURS.replace(links=False)),
    System(name="compmem-no-update-gate", about="every step updates", config=_OURS.replace(update_gate=False)),
    System(name="compmem-no-exit-gate", about="reads on to the end", config=_OURS.replace(exit_gate=False)),
    System(name="compmem-one-pass", about="one step", config=_OURS.replace(max_steps=1)),
    System(name="compmem-question-gate", about="a gate blind to the memory", config=_OURS.replace(gate="question")),
    System(name="chunks-dense", about="whole chunks by their vectors", config=_RAG, layout="chunks", ranking="dense"),
    System(
        name="chunks-sentences", about="chunks by their nearest sentence", config=_RAG, layout="chunks", ranking="micro"
    ),
    System(name="chunks-bm25", about="chunks by BM25", config=_RAG, layout="chunks", ranking="bm25"),
    System(
        name="chunks-question-gate", about="the gate without a working memory",
        config=_OURS.replace(gate="question", max_steps=1, requery=False), layout="chunks",
    ),
    System(name="chunks-loop", about="gate and loop over chunks", config=_OURS, layout="chunks", readers=_ALL),
)}  # fmt: skip
"""Every system by its name."""

BASELINES = (
    "full-context", "truncation", "rag-bm25", "rag-dense", "rag-fused", "memagent", "gru-mem", "gru-mem-no-exit",
    "lychee", "lychee-no-gate",
)  # fmt: skip
ABLATIONS = (
    "compmem-no-backtracking", "compmem-no-links", "compmem-no-update-gate", "compmem-no-exit-gate",
    "compmem-one-pass", "compmem-question-gate",
)  # fmt: skip
CHUNKS = ("chunks-dense", "chunks-sentences", "chunks-bm25", "chunks-question-gate", "chunks-loop")


def system_run(name: str) -> SystemRun:
    """The system of that name with its reader.

    Raises:
        ValueError: The system is unknown, or does not have this reader.
    """
    base, _, reader = name.partition(":")
    if base not in SYSTEMS:
        raise ValueError(f"unknown system {name!r}: there are {', '.join(SYSTEMS)}")
    kinds = {kind: kind for kind in SYSTEMS[base].readers}
    wanted = reader or "extractive"
    if wanted not in kinds:
        raise ValueError(f"unknown system {name!r}: {base} has the readers {', '.join(kinds)}")
    return SystemRun(system=SYSTEMS[base], reader=next(k for k in kinds if k == wanted))


def with_readers(names: Sequence[str]) -> list[str]:
    """These systems, each with every reader it has; a system named with its reader is unchanged."""
    return [
        e for n in names for e in ([n] if ":" in n else [SystemRun(SYSTEMS[n], r).name for r in SYSTEMS[n].readers])
    ]
