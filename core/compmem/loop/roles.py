"""Who reads and who writes for one question, and the loop for them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

from compmem.config import IndexConfig, LoopConfig, RecallConfig
from compmem.index_models import IndexModels
from compmem.loop.context import QuestionContext
from compmem.loop.loop import Loop, LoopContext, recall_loop
from compmem.reader_proxy import ReaderProxy
from compmem.readers import ChatReader, ExtractiveReader, LatentReader, ReaderWithWriter
from compmem.schema import Reader, ReaderName, ScoringReader, Writer, WriterName

FALLBACK_BLOCKS = 4
"""Blocks that a language model reads in one step if the gate rejected all, so that it can judge itself. The extractive
reader then reads the best one before it answers, unless the gate finds that nothing answers, or a threshold is set."""


@dataclass(frozen=True, slots=True)
class Roles:
    """Who reads and who writes: a name, or the object itself."""

    reader: ReaderName | Reader
    writer: WriterName | Writer | None
    """None: the reader writes."""
    chat: Any = None
    """The chat model, if it reads or writes."""

    @property
    def quotes(self) -> bool:
        """Whether the answer is made of quoted sentences."""
        return self.reader == "extractive" and self.writer is None

    @property
    def local(self) -> bool:
        """Whether the reader works in this process and never waits."""
        return self.reader in ("extractive", "latent")


def resolve_roles(
    config: RecallConfig,
    index: IndexConfig,
    trained: Callable[[], bool],
    *,
    writes: bool = True,
    chat: Any = None,
    reader: ReaderName | Reader | None = None,
    writer: WriterName | Writer | None = None,
) -> Roles:
    """Who reads and who writes, from the settings, the index and the given models.

    If neither reader nor writer is named, the extractive reader reads, and a given chat model writes once. The chat
    model reads in every step if blocks are read in document order, or if the index has no vectors to select quotes
    with. Without a chat model, the backbone of KV memory reads and writes if it was trained for the loop; otherwise
    it only writes.

    Args:
        config: The settings, with names.
        index: The settings of the index.
        trained: Whether the backbone was trained for the loop; called only if that matters.
        writes: An answer is written.
        chat: A chat model, or a `ChatReader`.
        reader: Who reads, if the settings name none.
        writer: Who writes, if the settings name none.

    Raises:
        ValueError: A role is given twice, its model is missing, or the chat model is given but not used.
        TypeError: What is given as reader or writer can do neither.
    """
    _check_role("reader", config.reader, reader, "read", get_args(ReaderName))
    _check_role("writer", config.writer, writer, "write", get_args(WriterName))
    reads = config.reader if reader is None else reader
    answers = config.writer if writer is None else writer
    if not writes and chat is None:  # recall needs no model: one that is named and not given is none
        reads, answers = None if reads == "chat" else reads, None if answers == "chat" else answers
    if reads is None and answers is None:
        reads, answers = _default_roles(LoopConfig.complete(config), index, trained, chat=chat is not None)
    reads = "extractive" if reads is None else reads
    if chat is not None and "chat" not in (reads, answers):
        raise ValueError(f"chat= is for reader='chat' or writer='chat', not reader={reads!r} with writer={answers!r}")
    answers = answers if writes else None
    if writes and answers is None and not (isinstance(reads, str) or _can(reads, "write")):
        raise TypeError(f"reader={type(reads).__name__} has no write(), so it cannot answer alone: give writer= too")
    if chat is None and "chat" in (reads, answers):
        raise ValueError("reader='chat' and writer='chat' need chat=, a callable from messages to text")
    if "latent" in (reads, answers) and index.memory != "kv":
        raise ValueError(
            "'latent' reads KV states, and this index has dense memory: make one with "
            "IndexConfig(memory='kv', backbone=...), or let 'extractive' or 'chat' read and write"
        )
    return Roles(reads, answers, chat)


def _check_role(role: str, named: str | None, model: object, method: str, names: tuple[str, ...]) -> None:
    if named is not None and model is not None:
        raise ValueError(f"give {role}= or RecallConfig({role}=...), not both")
    if model is not None and model not in names and not _can(model, method):
        raise TypeError(
            f"{role}= takes an object with {method}(), or one of {', '.join(names)}, not "
            f"{type(model).__name__}: give a chat model as chat="
        )


def _can(model: object, method: str) -> bool:
    return hasattr(model, method) or hasattr(model, f"a{method}")


def _default_roles(
    config: LoopConfig, index: IndexConfig, trained: Callable[[], bool], *, chat: bool
) -> tuple[ReaderName, WriterName | None]:
    if chat:
        by_chat = config.order == "document" or index.encoder is None
        return ("chat", None) if by_chat else ("extractive", "chat")
    if index.memory == "dense":
        return "extractive", None
    return ("latent", None) if index.encoder is None or trained() else ("extractive", "latent")


def make_reader(roles: Roles, config: LoopConfig, context: QuestionContext, models: IndexModels) -> Reader:
    """The reader and writer for one question.

    Raises:
        ValueError: The index has no encoder for the extractive reader, or the chat model is not callable.
    """

    def build(role: Any) -> Any:
        if role == "extractive":
            return ExtractiveReader(context.analyzer)
        if role == "chat":
            return roles.chat if isinstance(roles.chat, ChatReader) else ChatReader.from_config(roles.chat, config)
        if role == "latent":
            # Without gates each step overwrites the memory (MemAgent); otherwise the prompts decide.
            return LatentReader(
                models.backbone,
                structured=None if config.structured else False,
                memory_tokens=config.memory_tokens,
                kv_fusion=config.kv_fusion,
                full_chunk_tokens=models.full_chunk_tokens,
            )
        return role

    reader: Reader = build(roles.reader)
    return reader if roles.writer is None else ReaderWithWriter(reader, build(roles.writer))


def make_loop(
    context: LoopContext,
    config: LoopConfig,
    threshold: float,
    reader: Reader,
    *,
    writes: bool = True,
    cancelled: Callable[[], bool] = lambda: False,
) -> Loop:
    """The loop of one question for its reader; a writer sees the recalled blocks."""
    reads = reader
    while isinstance(reads, ReaderProxy):
        reads = reads.inner
    reads_best = isinstance(reader, ExtractiveReader) and writes and config.threshold is None
    return recall_loop(
        context,
        config,
        threshold,
        can_score=isinstance(reader, ScoringReader) and reader.can_score,
        writer_blocks=config.writer_blocks if isinstance(reader, ReaderWithWriter) else 0,
        fallback=FALLBACK_BLOCKS if isinstance(reads, ChatReader | LatentReader) else int(reads_best),
        trusts_gate=isinstance(reads, ExtractiveReader) and config.gate in ("learned", "question"),
        writes=writes,
        cancelled=cancelled,
    )
