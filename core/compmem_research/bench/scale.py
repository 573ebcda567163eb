"""How an index scales: adding, opening, one pass and the loop, memory and disk.

Documents are real pages with random vectors, since encoding a hundred thousand chunks takes an hour and does not depend
on the index. Questions are encoded by the real encoder, so its time is part of every question's time.
"""

import random
import resource
import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from compmem.config import IndexConfig, LoopConfig
from compmem.encoder import LoadedEncoder, load_encoder
from compmem.index import MemoryIndex
from compmem.schema import Document, Recall, Vectors
from compmem_research.tasks.multihop import read_lines

STEPS = 4
"""With random vectors the gate rejects nearly everything, so so many steps of the loop are also timed by themselves."""


class RandomVectorEncoder:
    """Random unit vectors for documents; the real encoder for questions."""

    def __init__(self, dim: int, real: LoadedEncoder) -> None:
        self.dim = dim
        self.real = real

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors `[texts, dim]`; the same for the same text."""
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            row[:] = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(self.dim, dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    def encode_query(self, texts: Sequence[str]) -> Vectors:
        """Vectors of questions `[texts, dim]`."""
        return self.real.encode_query(texts)


def measure(
    pages: Path,
    *,
    chunks: int = 100_000,
    questions: int = 60,
    folder: Path | None = None,
    batch: int = 200,
    seed: int = 0,
) -> dict[str, Any]:
    """Adds pages until the index has this many chunks, then asks questions; seconds, bytes and memory.

    Args:
        pages: `{"title", "text"}` lines, repeated with new ids if there are too few.
        chunks: Final size of the index.
        questions: Number of timed questions of each way to ask; each is another sentence of the pages.
        folder: Folder of the index. None: a temporary folder.
        batch: Pages per call of `add`.
        seed: Seed for sampling sentences.

    Raises:
        ValueError: The pages' file has a broken line, or there are too few sentences in it.
    """
    stand_in = RandomVectorEncoder(384, load_encoder("all-MiniLM-L6-v2"))
    index = MemoryIndex.create(folder, IndexConfig(encoder=stand_in))
    before = _memory()
    growth: list[dict[str, float]] = []
    sentences: list[str] = []
    rng = random.Random(seed)
    documents = _documents(pages)
    characters = 0
    while len(index) < chunks:
        held = [next(documents) for _ in range(batch)]
        characters += sum(len(d.text) for d in held)
        sentences += [rng.choice(document.text.split(". ")).strip()[:200] for document in held]
        began = time.perf_counter()
        index.add(held)
        growth.append({"chunks": len(index), "seconds": time.perf_counter() - began, "documents": batch})
    after = _memory()
    info = index.info()
    path = index.path
    opened = timed(lambda: len(MemoryIndex.open(path, encoder=stand_in)))
    index = MemoryIndex(index.store, index.config)
    first, *groups = drawn(sentences, (3, questions, questions, questions), rng)
    for question in first:  # loads models and maps files before timing
        index.recall(question, 8)
    times: dict[str, list[float]] = {"one_pass_ms": [], "loop_ms": [], "loop_of_four_steps_ms": []}
    for turn in zip(*groups, strict=True):  # alternating, so that warm-up affects all systems equally
        calls: tuple[Callable[..., Any], ...] = (index.search, index.recall, partial(forced_steps, index))
        for own, question, call in zip(times.values(), turn, calls, strict=True):
            own.append(timed(partial(call, question, 8)))
    tenth = max(1, len(growth) // 10)
    bytes_on_disk = info.vector_bytes + info.text_bytes
    return {
        "chunks": info.blocks,
        "sentences": info.sentences,
        "corpus_megabytes": round(characters / 1e6, 1),
        "open_seconds": round(opened, 3),
        **{name: percentiles(own) for name, own in times.items()},
        "seconds_per_document": {
            "first tenth": round(sum(g["seconds"] for g in growth[:tenth]) / (tenth * batch), 5),
            "last tenth": round(sum(g["seconds"] for g in growth[-tenth:]) / (tenth * batch), 5),
        },
        "bytes_per_character": {
            "all": round(bytes_on_disk / characters, 2),
            "vectors": round(info.vector_bytes / characters, 2),
            "text and lexical": round(info.text_bytes / characters, 2),
        },
        "memory_megabytes": {"before adding": before, "highest while adding": after},
    }


def drawn(sentences: Iterable[str], sizes: Sequence[int], rng: random.Random) -> list[list[str]]:
    """Groups of these sizes of questions, each of which is asked once, so that no call finds blocks of one before it.

    Raises:
        ValueError: There are too few different sentences of at least four words.
    """
    asked = [sentence for sentence in dict.fromkeys(sentences) if len(sentence.split()) > 3]
    if len(asked) < sum(sizes):
        raise ValueError(f"the pages have {len(asked)} different questions, and {sum(sizes)} are needed")
    rest = iter(rng.sample(asked, sum(sizes)))
    return [list(islice(rest, size)) for size in sizes]


def forced_steps(index: MemoryIndex, question: str, k: int) -> list[Recall]:
    """`STEPS` steps of the loop whatever the gate says; the best blocks of the last one.

    Each step proposes and scores candidates and fetches the best, whose first sentence joins the working memory.
    """
    memory, read = "", set[int]()
    with index.question_context(question, None, LoopConfig()) as context:
        for _ in range(STEPS):
            proposed = [n for n in context.propose(memory) if n not in read]
            scores = dict(zip(proposed, context.score(memory, proposed), strict=True))
            best = max(scores, key=lambda n: (scores[n], -n))
            read.add(best)
            [block] = context.fetch([best])
            memory = f"{memory}\n{block.chunk.sentence_texts()[0]}".strip()
        return context.best(scores, k)


def _documents(pages: Path) -> Iterator[Document]:
    turn = 0
    while True:
        for number, line in read_lines(pages, ("title", "text")):
            if line["text"].strip():
                yield Document(id=f"{turn}-{number}", title=line["title"], text=line["text"])
        turn += 1


def _memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def timed(work: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """The median and the 95th percentile, in milliseconds."""
    cuts = statistics.quantiles(seconds, n=20)
    return {"p50": round(1000 * statistics.median(seconds), 1), "p95": round(1000 * cuts[18], 1)}
