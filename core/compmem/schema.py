"""Data types and protocols: documents in, chunks and memory blocks inside, recalls, steps and answers out."""

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Vectors = NDArray[np.float32]
"""Unit vectors, one per row, `[rows, dim]`."""

Message = Mapping[str, str]
"""One chat message: `{"role": "system" | "user" | "assistant", "content": text}`."""


Filter = Mapping[str, Any] | Sequence[Any]
"""Conditions on the metadata of documents; see `docs/filters.md`."""


class Encoder(Protocol):
    """Turns texts into vectors. Any object with this method works; several threads may call it at once.

    If it has `encode_query(texts)` or `encode_document(texts)`, these encode questions and documents.
    """

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts `[texts, dim]`, in order."""
        ...


MAX_TITLE_CHARS = 1000
"""Maximum number of characters of a document's title, which is read with every chunk."""

MAX_CONTEXT_CHARS = 10_000
"""Maximum number of characters of a document's context, or of a chunk's headings; both are read with every chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A part of one document's text, compressed as a unit."""

    text: str
    """The text: `document.text[start:end]`."""
    document_id: str = ""
    """Id of its document; set when the document is added."""
    ordinal: int = 0
    """Its position among the document's chunks, from 0."""
    start: int = 0
    """Offset of its first character in the document's text."""
    title: str = ""
    """The document's title."""
    headings: tuple[str, ...] = ()
    """The headings above it, outermost first."""
    context: str = ""
    """The document's context: text that is searched besides title, headings and text."""
    sentences: tuple[tuple[int, int], ...] = ()
    """Sentence spans `(start, end)` in `text`, in order, not overlapping."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The document's metadata."""
    source: str = field(default="", compare=False)
    """What the document is a part of, or its id; set when the document is added, and not stored."""

    @property
    def id(self) -> str:
        """Id of the chunk in its index: document id, `#`, ordinal."""
        return f"{self.document_id}#{self.ordinal}"

    @property
    def end(self) -> int:
        """Offset after its last character in the document's text."""
        return self.start + len(self.text)

    @property
    def label(self) -> str:
        """Title and headings of the chunk, outermost first."""
        return " › ".join(dict.fromkeys(part for part in (self.title, *self.headings) if part))

    @property
    def head(self) -> str:
        """The text that an encoder or a backbone reads before the chunk: label and context, on one line."""
        return " › ".join(part for part in (self.label, "; ".join(self.context_lines())) if part)

    def context_lines(self) -> list[str]:
        """The lines of its context that are not blank, stripped."""
        return [line.strip() for line in self.context.splitlines() if line.strip()]

    @property
    def spans(self) -> tuple[tuple[int, int], ...]:
        """The spans of its sentences; that of the whole text if it has none."""
        return self.sentences or ((0, len(self.text)),)

    def sentence_texts(self) -> list[str]:
        """Its sentences, stripped; the whole text if it has no spans."""
        return [self.text[a:b].strip() for a, b in self.spans]


