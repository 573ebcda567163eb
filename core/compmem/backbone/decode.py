"""Decoding: preallocated KV slots, one step as a CUDA graph, the same step run directly on a CPU.

Everything a step reads or writes has a fixed address: slots, columns, positions, the mask, the tokens chosen so far and
the random numbers for sampling. So a step is replayed without work on the host. The host checks the tokens only every
few steps, to see whether all rows have stopped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock

import torch
from torch import Tensor

from compmem.backbone.attention import attention
from compmem.backbone.config import Role
from compmem.backbone.decoder import Context, Decoder
from compmem.backbone.prefix_context import Layout, Prefix, PrefixContext
from compmem.backbone.rotary import Rotary, rotate

SLOT_STEP = 512
"""On a GPU, slots are allocated in multiples of this, so that graphs can be reused."""
MAX_CACHED = 8
"""Maximum number of shapes whose slots and graphs are cached."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are chosen: the most likely one (temperature 0), or sampled with one generator per row."""

    temperature: float = 0.0
    seeds: Sequence[int] = ()

    def uniform_numbers(self, steps: int) -> Tensor:
        """Uniform random numbers `[steps, rows]`, the same on every device and for every batch size."""
        rows = [
            torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in self.seeds
        ]
        return torch.stack(rows, dim=1)


def sample_tokens(logits: Tensor, numbers: Tensor, temperature: Tensor | None) -> Tensor:
    """Tokens `[rows]` from logits `[rows, vocabulary]`, by inverse transform sampling with `numbers` `[rows]`."""
    if temperature is None:
        return logits.argmax(dim=-1)
    mass = torch.softmax(logits.float() / temperature, dim=-1).double().cumsum(dim=-1)
    chosen = torch.searchsorted(mass, (numbers * mass[:, -1])[:, None], right=True)[:, 0]
    return chosen.clamp(max=logits.shape[-1] - 1)


class DecodeState(Context):
    """Preallocated keys and values of every layer, and the state of one step, for a number of rows and slots."""

    def __init__(
        self, decoder: Decoder, rotary: Rotary, *, rows: int, slots: int, sampled: bool, first_slots: Sequence[int],
        ragged: bool,
    ) -> None:  # fmt: skip
        weight = decoder.embed_tokens.weight
        layers, heads, width = decoder.kv_shape
        # A graph reuses slots, so they must not be inference tensors: those cannot be written outside inference mode.
        with torch.inference_mode(False):
            # Zeros, since a masked slot still enters the sum with weight zero.
            self.keys = [weight.new_zeros(rows, heads, slots - first, width) for first in first_slots]
            self.values = [weight.new_zeros(rows, heads, slots - first, width) for first in first_slots]
            device = weight.device
            mask_shape = (layers, rows, heads) if ragged else (1, rows, 1)
            self.visible = torch.zeros(*mask_shape, 1, slots, dtype=torch.bool, device=device)
            """Slots that attention sees, `[1 or layers, rows, 1 or kv_heads, 1, slots]`."""
            self.column = torch.zeros(rows, dtype=torch.long, device=device)
            self.position = torch.zeros(rows, dtype=torch.long, device=device)
            self.step = torch.zeros(1, dtype=torch.long, device=device)
            self.tokens = torch.zeros(slots, rows, dtype=torch.long, device=device)
            self.numbers = torch.zeros(slots, rows, dtype=torch.float64, device=device)
            self.temperature = torch.ones((), device=device) if sampled else None
            self.rows = torch.arange(rows, device=device)
        self.first_slots = first_slots
        """For each layer, the number of leading slots that it does not store."""
        self.visible_slots = slots
        """Slots that attention sees; a step without a graph leaves out those not written yet."""
        self.needs_mask = True
        """Whether some visible slots are masked. A mask doubles the time of attention on a CPU."""
        self._decoder = decoder
        self._rotary = rotary
        self._angles: tuple[Tensor, Tensor] = (weight, weight)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float) -> Tensor:
        """Attention of one token per row; its states are written to the row's column."""
        cos, sin = self._angles
        keys, values, first = self.keys[layer], self.values[layer], self.first_slots[layer]
        column = self.column - first if first else self.column
        keys[self.rows, :, column] = rotate(key, cos, sin)[:, :, 0].detach()
        values[self.rows, :, column] = value[:, :, 0].detach()
        seen, mask = self.visible_slots - first, None
        if self.needs_mask:
            mask = self.visible[layer if len(self.visible) > 1 else 0, ..., first : self.visible_slots]
        return attention(
            rotate(query, cos, sin), keys[:, :, :seen], values[:, :, :seen], scale=scale, mask=mask, dropout=dropout
        )

    def advance(self, role: Role | None) -> None:
        """Run the last chosen token and choose the next one."""
        last = self.tokens.index_select(0, self.step)[0]
        column = self.column[:, None, None, None].expand(*self.visible.shape[:4], 1)
        self.visible.scatter_(4, column, True)
        cos, sin = self._rotary.at(self.position, self.keys[0])
        self._angles = (cos[:, None, None], sin[:, None, None])
        hidden = self._decoder(last[:, None], self, role=role)
        self.step.add_(1)
        self.store_tokens(self._decoder.lm_head(hidden[:, -1]))
        self.column.add_(1)
        self.position.add_(1)

    def store_tokens(self, logits: Tensor) -> None:
        """Choose tokens from logits `[rows, vocabulary]` and store them as this step's tokens."""
        numbers = self.numbers.index_select(0, self.step)[0]
        self.tokens.index_copy_(0, self.step, sample_tokens(logits.detach(), numbers, self.temperature)[None])

    def start(self, prefix: Prefix, layout: Layout, sampling: Sampling, role: Role | None) -> None:
        """Run the prompts, fill the slots, and choose the first tokens."""
        self.step.zero_()
        memory = prefix.longest
        behind = torch.arange(self.visible.shape[-1] - memory, device=self.visible.device)
        self.visible[..., :memory] = prefix.occupied()[..., None, :]
        self.visible[..., memory:] = (behind < layout.lengths[:, None])[:, None, None]
        self.column.copy_(layout.lengths + memory)
        self.position.copy_(layout.positions[:, 0] + layout.lengths)
        if self.temperature is not None:
            self.temperature.fill_(sampling.temperature)
            self.numbers.copy_(sampling.uniform_numbers(len(self.numbers)))
        hidden = self._decoder(layout.ids, _PromptPass(self, prefix, layout, self._rotary), role=role)
        self.store_tokens(self._decoder.lm_head(hidden[self.rows, layout.lengths - 1]))


