"""Settings: `IndexConfig` of an index, `RecallConfig` of one question, `RuntimeConfig` of one process."""

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, Self

from compmem.checks import check_choices, check_fraction, check_integer, check_positive
from compmem.naming import DEFAULT_ENCODER
from compmem.schema import Encoder, ReaderName, WriterName

Memory = Literal["dense", "kv"]
VectorType = Literal["int8", "fp16"]
KVType = Literal["bf16", "int8", "int4"]
KVPruning = Literal["attention", "kvzip", "kvzip-heads", "kvzap", "expected-attention"]
KVFusion = Literal["none", "epic", "prophetkv", "cacheblend", "graph-kv", "ape"]
SearchKind = Literal["exact", "auto", "flat", "hnsw", "ivf-pq"]

SearchMethod = Literal["gate", "hybrid", "dense", "bm25"]
RecallMethod = Literal["loop", SearchMethod]

STOCK_PRUNING: KVPruning = "kvzip-heads"
"""How the KV states that a stock model keeps are chosen, unless `IndexConfig.kv_pruning` says otherwise."""

SHARED_BUDGET_METHODS: tuple[KVPruning, ...] = ("kvzip-heads", "kvzap")
"""The ways with one budget for all heads; the second one predicts the scores of the first."""

DEFAULT_KV_TYPE: KVType = "int8"
"""How KV states are stored, unless `IndexConfig.kv` says otherwise."""

FIRST_STAGE = 40
"""Default number of chunks that each signal of the first stage proposes."""

KV_CACHE_BYTES = 2 << 30
"""Default size of the cache of KV blocks on the device, in bytes."""

