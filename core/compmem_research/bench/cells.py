"""Cells of the benchmark: questions over contexts of one length, and their data.

A cell is written `TASK@LENGTH`, with an optional `+VARIANT`: `hqa@112k`, `hqa@56k+first`,
`musique@56k`, `niah_multikey_1@28k`, `world@7k`; or `FILE.jsonl` for samples in the documented format.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final, get_args

from compmem.ingest.chunking import TokenCounter
from compmem_research.digests import digest
from compmem_research.tasks.contexts import LENGTHS, Contexts, Placement
from compmem_research.tasks.haystack import Filler
from compmem_research.tasks.jsonl import read_samples
from compmem_research.tasks.multihop import Passage, read_corpus, read_lines
from compmem_research.tasks.ruler import Ruler, RulerTask
from compmem_research.tasks.sample import Sample
from compmem_research.tasks.synthetic_facts import WorldConfig, Worlds

MULTIHOP: Final = {"hqa": "hotpotqa_dev", "2wiki": "2wikimultihopqa_dev", "musique": "musique_dev"}
"""Tasks that are built like RULER-HQA, and the file of each."""

FILLING: Final = "2wikimultihopqa_retrieval_corpus"
"""Passages used as filler if a data set does not have enough of its own."""

VARIANTS = ("first", "last", "reversed", "memagent", "unanswerable")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """Questions of one task over contexts of one length."""

    name: str
    task: str
    length: str = ""
    variant: str = ""

    @property
    def tokens(self) -> int:
        """The length in tokens; 0 for a file's own samples."""
        return LENGTHS.get(self.length, 0)

    @classmethod
    def read(cls, name: str) -> "Cell":
        """The cell of that name.

        Raises:
            ValueError: The task, length or variant is unknown.
        """
        if ".jsonl" in Path(name).name:
            return cls(name=name, task=name)
        task, _, rest = name.partition("@")
        length, _, variant = rest.partition("+")
        if task not in (*MULTIHOP, *get_args(RulerTask), "world"):
            raise ValueError(
                f"unknown task {task!r} in {name!r}: {', '.join((*MULTIHOP, *get_args(RulerTask)))}, world"
            )
        if length not in LENGTHS:
            raise ValueError(f"unknown length {length!r} in {name!r}: there are {', '.join(LENGTHS)}")
        if variant and (variant not in VARIANTS or task not in MULTIHOP):
            raise ValueError(
                f"unknown variant {variant!r} in {name!r}: {', '.join(VARIANTS)}, of {', '.join(MULTIHOP)}"
            )
        return cls(name=name, task=task, length=length, variant=variant)


@dataclass(slots=True)
class Sources:
    """Samples for cells, from a folder of data files; each file is read and tokenised once."""

    folder: Path
    counter: TokenCounter
    questions: int
    seed: int = 0
    used: dict[str, str] = field(default_factory=dict)
    """Files that were read, with the first 16 digits of their SHA-256."""
    _contexts: dict[str, Contexts] = field(default_factory=dict)
    _filler: list[Filler] = field(default_factory=list)

    def samples(self, cell: Cell) -> list[Sample]:
        """The cell's samples: questions sampled with the seed; a larger number starts with the same ones.

        Raises:
            ValueError: A file is broken, or contains too little for this length.
            OSError: A file cannot be read.
        """
        if cell.task in MULTIHOP:
            return self._multihop(cell)
        if cell.task == "world":
            config = WorldConfig(split="eval", tokens=cell.tokens, seed=self.seed)
            return list(Worlds(config, self._fill()).samples(self.questions))
        if cell.task in get_args(RulerTask):
            task: RulerTask = next(t for t in get_args(RulerTask) if t == cell.task)
            hops = {"qa_2": self._of("hqa")} if task == "qa_2" else None
            ruler = Ruler(self._fill(), seed=self.seed, questions=hops)
            return list(ruler.samples(task, cell.tokens, self.questions))
        path = self._path(Path(cell.task))
        return list(read_samples(path))[: self.questions]

    def extras(self, cell: Cell, samples: Sequence[Sample]) -> float:
        """The share of the samples' documents that are filler from another data set."""
        if cell.task not in MULTIHOP or not samples:
            return 0.0
        contexts = self._of(cell.task)
        return sum(contexts.extras(s) for s in samples) / sum(len(s.documents) for s in samples)

    def _multihop(self, cell: Cell) -> list[Sample]:
        contexts = self._of(cell.task)
        asked = list(contexts.questions)
        Random(self.seed).shuffle(asked)
        found: list[Sample] = []
        for question in asked[: self.questions]:
            if cell.variant == "unanswerable":
                found.append(contexts.sample(question, cell.tokens, answerable=False))
            else:
                places: dict[str, Placement] = {p: p for p in get_args(Placement)}
                where = places.get(cell.variant, "anywhere")
                found.append(contexts.sample(question, cell.tokens, placement=where))
        return found

    def _of(self, task: str) -> Contexts:
        if task not in self._contexts:
            corpus = read_corpus(self._path(self.folder / f"{MULTIHOP[task]}.jsonl.gz"))
            lines = read_lines(self._path(self.folder / f"{FILLING}.jsonl.gz"), ("title", "text"))
            extra = [Passage(title=line["title"], sentences=(line["text"],)) for _, line in lines]
            self._contexts[task] = Contexts(corpus, self.counter, extra=extra, task=task, seed=self.seed)
        return self._contexts[task]

    def _fill(self) -> Filler:
        if not self._filler:
            self._filler.append(Filler(self.counter))
        return self._filler[0]

    def _path(self, path: Path) -> Path:
        self.used[path.name] = digest(path.read_bytes())
        return path
