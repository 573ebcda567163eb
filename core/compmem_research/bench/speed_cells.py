"""The parts of the speed measurement: steps of each system on one backbone, each measured as a cell."""

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from compmem.backbone import Backbone
from compmem.kv_cache import KVCache
from compmem.schema import KVStates
from compmem_research.bench.timing_config import SpeedSettings

Cell = dict[str, Any]
"""One finished measurement: figures by name, or the reason of a failure."""

LOOPS = ("memagent", "memagent generate", "no gate")
DIM = 384
"""Dimensions of the first stage's vectors."""
SEGMENT = 16
"""Blocks compressed together and written to one file."""
ROUNDS = 6
"""Warm answers of each kind; the median is used."""


@dataclass(slots=True)
class SpeedModels:
    """A backbone and the rules; the steps of all systems are made of the same parts."""

    backbone: Backbone
    rules: SpeedSettings
    random: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def ids(self, count: int) -> list[int]:
        """Random token ids."""
        drawn: list[int] = torch.randint(
            3, self.backbone.model.config.vocab_size - 1, (count,), generator=self.random
        ).tolist()
        return drawn

    def turn(self) -> list[int]:
        """A prompt without a chunk: question and working memory."""
        return self.ids(self.rules.prompt_tokens + self.rules.memory_tokens)

    def write(self, prompts: Sequence[list[int]], blocks: Sequence[Sequence[KVStates]] | None, tokens: int) -> None:
        """Decode this many tokens per row, whatever they are."""
        written = self.backbone.generate(prompts, blocks, max_new_tokens=tokens, stop_ids=())
        assert all(len(row) == tokens for row in written), "every system decodes the same number of tokens"

    def read(self, blocks: Sequence[KVStates], rows: int = 1) -> None:
        """A step after recalled blocks, for CompMem and for the loop without a gate."""
        self.write([self.turn() for _ in range(rows)], [blocks] * rows, self.rules.memory_tokens)

    def overwrite(self, rows: int = 1, *, times: int = 1) -> None:
        """Steps of MemAgent's loop, with the chunk's text in the prompt."""
        for _ in range(times):
            prompts = [self.ids(self.rules.chunk_tokens) + self.turn() for _ in range(rows)]
            self.write(prompts, None, self.rules.memory_tokens)

    def overwrite_stock(self) -> None:
        """The same step with transformers' own `generate`."""
        ids = torch.tensor([self.ids(self.rules.chunk_tokens) + self.turn()], device=self.backbone.device)
        count = self.rules.memory_tokens
        self.backbone.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=count, max_new_tokens=count,
            pad_token_id=0,
        )  # fmt: skip

    def conclude(self) -> None:
        """The answer, from question and working memory."""
        self.write([self.turn()], None, self.rules.answer_tokens)


@dataclass(slots=True)
class BlockFolder:
    """A document's KV blocks in files of a folder, and the vectors of its chunks."""

    path: Path
    vectors: torch.Tensor
    blocks: int = 0
    bytes: int = 0

    def put(self, states: Sequence[KVStates]) -> None:
        """Write blocks as one file."""
        file = self.path / f"{self.blocks // SEGMENT:06d}.safetensors"
        tensors: dict[str, torch.Tensor] = {}
        for s in states:
            tensors[f"{self.blocks}.keys"] = s.keys.to(torch.bfloat16).cpu().contiguous()
            tensors[f"{self.blocks}.values"] = s.values.to(torch.bfloat16).cpu().contiguous()
            self.blocks += 1
        save_file(tensors, file)
        self.bytes += file.stat().st_size

    def load(self, numbers: Sequence[int]) -> list[KVStates]:
        """Blocks by number, mapped from their files."""
        found: list[KVStates] = []
        for number in numbers:
            with safe_open(self.path / f"{number // SEGMENT:06d}.safetensors", "pt") as file:
                keys, values = file.get_tensor(f"{number}.keys"), file.get_tensor(f"{number}.values")
            found.append(KVStates(keys=keys, values=values))
        return found


def compress(models: SpeedModels, length: int, folder: BlockFolder) -> None:
    """Compress a document of this many tokens and write its blocks."""
    starts = range(0, length, models.rules.chunk_tokens)
    sizes = [min(models.rules.chunk_tokens, length - start) for start in starts]
    for at in range(0, len(sizes), SEGMENT):
        folder.put(
            models.backbone.compress([models.ids(size) for size in sizes[at : at + SEGMENT]], ratio=models.rules.ratio)
        )


