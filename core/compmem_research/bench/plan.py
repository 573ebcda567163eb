"""Plans for 1e5 to 1e9 chunks: bytes, shards, latency of the fan-out (simulated), build time and cost.

Sizes and latencies are those measured on one folder (`compmem bench scale`, `compmem bench encode`); the time of the
exact scan is measured here. Everything else is a parameter of `Assumptions`, with its source.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from compmem.retrieval.vector_search import ExactSearch
from compmem.schema import Vectors

SIZES: Final = (10**5, 10**6, 10**7, 10**8, 10**9)
"""Chunks."""

_Z95: Final = 1.645
"""Standard deviations from the median to the 95th percentile of a normal distribution."""

ONE_PROCESS: Final = "one process"
"""The design that the library runs by itself; the others need an engine that asks shards on many machines."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What was not measured. Prices are round figures near public list prices, to be replaced by one's own."""

    dim: int = 384
    """Dimensions of all-MiniLM-L6-v2."""
    characters_per_token: float = 4.0
    """English text, word pieces."""
    characters_per_page: float = 17_500
    """Of the pages that `bench scale` added; counted on 2,960 of them."""
    cores_per_machine: int = 16
    memory_gigabytes_per_machine: int = 64
    core_hour_price: float = 0.05
    """Dollars, with 4 GB of memory."""
    gpu_hour_price: float = 3.0
    """Dollars, one H100-class GPU."""
    gpu_tokens_per_second: float = 300_000
    """all-MiniLM-L6-v2 in 16 bits; not measured."""
    disk_gigabyte_month_price: float = 0.1
    """Dollars, SSD."""
    hot_text: float = 0.2
    """Share of text and lexical index that is in memory."""
    network_ms: float = 1.0
    """To a shard and back."""
    merge_microseconds: float = 0.5
    """For a block that a shard returns, in Python."""
    returned_blocks: int = 300
    """By a shard for a step: some 100 for each of three signals."""
    hiccup_share: float = 0.001
    """Requests to a shard that are held up (Dean and Barroso 2013, The Tail at Scale)."""
    hiccup_ms: float = 200.0
    most_shards: int = 256
    """Of an index folder, as the library allows."""
    vector_bytes: int = 388
    """Of a whole chunk in memory: a byte a dimension, and a scale."""
    pq_bytes: int = 96
    """Code of a vector: dim / 4, as the library's IVF-PQ has."""
    pq_scan_share: float = 0.05
    """Time of an IVF-PQ search beside the exact scan: 1/16 of the lists, and the search among these."""
    exact_budget_ms: float = 200.0
    """Longest scan of a shard that is accepted; beyond, IVF-PQ."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Figures of one folder."""

    chunks: int
    vector_bytes: float
    """A chunk, with its sentences."""
    text_bytes: float
    """A chunk, with its lexical index."""
    characters: float
    """A chunk."""
    step_ms: float
    """Median of one pass without the encoding of the question."""
    spread: float
    """Standard deviation of the logarithm of the time of one pass."""
    query_ms: float
    """Encoding of a question."""
    scan_ms: float
    """Exact scan of 100,000 chunks, processor time."""
    write_seconds: float
    """A chunk, without encoding, by one process."""
    tokens_per_second: float
    """Encoder, on one core."""


@dataclass(frozen=True, slots=True)
class Design:
    """How chunks are divided and searched."""

    name: str
    shard: int
    """Most chunks of a shard."""
    search: str
    one_process: bool = False
    """All shards in one process of one machine. Otherwise a core for each shard."""


DESIGNS: Final = (
    Design(ONE_PROCESS, 100_000, "exact", one_process=True),
    Design("a core a shard", 100_000, "exact"),
    Design("a core a shard", 1_000_000, "exact"),
    Design("a core a shard", 1_000_000, "ivf-pq"),
    Design("a core a shard", 10_000_000, "ivf-pq"),
)


def measure(scale: Path, encode: Path, *, draws: int = 20_000, seed: int = 0) -> dict[str, Any]:
    """The plan of each design for each size.

    Args:
        scale: Result of `compmem bench scale`.
        encode: Result of `compmem bench encode`.
        draws: Simulated questions.
        seed: Seed of the simulation.
    """
    assumed = Assumptions()
    one, encoder = (json.loads(path.read_text("utf-8")) for path in (scale, encode))
    known = measured(one, encoder, scan_ms(assumed.dim), assumed)
    rng = np.random.default_rng(seed)
    pairs = [(chunks, design) for chunks in SIZES for design in DESIGNS if design.shard <= chunks]
    plans = [plan(chunks, design, known, assumed, rng, draws) for chunks, design in pairs]
    return {
        "seed": seed,
        "draws": draws,
        "assumptions": asdict(assumed),
        "measured": asdict(known),
        "exact_until": int(100_000 * assumed.exact_budget_ms / known.scan_ms),
        "builds": [build(chunks, known, assumed) for chunks in SIZES],
        "plans": plans,
    }


