"""Compression as a backbone's memory settings say: inserted memory tokens, or selected states of the text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, islice

from torch import Tensor

from compmem.backbone.batching import COMPRESS_BATCH_TOKENS, run_in_batches
from compmem.backbone.config import MemoryConfig
from compmem.backbone.decoder import Decoder
from compmem.backbone.kvzip import REPETITION_METHODS, Repetition
from compmem.backbone.memory_tokens import compress, memory_token_count
from compmem.backbone.prune import importance_examples, prune
from compmem.backbone.rotary import Rotary
from compmem.backbone.score_cache import Chunks, ScoreCache
from compmem.config import SHARED_BUDGET_METHODS, KVPruning
from compmem.schema import KVStates


@dataclass(frozen=True, slots=True)
class Compression:
    """How the chunks of one call are compressed.

    Raises:
        ValueError: The window is not a multiple of the ratio, or trained memory is given another pruning method.
    """

    memory: MemoryConfig
    ratio: int
    chat_prefix_ids: Sequence[int]
    """Token ids in front of every chunk."""
    pruning: KVPruning
    context: int
    """Positions of the model's context."""
    repetition: Callable[[], Repetition] | None = None
    """Makes the request to repeat a chunk, for methods that repeat it."""
    scores: ScoreCache | None = None
    """Scores of chunks that were repeated before, for training."""

    def __post_init__(self) -> None:
        # `kvzap` predicts the scores of `kvzip-heads`, so memory trained with one works with the other.
        alike = {self.pruning, self.memory.pruning} <= set(SHARED_BUDGET_METHODS)
        if self.memory.trained and self.pruning != self.memory.pruning and not alike:
            raise ValueError(
                f"kv_pruning={self.pruning!r} is for stock models: memory was trained with {self.memory.pruning!r}"
            )
        if self.memory.inserted and self.memory.window % self.ratio:
            raise ValueError(f"ratio={self.ratio} must divide the window of {self.memory.window}")

    def states(
        self, decoder: Decoder, rotary: Rotary, chunks: Chunks, sizes: Sequence[int] | None, release: Callable[[], None]
    ) -> list[KVStates]:
        """The KV states of each chunk, in batches that fit; see `Backbone.compress`, whose errors are raised."""
        windows = _windows(chunks, sizes)
        self.check(windows)

        def run(rows: Sequence[int]) -> list[list[KVStates]]:
            return self._run(decoder, rotary, [windows[row] for row in rows])

        tokens = [sum(map(len, window)) for window in windows]
        what = "a chunk" if len(windows) == len(chunks) else "a window"
        made = run_in_batches(run, tokens, COMPRESS_BATCH_TOKENS, decoder.embed_tokens.weight.device, what, release)
        return list(chain.from_iterable(made))

    def check(self, windows: Sequence[Chunks]) -> None:
        """Refuse chunks that cannot be compressed in the context.

        Raises:
            ValueError: A chunk is empty, what is read in one pass is too long, or memory tokens are inserted into
                chunks that are read together.
        """
        for number, chunk in enumerate(chain.from_iterable(windows)):
            if not chunk:
                raise ValueError(f"chunk {number} has no tokens")
        first = 0
        for window in windows:
            tokens, several = sum(map(len, window)), len(window) > 1
            if several and self.memory.inserted:
                raise ValueError("chunks with inserted memory tokens are compressed alone")
            if (taken := self._needed_positions(tokens)) > self.context:
                named = f"chunks {first} to {first + len(window) - 1}" if several else f"chunk {first}"
                raise ValueError(f"{named} of {tokens} tokens takes {taken}: larger than the context of {self.context}")
            first += len(window)

    def longest(self) -> int:
        """Maximum number of tokens that can be read in one pass."""
        free = self.context - len(self.chat_prefix_ids)
        repetition = self._repetition()
        return repetition.longest(free) if repetition else free

    def _run(self, decoder: Decoder, rotary: Rotary, windows: Sequence[Chunks]) -> list[list[KVStates]]:
        """The KV states of each chunk of each window, keys before rotation."""
        texts = [list(chain.from_iterable(window)) for window in windows]
        if self.memory.inserted:
            return [[s] for s in compress(decoder, rotary, texts, ratio=self.ratio, window=self.memory.window)]
        made = iter(prune(
            chunk_layers(decoder, self.memory), rotary, texts, ratio=self.ratio,
            chat_prefix_ids=self.chat_prefix_ids, pruning=self.pruning,
            repetition=self._repetition(), stock=decoder, score_cache=self.scores,
            parts=[list(map(len, window)) for window in windows],
        ))  # fmt: skip
        return [list(islice(made, len(window))) for window in windows]

    def examples(self, decoder: Decoder, rotary: Rotary, chunks: Chunks) -> list[tuple[Tensor, Tensor]]:
        """Of each chunk what importance is predicted from, and KVzip's scores; see `importance_examples`."""
        self.check([[chunk] for chunk in chunks])
        repetition = self._repetition()
        assert repetition is not None, "a method that repeats, above ratio 1"
        layers = chunk_layers(decoder, self.memory)
        return importance_examples(
            layers, rotary, chunks, chat_prefix_ids=self.chat_prefix_ids, stock=decoder, repetition=repetition
        )

    def _repetition(self) -> Repetition | None:
        """The request to repeat a chunk, if the method needs it."""
        needed = self.pruning in REPETITION_METHODS and self.ratio > 1
        return self.repetition() if needed and self.repetition else None

    def _needed_positions(self, tokens: int) -> int:
        """Positions that a chunk of so many tokens takes."""
        if self.memory.inserted:
            return min(tokens, self.memory.window) + memory_token_count(tokens, self.ratio)
        repetition = self._repetition()
        return len(self.chat_prefix_ids) + tokens + (repetition.tokens(tokens) if repetition else 0)


def _windows(chunks: Chunks, sizes: Sequence[int] | None) -> list[Chunks]:
    sizes = [1] * len(chunks) if sizes is None else list(sizes)
    if sum(sizes) != len(chunks) or min(sizes, default=1) < 1:
        raise ValueError(f"windows={sizes} are not {len(chunks)} chunks")
    rest = iter(chunks)
    return [list(islice(rest, size)) for size in sizes]


def chunk_layers(decoder: Decoder, memory: MemoryConfig) -> Decoder:
    """The layers that encode the tokens of a chunk: with the memory adapter if their own states were trained."""
    return decoder.as_role("memory") if memory.trained and not memory.inserted else decoder
