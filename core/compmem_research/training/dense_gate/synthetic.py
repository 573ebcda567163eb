"""Synthetic collections: composed questions, needles and variables, worlds of made-up facts."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np

from compmem_research.tasks.composed import compose, passage_of
from compmem_research.tasks.haystack import Filler
from compmem_research.tasks.multihop import corpus_of, leads
from compmem_research.tasks.ruler import Ruler, RulerTask
from compmem_research.tasks.sample import Sample
from compmem_research.tasks.singlehop import read_singlehop
from compmem_research.tasks.synthetic_facts import WorldConfig, Worlds
from compmem_research.training.dense_gate.collection import Collection, Query, relevant_to

COMPOSED_OF = ("nq_qed", "squadshifts_new_wiki")
"""Sets of single questions about facts of named entities."""

TASKS: tuple[tuple[RulerTask, int], ...] = (
    ("niah_multivalue", 20), ("niah_multiquery", 20), ("vt", 36), ("niah_single_2", 6), ("niah_multikey_1", 10),
    ("niah_multikey_2", 8), ("cwe", 3), ("fwe", 3),
)  # fmt: skip
"""Tasks of RULER, and how many samples of each there are to a hundred questions of another source."""

_COUNTED = ("cwe", "fwe")
"""Tasks that need the whole text."""


_TOKENS = (3000, 7000, 12000)
_FILLING = 2500


def composed(file: Path, pages: Path, most: int) -> Iterator[Collection]:
    """Composed questions of two and three hops over their passages, with distractor passages."""
    about = [q for q in read_singlehop(file) if q.dataset in COMPOSED_OF]
    rng = np.random.default_rng(0)
    records = compose(list(leads(pages)), about, rng, most=most)
    apart = [passage_of(about[i]) for i in rng.permutation(len(about))[: 2 * most]]
    corpus = corpus_of(((r["id"], r) for r in records), extra=apart)
    queries = [Query(text=q.question, relevant=relevant_to(q.gold), chained=True) for q in corpus.questions]
    if queries:
        yield Collection(documents=corpus.documents(), queries=queries)


def needles(pages: Path | None, most: int) -> Iterator[Collection]:
    """Samples of RULER's tasks, half of them with all of their texts in one document."""
    ruler = Ruler(_filler(pages), split="train")
    for task, share in TASKS:
        for number in range(max(round(share * most / 100), 1)):
            sample = ruler.sample(task, _TOKENS[number % len(_TOKENS)], number)
            sample, part = sample.joined() if number % 2 else sample, f"ruler_{task}"
            if task in _COUNTED:
                query = Query(text=sample.question, relevant=lambda chunk: True, part=part)
                yield Collection(documents=sample.documents, queries=[query])
            else:
                yield _of_sample(sample, part, chained=task == "vt")


def worlds(pages: Path | None, most: int) -> Iterator[Collection]:
    """Questions about made-up worlds."""
    for sample in Worlds(WorldConfig(split="train", tokens=6000), _filler(pages)).samples(most):
        yield _of_sample(sample, "worlds", chained=len(sample.evidence) > 1)


def _of_sample(sample: Sample, part: str, *, chained: bool) -> Collection:
    query = Query(text=sample.question, relevant=sample.supports, part=part, chained=chained)
    return Collection(documents=sample.documents, queries=[query])


def _filler(pages: Path | None) -> Filler:
    return Filler(_count, islice(leads(pages), _FILLING) if pages else None)


def _count(texts: Sequence[str]) -> list[int]:
    return [len(text.split()) * 4 // 3 for text in texts]
