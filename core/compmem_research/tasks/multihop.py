"""Multi-hop questions with known evidence: HotpotQA, 2WikiMultihopQA, MuSiQue in one JSONL format.

A line is `{"id", "dataset", "type", "question", "answer", "aliases", "paragraphs"}`, a paragraph `{"title",
"sentences", "supporting"}` with the numbers of its supporting sentences; or, if the passages are in their own file
(`{"title", "text"}` per line), `{"id", "question", "answer", "aliases", "gold_titles"}`. Files may be compressed.
"""

import gzip
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from compmem.schema import Chunk, Document

UNREADABLE = (UnicodeDecodeError, EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)
"""Exceptions raised by reading a damaged text file."""

_NEEDED = ("id", "question", "answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Passage:
    """A titled paragraph."""

    title: str
    sentences: tuple[str, ...]

    @property
    def text(self) -> str:
        """Its sentences, joined by single spaces."""
        return " ".join(s.strip() for s in self.sentences if s.strip())

    def spans(self, numbers: Sequence[int]) -> list[tuple[int, int]]:
        """Spans of these sentences in its text; numbers of empty or missing sentences are ignored."""
        found, at = {}, 0
        for number, sentence in enumerate(self.sentences):
            if said := sentence.strip():
                found[number] = (at, at + len(said))
                at += len(said) + 1
        return [found[n] for n in numbers if n in found]


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question, its answers, and the passages with the evidence."""

    id: str
    dataset: str
    type: str
    question: str
    answers: tuple[str, ...]
    gold: frozenset[int]
    """Numbers of the supporting passages in the corpus; empty if nothing answers."""
    own: frozenset[int] = frozenset()
    """Numbers of the question's own paragraphs, supporting or not, if the file has them."""
    support: tuple[tuple[int, tuple[int, ...]], ...] = ()
    """Each gold passage and the numbers of its supporting sentences (none: the passage as a whole).

    In the order of the hops by the `evidences` of the line; without these, passages with the answer come last.
    """


@dataclass(frozen=True, kw_only=True, slots=True)
class Corpus:
    """Passages, each once, and the questions about them."""

    passages: tuple[Passage, ...]
    questions: tuple[Question, ...]

    def documents(self) -> list[Document]:
        """One document per passage; its id is its number."""
        return [Document(id=str(i), title=p.title, chunks=[_chunk(p)]) for i, p in enumerate(self.passages)]


def read_corpus(
    questions: Path | Sequence[Path], passages: Path | None = None, *, extra: Iterable[Passage] = ()
) -> Corpus:
    """Questions over the union of their paragraphs, or over the passages of a separate file.

    Args:
        questions: The questions' file, or several that share their passages.
        passages: The passages' file, if the questions name their gold passages by title.
        extra: More passages, which are not relevant.

    Raises:
        ValueError: A line is broken, or a gold title is in no passage; the message names file and line.
    """
    given = None
    if passages is not None:
        lines = read_lines(passages, ("title", "text"))
        given = [Passage(title=line["title"], sentences=(line["text"],)) for _, line in lines]
    files = [questions] if isinstance(questions, Path) else questions
    records = ((f"{file}:{n}", line) for file in files for n, line in read_lines(file, _NEEDED))
    return corpus_of(records, given, extra=extra)


def corpus_of(
    records: Iterable[tuple[str, dict[str, Any]]],
    passages: Iterable[Passage] | None = None,
    *,
    extra: Iterable[Passage] = (),
) -> Corpus:
    """The corpus of records, each with its place for error messages; see `read_corpus`.

    Raises:
        ValueError: A record is broken, or a gold title is in no passage.
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

    for passage in passages or ():
        number_of(passage)
    asked = []
    for place, line in records:
        _check(line, place)
        own: frozenset[int] = frozenset()
        if passages is None:
            found = [(number_of(p), s) for p, s in _paragraphs(line, place)]
            own = frozenset(n for n, _ in found)
            gold = {n: s for n, s in found if s}
        else:
            missing = [t for t in line.get("gold_titles", ()) if t not in titles]
            if missing:
                raise ValueError(f"{place}: no passage has the title {missing[0]!r}")
            gold = {n: () for t in line.get("gold_titles", ()) for n in titles[t]}
        support = tuple((n, gold[n]) for n in _hops(line, {n: kept[n] for n in gold}))
        asked.append(_question(line, support, own))
    for passage in extra:
        number_of(passage)
    return Corpus(passages=tuple(kept), questions=tuple(asked))


def leads(path: Path, words: int = 130) -> Iterator[Passage]:
    """The first real paragraph of each page of a file of `{"title", "text"}` lines, as distractors."""
    for _, line in read_lines(path, ("title", "text")):
        paragraph = next((p.strip() for p in line["text"].split("\n") if len(p.strip()) > 120), None)
        if paragraph is not None:
            yield Passage(title=line["title"], sentences=(" ".join(paragraph.split()[:words]),))


def paragraphs(path: Path, least: int = 200) -> Iterator[Passage]:
    """All paragraphs of at least this many characters of a file of `{"title", "text"}` lines, with the page's title."""
    for _, line in read_lines(path, ("title", "text")):
        for text in line["text"].split("\n"):
            if len(text.strip()) >= least:
                yield Passage(title=line["title"], sentences=(text.strip(),))


def read_lines(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers.

    Raises:
        ValueError: A line is not a JSON object, or a required key is missing.
    """
    number = 0
    try:
        with open_text(path) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, _object(line, f"{path}:{number}", needed)
    except UNREADABLE as error:
        raise ValueError(f"{path}:{number + 1}: cannot be read ({error})") from error


def open_text(path: Path, mode: Literal["rt", "wt"] = "rt") -> TextIO:
    """A text file in UTF-8, compressed if its name ends in .gz or .xz."""
    if path.suffix == ".gz":
        return gzip.open(path, mode, encoding="utf-8")
    if path.suffix == ".xz":
        return lzma.open(path, mode, encoding="utf-8")
    return path.open(mode, encoding="utf-8")


def _object(line: str, place: str, needed: Sequence[str]) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{place}: not a JSON object")
    if lacking := [k for k in needed if k not in value]:
        raise ValueError(f"{place}: {lacking[0]!r} is missing")
    return value


def _check(line: dict[str, Any], place: str) -> None:
    """Checks that a record is a question."""
    if lacking := [k for k in _NEEDED if k not in line]:
        raise ValueError(f"{place}: {lacking[0]!r} is missing")
    for key in ("question", "answer"):
        if not isinstance(line[key], str):
            raise ValueError(f"{place}: {key!r} is not a text")
    for key in ("aliases", "gold_titles"):
        if not _texts(line.get(key, [])):
            raise ValueError(f"{place}: {key!r} is not a list of texts")
    triples = line.get("evidences", [])
    if not isinstance(triples, list) or not all(map(_texts, triples)):
        raise ValueError(f"{place}: 'evidences' is not a list of triples")


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) for v in value)


def _paragraphs(line: dict[str, Any], place: str) -> Iterator[tuple[Passage, tuple[int, ...]]]:
    try:
        for p in line["paragraphs"]:
            title, said, supporting = p["title"], p["sentences"], tuple(p["supporting"])
            if not _texts([title]) or not _texts(said) or not all(isinstance(n, int) for n in supporting):
                raise TypeError("of the wrong type")
            yield Passage(title=title, sentences=tuple(said)), supporting
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: a paragraph needs title, sentences and supporting ({error})") from error


def _hops(line: dict[str, Any], gold: dict[int, Passage]) -> list[int]:
    """The gold passages in the order of the hops."""
    subjects = [triple[0].casefold() for triple in line.get("evidences", ()) if triple]
    answers = [a.casefold() for a in (line["answer"], *line.get("aliases", ()))]

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
    """The passage as one chunk; given sentences are kept."""
    spans = passage.spans(range(len(passage.sentences)))
    if len(spans) < 2:
        return passage.text
    return Chunk(text=passage.text, title=passage.title, sentences=tuple(spans))
