"""The nouns that flow: documents in, chunks and memory blocks between, recalls, steps and answers out."""

import hashlib
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypedDict, runtime_checkable

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Vectors = NDArray[np.float32]
"""Unit vectors, one a row, `[rows, dim]`."""

Message = Mapping[str, str]
"""One chat message: `{"role": "system" | "user" | "assistant", "content": text}`."""


class Encoder(Protocol):
    """What turns texts into vectors. Any object with this one method fits; several threads may call it at once.

    Where it also has `encode_query(texts)`, that encodes questions, and `encode_document(texts)` documents.
    """

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of the texts `[texts, dim]`, in order."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A run of one document's text, compressed as a unit."""

    text: str
    """The text itself: `document.text[start:end]`."""
    document_id: str = ""
    """The document it was cut from; set when the document is added."""
    ordinal: int = 0
    """Its place among the document's chunks, from 0."""
    start: int = 0
    """Offset of its first character in the document's text."""
    title: str = ""
    """The document's title."""
    headings: tuple[str, ...] = ()
    """The headings it stands under, outermost first."""
    context: str = ""
    """The document's context: what searches see beside title, headings and text."""
    sentences: tuple[tuple[int, int], ...] = ()
    """Sentence spans `(start, end)` within `text`, in order, not overlapping."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """The document's metadata."""

    @property
    def id(self) -> str:
        """Name of the chunk within its index: document id, `#`, ordinal."""
        return f"{self.document_id}#{self.ordinal}"

    @property
    def end(self) -> int:
        """Offset after its last character in the document's text."""
        return self.start + len(self.text)

    @property
    def label(self) -> str:
        """What the chunk is about: its title and headings, outermost first."""
        return " › ".join(dict.fromkeys(part for part in (self.title, *self.headings) if part))

    @property
    def head(self) -> str:
        """What an encoder or a backbone reads before its text: the label and the context, on one line."""
        return " › ".join(part for part in (self.label, "; ".join(self.context_lines())) if part)

    def context_lines(self) -> list[str]:
        """The lines of its context that say something, stripped."""
        return [line.strip() for line in self.context.splitlines() if line.strip()]

    def sentence_texts(self) -> list[str]:
        """Its sentences, stripped; the whole text where no spans are known."""
        return [self.text[a:b].strip() for a, b in self.sentences] or [self.text.strip()]