def answer(models: SpeedModels, folder: BlockFolder, resident: KVCache, *, per_step: int) -> None:
    """CompMem's answer: every step runs first stage and gate and reads the best blocks; then the answer."""
    random = torch.Generator().manual_seed(1)
    read: list[int] = []
    most = min(models.rules.recalled, folder.blocks)
    while len(read) < most:
        asked = torch.randn(DIM, generator=random).to(folder.vectors)
        nearest = torch.argsort(folder.vectors @ asked, descending=True).tolist()
        proposed = [n for n in nearest if n not in read][: models.rules.candidates]
        turn = models.turn()
        states = resident.get(proposed, folder.load)
        scores = models.backbone.score(
            [turn] * len(proposed), [[s] for s in states], models.ids(models.rules.probe_tokens)
        )
        best = torch.argsort(scores, descending=True, stable=True)[: min(per_step, most - len(read))].tolist()
        models.read([states[i] for i in best])
        read += [proposed[i] for i in best]
    models.conclude()


def measure_length(models: SpeedModels, length: int, clock: "Clock") -> Cell:
    """CompMem on one document: compressing, the first answer, and answers with cached blocks.

    Warm answers alternate with steps of MemAgent's loop, so both are measured under the same load of the machine.
    """
    count = -(-length // models.rules.chunk_tokens)
    with tempfile.TemporaryDirectory(prefix="compmem-speed-") as name:
        folder = BlockFolder(Path(name), torch.randn(count, DIM, generator=models.random).to(models.backbone.device))
        out: Cell = {"index": clock.time(lambda: compress(models, length, folder))}
        weight = models.backbone.decoder.embed_tokens.weight
        ways = {"several": models.rules.recalled, "one": 1}
        # One block per step comes last: the blocks of its first step are already on the device.
        for label, per_step in ways.items():
            resident = KVCache(weight.device, weight.dtype, budget=64 << 30)
            out[f"cold {label}"] = clock.time(partial(answer, models, folder, resident, per_step=per_step))
        asks = {f"warm {label}": partial(answer, models, folder, resident, per_step=n) for label, n in ways.items()}
        each = -(-models.rules.timed_steps // ROUNDS)
        steps = partial(models.overwrite, times=each)
        timed = clock.in_turns({**asks, "steps": steps, "answer": models.conclude}, rounds=ROUNDS)
        # Only seconds of MemAgent: its memory is measured when no block is on the device.
        seconds = {"step": timed["steps"]["seconds"] / each, "answer": timed["answer"]["seconds"]}
        return {
            **out, **{label: timed[label] for label in asks}, "memagent": {"steps": each * ROUNDS, **seconds},
            "blocks": count, "disk_bytes": folder.bytes,
        }  # fmt: skip


def measure_loop(models: SpeedModels, system: str, clock: "Clock") -> Cell:
    """Seconds of one step of a loop with equal steps, and of its answer."""
    [block] = models.backbone.compress([models.ids(models.rules.chunk_tokens)], ratio=models.rules.ratio)
    step: Callable[[], None] = {
        "memagent": models.overwrite,
        "memagent generate": models.overwrite_stock,
        "no gate": lambda: models.read([block]),
    }[system]
    step()  # allocates, captures and compiles before timing
    timed = clock.median_of(step, rounds=models.rules.timed_steps)
    return {"steps": models.rules.timed_steps, "step": timed, "answer": clock.median_of(models.conclude, rounds=3)}


def measure_full(models: SpeedModels, length: int, clock: "Clock") -> Cell:
    """The whole document in the context, then the answer."""
    prompt = models.ids(length) + models.turn()
    return {"answer": clock.time(lambda: models.write([prompt], None, models.rules.answer_tokens))}


def measure_rates(models: SpeedModels, clock: "Clock") -> Cell:
    """Tokens per second of the parts: stock prefill, compression, gate; milliseconds per token of decoding."""
    chunk, backbone = models.rules.chunk_tokens, models.backbone
    rows = 4 if backbone.device.type == "cuda" else 1
    ids = [models.ids(chunk) for _ in range(rows)]
    stacked = torch.tensor(ids, device=backbone.device)
    ratio = models.rules.ratio
    prefill = clock.median(lambda: backbone.model(stacked, use_cache=True, logits_to_keep=1))
    compressing = clock.median(lambda: backbone.compress(ids, ratio=ratio))
    carried = 1 + 1 / ratio if backbone.memory.inserted else 1.0
    block = backbone.compress(ids[:1], ratio=ratio)
    gated = 64 if backbone.device.type == "cuda" else models.rules.candidates
    turn = models.turn()
    probe = models.ids(models.rules.probe_tokens)
    gate = clock.median(lambda: backbone.score([turn] * gated, [block] * gated, probe))
    out: Cell = {
        "prefill_tokens_per_second": rows * chunk / prefill,
        "compressed_source_tokens_per_second": rows * chunk / compressing,
        "compressed_tokens_per_second": rows * chunk * carried / compressing,
        "gate_blocks_per_second": gated / gate,
    }
    for batch in (1, 4, 16):
        turns, blocks = [turn] * batch, [block] * batch
        short = clock.median(lambda t=turns, b=blocks: models.write(t, b, 1))  # type: ignore[misc]
        long = clock.median(lambda t=turns, b=blocks: models.write(t, b, 129))  # type: ignore[misc]
        out[f"decode_ms_per_token_batch_{batch}"] = 1000 * (long - short) / 128
    return out


def measure_batch(models: SpeedModels, clock: "Clock") -> Cell:
    """One step for several questions at once: memory beyond the weights."""
    rows = 8
    [block] = models.backbone.compress([models.ids(models.rules.chunk_tokens)], ratio=models.rules.ratio)
    out: Cell = {"rows": rows}
    for name, step in (("compmem", partial(models.read, [block], rows)), ("memagent", partial(models.overwrite, rows))):
        models.backbone.free_caches()  # the slots of the other measurement do not count here
        step()
        out[name] = clock.time(step)
    return out


@dataclass(frozen=True, slots=True)
class Clock:
    """Times work on a device, and measures its memory beyond the weights."""

    device: torch.device
    weights: int
    """Bytes on a GPU before the measurements."""

    def time(self, work: Callable[[], object]) -> Cell:
        """Seconds, and on a GPU the peak bytes beyond the weights (None on a CPU)."""
        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)
        began = time.perf_counter()
        work()
        self.wait()
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "peak": torch.cuda.max_memory_allocated(self.device) - self.weights if on_gpu else None,
        }

    def median_of(self, work: Callable[[], object], *, rounds: int) -> Cell:
        """The median of some rounds, to reduce the effect of other load; the highest peak."""
        return self.in_turns({"work": work}, rounds=rounds)["work"]

    def in_turns(self, works: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, Cell]:
        """The same for several functions that alternate, so that other load affects all of them."""
        timed = [{name: self.time(work) for name, work in works.items()} for _ in range(rounds)]
        return {name: _middle([one[name] for one in timed]) for name in works}

    def median(self, work: Callable[[], object]) -> float:
        """Median seconds of three rounds after a warm-up."""
        work()
        return float(self.median_of(work, rounds=3)["seconds"])

    def wait(self) -> None:
        """Wait until the device has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _middle(timed: Sequence[Cell]) -> Cell:
    return {
        "seconds": float(median(t["seconds"] for t in timed)),
        "slowest": max(t["seconds"] for t in timed),
        "peak": max((t["peak"] for t in timed if t["peak"] is not None), default=None),
    }


@dataclass(frozen=True, slots=True)
class Planned:
    """A cell to measure."""

    name: str
    work: Callable[[], Cell]
    tokens: int = 0
    """Length of its document; 0: it has none."""

    @property
    def kind(self) -> str:
        """Name of the cell without its length."""
        return self.name.split()[0]


def plan(models: SpeedModels, lengths: Mapping[str, int], full_until: int) -> list[Planned]:
    """The cells by name, short ones first."""
    device = models.backbone.device
    clock = Clock(device, torch.cuda.memory_allocated(device) if device.type == "cuda" else 0)
    cells = [
        Planned("rates", partial(measure_rates, models, clock)),
        Planned("batch", partial(measure_batch, models, clock)),
        *(Planned(f"loop {system}", partial(measure_loop, models, system, clock)) for system in LOOPS),
    ]  # fmt: skip
    for name, tokens in lengths.items():
        cells.append(Planned(f"compmem {name}", partial(measure_length, models, tokens, clock), tokens))
        if tokens <= full_until:
            cells.append(Planned(f"full {name}", partial(measure_full, models, tokens, clock), tokens))
    return cells
