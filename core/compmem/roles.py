"""Who reads and who writes for one question, and the loop in which they take part."""

from collections.abc import Callable
from typing import Any

from compmem.config import IndexConfig, RecallConfig
from compmem.models import Models
from compmem.question import QuestionBench
from compmem.readers import Apart, ChatReader, ExtractiveReader, LatentReader
from compmem.reasoner import Bench, Loop, gather
from compmem.schema import Reader, WeighingReader


def suited(config: RecallConfig, index: IndexConfig, models: Models) -> RecallConfig:
    """The settings with reader and writer named; a backbone that was not trained for the loop only writes."""
    reader, writer = config.parts(index)
    chosen = config.reader is None and config.writer is None
    if chosen and reader == "latent" and index.encoder is not None and not models.backbone.memory.trained:
        reader, writer = "extractive", "latent"
    return config.but(reader=reader, writer=writer)


def reader_of(
    config: RecallConfig, index: IndexConfig, models: Models, bench: QuestionBench, *, writes: bool = True
) -> Reader:
    """What reads and, where an answer is written, writes, as the settings name it.

    Raises:
        ValueError: The backbone is asked for, and the index holds dense memory; or the chat model, and there is none.
    """

    def part(named: Any) -> Any:
        """The reader or writer of that name; what is no name is one itself."""
        if named == "extractive":
            return ExtractiveReader(bench.viewer)
        if named == "chat":
            if config.chat is None:
                raise ValueError("reader='chat' and writer='chat' need chat=, a callable from messages to text")
            chat: Any = config.chat
            if isinstance(chat, ChatReader):
                return chat
            gated = config.update_gate or config.exit_gate
            return ChatReader(
                config.chat,
                structured=gated,
                memory_tokens=config.memory_tokens,
                prompt_tokens=config.prompt_tokens,
            )
        if named == "latent":
            if index.memory != "kv":
                raise ValueError(
                    "'latent' reads KV states, and this index holds dense memory: make one with "
                    "IndexConfig(memory='kv', backbone=...), or let 'extractive' or 'chat' read and write"
                )
            # Both gates off is a memory that each step overwrites (MemAgent): nothing is asked for beside it.
            structured = None if config.update_gate or config.exit_gate else False
            return LatentReader(
                models.backbone, structured=structured, memory_tokens=config.memory_tokens, whole=models.whole
            )
        return named

    reads, writer = config.parts(index)
    reader: Reader = part(reads)
    return reader if writer is None or not writes else Apart(reader, part(writer))


FALLBACK = 4
"""Blocks that a language model reads in one step where the gate turned all down: it judges for itself."""


def loop_of(
    bench: Bench,
    config: RecallConfig,
    threshold: float,
    reader: Reader,
    *,
    writes: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Loop:
    """The loop over one question, as its reader can take part in it; a writer sees blocks only where one `writes`."""
    weighs = isinstance(reader, WeighingReader) and reader.weighs
    shown = config.shown if writes and config.writer is not None else 0
    fallback = FALLBACK if isinstance(reader, ChatReader | LatentReader) else 0
    return gather(
        bench, config, threshold, weighs=weighs, shown=shown, fallback=fallback,
        refuses=isinstance(reader, ExtractiveReader), writes=writes, cancelled=cancelled,
    )  # fmt: skip
