"""The backbone: one causal LM that compresses, reads, scores and writes, with one adapter per role."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from compmem.backbone import checkpoint
from compmem.backbone.batching import SCORE_BATCH_SLOTS, run_in_batches, run_or_halve
from compmem.backbone.chat_prefix import (
    Blocks,
    ChatPrefixCache,
    Prompts,
    move_prefix_to_blocks,
    restore_prompt_positions,
)
from compmem.backbone.checkpoint import BackboneComponents
from compmem.backbone.compression import Compression, chunk_layers
from compmem.backbone.config import AdapterConfig, MemoryConfig, Role
from compmem.backbone.decode import DecodeEngine, Sampling, check_generation
from compmem.backbone.decoder import Decoder
from compmem.backbone.fingerprint import fingerprint
from compmem.backbone.kvzip import Repetition
from compmem.backbone.prefix_context import Layout, Prefix, PrefixContext, StateRecorder, check_fits_context, slots_of
from compmem.backbone.prompts import chat_prefix_ids
from compmem.backbone.prune import all_states
from compmem.backbone.ragged import make_prefix
from compmem.backbone.rotary import Rotary
from compmem.backbone.score_cache import ScoreCache
from compmem.backbone.stock import check_family
from compmem.backbone.stop import StopDetector
from compmem.backbone.token_codec import TokenCodec
from compmem.config import KVPruning
from compmem.deadline import seconds_left
from compmem.devices import device_of, dtype_of
from compmem.errors import CheckpointError
from compmem.schema import KVStates

STOP_CHECK_INTERVAL = 16
"""Steps between two checks whether all rows have ended; each check waits for the device."""


class Backbone(TokenCodec):
    """A stock causal LM with memory tokens. Gradients flow unless the caller turns them off.

    Attributes:
        model: The stock model, unchanged.
        tokenizer: Its tokenizer.
        decoder: The layers of `model` with the added parameters; the attention context is an argument.
        memory: How chunks are compressed.
        adapters: The adapter of each role that has one.
        rotary: The model's rotary position embedding.
        threshold: Blocks with a lower gate score are rejected.
        steps_trained: Whether the reader was trained for the steps of the loop. If not, the extractive reader runs the
            loop by default, and the backbone writes the answer from the recalled blocks.
        base: Name of the stock model, if the folder has only the added parameters.
        folder: The folder that it was loaded from, with what was added. None for a file, or a model loaded elsewhere.
    """

    def __init__(self, components: BackboneComponents, *, graphs: bool | None = None) -> None:
        super().__init__(components.model, components.tokenizer)
        self.decoder: Decoder = components.decoder
        self.memory: MemoryConfig = components.memory
        self.adapters: dict[Role, AdapterConfig] = dict(components.adapters)
        self.threshold = components.threshold
        self.steps_trained = components.steps_trained
        self.base = components.base
        self.folder = components.folder
        self.rotary = Rotary(components.model.model.rotary_emb)
        self._engine = DecodeEngine(components.decoder, self.rotary, graphs=graphs)
        self._chat_prefix_ids = chat_prefix_ids(components.tokenizer)
        self._chat_prefix_cache = ChatPrefixCache(components.decoder)
        self._scores: ScoreCache | None = None

    @classmethod
    def load(
        cls,
        name: str | Path,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        ratio: int | None = None,
        graphs: bool | None = None,
        allow_download: bool | None = None,
        base: str | Path | None = None,
    ) -> "Backbone":
        """Load a stock pretrained model, a folder in the public LycheeMemory format, or one saved here.

        Args:
            name: Folder, `.gguf` file (its weights are dequantised), name on the Hugging Face hub, or what ships with
                the library: "embedded", or "smollm2-135m-memory" for SmolLM2-135M-Instruct.
            device: Where it runs. None: a GPU where there is one.
            dtype: Of weights and states. None: the checkpoint's own; on a CPU, in place of 16 bits, the faster of
                bfloat16 and float32.
            ratio: Compression ratio. None: the checkpoint's own.
            graphs: Decode in slots of fixed size, with CUDA graphs on a GPU. None: on a GPU.
            allow_download: What may be downloaded from the hub. None: the model of this name, but no base model that
                its folder names; True: both; False: neither.
            base: The stock model of a folder with only what was added to one. None: the one that the folder names.

        Raises:
            CheckpointError: The folder is incomplete, contains a model that is not supported, or was trained on other
                weights than those of the base.
            ValueError: The device or dtype is not available.
        """
        device = device_of(device)
        components = checkpoint.load(
            name, device=device, dtype=dtype_of(dtype), ratio=ratio, allow_download=allow_download, base=base
        )
        return cls(components, graphs=graphs)

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, *, graphs: bool | None = None) -> "Backbone":
        """A backbone from a stock model that is already loaded.

        Raises:
            CheckpointError: The model family is not supported.
        """
        check_family(model.config.to_dict(), model.name_or_path)
        memory, decoder = MemoryConfig(trained=False, own=()), Decoder(model).eval()
        stock = BackboneComponents(model=model, tokenizer=tokenizer, decoder=decoder, memory=memory, adapters={})
        return cls(stock, graphs=graphs)

    def save(self, folder: str | Path, *, base: str | None = None, dtype: torch.dtype | None = None) -> None:
        """Save everything to a folder; with `base`, only what is added to the model of that name, in this dtype."""
        components = BackboneComponents(
            model=self.model, tokenizer=self.tokenizer, decoder=self.decoder, memory=self.memory,
            adapters=self.adapters, threshold=self.threshold, steps_trained=self.steps_trained,
        )  # fmt: skip
        checkpoint.save(Path(folder), components, base=base, dtype=dtype)

    def free_caches(self) -> None:
        """Free what decoding caches: slots, graphs and the states of the chat prefix."""
        self._engine.clear()
        self._chat_prefix_cache.release()

    def add_memory(self, config: MemoryConfig) -> None:
        """Add trained memory; inserted tokens start as copies of stock weights (the end token's embedding).

        Raises:
            ValueError: The settings are those of a backbone without memory tokens.
        """
        if not config.trained:
            raise ValueError("memory is added to be trained: give a MemoryConfig with trained=True")
        if config.pruning != "kvzap":
            self.decoder.importance = None
        elif self.decoder.importance is None:
            raise ValueError("pruning='kvzap' needs fitted importance: train with 'kvzip-heads' first")
        end = self.tokenizer.eos_token_id
        self.decoder.add_memory(config, 0 if end is None else end)
        self.memory = config

    def add_adapter(self, role: Role, config: AdapterConfig) -> None:
        """Add an adapter for a role; it changes nothing until it is trained."""
        self.decoder.add_adapter(role, config)
        self.adapters[role] = config
        self._engine.clear()

    def add_gate(self) -> None:
        """Add a gate head; it scores every block alike until it is trained."""
        self.decoder.add_gate()

    def parameters(self, part: Literal["base", "memory", "reasoner", "gate"]) -> dict[str, Parameter]:
        """The parameters of one part, by name, for an optimiser."""
        return self.decoder.parameters_of(part)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.decoder.embed_tokens.weight.device

    @property
    def context(self) -> int:
        """Longest context of the stock model, in positions."""
        positions: int = self.model.config.max_position_embeddings
        return positions

    @property
    def chat_prefix_ids(self) -> list[int]:
        """Token ids in front of every chunk and every block; none if memory tokens are inserted."""
        return [] if self.memory.inserted else self._chat_prefix_ids

    @property
    def shape(self) -> tuple[int, int, int]:
        """Layers, KV heads and head width, which a block's KV states must have."""
        return self.decoder.kv_shape

    @property
    def has_gate(self) -> bool:
        """Whether `score` is available."""
        return self.decoder.gate_head is not None

    def fingerprint(self, pruning: KVPruning | None = None) -> str:
        """A hash of everything that determines a block: settings and weights (a sample of each, rounded to bfloat16).

        It is the same on every device, in float32 and bfloat16. Adapters that are used only for reading are left out,
        and the weights of KVzap where states are chosen by another method. None: the memory's own.
        """
        return fingerprint(self.decoder, self.memory, predicted=(pruning or self.memory.pruning) == "kvzap")

    def compress(
        self,
        chunks: Sequence[Sequence[int]],
        *,
        ratio: int | None = None,
        pruning: KVPruning | None = None,
        windows: Sequence[int] | None = None,
    ) -> list[KVStates]:
        """The KV states that represent each chunk: one state per `ratio` tokens and head, keys before rotation.

        Args:
            chunks: Token ids of each chunk.
            ratio: Tokens per state. None: the memory's own.
            pruning: How the states of a stock model are chosen: see `IndexConfig.kv_pruning`. None: the memory's own.
            windows: Numbers of chunks in a row that are read in one pass, so that each sees those before it; their sum
                is the number of chunks. None: each is read alone.

        Raises:
            ValueError: A chunk is empty, a window is longer than the context, the window of inserted memory tokens is
                not a multiple of the ratio, or trained memory is given another pruning method than its own
                ("kvzip-heads" and "kvzap" are one).
            MemoryError: A single window does not fit on the device.
        """
        return self._compression(ratio, pruning).states(self.decoder, self.rotary, chunks, windows, self.free_caches)

    def max_window_tokens(self, *, ratio: int | None = None, pruning: KVPruning | None = None) -> int:
        """Maximum number of tokens that `compress` reads in one pass: less than the context where they are repeated."""
        return self._compression(ratio, pruning).longest()

    @torch.no_grad()
    def importance_examples(self, chunks: Sequence[Sequence[int]]) -> list[tuple[Tensor, Tensor]]:
        """What importance is predicted from, and KVzip's scores, to fit `set_importance`.

        Of each chunk the features `[layers, tokens, features]` and the scores `[layers, kv_heads, tokens]`.

        Args:
            chunks: Token ids of each chunk; all are run at once.

        Raises:
            ValueError: A chunk is empty, or too long to be repeated in the context.
        """
        return self._compression(2, "kvzip-heads").examples(self.decoder, self.rotary, chunks)

    def set_importance(self, weights: Tensor) -> None:
        """Choose states by scores that are predicted with these weights: `pruning="kvzap"`.

        Args:
            weights: `[layers, kv_heads, features + 1]`; the last ones are added as they are.

        Raises:
            ValueError: They have another shape or are not finite, or memory tokens are inserted, which are all kept.
        """
        memory = replace(self.memory, pruning="kvzap")  # refuses inserted tokens
        self.decoder.set_importance(weights)
        self.memory = memory

    def cache_scores(self, chunks: int) -> None:
        """Keep the stock model's scores of this many recent chunks (KVzip's), for training that compresses them again.

        They take 4 bytes for each layer, KV head and token of a chunk.
        """
        self._scores = ScoreCache(list(self.parameters("base").values()), chunks)

    def use_scores_of(self, other: "Backbone") -> None:
        """Use the scores that another backbone over the same stock weights keeps."""
        self._scores = other._scores

    def _compression(self, ratio: int | None, pruning: KVPruning | None) -> Compression:
        return Compression(
            memory=self.memory, ratio=ratio or self.memory.ratio, chat_prefix_ids=self.chat_prefix_ids,
            pruning=pruning or self.memory.pruning, context=self.context,
            repetition=lambda: self._repetition, scores=self._scores,
        )  # fmt: skip

    @cached_property
    def _repetition(self) -> Repetition:
        return Repetition(self.prompt)

    def read(
        self, prompts: Prompts, blocks: Blocks | None = None, *, role: Role | None = "reasoner",
        start: int | Sequence[int] | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden states `[rows, prompt, hidden]` of prompts that follow their blocks, padded on the right.

        Args:
            prompts: Token ids of each row.
            blocks: Recalled blocks of each row.
            role: The role whose adapter is used, if it has one.
            start: Position of the first prompt token, for all rows or for each. None: directly after the row's memory.

        Blocks of a stock model come after the chat prefix. The hidden states of a prompt's own chat prefix are zero in
        the result.
        """
        if blocks is None or start is not None:
            return self._read(prompts, blocks, role, start)
        shortened, rows = self._move_chat_prefix(prompts, blocks)
        hidden = self._read(shortened, rows, role, None)
        return hidden if shortened is prompts else restore_prompt_positions(hidden, prompts, shortened)

    def _read(
        self, prompts: Prompts, blocks: Blocks | None, role: Role | None,
        start: int | Sequence[int] | None,
    ) -> Tensor:  # fmt: skip
        prefix, layout = self._make_layout(prompts, blocks, start, 0)
        hidden: Tensor = self.decoder(layout.ids, PrefixContext(prefix, layout, self.rotary), role=role)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits `[..., vocabulary]` of hidden states."""
        logits: Tensor = self.decoder.lm_head(hidden)
        return logits

    def score(
        self, questions: Prompts, blocks: Blocks, probe: Sequence[int], *, start: int | None = None
    ) -> Tensor:  # fmt: skip
        """The gate's logits `[rows]`: the head applied to the last hidden state of question, blocks and probe.

        The question comes before the blocks, so its states are computed once for all of them. A block then costs only
        the few tokens of the probe.

        Args:
            questions: Token ids of question and working memory, of each row.
            blocks: The blocks of each row.
            probe: Token ids after the blocks.
            start: Position of the first question token, if blocks are read without rotation. None: 0.

        Raises:
            ValueError: A start is given, but this backbone rotates blocks to their positions.
            CheckpointError: There is no gate head.
        """
        if (gate := self.decoder.gate_head) is None:
            raise CheckpointError("this backbone has no gate head; train one, or use the dense gate")
        if start is not None and self.memory.positions == "rotated":
            raise ValueError(f"start={start!r}: a backbone that rotates its blocks reads from position 0")
        distinct = list(dict.fromkeys(map(tuple, questions)))
        made = self.prompt_states(distinct, role="gate", start=start) if distinct else []
        states = dict(zip(distinct, made, strict=True))

        def run(rows: Sequence[int]) -> list[Tensor]:
            prefix_blocks = [[states[tuple(questions[row])], *blocks[row]] for row in rows]
            first = [start + len(questions[row]) for row in rows] if start is not None else None
            return list(gate(self._read([probe] * len(rows), prefix_blocks, "gate", first)[:, -1])[:, 0])

        sizes = [len(turn) + slots_of(row) for turn, row in zip(questions, blocks, strict=True)]
        return torch.stack(
            run_in_batches(run, sizes, SCORE_BATCH_SLOTS, self.device, "a block with its question", self.free_caches)
        )

    def log_odds(
        self, prompts: Prompts, blocks: Blocks, yes: int, no: int, *, starts: Sequence[int] | None = None
    ) -> Tensor:  # fmt: skip
        """Log-odds `[rows]` of one next token against another, after each prompt and its blocks.

        Args:
            prompts: Token ids of each row.
            blocks: The blocks of each row.
            yes: The token.
            no: The other one.
            starts: Position of the first token of each prompt. None: directly after the row's memory.

        Raises:
            ValueError: A block was made by another backbone, or a prompt does not fit in the context.
            MemoryError: A single row does not fit on the device.
        """

        def run(rows: Sequence[int]) -> list[Tensor]:
            first = [starts[row] for row in rows] if starts else None
            hidden = self.read([prompts[row] for row in rows], [blocks[row] for row in rows], start=first)
            last = torch.tensor([len(prompts[row]) - 1 for row in rows], device=hidden.device)
            logits = self.logits(hidden[torch.arange(len(rows), device=hidden.device), last]).float()
            return list(logits[:, yes] - logits[:, no])

        sizes = [len(prompt) + slots_of(row) for prompt, row in zip(prompts, blocks, strict=True)]
        return torch.stack(
            run_in_batches(run, sizes, SCORE_BATCH_SLOTS, self.device, "a block with its prompt", self.free_caches)
        )

    def prompt_states(
        self, prompts: Prompts, *, role: Role | None = "reasoner", start: int | None = None
    ) -> list[KVStates]:
        """KV states of prompts without blocks, to use as a block before later tokens (`start`: the first position)."""
        prefix, layout = self._make_layout(prompts, None, start, 0)
        context = PrefixContext(prefix, layout, self.rotary)
        recorder = StateRecorder(context, len(self.decoder.layers), self.memory.positions)
        self.decoder(layout.ids, recorder, role=role)
        return recorder.states(list(map(len, prompts)))

    def generate(
        self,
        prompts: Prompts,
        blocks: Blocks | None = None,
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int] | None = None,
        stop_strings: Sequence[str] = (),
        stop_on_repetition: bool = False,
        temperature: float = 0.0,
        seeds: Sequence[int] | None = None,
        role: Role | None = "reasoner",
        start: int | None = None,
    ) -> list[list[int]]:
        """The tokens generated after each prompt. Stop ids are left out; text that completes a stop string is included.

        Args:
            prompts: Token ids of each row.
            blocks: Recalled blocks of each row.
            max_new_tokens: Maximum number of tokens per row.
            stop_ids: Ids that end a row. None: the model's end tokens.
            stop_strings: Texts that end a row.
            stop_on_repetition: End a row that repeats itself.
            temperature: 0 takes the most likely token.
            seeds: One per row, for sampling.
            role: The role whose adapter is used, if it has one.
            start: Position of the first prompt token. None: directly after the row's memory.

        Raises:
            ValueError: A prompt and the tokens to generate do not fit in the context.
            MemoryError: A single row does not fit on the device.
            OverdueError: The time for a question is up.
        """
        row_seeds = range(len(prompts)) if seeds is None else seeds
        if len(row_seeds) != len(prompts):
            raise ValueError(f"{len(row_seeds)} seeds for {len(prompts)} prompts")
        check_generation(max_new_tokens, temperature)
        ids = self.end_ids if stop_ids is None else stop_ids
        if blocks is not None and start is None:
            prompts, blocks = self._move_chat_prefix(prompts, blocks)

        def run(rows: Sequence[int]) -> list[list[int]]:
            stops = [
                StopDetector(self.tokenizer, ids, stop_strings, stop_on_repetition=stop_on_repetition) for _ in rows
            ]
            sampling = Sampling(temperature=temperature, seeds=[row_seeds[row] for row in rows])
            prefix, layout = self._make_layout(
                [prompts[row] for row in rows], [blocks[row] for row in rows] if blocks else None, start, max_new_tokens
            )
            look = STOP_CHECK_INTERVAL if layout.ids.is_cuda else 1
            for made in self._engine.run(prefix, layout, sampling, steps=max_new_tokens, look_every=look, role=role):
                seconds_left()
                for stop, tokens in zip(stops, made, strict=True):
                    stop.append(tokens)
                if all(stop.done for stop in stops):
                    break
            return [stop.tokens for stop in stops]

        return run_or_halve(run, range(len(prompts)), "a prompt with its memory", self.free_caches) if prompts else []

    def stream(
        self,
        prompt: Sequence[int],
        blocks: Sequence[KVStates] = (),
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int] | None = None,
        stop_strings: Sequence[str] = (),
        stop_on_repetition: bool = False,
        temperature: float = 0.0,
        seed: int = 0,
        role: Role | None = "reasoner",
        start: int | None = None,
    ) -> Iterator[int]:
        """The tokens of `generate` for one prompt, streamed."""
        check_generation(max_new_tokens, temperature)
        prompts, rows = self._move_chat_prefix([prompt], [blocks]) if start is None else ([prompt], [blocks])
        prefix, layout = self._make_layout(prompts, rows, start, max_new_tokens)
        ids = self.end_ids if stop_ids is None else stop_ids
        stop = StopDetector(self.tokenizer, ids, stop_strings, stop_on_repetition=stop_on_repetition)
        sampling = Sampling(temperature=temperature, seeds=[seed])
        for made in self._engine.run(prefix, layout, sampling, steps=max_new_tokens, look_every=1, role=role):
            seconds_left()
            yield from stop.append(made[0])
            if stop.done:
                return

    def _move_chat_prefix(self, prompts: Prompts, blocks: Blocks) -> tuple[Prompts, Blocks]:
        return move_prefix_to_blocks(self.chat_prefix_ids, self.chat_prefix_states, prompts, blocks)

    def chat_prefix_states(self, ids: list[int]) -> KVStates:
        """All states of the chat prefix, made as those of a chunk; computed once."""
        layers = chunk_layers(self.decoder, self.memory)
        return self._chat_prefix_cache.get(ids, lambda: all_states(layers, self.rotary, [ids])[0])

    def _make_layout(
        self, prompts: Prompts, blocks: Blocks | None, start: int | Sequence[int] | None, more: int
    ) -> tuple[Prefix, Layout]:
        rows = [()] * len(prompts) if blocks is None else blocks
        if len(rows) != len(prompts):
            raise ValueError(f"{len(rows)} rows of blocks for {len(prompts)} prompts")
        like = self.decoder.embed_tokens.weight
        prefix = make_prefix(rows, self.rotary, self.memory.positions, like, self.shape)
        starts = prefix.counts if start is None else [start] * len(prompts) if isinstance(start, int) else start
        check_fits_context(prompts, prefix.counts, starts, more, self.context)
        return prefix, Layout.of(prompts, prefix.counts, starts, like)
