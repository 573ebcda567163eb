"""How fast an index is built: by one process, by workers, and on Ray, over the same made-up passages in one run."""

import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch

from compmem.config import IndexConfig
from compmem.index import MemoryIndex
from compmem.naming import DEFAULT_ENCODER
from compmem.schema import Document
from compmem_research.bench.clock import tree_seconds

SYLLABLES = "ba be bo da de du fa fi go ha ki la le lo ma mi mo na ne no pa pe ra ri ro sa si ta te to va vi".split()
"""What made-up words are made of."""


def measure(
    *,
    passages: int = 5000,
    threads: Sequence[int] | None = None,
    workers: Sequence[int] = (1, 2, 4),
    encoders: Sequence[int] = (1, 2),
    shards: int = 2,
    encoder: str = DEFAULT_ENCODER,
    seed: int = 0,
) -> dict[str, Any]:
    """Passages a second of each way to build, its speed-up and its efficiency against the first way.

    Args:
        passages: How many there are, of some 40 words or 90 tokens each.
        threads: Numbers of threads of one process without workers. None: one, and as many as torch uses.
        workers: Numbers of worker processes.
        encoders: Numbers of encoder actors on Ray; passed over where Ray is not installed.
        shards: Shards of an index that Ray builds.
        encoder: Name or folder of the encoder.
        seed: Decides on the words.
    """
    documents = list(made_up(passages, seed))
    config, usual = IndexConfig(encoder=encoder), torch.get_num_threads()
    rows = []
    for number in (1, usual) if threads is None else threads:
        torch.set_num_threads(number)
        rows.append(_local(f"one process, {_counted(number, 'thread')}", documents, config, None))
    torch.set_num_threads(usual)
    rows += [_local(_counted(number, "worker"), documents, config, number) for number in workers]
    if find_spec("ray") is not None and encoders:
        rows += _on_ray(documents, config, encoders, shards)
    for row in rows:
        base = rows[0]["passages_per_second"]
        row["speed_up"] = round(row["passages_per_second"] / base, 2)
        row["efficiency"] = round(row["passages_per_second"] / base / row["processes"], 2)
    return {"passages": passages, "cores": os.cpu_count(), "encoder": Path(encoder).name, "ways": rows}


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def made_up(passages: int, seed: int) -> Iterator[Document]:
    """Passages of made-up words in sentences of some 13, the common ones more often."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(3000)]
    for number in range(passages):
        sentences = [
            " ".join(words[int(3000 * rng.random() ** 3)] for _ in range(rng.randint(8, 18))) for _ in range(3)
        ]
        yield Document(id=f"p{number}", title=words[number % 3000].title(), text=". ".join(sentences) + ".")


def _local(how: str, documents: Sequence[Document], config: IndexConfig, workers: int | None) -> dict[str, Any]:
    with TemporaryDirectory() as folder, MemoryIndex.create(Path(folder) / "a", config) as index:
        if workers is None:
            index.encoder  # noqa: B018 - loaded outside the time
        with _written(index) as writing:
            row = _timed(partial(index.add, documents, workers=workers), documents, index)
    return {"how": how, "processes": workers or 1, **row, "seconds_writing": round(sum(writing), 2)}


def _on_ray(
    documents: Sequence[Document], config: IndexConfig, encoders: Sequence[int], shards: int
) -> list[dict[str, Any]]:
    from compmem import distributed

    rows = []
    for number in encoders:
        with TemporaryDirectory() as folder, distributed.ray_cluster("local"):
            dataset = distributed.dataset_of(documents)
            with MemoryIndex.create(Path(folder) / "a", config, shards=shards) as index:
                row = _timed(partial(distributed.add_dataset, index, dataset, encoders=number), documents, index)
        rows.append({"how": f"Ray, {_counted(number, 'encoder')}, {shards} shards", "processes": number, **row})
    return rows


def _timed(add: Callable[[], int], documents: Sequence[Document], index: MemoryIndex) -> dict[str, Any]:
    """Seconds from the call to its end: starting processes and loading their models is in them."""
    load, spent, began = os.getloadavg()[0], tree_seconds(os.getpid()), time.perf_counter()
    added = add()
    seconds, spent = time.perf_counter() - began, tree_seconds(os.getpid()) - spent
    if not added == len(documents) == index.info().documents:
        raise RuntimeError(f"{len(documents)} passages were added, the index holds {index.info().documents}")
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(spent, 2),
        "passages_per_second": round(added / seconds, 2),
        "passages_per_processor_second": round(added / spent, 2) if spent else None,
        "machine_load": round(load, 1),
    }


@contextmanager
def _written(index: MemoryIndex) -> Iterator[list[float]]:
    """The seconds of every commit of the block."""
    seconds: list[float] = []
    add = index.store.add

    def recorded(*given: Any, **named: Any) -> None:
        began = time.perf_counter()
        add(*given, **named)
        seconds.append(time.perf_counter() - began)

    with patch.object(index.store, "add", recorded):
        yield seconds
