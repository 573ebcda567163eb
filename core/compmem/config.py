"""Settings by lifetime: `IndexConfig` is baked into an index, `RecallConfig` serves one question."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from compmem.naming import DEFAULT_ENCODER
from compmem.schema import Encoder

Memory = Literal["dense", "kv"]
VectorType = Literal["int8", "fp16"]
KVType = Literal["bf16", "int8"]
Search = Literal["exact", "auto", "flat", "hnsw", "ivf-pq"]

SearchMethod = Literal["gate", "hybrid", "dense", "bm25"]


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How documents become memory. Kept in the index and compared when it is opened.

    Raises:
        ValueError: A value is out of its range.
    """

    memory: Memory = "dense"
    """What a memory block holds: sentence vectors, or KV states of a backbone as well."""
    encoder: str | Encoder | None = DEFAULT_ENCODER
    """Name or folder of a sentence-transformers model, such a model itself, or an object with `encode(texts)`.

    Questions are encoded by the model's query prompt, or by the object's `encode_query(texts)` where it has one."""
    vectors: VectorType = "int8"
    """How vectors are stored: a byte or two a dimension."""
    search: Search = "exact"
    """Dense first stage: exact in torch, or FAISS flat, HNSW, IVF-PQ; `auto` takes FAISS by size where installed."""
    chunk_tokens: int = 256
    """Most tokens in a chunk, counted by the encoder's tokenizer (the backbone's for KV memory)."""
    backbone: str | None = None
    """Name, folder or `.gguf` file of the causal LM, for KV memory."""
    ratio: int | None = None
    """Compression ratio: source tokens per memory token, for KV memory. None: the checkpoint's own."""
    kv: KVType = "bf16"
    """How KV states are stored."""
    compact_at: float | None = 0.5
    """Share of deleted and replaced blocks past which a write also compacts, unless a reader is at work in the index.
    None: only `compact` does."""

    def __post_init__(self) -> None:
        _one_of("memory", self.memory, ("dense", "kv"))
        _one_of("vectors", self.vectors, ("int8", "fp16"))
        _one_of("search", self.search, ("exact", "auto", "flat", "hnsw", "ivf-pq"))
        _one_of("kv", self.kv, ("bf16", "int8"))
        _at_least("chunk_tokens", self.chunk_tokens, 16)
        if self.ratio is not None:
            _at_least("ratio", self.ratio, 1)
        if self.compact_at is not None and not 0 < self.compact_at <= 1:
            raise ValueError(f"compact_at={self.compact_at!r} must be above 0 and at most 1, or None")
        if self.memory == "dense" and self.encoder is None:
            raise ValueError("encoder=None needs memory='kv': dense memory is made of the encoder's vectors")
        if self.memory == "kv" and self.backbone is None:
            raise ValueError("memory='kv' needs backbone=, the name or folder of a causal LM")


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallConfig:
    """How one question is answered. Every system of the papers is a setting of this one loop.

    Raises:
        ValueError: A value is out of its range.
    """

    reader: Any = None
    """`"extractive"`, `"chat"` (needs `chat`), `"latent"` (needs KV memory), or an object with `read` and `write`.
    None: extractive, as long as blocks are read best first; in document order the chat model, where there is one. For
    KV states and no chat model the backbone, which reads in every step if it was trained to, else only writes."""
    chat: Callable[..., Any] | None = None
    """The chat model: a callable `messages -> text`, sync, async or streaming, or a `ChatReader`. Where neither
    `reader` nor `writer` is named it writes the answer, asked once; with `reader="chat"`, or in document order, it
    reads in every step."""
    writer: Any = None
    """`"chat"`, `"latent"` or an object with `write`: it writes the answer from the recalled blocks themselves,
    whatever reads them on the way. None: the reader, from its working memory; the chat model, if no reader is named."""
    rounds: int = 1
    """Most times that a chat model which writes from the blocks may ask for what is missing in them; each time the loop
    recalls for that, and the model writes anew. 0: never."""
    shown: int = 8
    """Most recalled blocks that a `writer` sees: those that were kept, then those with the highest gate scores."""
    candidates: Literal["first stage", "all"] = "first stage"
    """What may be recalled at all: what the first stage proposes, or every chunk."""
    first_stage: int = 40
    """Chunks each of the first stage's signals proposes in a step."""
    links: bool = True
    """Propose chunks whose title, heading or defined term is named in the question or the working memory."""
    gate: Literal["learned", "question", "similarity", "off"] = "learned"
    """What scores a block: the gate; the gate blind to the working memory; the first stage; nothing (read all)."""
    threshold: float | None = None
    """Blocks whose gate score is lower are turned down. None: the gate's own."""
    order: Literal["best", "document"] = "best"
    """Blocks are read best first, or in document order."""
    reask: bool = True
    """Ask the first stage and the gate again after each update of the working memory."""
    backtrack: bool = True
    """A block once turned down may be recalled in a later step."""
    weigh: float | None = 0.4
    """Where the reader can weigh blocks (the latent reader, if replies begin with their verdict, as the embedded
    backbone's do), it weighs those that the gate puts first, and reads the likeliest as one that helps, as long as it
    finds it at least this probable. None: it reads what the gate lets through, and says of each whether it helps."""
    update_gate: bool = True
    """A step that found nothing keeps the working memory as it was (2602.10560, U_t)."""
    exit_gate: bool = True
    """The loop stops when the reader says that enough is known (2602.10560, E_t)."""
    blocks_per_step: int = 1
    """Recalled blocks read in one step."""
    max_steps: int | None = 12
    """Most steps. None: as many as there are blocks to read."""
    max_seconds: float | None = None
    """Most seconds for the question. A step begins only if there is time for it and for the answer, each taking as long
    as the mean step so far. A chat model that has not replied in time is abandoned: an async call is cancelled, a sync
    call runs on in its thread. The answer is then what was streamed so far, else quotations, else the notes, and
    `Answer.exited` is "seconds". Of a reader of your own, only the async methods can be abandoned."""
    memory_tokens: int = 1024
    """Most tokens of working memory; what was written last is kept."""
    prompt_tokens: int | None = None
    """Most tokens of a prompt to the chat model: its context window without what a reply may take. Blocks are cut, or
    read in several calls, to fit. None: no limit."""

    def __post_init__(self) -> None:
        if isinstance(self.reader, str):
            _one_of("reader", self.reader, ("extractive", "chat", "latent"))
        if isinstance(self.writer, str):
            _one_of("writer", self.writer, ("chat", "latent"))
        if (
            self.chat is not None
            and not self.asks_chat
            and all(part is None or isinstance(part, str) for part in (self.reader, self.writer))
        ):
            raise ValueError(
                f"chat= is for reader='chat' or writer='chat', and reader={self.reader!r} with writer={self.writer!r} "
                "asks no model"
            )
        _one_of("candidates", self.candidates, ("first stage", "all"))
        _one_of("gate", self.gate, ("learned", "question", "similarity", "off"))
        _one_of("order", self.order, ("best", "document"))
        _at_least("first_stage", self.first_stage, 1)
        _at_least("blocks_per_step", self.blocks_per_step, 1)
        _at_least("shown", self.shown, 1)
        _at_least("rounds", self.rounds, 0)
        _at_least("memory_tokens", self.memory_tokens, 1)
        for name in ("max_steps", "prompt_tokens"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 1)
        if self.max_seconds is not None and not self.max_seconds > 0:
            raise ValueError(f"max_seconds={self.max_seconds!r} must be above 0")
        for name in ("threshold", "weigh"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name}={value!r} must be between 0 and 1")

    @property
    def weighs(self) -> bool:
        """Whether a reader that can weighs blocks: not in the papers' loops, nor with several blocks a step."""
        free = self.order == "best" and self.reask and self.backtrack and self.update_gate
        return self.weigh is not None and free and self.blocks_per_step == 1

    def but(self, **changes: Any) -> "RecallConfig":
        """These settings with some changed."""
        return replace(self, **changes)

    @property
    def asks_chat(self) -> bool:
        """Whether the chat model reads or writes, where there is one: by name, or since nobody else is named."""
        return "chat" in (self.reader, self.writer) or (self.reader is None and self.writer is None)

    def parts(self, index: IndexConfig) -> tuple[Any, Any]:
        """Who reads and who writes: names, or objects that do it; where None writes, the reader does.

        A chat model writes once, from what the extractive reader quoted; in a scan in document order, and where there
        are no vectors to quote by, it reads in every step.
        """
        if self.reader is not None or self.writer is not None:
            return ("extractive" if self.reader is None else self.reader), self.writer
        if self.chat is None:
            return ("latent" if index.memory == "kv" else "extractive"), None
        if self.order == "document" or index.encoder is None:
            return "chat", None
        return "extractive", "chat"

    @classmethod
    def memagent(cls, **changes: Any) -> "RecallConfig":
        """MemAgent (2507.02259): every chunk in document order, the memory overwritten in each step."""
        return cls(
            candidates="all", gate="off", order="document", reask=False, backtrack=False,
            update_gate=False, exit_gate=False, max_steps=None,
        ).but(**changes)  # fmt: skip

    @classmethod
    def gru_mem(cls, *, exit_gate: bool = True, **changes: Any) -> "RecallConfig":
        """GRU-Mem (2602.10560): MemAgent's scan with an update gate and, by choice, an exit gate."""
        return cls.memagent(update_gate=True, exit_gate=exit_gate).but(**changes)

    @classmethod
    def lychee(cls, *, gate: bool = True, **changes: Any) -> "RecallConfig":
        """LycheeMemory (2602.08382): one pass in document order, each chunk gated at 0.5 with the memory so far."""
        if not gate:
            return cls.memagent().but(**changes)
        return cls.memagent(gate="learned", threshold=0.5).but(**changes)

    @classmethod
    def rag(cls, k: int = 8, **changes: Any) -> "RecallConfig":
        """One-shot RAG: the k most similar chunks, read at once; a chat model is asked once."""
        return cls(
            gate="similarity", threshold=0.0, links=False, reask=False, backtrack=False,
            update_gate=False, exit_gate=False, blocks_per_step=k, max_steps=1, shown=k, rounds=0,
        ).but(**changes)  # fmt: skip


def _one_of(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}")


def _at_least(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}")