class _PromptPass(Context):
    """Prompts after their blocks, run once; all states are kept in the slots."""

    def __init__(self, slots: DecodeState, prefix: Prefix, layout: Layout, rotary: Rotary) -> None:
        self._slots = slots
        self._prefix = prefix
        self._layout = layout
        self._reading = PrefixContext(prefix, layout, rotary)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scale: float, dropout: float) -> Tensor:
        query, key = self._reading.rotate_prompts(query, key)
        first = self._slots.first_slots[layer]
        keys, values = self._slots.keys[layer], self._slots.values[layer]
        begin, memory = self._prefix.leading_slots(layer) - first, self._prefix.longest - first
        end = memory + key.shape[2]
        if memory:
            past_key, past_value = self._prefix.layer(layer, key.shape[1], key.shape[3])
            keys[:, :, begin:memory], values[:, :, begin:memory] = past_key.detach(), past_value.detach()
        keys[:, :, memory:end], values[:, :, memory:end] = key.detach(), value.detach()
        mask = self._prefix.mask(layer, self._layout)
        return attention(query, keys[:, :, begin:end], values[:, :, begin:end], scale=scale, mask=mask, dropout=dropout)


RunStep = Callable[[], object]
"""Runs one step of its slots."""


class DecodeEngine:
    """Runs the steps of a batch, and caches the slots and graphs of the last few shapes."""

    def __init__(self, decoder: Decoder, rotary: Rotary, *, graphs: bool | None = None) -> None:
        self._decoder = decoder
        self._rotary = rotary
        self._graphs = graphs
        self._cached: dict[tuple[int, int, bool, bool, Role | None], tuple[DecodeState, RunStep]] = {}
        self._capturing = Lock()

    def run(
        self, prefix: Prefix, layout: Layout, sampling: Sampling, *, steps: int, look_every: int, role: Role | None
    ) -> Iterator[list[list[int]]]:
        """The tokens of every row, as lists of those chosen since the last check.

        Args:
            prefix: Recalled blocks of each row.
            layout: Prompts after the blocks.
            sampling: How tokens are chosen.
            steps: Maximum number of tokens per row.
            look_every: Steps between two checks by the host.
            role: The role whose adapter is used.
        """
        written, seen = prefix.longest + layout.ids.shape[1], 0
        fixed = layout.ids.is_cuda if self._graphs is None else self._graphs
        size = -(-(written + steps) // SLOT_STEP) * SLOT_STEP if fixed else written + steps
        key = (len(layout.ids), size, sampling.temperature > 0, prefix.ragged, role)
        # Removed from the cache while in use: a concurrent run of this shape gets its own slots.
        taken: tuple[DecodeState, RunStep] | None = self._cached.pop(key, None)
        slots, step = taken or self._prepare(*key, prefix=None if fixed else prefix)
        slots.needs_mask = fixed or prefix.ragged or not layout.equal_lengths
        try:
            slots.start(prefix, layout, sampling, role)
            for made in range(1, steps + 1):
                if made == steps or made % look_every == 0:
                    yield slots.tokens[seen:made].T.tolist()
                    seen = made
                if made == steps:
                    return
                if not fixed:
                    slots.visible_slots = written + made
                step()
        finally:
            if fixed:
                self._cached[key] = (slots, step)
                while len(self._cached) > MAX_CACHED:
                    self._cached.pop(next(iter(self._cached)), None)

    def _prepare(
        self, rows: int, size: int, sampled: bool, ragged: bool, role: Role | None, *, prefix: Prefix | None
    ) -> tuple[DecodeState, RunStep]:
        """Slots and their step: for this memory alone, or of a fixed size for any."""
        first_slots = [prefix.leading_slots(layer) if prefix else 0 for layer in range(len(self._decoder.layers))]
        slots = DecodeState(
            self._decoder, self._rotary, rows=rows, slots=size, sampled=sampled, first_slots=first_slots, ragged=ragged
        )
        if prefix or not slots.column.is_cuda:
            return slots, partial(slots.advance, role)
        with self._capturing:
            side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(2):
                    slots.advance(role)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Another thread may be copying blocks to the device at the same time.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                slots.advance(role)
            return slots, graph.replay

    def clear(self) -> None:
        """Free the memory of all graphs."""
        self._cached.clear()


def check_generation(max_new_tokens: int, temperature: float) -> None:
    """Refuse invalid generation settings.

    Raises:
        ValueError: The number of tokens is below 1, or the temperature is negative.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens!r} must be at least 1")
    if temperature < 0:
        raise ValueError(f"temperature={temperature!r} must not be negative")