DEFAULT_CANDIDATES = 50
"""Documents to request for a question from another retriever or vector store, by default."""


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexConfig:
    """How documents are compressed. Stored in the index and compared when it is opened.

    Raises:
        ValueError: A value is out of its range.
        TypeError: The encoder is neither a name nor an object that encodes.
    """

    memory: Memory = "dense"
    """What a memory block contains: sentence vectors, or KV states of a backbone as well."""
    encoder: str | Encoder | None = DEFAULT_ENCODER
    """Name or folder of a sentence-transformers model, such a model itself, or an object with `encode(texts)`.

    Questions are encoded with the model's query prompt, or with the object's `encode_query(texts)` if it has one."""
    vectors: VectorType = "int8"
    """How vectors are stored: one or two bytes per dimension."""
    chunk_tokens: int = 256
    """Maximum number of tokens in a chunk, counted by the encoder's tokenizer (the backbone's for KV memory)."""
    backbone: str | None = None
    """Name, folder or `.gguf` file of the causal LM, for KV memory."""
    ratio: int | None = None
    """Compression ratio: source tokens per memory token, for KV memory. None: the checkpoint's own."""
    kv_pruning: KVPruning | None = None
    """How the KV states that a stock model keeps are chosen: by the attention of the chunk's own queries, by that of a
    repetition of the chunk (KVzip), by a prediction of that (KVzap; the backbone needs fitted weights, and repeats
    nothing), or by that of normally distributed queries. With `kvzip-heads` and `kvzap` all layers and heads share one
    budget; with the others each head keeps equally many states. None: as a trained backbone was trained, `kvzap` where
    its weights are there, else `kvzip-heads`."""
    kv_window: int | None = None
    """Maximum number of tokens of a document, or of documents of one source, that a backbone reads in one pass to make
    KV states: a chunk sees the chunks of its window before it. None: each chunk is read alone."""
    kv: KVType | None = None
    """How KV states are stored, for KV memory: in 16, 8 or about 4.5 bits a number. None: in 8."""
    compact_at: float | None = 0.5
    """Share of deleted and replaced blocks above which a write also compacts the index, unless a reader is using it.
    None: only `compact` does."""

    def __post_init__(self) -> None:
        check_choices(self)
        if not (self.encoder is None or isinstance(self.encoder, str) or hasattr(self.encoder, "encode")):
            raise TypeError(f"encoder={self.encoder!r} must be a model's name as a string, or have encode(texts)")
        check_integer("chunk_tokens", self.chunk_tokens, 16)
        if self.ratio is not None:
            check_integer("ratio", self.ratio)
        if self.kv_window is not None:
            check_integer("kv_window", self.kv_window)
        if self.compact_at is not None:
            check_fraction("compact_at", self.compact_at)
            check_positive("compact_at", self.compact_at)
        for_kv = ("backbone", "ratio", "kv_pruning", "kv_window", "kv")
        given = [name for name in for_kv if getattr(self, name) is not None]
        if self.memory == "dense" and given:
            raise ValueError(f"{given[0]}={getattr(self, given[0])!r} is for memory='kv', and this is dense memory")
        if self.memory == "dense" and self.encoder is None:
            raise ValueError("encoder=None needs memory='kv': dense memory consists of the encoder's vectors")
        if self.memory == "kv" and self.backbone is None:
            raise ValueError("memory='kv' needs backbone=, the name or folder of a causal LM")


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """Where the models of an index run and how it is searched, in this process. None of this is stored in the index.

    Raises:
        ValueError: A value is out of its range.
    """

    device: str | None = None
    """Torch device of the models. None: CUDA if available, else the CPU."""
    dtype: str | None = None
    """`"float32"`, `"bfloat16"`, `"float16"`, or for the encoder alone `"int8"`. None: the fastest that gives the
    same results."""
    backbone_base: str | None = None
    """Stock model of a backbone whose folder has only what was added to one: a name, folder or `.gguf` file. None: the
    one that the folder names."""
    search: SearchKind = "exact"
    """Search by vectors: exact in torch, or FAISS flat, HNSW, IVF-PQ; `auto` uses FAISS for large indexes if
    installed."""
    gate: str | None = None
    """File of a dense gate made by `compmem train dense-gate`. None: the one that ships."""
    kv_cache_bytes: int = KV_CACHE_BYTES
    """Size of the cache of KV blocks on the device between questions, in bytes."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_integer("kv_cache_bytes", self.kv_cache_bytes, 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallConfig:
    """How one question is answered. `LoopConfig` has more settings, for experiments.

    Raises:
        ValueError: A value is out of its range.
    """

    reader: ReaderName | None = None
    """Who reads the recalled blocks in each step: `"extractive"` (quotes, no model), `"chat"` (needs `chat=`) or
    `"latent"` (the backbone, needs KV memory). None: extractive; the backbone if it was trained for the loop and no
    chat model is given; a chat model if there are no vectors to select quotes with."""
    writer: WriterName | None = None
    """Who writes the answer from the recalled blocks: `"chat"` or `"latent"`. None: the chat model if one is given and
    no reader is named; else the reader, from the working memory."""
    decompose: bool = True
    """Search for each part of a question that asks several things, such as "When does the lease end, and who insures
    the building?", where it can be understood alone. Not done where a model reads in every step. Without a writer, each
    part is answered by itself."""
    rounds: int = 0
    """Maximum number of times that a chat model which writes the answer may ask for missing facts. The loop runs again
    for each request. 0: never, since small models ask where they could answer (docs/evaluation.md)."""
    cite: bool = False
    """Ask a chat model that writes the answer to name its sources by number: `[1]` is the first of `Answer.sources`."""
    writer_blocks: int = 8
    """Maximum number of recalled blocks that the writer sees: first those that updated the working memory, then by gate
    score. The parts of a question share them; each has at least one."""
    threshold: float | None = None
    """Blocks with a lower gate score are rejected. None: the gate's own threshold."""
    max_steps: int | None = 12
    """Maximum number of steps, for each part of a question that has several. None: limited by the number of blocks."""
    max_seconds: float | None = None
    """Time limit for the question, in seconds. A step begins only if there is time for it and for the answer, each
    estimated by the mean time of a step so far. A chat model that has not replied in time is abandoned: an async call
    is cancelled, a sync call continues in its thread. The answer is then what was streamed so far, else quotations,
    else the notes, and `Answer.stop_reason` is "seconds". Of a custom reader, only async methods can be abandoned."""
    memory_tokens: int = 1024
    """Maximum number of tokens of working memory, for each part of a question that has several; the oldest text is
    cut off. Of quotations, the best ones of as many tokens are kept."""
    prompt_tokens: int | None = None
    """Maximum number of tokens of a prompt to the chat model: its context window without its reply. Blocks are cut, or
    read in several calls, to fit. None: no limit."""

    def __post_init__(self) -> None:
        check_choices(self)
        check_integer("writer_blocks", self.writer_blocks)
        check_integer("rounds", self.rounds, 0)
        check_integer("memory_tokens", self.memory_tokens)
        for name in ("max_steps", "prompt_tokens"):
            if getattr(self, name) is not None:
                check_integer(name, getattr(self, name))
        if self.max_seconds is not None:
            check_positive("max_seconds", self.max_seconds)
        if self.threshold is not None:
            check_fraction("threshold", self.threshold)

    def replace(self, **changes: Any) -> Self:
        """A copy of these settings with changes."""
        return replace(self, **changes)

    @property
    def uses_chat(self) -> bool:
        """Whether a given chat model reads or writes: it is named, or neither reader nor writer is."""
        return "chat" in (self.reader, self.writer) or (self.reader is None and self.writer is None)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig(RecallConfig):
    """All settings of the loop. Each system of the papers is a preset; the defaults are those of `RecallConfig`.

    Raises:
        ValueError: A value is out of its range.
    """

    candidates: Literal["first_stage", "all"] = "first_stage"
    """Which blocks may be recalled: those that the first stage proposes, or all."""
    first_stage: int = FIRST_STAGE
    """Chunks that each signal of the first stage proposes per step; at least as many as `recall` is asked for."""
    links: bool = True
    """Also propose chunks whose title, heading or defined term occurs in the question or the working memory."""
    gate: Literal["learned", "question", "similarity", "off"] = "learned"
    """What scores a block: the gate; the gate without the working memory; cosine similarity; nothing (all are read)."""
    order: Literal["best", "document"] = "best"
    """Blocks are read best first, or in document order."""
    requery: bool = True
    """Run the first stage and the gate again after each update of the working memory."""
    backtrack: bool = True
    """A block that was rejected may be recalled in a later step."""
    reader_threshold: float | None = 0.4
    """Some readers can score blocks before they read them (the latent reader, if its replies begin with yes or no).
    Such a reader scores the blocks that the gate ranks first, and reads the best one if its probability is at least
    this. None: it reads the blocks that the gate accepts."""
    update_gate: bool = True
    """A step that found nothing leaves the working memory unchanged (2602.10560, U_t)."""
    exit_gate: bool = True
    """The loop stops when the reader says that the notes suffice (2602.10560, E_t)."""
    blocks_per_step: int = 1
    """Recalled blocks read in one step."""
    kv_fusion: KVFusion = "none"
    """How blocks of a local model that are read together see one another (docs/kv-memory.md). `"none"`: each stays as
    it was compressed, alone. `"epic"`, `"prophetkv"`, `"cacheblend"`: some of their tokens are computed again, behind
    all earlier blocks. `"graph-kv"`: every later block is encoded again behind the first. `"ape"`: they stand side by
    side, and attention to them is scaled."""

    def __post_init__(self) -> None:
        RecallConfig.__post_init__(self)
        check_integer("first_stage", self.first_stage)
        check_integer("blocks_per_step", self.blocks_per_step)
        if self.reader_threshold is not None:
            check_fraction("reader_threshold", self.reader_threshold)

    @property
    def structured(self) -> bool:
        """Whether a language model replies with both gates; if not, each reply is the new working memory."""
        return self.update_gate or self.exit_gate

    @property
    def can_score(self) -> bool:
        """Whether a scoring reader scores blocks first: not in the papers' loops, nor with several blocks per step."""
        free = self.order == "best" and self.requery and self.backtrack and self.update_gate
        return self.reader_threshold is not None and free and self.blocks_per_step == 1

    @classmethod
    def complete(cls, config: RecallConfig | None) -> "LoopConfig":
        """These settings, with the defaults of the others.

        Raises:
            TypeError: The argument is no `RecallConfig` but, for example, a model.
        """
        if isinstance(config, LoopConfig):
            return config
        if config is not None and not isinstance(config, RecallConfig):
            raise TypeError(f"config={config!r} must be a RecallConfig; a chat model goes to chat=")
        return cls() if config is None else cls(**{f.name: getattr(config, f.name) for f in fields(config)})

    @classmethod
    def memagent(cls, **changes: Any) -> "LoopConfig":
        """MemAgent (2507.02259): every chunk in document order; the memory is overwritten in each step."""
        return cls(
            candidates="all", gate="off", order="document", decompose=False, requery=False, backtrack=False,
            update_gate=False, exit_gate=False, max_steps=None,
        ).replace(**changes)  # fmt: skip

    @classmethod
    def gru_mem(cls, *, exit_gate: bool = True, **changes: Any) -> "LoopConfig":
        """GRU-Mem (2602.10560): MemAgent's scan with an update gate and an optional exit gate."""
        return cls.memagent(update_gate=True, exit_gate=exit_gate).replace(**changes)

    @classmethod
    def lychee(cls, *, gate: bool = True, **changes: Any) -> "LoopConfig":
        """LycheeMemory (2602.08382): one pass in document order; each chunk is gated at 0.5 with the current memory."""
        if not gate:
            return cls.memagent().replace(**changes)
        return cls.memagent(gate="learned", threshold=0.5).replace(**changes)

    @classmethod
    def rag(cls, k: int = 8, **changes: Any) -> "LoopConfig":
        """One-shot RAG: the k most similar chunks, read at once; a chat model is called once."""
        return cls(
            first_stage=max(k, FIRST_STAGE), gate="similarity", threshold=0.0, links=False, decompose=False,
            requery=False, backtrack=False, update_gate=False, exit_gate=False, blocks_per_step=k, max_steps=1,
            writer_blocks=k,
        ).replace(**changes)  # fmt: skip