_AT_ONCE = 1 << 16
"""Characters of a text that are encoded at once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Document:
    """Text with an id, a title and metadata from the caller; or chunks that are already split.

    Raises:
        ValueError: Both `text` and `chunks` are given.
    """

    text: str = ""
    """The whole text. With `chunks`, it is their concatenation."""
    id: str = ""
    """Unique within an index. Empty: a hash of title and text."""
    title: str = ""
    """What the document is about, in a few words. A name that questions may use."""
    context: str = ""
    """Text beside the text that questions may ask by, such as `author: Bianca Rossi`, a fact a line. It is searched and
    read with every chunk, and is no part of the text."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """JSON values by name, for filters and for the caller's own use. Dates, decimals, UUIDs, paths, enum members and
    NumPy numbers are kept as the nearest JSON value."""
    chunks: Sequence[Chunk | str] | None = None
    """The text already split; strings are cut into sentences only."""

    def __post_init__(self) -> None:
        if self.chunks is not None:
            if self.text:
                raise ValueError("give a document either text or chunks, not both")
            parts = [c if isinstance(c, str) else c.text for c in self.chunks]
            object.__setattr__(self, "text", "".join(parts))
            object.__setattr__(self, "chunks", tuple(self.chunks))
        if not self.id:
            digest = hashlib.sha256(f"{self.title}\0".encode("utf-8", "surrogatepass"))
            for at in range(0, len(self.text), _AT_ONCE):
                digest.update(self.text[at : at + _AT_ONCE].encode("utf-8", "surrogatepass"))
            object.__setattr__(self, "id", digest.hexdigest()[:32])


@dataclass(frozen=True, kw_only=True, slots=True)
class KVStates:
    """Per-layer key and value states of memory tokens, `[layers, kv_heads, memory_tokens, head_dim]` each.

    Keys are stored before rotation, so a reader may place the block anywhere.
    """

    keys: "torch.Tensor"
    values: "torch.Tensor"


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryBlock:
    """One chunk's compressed representation."""

    chunk: Chunk
    vectors: Vectors | None = None
    """`[1 + sentences, dim]`: the chunk as a whole, then each of its sentences."""
    kv: KVStates | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recall:
    """A block the gate let through: its chunk and its score in [0, 1]."""

    chunk: Chunk
    score: float
    block: int
    """Number of the block within its store."""
    cited: bool = False
    """Among an answer's sources: the text cites it by its number among them, as in `[1]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evidence:
    """A sentence a reader kept, and where it stands."""

    text: str
    chunk: Chunk
    start: int
    """Offset within the chunk's text."""
    end: int
    score: float
    """How strongly it bears on the question, in [0, 1]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkingMemory:
    """The text carried from step to step, and the evidence it was made from where the reader quotes."""

    text: str = ""
    evidence: tuple[Evidence, ...] = ()
    blocks: tuple[MemoryBlock, ...] = field(default=(), compare=False, repr=False)
    """The recalled blocks themselves, in the order of the sources: only for what writes the answer, where it is to see
    them."""
    may_ask: bool = field(default=False, compare=False, repr=False)
    """What writes from the blocks may ask for what is missing in them, by a `Request`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """What a question has cost. Two of them add up."""

    steps: int = 0
    blocks_scored: int = 0
    """Blocks the gate gave a probability, counted again when re-gated."""
    blocks_read: int = 0
    model_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    rounds: int = 0
    """Times that the writer asked for what was missing and the loop recalled for it."""
    malformed_replies: int = 0
    """Replies of the chat model that did not follow the format; the memory was kept."""
    seconds: float = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(**{name: getattr(self, name) + getattr(other, name) for name in Usage.__slots__})


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What a writer asks for instead of answering: something to recall first."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Reading:
    """What a reader makes of the blocks of one step: a candidate memory and its two gates (2602.10560)."""

    memory: WorkingMemory
    """The candidate working memory; kept only where `update` is true or the update gate is off."""
    update: bool
    """The update gate: the blocks hold something that bears on the question."""
    exit: bool
    """The exit gate: enough is known to answer."""
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One reading of one recalled block, or of a group of blocks."""

    number: int
    """From 1."""
    recalls: tuple[Recall, ...]
    """The blocks read in this step."""
    working_memory: str
    """The working memory after the step."""
    updated: bool
    """The update gate opened."""
    exit: bool
    """The exit gate asked to stop."""
    backtracked: bool
    """A block read here had been turned down in an earlier step."""
    candidates: int
    """Blocks the first stage proposed for this step."""
    seconds: float
    lost: bool = False
    """The reader was not done by the deadline, `max_seconds`: nothing came of the step, and the loop ended."""
    request: str = ""
    """What the writer asked for, where the step was made for that."""


StopReason = Literal["exit_gate", "exhausted", "steps", "seconds", "cancelled"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer to a question, what it rests on, and how it was reached."""

    question: str
    text: str
    found: bool
    """False where nothing in the index bears on the question."""
    sources: tuple[Recall, ...]
    """The blocks the answer rests on, in the order in which they were read; all that a writer was shown. A mark `[n]`
    in its text cites the n-th; see `Recall.cited`."""
    evidence: tuple[Evidence, ...]
    """The sentences kept, where the reader quotes; empty for a chat or latent reader."""
    steps: tuple[Step, ...]
    working_memory: str
    usage: Usage
    stop_reason: StopReason
    """Why the loop ended."""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerToken:
    """A piece of the answer's text, as it is written."""

    text: str


Event = Step | AnswerToken | Answer
"""What a streamed answer is made of: steps as they end, pieces of the answer, and last the answer itself."""


class Writer(Protocol):
    """What writes the answer: from the working memory, or from its blocks where it has some."""

    def write(self, question: str, memory: WorkingMemory) -> Iterator[str | Request | Usage]:
        """The answer's text in pieces as they come, and last what it cost.

        Where the memory says that it `may_ask`, a request may stand in place of the text.
        """
        ...

    def awrite(self, question: str, memory: WorkingMemory) -> AsyncIterator[str | Request | Usage]:
        """The same without blocking the event loop."""
        ...


class Reader(Writer, Protocol):
    """What reads recalled blocks and writes the answer; the loop calls the sync half or the async half."""

    def read(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> Reading:
        """The candidate working memory after reading these blocks, and the two gates."""
        ...

    async def aread(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> Reading:
        """The same without blocking the event loop."""
        ...


class AnswerModels(TypedDict, total=False):
    """The models that a caller gives for one question, beside those that the index has."""

    chat: Any
    """A chat model: a callable `messages -> text`, sync, async or streaming, or a `ChatReader`. Where the settings name
    neither reader nor writer, it writes the answer and is called once; with `RecallConfig(reader="chat")`, and in
    document order, it reads in every step."""
    reader: Reader | None
    """An object that reads, in place of a name in the settings."""
    writer: Writer | None
    """An object that writes the answer from the recalled blocks, in place of a name in the settings."""


@runtime_checkable
class ScoringReader(Reader, Protocol):
    """A reader that can tell how likely a block helps before it reads it."""

    @property
    def can_score(self) -> bool:
        """Whether it can tell at all, as it is set up."""
        ...

    def score_blocks(self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock]) -> list[float] | None:
        """Log-odds that each block, by itself, helps; None where it cannot tell now. Called from any thread."""
        ...

    def read(
        self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], *, relevant: bool = False
    ) -> Reading:
        """As every reader reads; with `relevant` it is told that these blocks help."""
        ...

    async def aread(
        self, question: str, memory: WorkingMemory, blocks: Sequence[MemoryBlock], *, relevant: bool = False
    ) -> Reading:
        """The same without blocking the event loop."""
        ...