def measured(scale: Mapping[str, Any], encode: Mapping[str, Any], scan: float, assumed: Assumptions) -> Measured:
    """The figures that the plan is made of, from two results and the time of an exact scan in ms."""
    chunks, passes = scale["chunks"], scale["one_pass_ms"]
    characters = scale["corpus_megabytes"] * 1e6 / chunks
    sizes = scale["bytes_per_character"]
    chunks_per_page = assumed.characters_per_page / characters
    return Measured(
        chunks=chunks,
        vector_bytes=sizes["vectors"] * characters,
        text_bytes=sizes["text and lexical"] * characters,
        characters=characters,
        step_ms=passes["p50"] - encode["query_ms"],
        spread=math.log(passes["p95"] / passes["p50"]) / _Z95,
        query_ms=encode["query_ms"],
        scan_ms=scan,
        write_seconds=scale["seconds_per_document"]["last tenth"] / chunks_per_page,
        tokens_per_second=encode["tokens_per_second"] / encode["threads"],
    )


class _RandomVectors:
    """Random unit vectors `[rows, dim]`, stored as an index stores them: a byte a dimension, and a scale."""

    def __init__(self, rows: int, dim: int) -> None:
        self.dim, self.numbers = dim, np.arange(rows, dtype=np.int64)
        self._values = np.random.default_rng(0).integers(-127, 128, (rows, dim), np.int8)
        self._scales = np.full(rows, 1 / np.sqrt(dim * 127 * 128 / 3), np.float32)

    def __len__(self) -> int:
        return len(self.numbers)

    def stored(self, start: int, stop: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        return self._values[start:stop], self._scales[start:stop]

    def of(self, blocks: NDArray[np.int64]) -> Vectors:
        return self._values[blocks].astype(np.float32) * self._scales[blocks, None]


def scan_ms(dim: int) -> float:
    """Median processor time of an exact search among random vectors, in ms for 100,000."""
    vectors: Any = _RandomVectors(100_000, dim)
    search, query, taken = ExactSearch(vectors), vectors.of(np.array([0])), []
    for _ in range(9):
        began = time.process_time()
        search.search(query, 100, None)
        taken.append(time.process_time() - began)
    return round(1000 * float(np.median(taken)), 2)


def plan(
    chunks: int, design: Design, known: Measured, assumed: Assumptions, rng: np.random.Generator, draws: int
) -> dict[str, Any]:
    """Sizes, latencies, cost and first limit of a design."""
    shards = -(-chunks // design.shard)
    step = simulated(chunks, design, known, assumed, rng, draws)
    loop = step + sum(simulated(chunks, design, known, assumed, rng, draws) for _ in range(3))
    memory = chunks * resident_bytes(design, known, assumed) / 1e9
    machines = 1 if design.one_process else -(-shards // assumed.cores_per_machine)
    if not design.one_process:
        machines = max(machines, math.ceil(memory / assumed.memory_gigabytes_per_machine))
    disk = chunks * (known.vector_bytes + known.text_bytes) / 1e9
    hours = 730 * machines * assumed.cores_per_machine * assumed.core_hour_price
    p50, p99 = np.percentile(step, [50, 99])
    four50, four99 = np.percentile(loop, [50, 99])
    return {
        "chunks": chunks,
        "design": design.name,
        "search": design.search,
        "chunks_per_shard": design.shard,
        "shards": shards,
        "disk_gigabytes": _short(disk),
        "memory_gigabytes": _short(memory),
        "machines": machines,
        "step_ms": {"p50": _short(p50), "p99": _short(p99)},
        "four_steps_ms": {"p50": _short(four50), "p99": _short(four99)},
        "dollars_per_month": _short(hours + disk * assumed.disk_gigabyte_month_price),
        "breaks": breaks(shards, p99, memory, design, known, assumed),
    }


def simulated(
    chunks: int, design: Design, known: Measured, assumed: Assumptions, rng: np.random.Generator, draws: int
) -> NDArray[np.float64]:
    """Simulated times of one step in ms, `[draws]`: encoding, the slowest shard, network and merge.

    A shard's time is log-normal with the measured spread. Shards are independent of each other.
    """
    shards = -(-chunks // design.shard)
    scan, rest = shard_ms(min(chunks, design.shard), design, known, assumed)
    if design.one_process:  # words are searched one shard after another, vectors on all cores
        waves = -(-shards // assumed.cores_per_machine)
        noise = np.exp(known.spread * rng.standard_normal(draws))
        return known.query_ms + (shards * rest + waves * scan) * noise
    slowest = rng.random(draws) ** (1 / shards)  # the quantile of the largest of so many
    times = (scan + rest) * np.exp(known.spread * _normal_quantile(slowest))
    held = rng.random(draws) < 1 - (1 - assumed.hiccup_share) ** shards
    merge = shards * assumed.returned_blocks * assumed.merge_microseconds / 1000
    return known.query_ms + times + held * assumed.hiccup_ms + assumed.network_ms + merge


def shard_ms(chunks: int, design: Design, known: Measured, assumed: Assumptions) -> tuple[float, float]:
    """Median time of a shard's scan and of the rest of a step; the rest does not grow, as postings are bounded."""
    scan = known.scan_ms * chunks / 100_000
    rest = max(known.step_ms - known.scan_ms * known.chunks / 100_000, 0.0)
    return scan * (assumed.pq_scan_share if design.search == "ivf-pq" else 1.0), rest


def resident_bytes(design: Design, known: Measured, assumed: Assumptions) -> float:
    """Bytes of a chunk that a search keeps in memory: number, document and row, its vector, and hot text."""
    vector = assumed.pq_bytes + 8 if design.search == "ivf-pq" else assumed.vector_bytes
    return 24 + vector + assumed.hot_text * known.text_bytes


def build(chunks: int, known: Measured, assumed: Assumptions) -> dict[str, Any]:
    """Hours and dollars to encode and write so many chunks, on 16 cores and on one GPU."""
    tokens = chunks * known.characters / assumed.characters_per_token
    cores = assumed.cores_per_machine
    writing = chunks * known.write_seconds / 3600 / cores
    on_cpu = tokens / known.tokens_per_second / 3600 / cores + writing
    on_gpu = max(tokens / assumed.gpu_tokens_per_second / 3600, writing)
    return {
        "chunks": chunks,
        "tokens": _short(tokens),
        "cpu_hours": _short(on_cpu),
        "cpu_dollars": _short(on_cpu * cores * assumed.core_hour_price),
        "gpu_hours": _short(on_gpu),
        "gpu_dollars": _short(on_gpu * (assumed.gpu_hour_price + cores * assumed.core_hour_price)),
    }


def breaks(shards: int, p99: float, memory: float, design: Design, known: Measured, assumed: Assumptions) -> list[str]:
    """What does not hold, in the order in which it is met as the index grows."""
    scan, _ = shard_ms(design.shard, design, known, assumed)
    merge = shards * assumed.returned_blocks * assumed.merge_microseconds / 1000
    found = {
        "a scan is over its budget": scan > assumed.exact_budget_ms,
        "a step takes over a second": p99 > 1000,
        f"more than {assumed.most_shards} shards": shards > assumed.most_shards,
        "memory of one machine": design.one_process and memory > assumed.memory_gigabytes_per_machine,
        "the merge alone takes over 100 ms": merge > 100 and not design.one_process,
    }
    return [name for name, met in found.items() if met]


def _normal_quantile(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(torch.special.ndtri(torch.from_numpy(np.clip(shares, 1e-15, 1 - 1e-15))).numpy())


def _short(value: float) -> float:
    """Three significant figures."""
    return float(f"{value:.3g}")


COLUMNS: Final = (
    "chunks", "design", "shards", "disk GB", "memory GB", "machines", "step p50 / p99 ms", "four steps p50 / p99 ms",
    "$ a month", "breaks",
)  # fmt: skip
BUILD_COLUMNS: Final = ("chunks", "tokens", "16 cores: hours", "$", "one GPU: hours", "$")


def rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The lines of the table of designs."""
    return [
        (
            f"{p['chunks']:,}", f"{p['design']}, {p['search']}, {p['chunks_per_shard']:,}", f"{p['shards']:,}",
            f"{p['disk_gigabytes']:,g}", f"{p['memory_gigabytes']:,g}", f"{p['machines']:,}",
            f"{p['step_ms']['p50']:,g} / {p['step_ms']['p99']:,g}",
            f"{p['four_steps_ms']['p50']:,g} / {p['four_steps_ms']['p99']:,g}",
            f"{p['dollars_per_month']:,g}", "; ".join(p["breaks"]) or "-",
        )
        for p in result["plans"]
    ]  # fmt: skip


def build_rows(result: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The lines of the table of building."""
    names = ("tokens", "cpu_hours", "cpu_dollars", "gpu_hours", "gpu_dollars")
    return [(f"{b['chunks']:,}", *(f"{b[name]:,g}" for name in names)) for b in result["builds"]]


def pages(result: Mapping[str, Any]) -> Iterator[str]:
    """Both tables in Markdown."""
    for columns, lines in ((COLUMNS, rows(result)), (BUILD_COLUMNS, build_rows(result))):
        yield f"| {' | '.join(columns)} |"
        yield f"|{' --- |' * len(columns)}"
        yield from (f"| {' | '.join(line)} |" for line in lines)
        yield ""
