"""Collections from data sets: their questions, over their own texts."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from compmem.backbone import window_sizes
from compmem_research.tasks.multihop import Passage, Question, corpus_of, leads, read_corpus, read_lines
from compmem_research.tasks.singlehop import read_singlehop
from compmem_research.training.dense_gate.collection import Collection, Query, passages, relevant_to

SMALL_INDEX_QUESTIONS = (1, 5, 25)
"""Numbers of questions whose own paragraphs make a small index, used in turn."""
PER_SMALL = 12
"""Most questions to one small index."""
LONG_PASSAGE_CHARS = (4_000, 8_000, 16_000)
"""Characters of a long passage; the questions are split among these sizes."""
_LONG_INDEX = 1_600_000
"""Characters of an index of long passages."""
_TINY, _TINY_UNANSWERED = 4, 0.25
"""Most other texts in a tiny index; share of its single questions whose text is not there."""
_CONCLUSION_CHARS = (40, 400)
"""Characters of a first sentence of conclusions that may describe its abstract."""

_PART = 4
"""Sentences of a passage that is part of an abstract."""


def single(file: Path, dataset: str, contexts: int, most: int, *, per_node: int = 0) -> Iterator[Collection]:
    """Questions of one set about one text each.

    Args:
        file: The questions' file.
        dataset: The set to use.
        contexts: Most texts in the index.
        most: Most questions.
        per_node: Texts joined to one long passage, with one text of overlap between passages; 0: none.
    """
    rng = Random(f"{dataset}:{per_node}")
    asked: dict[str, list[str]] = defaultdict(list)
    for question in read_singlehop(file):
        if question.dataset == dataset:
            asked[question.context].append(question.question)
    chosen = rng.sample(sorted(asked), min(contexts, len(asked)))
    if not chosen:
        return
    queries = [(text, number) for number, context in enumerate(chosen) for text in asked[context]]
    rng.shuffle(queries)
    where = {n: {n} for n in range(len(chosen))}
    if per_node:
        nodes, where = join_texts(len(chosen), per_node, rng)
        chosen = ["\n\n".join(chosen[n] for n in node) for node in nodes]
    yield Collection(
        documents=passages([("", text) for text in chosen]),
        queries=[Query(text=text, relevant=relevant_to(where[number])) for text, number in queries[:most]],
        restyled=0.3 if per_node else 0.6,
    )


def join_texts(count: int, size: int, rng: Random) -> tuple[list[list[int]], dict[int, set[int]]]:
    """Nodes of this many texts each, as from a splitter with overlap, and the nodes of each text."""
    order = rng.sample(range(count), count)
    nodes = [order[at : at + size] for at in range(0, max(count - 1, 1), size - 1)]
    where: dict[int, set[int]] = defaultdict(set)
    for number, node in enumerate(nodes):
        for text in node:
            where[text].add(number)
    return nodes, where


def abstracts(file: Path, most: int) -> Iterator[Collection]:
    """Questions with the abstract that answers each; some queries are conclusions of abstracts instead."""
    corpus = read_corpus(file)
    questions = Random(1).sample(corpus.questions, len(corpus.questions))
    queries = [Query(text=q.question, relevant=relevant_to(q.gold)) for q in questions[:most]]
    described = []
    for question in questions[most : most + most // 3]:
        said = question.answers[0].split(". ")[0]
        if _describes(said):
            described.append(Query(text=said, relevant=relevant_to(question.gold), part="pubmedqa_described"))
    yield Collection(documents=corpus.documents(), queries=[*queries, *described], restyled=0.6)


def abstracts_in_parts(file: Path, most: int) -> Iterator[Collection]:
    """Passages of a few sentences each; all of an abstract are relevant to its question or to its conclusions."""
    rng = Random("parts")
    lines = [line for _, line in read_lines(file, ("question", "answer", "paragraphs"))]
    texts: list[tuple[str, str]] = []
    queries = []
    for line in rng.sample(lines, min(len(lines), most)):
        sentences = [s for p in line["paragraphs"] for s in p["sentences"]]
        first = len(texts)
        texts += [("", " ".join(sentences[at : at + _PART])) for at in range(0, len(sentences), _PART)]
        said = line["answer"].split(". ")[0]
        asked = said if _describes(said) and rng.random() < 0.5 else line["question"]
        queries.append(Query(text=asked, relevant=relevant_to(range(first, len(texts)))))
    yield Collection(documents=passages(texts), queries=queries, restyled=0.4)


def abstracts_titled(file: Path, most: int) -> Iterator[Collection]:
    """Abstracts with their titles, which are questions; the query is the first sentence of the conclusions."""
    rng = Random("titled")
    lines = [line for _, line in read_lines(file, ("question", "answer", "paragraphs"))]
    texts = [(line["question"], " ".join(s for p in line["paragraphs"] for s in p["sentences"])) for line in lines]
    said = [(line["answer"].split(". ")[0], number) for number, line in enumerate(lines)]
    described = [(text, number) for text, number in said if _describes(text)]
    queries = [
        Query(text=text.lower() if rng.random() < 0.5 else text, relevant=relevant_to({number}))
        for text, number in rng.sample(described, min(len(described), most))
    ]
    yield Collection(documents=passages(texts), queries=queries, restyled=0.6)


def _describes(said: str) -> bool:
    least, longest = _CONCLUSION_CHARS
    return least < len(said) < longest


def paired(file: Path, most: int) -> Iterator[Collection]:
    """Questions with one paragraph each; nothing is relevant if it does not support an answer."""
    corpus = read_corpus(file)
    queries = [Query(text=q.question, relevant=relevant_to(q.gold)) for q in corpus.questions]
    yield Collection(documents=corpus.documents(), queries=Random(2).sample(queries, len(queries))[:most], restyled=0.4)


def reports(file: Path, most: int, *, whole: bool) -> Iterator[Collection]:
    """Questions about company reports, over indexes of few or many reports.

    Args:
        file: The questions' file.
        most: Most questions.
        whole: One document is a whole report; otherwise it is a table or paragraph.
    """
    lines: dict[tuple[str, ...], list[tuple[str, dict[str, Any]]]] = defaultdict(list)
    for number, line in read_lines(file, ("id", "question", "answer", "paragraphs")):
        place = f"{file}:{number}"
        [question] = corpus_of([(place, line)]).questions  # checks the line
        if question.gold:
            lines[tuple("".join(p["sentences"]) for p in line["paragraphs"])].append((place, line))
    sizes = (30, 80, 10) if whole else (1, 4, 12, 30)
    for seed, size in enumerate(sizes):
        rng, made = Random(seed), 0
        order = rng.sample(sorted(lines), len(lines))
        for at in range(0, len(order), size):
            group = order[at : at + size]
            corpus = corpus_of(line for report in group for line in lines[report])
            questions = rng.sample(corpus.questions, len(corpus.questions))[: 90 if size >= 30 else 25]
            questions = questions[: max(most // len(sizes) - made, 0)]
            if not questions:
                break
            made += len(questions)
            yield _of_reports(corpus.passages, corpus.questions, questions, whole=whole)


def _of_reports(
    texts: Sequence[Passage], every: Sequence[Question], asked: Sequence[Question], *, whole: bool
) -> Collection:
    if not whole:
        documents = passages([(p.title, p.text) for p in texts])
        return Collection(
            documents=documents,
            queries=[Query(text=q.question, relevant=relevant_to(q.gold)) for q in asked],
            restyled=0.25,
        )
    numbers = {own: n for n, own in enumerate(dict.fromkeys(q.own for q in every))}
    documents = passages([("", "\n\n".join(texts[n].text for n in sorted(own))) for own in numbers])
    queries = [Query(text=q.question, relevant=relevant_to({numbers[q.own]})) for q in asked]
    return Collection(documents=documents, queries=queries, restyled=0.25)


def several_hops(file: Path, distractors: Path | None, most: int) -> Iterator[Collection]:
    """Questions over several paragraphs, at most this many per set, in one index with the first paragraphs of pages."""
    corpus = read_corpus(file, extra=leads(distractors) if distractors else ())
    chosen: dict[str, list[Question]] = defaultdict(list)
    for question in Random(0).sample(corpus.questions, len(corpus.questions)):
        chosen[question.dataset].append(question)
    queries = [_chained(q) for name in sorted(chosen) for q in chosen[name][:most]]
    yield Collection(documents=corpus.documents(), queries=queries)


def small_indexes(file: Path, most: int) -> Iterator[Collection]:
    """The same questions, in small indexes of the own paragraphs of a few of them."""
    corpus = read_corpus(file)
    left = iter(Random(3).sample(corpus.questions, len(corpus.questions)))
    documents = corpus.documents()
    made = 0
    for size in itertools.cycle(SMALL_INDEX_QUESTIONS):
        group = list(itertools.islice(left, size))
        asked = group[: min(PER_SMALL, most - made)]
        if not asked:
            return
        made += len(asked)
        held = sorted(frozenset[int]().union(*(q.own for q in group)))
        queries = [_chained(q, part="small") for q in asked]
        yield Collection(documents=[documents[n] for n in held], queries=queries, restyled=0.1)


def long_passages(file: Path, distractors: Path | None, most: int) -> Iterator[Collection]:
    """The same questions over long passages, each of many paragraphs under their titles.

    In a passage of 4,000 tokens a few sentences bear on a question, and most names of the question are somewhere.
    """
    corpus, rng = read_corpus(file, extra=leads(distractors) if distractors else ()), Random(5)
    questions = rng.sample(corpus.questions, min(most, len(corpus.questions)))
    texts = [f"{p.title}\n{p.text}" if p.title else p.text for p in corpus.passages]
    for at, size in enumerate(LONG_PASSAGE_CHARS):
        asked = questions[at :: len(LONG_PASSAGE_CHARS)]
        if not asked:
            return
        relevant = frozenset[int]().union(*(q.gold for q in asked))
        held = [n for n in rng.sample(range(len(texts)), len(texts)) if n not in relevant]
        length = np.cumsum([len(texts[n]) for n in held])
        held = [*sorted(relevant), *held[: int((length < _LONG_INDEX).sum())]]
        rng.shuffle(held)
        yield _of_long(texts, held, asked, size)


def _of_long(texts: Sequence[str], held: Sequence[int], asked: Sequence[Question], size: int) -> Collection:
    """Passages of about this many characters of these texts, in this order, and the questions over them."""
    rest, made, where = iter(held), list[tuple[str, str]](), dict[int, int]()
    for count in window_sizes([""] * len(held), [len(texts[n]) for n in held], size):
        own = list(itertools.islice(rest, count))
        where.update(dict.fromkeys(own, len(made)))
        made.append(("", "\n\n".join(texts[n] for n in own)))
    queries = [replace(_chained(q, part="long"), relevant=relevant_to({where[n] for n in q.gold})) for q in asked]
    return Collection(documents=passages(made), queries=queries)


def tiny_indexes(file: Path, most: int) -> Iterator[Collection]:
    """The same questions, each in an index of its relevant paragraphs and at most a few others, half without titles.

    In so few blocks every word is rare and each rank is near the best, so the features differ from those of large ones.
    """
    corpus, rng = read_corpus(file), Random(4)
    for question in rng.sample(corpus.questions, min(most, len(corpus.questions))):
        held = {*question.gold, *rng.sample(range(len(corpus.passages)), rng.randint(0, _TINY))}
        documents = [corpus.passages[n] for n in sorted(held)]
        titled = rng.random() < 0.5
        places = {n: place for place, n in enumerate(sorted(held))}
        query = _chained(question, part="tiny")
        query = replace(query, relevant=relevant_to({places[n] for n in question.gold}))
        yield Collection(documents=passages([(p.title if titled else "", p.text) for p in documents]), queries=[query])


def tiny_single(file: Path, dataset: str, most: int) -> Iterator[Collection]:
    """Questions of one set, each in an index of at most a few texts; for some of them its own text is not there."""
    rng = Random(f"{dataset}:tiny")
    asked = [q for q in read_singlehop(file) if q.dataset == dataset]
    for question in rng.sample(asked, min(most, len(asked))):
        others = [q.context for q in rng.sample(asked, rng.randint(1, _TINY)) if q.context != question.context]
        texts = others if others and rng.random() < _TINY_UNANSWERED else [*others, question.context]
        rng.shuffle(texts)
        relevant = relevant_to({n for n, text in enumerate(texts) if text == question.context})
        yield Collection(
            documents=passages([("", text) for text in texts]),
            queries=[Query(text=question.question, relevant=relevant, part="tiny_single")],
        )


def _chained(question: Question, part: str = "") -> Query:
    return Query(
        text=question.question,
        relevant=relevant_to(question.gold),
        part=part or question.dataset or "multihop",
        chained=True,
    )
