"""Long contexts of a given length, made from a corpus of questions and passages (RULER-HQA and similar).

A context contains the question's own paragraphs and, up to its length, distractor paragraphs of the same corpus.
Lengths are tokens of the titles and texts as in `Sample.joined`. Passages are shuffled with a separate seed for each
question, so the position of the evidence is random. The seed does not depend on the length, so a longer context
contains nearly all of a shorter one.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from random import Random
from typing import Literal, get_args

from compmem.ingest.chunking import TokenCounter
from compmem.schema import Document
from compmem_research.metrics import normalize
from compmem_research.tasks.haystack import additive, written
from compmem_research.tasks.multihop import Corpus, Passage, Question
from compmem_research.tasks.sample import Sample, Span

LENGTHS = {
    "7k": 7_000, "14k": 14_000, "28k": 28_000, "56k": 56_000, "112k": 112_000,
    "224k": 224_000, "448k": 448_000, "896k": 896_000, "1.75m": 1_792_000,
}  # fmt: skip
"""The lengths of RULER-HQA in tokens by their published names: 7,000 and its doublings."""

Placement = Literal["anywhere", "first", "last", "reversed", "memagent"]
"""Position of the evidence.

`first` and `last`: in the first or last fifth of the tokens. `reversed`: anywhere, the last hop first. `memagent`: the
published construction of 2507.02259, one document per 140 tokens of the length, the question's own paragraphs first,
then random distractors, all shuffled by `Random(4)` for every question. For a given number of documents, a question's
own paragraphs are therefore always at the same positions: for comparison with published tables only.
"""

_SLACK = 0.005
"""Share of the length that may stay empty."""
_MEMAGENT_TOKENS = 140
"""50 documents are called 7K."""


class Contexts:
    """Samples of any length from one corpus; passages are tokenised and converted to documents once."""

    def __init__(
        self, corpus: Corpus, counter: TokenCounter, *, extra: Iterable[Passage] = (), task: str = "", seed: int = 0
    ) -> None:
        """Count the passages.

        Args:
            corpus: Questions and their passages.
            counter: Counts tokens; the tokens that it adds to every text are subtracted.
            extra: Filler passages if the corpus does not have enough; duplicates of the corpus are skipped.
            task: Name of the samples' task; empty: the question's data set.
            seed: Together with a question's id, the seed for its distractors and their order.
        """
        known = {(p.title, p.text) for p in corpus.passages}
        more = {(p.title, p.text): p for p in extra if (p.title, p.text) not in known}
        self.questions = corpus.questions
        self._passages = (*corpus.passages, *more.values())
        self._own_count = len(corpus.passages)
        self._documents = [Document(title=p.title, text=p.text) for p in self._passages]
        self._sizes = additive(counter)([written(d) for d in self._documents])
        self._extra_ids = {d.id for d in self._documents[self._own_count :]}
        self._task = task
        self._seed = seed

    @property
    def tokens(self) -> int:
        """Tokens of the longest context: all passages, with extra ones."""
        return sum(self._sizes)

    def evidence_tokens(self, question: Question) -> int:
        """Tokens of a question's evidence: the shortest context that it can be asked over."""
        return sum(self._sizes[n] for n, _ in question.support)

    def extras(self, sample: Sample) -> int:
        """Number of documents of a sample that are extra passages, not from the corpus."""
        return sum(d.id in self._extra_ids for d in sample.documents)

    def samples(
        self, tokens: int, count: int | None = None, *, placement: Placement = "anywhere", answerable: bool = True
    ) -> list[Sample]:
        """The first `count` questions (None: all) over contexts of this length; see `sample`."""
        return [self.sample(q, tokens, placement=placement, answerable=answerable) for q in self.questions[:count]]

    def sample(
        self, question: Question, tokens: int, *, placement: Placement = "anywhere", answerable: bool = True
    ) -> Sample:
        """A question over a context of this length.

        Args:
            question: One of the corpus.
            tokens: Length of the context; at most half a percent less if passages are short enough.
            placement: Position of the evidence.
            answerable: False leaves out the evidence and every passage that contains an answer.

        Raises:
            ValueError: The corpus and the extra passages are too small, or the evidence alone is too long.
        """
        if placement not in get_args(Placement):
            raise ValueError(f"placement={placement!r}; it is one of {', '.join(get_args(Placement))}")
        gold = [n for n, _ in question.support] if answerable else []
        rng = Random(f"{self._seed}:{question.id}")
        pools = self._pools(question, rng, answerable=answerable)
        if placement == "memagent":
            order = self._memagent(question, pools, tokens, answerable=answerable)
        else:
            filled = gold + self._take_distractors(pools, tokens, self.evidence_tokens(question) if answerable else 0)
            order = self._place(filled, gold, placement, rng)
        return Sample(
            id=question.id if answerable else f"{question.id}-unanswerable",
            task=self._task or question.dataset,
            question=question.question,
            answers=question.answers,
            documents=tuple(self._documents[n] for n in order),
            evidence=tuple(self._evidence(question)) if answerable else (),
            metric="sub_em" if answerable else "unanswerable",
            tokens=sum(self._sizes[n] for n in order),
        )

    def _pools(self, question: Question, rng: Random, *, answerable: bool) -> list[list[int]]:
        """Candidates for distractors: the question's own paragraphs, the corpus, extra passages."""
        excluded = set(question.gold) if answerable else question.gold | self._passages_with(question.answers)
        own = [n for n in sorted(question.own) if n not in excluded]
        seen = excluded.union(own)
        corpus = [n for n in range(self._own_count) if n not in seen]
        extra = [n for n in range(self._own_count, len(self._sizes)) if n not in seen]
        rng.shuffle(corpus)
        rng.shuffle(extra)
        return [own, corpus, extra]

    def _passages_with(self, answers: Sequence[str]) -> set[int]:
        """Passages that contain one of the answers, normalised as in the metric."""
        padded_answers = [f" {a} " for a in map(normalize, answers) if a]
        return {n for n, text in enumerate(self._normalized) if any(a in text for a in padded_answers)}

    @cached_property
    def _normalized(self) -> list[str]:
        return [f" {normalize(f'{d.title} {d.text}')} " for d in self._documents]

    def _take_distractors(self, pools: list[list[int]], tokens: int, used: int) -> list[int]:
        if used > tokens:
            raise ValueError(f"tokens={tokens}, but the evidence alone has {used}")
        room, slack, taken = tokens - used, _SLACK * tokens, []
        for number in (n for pool in pools for n in pool):
            if room <= slack:
                break
            if self._sizes[number] <= room:
                taken.append(number)
                room -= self._sizes[number]
        if room > max(slack, min(self._sizes)) and len(taken) == sum(map(len, pools)):
            raise ValueError(f"tokens={tokens}, but all passages have {tokens - room}; give more `extra` ones")
        return taken

    def _memagent(self, question: Question, pools: list[list[int]], tokens: int, *, answerable: bool) -> list[int]:
        count = round(tokens / _MEMAGENT_TOKENS)
        own = sorted(question.own | question.gold) if answerable else pools[0]
        order = (own + pools[1] + pools[2])[: max(count, len(own))]
        if len(order) < count:
            raise ValueError(f"tokens={tokens} need {count} documents, of {len(order)}; give more `extra` ones")
        Random(4).shuffle(order)
        return order

    def _place(self, numbers: list[int], gold: list[int], placement: Placement, rng: Random) -> list[int]:
        rng.shuffle(numbers)
        if placement == "reversed":
            slots = sorted(numbers.index(n) for n in gold)
            for slot, number in zip(slots, reversed(gold), strict=True):
                numbers[slot] = number
        if placement not in ("first", "last"):
            return numbers
        held = set(gold)
        early = self._early([n for n in numbers if n not in held], [n for n in numbers if n in held], rng)
        return early if placement == "first" else early[::-1]

    def _early(self, others: list[int], gold: list[int], rng: Random) -> list[int]:
        """The gold passages placed among the others so that they end within the first fifth, or at the very start."""
        ends = list(accumulate(self._sizes[n] for n in others))
        held = sum(self._sizes[n] for n in gold)
        reach = max(0, int(0.2 * (ends[-1] + held)) - held) if ends else 0
        slots = sorted(bisect_right(ends, rng.randint(0, reach)) for _ in gold)
        for slot, number in reversed(list(zip(slots, gold, strict=True))):
            others.insert(slot, number)
        return others

    def _evidence(self, question: Question) -> Iterable[Span]:
        for number, sentences in question.support:
            document = self._documents[number]
            for start, end in self._passages[number].spans(sentences) or [(0, len(document.text))]:
                yield Span(document=document.id, start=start, end=end)
