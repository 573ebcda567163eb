"""Speed of the encoder and of stock `SentenceTransformer.encode`, and the similarity of their vectors."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch

from compmem.encoder import load_encoder, stock_encoder
from compmem.naming import DEFAULT_ENCODER
from compmem.schema import Vectors
from compmem_research.bench.clock import Times, now


def measure(
    passages: Sequence[str],
    *,
    encoder: str = DEFAULT_ENCODER,
    device: str = "cpu",
    dtype: str | None = None,
    rounds: int = 3,
    threads: int | None = None,
) -> dict[str, Any]:
    """Tokens per second of both, their ratio, and the cosine of their vectors.

    The two alternate, so that other load of the machine affects both; each figure is the median of its rounds.
    `cpu_ratio` uses processor seconds, which do not depend on other load.

    Args:
        passages: Texts to encode; tokens beyond the encoder's limit are not counted.
        encoder: Name or folder of a sentence-transformers model.
        device: Torch device of both.
        dtype: Dtype of the encoder; the stock one stays in fp32, with its defaults.
        rounds: How often each encodes all passages, after a short warm-up.
        threads: CPU threads of both. None: torch's own choice.

    Raises:
        ValueError: No passages.
    """
    if not passages:
        raise ValueError("passages is empty: nothing to measure")
    if threads is not None:
        torch.set_num_threads(threads)
    start = time.perf_counter()
    ours = load_encoder(encoder, device=device, dtype=dtype)
    load_seconds = time.perf_counter() - start
    stock = stock_encoder(encoder, device=device)
    tokens = sum(min(n, ours.max_tokens) for n in ours.count_tokens(passages))
    runs: dict[str, Callable[[Sequence[str]], Vectors]] = {
        "stock": lambda texts: np.asarray(
            stock.encode_document(list(texts), show_progress_bar=False), dtype=np.float32
        ),
        "ours": ours.encode,
    }
    took: dict[str, list[Times]] = {name: [] for name in runs}
    vectors: dict[str, Vectors] = {}
    for run in runs.values():
        run(passages[:32])
    for _ in range(rounds):
        for name, run in runs.items():
            began = now()
            vectors[name] = run(passages)
            took[name].append(now() - began)
    ratio, cpu_ratio = np.median(np.array(took["stock"]) / np.array(took["ours"]), axis=0).tolist()
    norms = np.linalg.norm(vectors["stock"], axis=1)
    cosine = (vectors["ours"] * vectors["stock"]).sum(1) / np.maximum(norms, 1e-12)
    return {
        "encoder": encoder,
        "kind": ours.dtype,
        "device": device,
        "threads": torch.get_num_threads(),
        "passages": len(passages),
        "tokens": tokens,
        "load_seconds": load_seconds,
        "stock_tokens_per_second": float(tokens / np.median(took["stock"], axis=0)[0]),
        "tokens_per_second": float(tokens / np.median(took["ours"], axis=0)[0]),
        "ratio": float(ratio),
        "cpu_ratio": float(cpu_ratio),
        "cosine_mean": float(cosine.mean()),
        "cosine_min": float(cosine.min()),
        "query_ms": _query_ms(ours.encode_query),
    }


def _query_ms(encode: Callable[[Sequence[str]], Vectors]) -> float:
    """Median milliseconds of one question of about twenty tokens."""
    question = "Who pays the insurance of the building that Acme has rented in Hamburg since the spring of 2021?"
    times = []
    for _ in range(20):
        start = time.perf_counter()
        encode([question])
        times.append(time.perf_counter() - start)
    return median(times) * 1000
