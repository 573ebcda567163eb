"""Multi-hop questions whose evidence is known: HotpotQA, 2WikiMultihopQA, MuSiQue in one JSONL form.

A line is `{"id", "dataset", "type", "question", "answer", "aliases", "paragraphs"}`, a paragraph `{"title",
"sentences", "supporting"}` with the numbers of its supporting sentences; or, where the passages are in a file of their
own (`{"title", "text"}` a line), `{"id", "question", "answer", "aliases", "gold_titles"}`. Files may be compressed.
"""

import gzip
import json
import lzma
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from compmem.schema import Chunk, Document


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A titled paragraph."""

    title: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """Its sentences with one space between."""
        return " ".join(s.strip() for s in self.sentences if s.strip())

    def spans(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Where these sentences stand in its text; numbers of empty or missing sentences are passed over."""
        found, at = {}, 0
        for number, sentence in enumerate(self.sentences):
            if said := sentence.strip():
                found[number] = (at, at + len(said))
                at += len(said) + 1
        return [found[n] for n in numbers if n in found]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question, its answers, and the passages that hold the evidence."""

    id: str
    dataset: str
    type: str
    question: str
    answers: tuple[str, ...]
    gold: frozenset[int]
    """Numbers of the supporting passages in the corpus."""
    own: frozenset[int] = frozenset()
    """Numbers of the question's own paragraphs, supporting or not, where the file gives them."""
    support: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Each gold passage and the numbers of its supporting sentences (none: the passage as a whole).

    In the order of the hops by the `evidences` of the line; where it has none, passages that hold the answer come last.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Passages, each once, and the questions about them."""

    passages: tuple[Passage, ...]
    questions: tuple[Question, ...]

    def documents(self) -> list[Document]:
        """One document a passage; its id is its number."""
        return [Document(id=str(i), title=p.title, chunks=[_chunk(p)]) for i, p in enumerate(self.passages)]


def read_corpus(questions: Path, passages: Path | None = None, *, extra: Iterable[Passage] = ()) -> Corpus:
    """Questions over the union of their paragraphs, or over the passages of a file of their own.

    Args:
        questions: The questions' file.
        passages: The passages' file, where the questions name their gold passages by title.
        extra: More passages to be passed over.

    Raises:
        ValueError: A line is broken, or a gold title is in no passage; the message names file and line.
    """
    numbers: dict[tuple[str, str], int] = {}
    kept: list[Passage] = []
    titles: dict[str, list[int]] = {}

    def number_of(passage: Passage) -> int:
        key = (passage.title, passage.text)
        if key not in numbers:
            numbers[key] = len(kept)
            titles.setdefault(passage.title, []).append(len(kept))
            kept.append(passage)
        return numbers[key]

    if passages is not None:
        for _, line in read_lines(passages, ("title", "text")):
            number_of(Passage(title=line["title"], sentences=(line["text"],)))
    asked = []
    for number, line in read_lines(questions, ("id", "question", "answer")):
        own: frozenset[int] = frozenset()
        if passages is None:
            found = [(number_of(p), tuple(s)) for p, s in _paragraphs(line, questions, number)]
            own = frozenset(n for n, _ in found)
            gold = {n: s for n, s in found if s}
        else:
            missing = [t for t in line.get("gold_titles", ()) if t not in titles]
            if missing:
                raise ValueError(f"{questions}:{number}: no passage is titled {missing[0]!r}")
            gold = {n: () for t in line.get("gold_titles", ()) for n in titles[t]}
        support = tuple((n, gold[n]) for n in _hops(line, {n: kept[n] for n in gold}))
        asked.append(_question(line, support, own))
    for passage in extra:
        number_of(passage)
    return Corpus(passages=tuple(kept), questions=tuple(asked))


def leads(path: Path, words: int = 130) -> Iterator[Passage]:
    """The first real paragraph of each page of a file of `{"title", "text"}` lines, to be passed over."""
    for _, line in read_lines(path, ("title", "text")):
        paragraph = next((p.strip() for p in line["text"].split("\n") if len(p.strip()) > 120), None)
        if paragraph is not None:
            yield Passage(title=line["title"], sentences=(" ".join(paragraph.split()[:words]),))


def read_lines(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers.

    Raises:
        ValueError: A line is no JSON object, or lacks a needed key.
    """
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{path}:{number}: not JSON: {error.msg}") from error
            lacking = [k for k in needed if not isinstance(value, dict) or k not in value]
            if lacking:
                raise ValueError(f"{path}:{number}: {lacking[0]!r} is missing")
            yield number, value


def _open(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8")
    return path.open(encoding="utf-8")


def _paragraphs(line: dict[str, Any], path: Path, number: int) -> Iterator[tuple[Passage, list[int]]]:
    try:
        for p in line["paragraphs"]:
            yield Passage(title=p["title"], sentences=tuple(p["sentences"])), list(p["supporting"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}:{number}: a paragraph needs title, sentences and supporting ({error})") from error


def _hops(line: dict[str, Any], gold: dict[int, Passage]) -> list[int]:
    """The gold passages in the order of the hops."""
    subjects = [str(triple[0]).casefold() for triple in line.get("evidences", ()) if triple]
    answers = [str(a).casefold() for a in (line["answer"], *line.get("aliases", ()))]

    def place(number: int) -> tuple[int, bool]:
        title, text = gold[number].title.casefold(), gold[number].text.casefold()
        named = (at for at, subject in enumerate(subjects) if subject == title or title.startswith(f"{subject} ("))
        return next(named, len(subjects)), any(a in text for a in answers)

    return sorted(gold, key=place)


def _question(line: dict[str, Any], support: tuple[tuple[int, tuple[int, ...]], ...], own: frozenset[int]) -> Question:
    return Question(
        id=str(line["id"]),
        dataset=str(line.get("dataset", "")),
        type=str(line.get("type", "")),
        question=line["question"],
        answers=(line["answer"], *line.get("aliases", ())),
        gold=frozenset(n for n, _ in support),
        own=own,
        support=support,
    )


def _chunk(passage: Passage) -> Chunk | str:
    """The passage as one chunk; given sentences are kept as they are."""
    spans = passage.spans(range(len(passage.sentences)))
    if len(spans) < 2:
        return passage.text
    return Chunk(text=passage.text, title=passage.title, sentences=tuple(spans))