_HASH_CHARS = 1 << 16
"""Characters of a text that are UTF-8 encoded at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Text with an id, a title and metadata from the caller; or chunks that are already split.

    Raises:
        ValueError: Both `text` and `chunks` are given, and the chunks are not those of the text.
        TypeError: Text, id, title or context is no string, or the chunks are something else than chunks and strings.
    """

    text: str = ""
    """The whole text. With `chunks`, it is their concatenation."""
    id: str = ""
    """Unique within an index. Empty: a hash of title and text."""
    title: str = ""
    """Title of the document, in a few words; questions may use it as a name."""
    context: str = ""
    """Additional facts that questions may ask about, such as `author: Bianca Rossi`, one per line. They are searched
    and read with every chunk, but are not part of the text."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values by name, for filters and for the caller's own use. Dates, decimals, UUIDs, paths, enum members and
    NumPy numbers are converted to the nearest JSON value."""
    chunks: Sequence[Chunk | str] | None = None
    """The text already split; strings are only split into sentences."""
    source: str = ""
    """What the document is a part of, such as the file of a page. Documents of one source that are added one after the
    other can be read together for KV memory, as parts of one text; see `IndexConfig.kv_window`. It is not stored."""

    def __post_init__(self) -> None:
        for name in ("id", "text", "title", "context"):
            if not isinstance(value := getattr(self, name), str):
                raise TypeError(f"document {self.id!r}: {name} must be a string, not {type(value).__name__}")
        if self.chunks is not None:
            chunks, given = tuple(self.chunks), f"document {self.id!r}: chunks must be a list of chunks or strings, not"
            if isinstance(self.chunks, str):
                raise TypeError(f"{given} one string")
            if wrong := [c for c in chunks if not isinstance(c, Chunk | str)]:
                raise TypeError(f"{given} of {type(wrong[0]).__name__}")
            object.__setattr__(self, "chunks", chunks)
            text = "".join(c if isinstance(c, str) else c.text for c in chunks)
            if self.text not in ("", text):
                raise ValueError("give a document either text or chunks, not both")
            object.__setattr__(self, "text", text)
        if not self.id:
            digest = hashlib.sha256(f"{self.title}\0".encode("utf-8", "surrogatepass"))
            for at in range(0, len(self.text), _HASH_CHARS):
                digest.update(self.text[at : at + _HASH_CHARS].encode("utf-8", "surrogatepass"))
            object.__setattr__(self, "id", digest.hexdigest()[:32])

    @classmethod
    def from_json(cls, fields: Any) -> Self:
        """The document in a JSON object `{"id", "title", "context", "text", "metadata"}`; only the text is required.

        Raises:
            ValueError: It is no object, or a field is unknown, missing or of another type.
        """
        if not isinstance(fields, Mapping):
            raise ValueError(f"expected a JSON object, not {type(fields).__name__}")
        default = {"id": "", "title": "", "context": "", "text": "", "metadata": {}}
        if unknown := fields.keys() - default.keys():
            raise ValueError(f"unknown name {min(map(str, unknown))!r}; known are {', '.join(map(repr, default))}")
        given = default | {name: value for name, value in fields.items() if value is not None}
        if isinstance(given["id"], bool) or not isinstance(given["id"], str | int):
            raise ValueError("'id' must be text or a whole number")
        for name in ("title", "context"):
            if not isinstance(given[name], str):
                raise ValueError(f"{name!r} must be text")
        if not isinstance(given["text"], str) or not given["text"].strip():
            raise ValueError("'text' is missing or empty")
        if not isinstance(given["metadata"], Mapping):
            raise ValueError("'metadata' must be a JSON object")
        return cls(**{**given, "id": str(given["id"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class KVStates:
    """Key and value states of memory tokens per layer, `[layers, kv_heads, memory_tokens, head_dim]` each.

    Keys are stored before rotation, so a reader may use the block at any position.

    If heads have different numbers of states, these are `[states, head_dim]`: those of the first head of the first
    layer, then those of its second head, and so on.
    """

    keys: "torch.Tensor"
    values: "torch.Tensor"
    positions: "torch.Tensor | None" = None
    """Position in the chunk of the token that each state is of, `[layers, kv_heads, memory_tokens]` or `[states]`.
    None: every token of the chunk has its state, or the states are of memory tokens, which are no tokens of the
    chunk."""
    lengths: "torch.Tensor | None" = None
    """States of each head, `[layers, kv_heads]`, on the CPU. None: all heads have equally many."""

    @property
    def slots(self) -> int:
        """Positions that the block takes where it is read: the states of a head, on average, rounded up."""
        return self.keys.shape[2] if self.lengths is None else -(-len(self.keys) // self.lengths.numel())


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryBlock:
    """One chunk's compressed representation."""

    chunk: Chunk
    vectors: Vectors | None = None
    """`[1 + sentences, dim]`: the chunk as a whole, then each of its sentences."""
    kv: KVStates | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """A block with its gate score in [0, 1]."""

    chunk: Chunk
    score: float
    block: int
    """Number of the block within its store."""
    cited: bool = False
    """In an answer's sources: the text cites it by its number, as in `[1]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """A sentence that a reader kept, and its position."""

    text: str
    chunk: Chunk
    start: int
    """Offset in the chunk's text."""
    end: int
    score: float
    """How relevant it is to the question, in [0, 1]."""

    @classmethod
    def of(cls, chunk: Chunk, span: tuple[int, int], score: float = 0.0) -> Self:
        """The sentence in a span of a chunk."""
        start, end = span
        return cls(text=chunk.text[start:end].strip(), chunk=chunk, start=start, end=end, score=score)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkingMemory:
    """The text carried from step to step, and the evidence behind it if the reader quotes."""

    text: str = ""
    evidence: tuple[Evidence, ...] = ()
    blocks: tuple[MemoryBlock, ...] = field(default=(), compare=False, repr=False)
    """The recalled blocks, in the order of the sources; only for a writer that reads them."""
    may_ask: bool = field(default=False, compare=False, repr=False)
    """A writer that reads the blocks may ask for missing facts with a `Request`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """The cost of a question. Two of them can be added."""

    steps: int = 0
    blocks_scored: int = 0
    """Blocks that the gate scored; counted again each time."""
    blocks_read: int = 0
    model_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    rounds: int = 0
    """Requests of the writer for missing facts; the loop ran again for each."""
    malformed_replies: int = 0
    """Replies of the chat model that did not follow the format; they did not change the memory."""
    seconds: float = 0.0
    """From the question to the end of the answer, or of the loop where no answer is written."""

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A writer's request instead of an answer: something to recall first."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """A reader's result for the blocks of one step: a candidate memory and two gates (2602.10560)."""

    memory: WorkingMemory
    """The candidate working memory; kept only if `update` is true or the update gate is off."""
    update: bool
    """The update gate: the blocks contain something relevant to the question."""
    exit: bool
    """The exit gate: the memory suffices to answer."""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One reading of a recalled block, or of a group of blocks."""

    number: int
    """From 1."""
    recalls: tuple[Recall, ...]
    """The blocks read in this step."""
    working_memory: str
    """The working memory after the step."""
    updated: bool
    """The update gate was open."""
    exit: bool
    """The exit gate asked to stop."""
    backtracked: bool
    """A block of this step had been rejected in an earlier step."""
    candidates: int
    """Blocks that the first stage proposed for this step and that were not yet read."""
    seconds: float
    lost: bool = False
    """The reader did not finish by the deadline, `max_seconds`: the step had no result, and the loop ended."""
    request: str = ""
    """What was searched for, if it is not the whole question: a part of it, or a request of the writer."""


StopReason = Literal["exit_gate", "exhausted", "steps", "seconds", "cancelled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer to a question, its sources, and the steps that led to it."""

    question: str
    text: str
    found: bool
    """False if the gate finds that nothing answers, or the reader noted nothing. A chat model writes from the best
    blocks all the same, and may know better."""
    sources: tuple[Recall, ...]
    """The blocks that the answer is based on, in reading order; for a writer, all that it saw. A mark `[n]` in the text
    cites the n-th; see `Recall.cited`."""
    evidence: tuple[Evidence, ...]
    """The sentences kept, if the reader quotes; empty for a chat or latent reader."""
    steps: tuple[Step, ...]
    working_memory: str
    usage: Usage
    stop_reason: StopReason
    """Why the loop ended: `"exhausted"`: the gate accepts no further block, which is the usual end; `"exit_gate"`: the
    reader has what it needs; `"steps"`, `"seconds"`: a limit of the settings; `"cancelled"`: by the caller."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerToken:
    """A piece of the answer's text, as it is written."""

    text: str


Event = Step | AnswerToken | Answer
"""The events of a streamed answer: steps as they end, pieces of the answer, and at the end the answer itself."""


class Writer(Protocol):
    """Writes the answer: from the working memory, or from its blocks if it has some."""

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Request | Usage]:
        """The answer's text in pieces, and at the end its cost.

        If the memory's `may_ask` is true, a request may come instead of the text.
        """
        ...

    def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Request | Usage]:
        """The same without blocking the event loop."""
        ...


class Reader(Writer, Protocol):
    """Reads recalled blocks and writes the answer; the loop calls the sync or the async methods."""

    def read(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> Reading:
        """The candidate working memory after reading these blocks, and the two gates."""
        ...

    async def aread(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> Reading:
        """The same without blocking the event loop."""
        ...


ReaderName = Literal["extractive", "chat", "latent"]
WriterName = Literal["chat", "latent"]


class AnswerModels(TypedDict, total=False):
    """The models that a caller gives for one question, in addition to those of the index."""

    chat: Any
    """A chat model: a callable `messages -> text`, sync, async or streaming, or a `ChatReader`. If the settings name
    neither reader nor writer, it writes the answer and is called once; with `RecallConfig(reader="chat")`, and in
    document order, it reads in every step."""
    reader: ReaderName | Reader | None
    """Who reads: a name as in `RecallConfig.reader`, or an object of yours."""
    writer: WriterName | Writer | None
    """Who writes the answer from the recalled blocks: a name as in `RecallConfig.writer`, or an object of yours."""


@runtime_checkable
class ScoringReader(Reader, Protocol):
    """A reader that can estimate how likely a block helps before it reads it."""

    @property
    def can_score(self) -> bool:
        """Whether it can score blocks with its settings."""
        ...

    def score_blocks(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> list[float] | None:
        """Log-odds that each block, by itself, helps; None if it cannot score them now. Called from any thread."""
        ...

    def read(
        self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], *, relevant: bool = False
    ) -> Reading:
        """As in `Reader`; with `relevant`, the blocks are known to help."""
        ...

    async def aread(
        self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], *, relevant: bool = False
    ) -> Reading:
        """The same without blocking the event loop."""
        ...
