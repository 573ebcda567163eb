"""Multi-hop questions composed from single-hop data, for training, as MuSiQue (2108.00573) was made.

The first hop is a fact in the lead of a page ("... directed by Tim Burton"), the last a question about one text that
names the same entity ("who is Tim Burton married to"). Replacing the name in the question by a description ("the
director of Big Eyes") makes a question that needs both texts. Both texts are real; only the combination is made. The
entity that connects them need not have a page of its own.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from compmem.text.tokenize import STOPWORDS, capitalised_names, fold, name, possible_names, words
from compmem_research.tasks.multihop import Passage
from compmem_research.tasks.singlehop import SingleHop

T = TypeVar("T")

PER_QUESTION = 2
"""Most composed questions that end with the same single-hop question."""

FACTS: tuple[tuple[str, int, tuple[str, ...]], ...] = (
    (r"directed by", 1, ("the director of {}", "the person who directed {}", "{}'s director")),
    (r"produced by", 1, ("the producer of {}", "the person who produced {}")),
    (
        r"written(?: and \w+)? by|novel by|book by|play by|poem by", 1,
        ("the author of {}", "the writer of {}", "the person who wrote {}"),
    ),
    (
        r"(?:album|single|song|EP|track) (?:by|from)(?: the)?(?: [a-z-]+| [A-Z]\w+n| [A-Z]\w+sh)*", 1,
        ("the performer of {}", "the artist who recorded {}", "the band that made {}"),
    ),
    (r"starring", 1, ("the star of {}", "the actor who played in {}")),
    (r"founded by|established by", 1, ("the founder of {}", "the one who founded {}")),
    (r"(?:designed|built|developed|created|invented|composed) by", 1, ("the creator of {}", "the one who made {}")),
    (r"published by|released (?:by|on|through)", 1, ("the publisher of {}", "the company that published {}")),
    (r"owned by|operated by|subsidiary of", 1, ("the owner of {}", "the company that owns {}", "{}'s owner")),
    (
        r"born(?: [^.;()]{0,40})? in", 2,
        ("the birthplace of {}", "the place where {} was born", "{}'s city of birth"),
    ),
    (r"died(?: [^.;()]{0,40})? in", 1, ("the place where {} died", "the city of {}'s death")),
    (
        r"(?:headquartered|based|headquarters) (?:is |are )?in", 1,
        ("the city where {} is based", "the place where {} has its headquarters"),
    ),
    (
        r"(?:is|was|are|were) an? (?:[a-z-]+ ){0,4}(?:in|of)(?: the)?(?: [a-z]+){0,3}(?: of| in)?", 2,
        ("the place where {} is located", "the country where {} is found", "the state {} is in", "where {} is"),
    ),
    (
        r"(?:located|situated|found|held|played|lives|living) in(?: the)?", 1,
        ("the place where {} is", "the country of {}"),
    ),
    (r"member of(?: the)?", 1, ("the group that {} belongs to", "the organization {} is a member of")),
    (r"capital of|part of|suburb of", 1, ("what {} is a part of", "the region {} belongs to")),
    (
        r"(?:educated|studied|graduated) (?:at|from)(?: the)?", 1,
        ("the school {} went to", "the university {} attended"),
    ),
    (r"named (?:after|for)", 1, ("the namesake of {}", "what {} is named after")),
)  # fmt: skip
"""Text of a lead before a name, how many names follow it, and how a question may then describe the entity."""

_BETWEEN = r"(?: the)?(?: [a-z]+ (?:of|in)| American| British| English)*\s+(?=[A-Z])"
_FOLLOWING = 80
"""Characters after the matched text that are searched for the name."""

_PLAIN = re.compile(r"\s+([.,;:!?)'%])")
_PROPER = r"(?:[A-Z\d][^\s.,;:(]*|of|the|and|de|in)"
_OPENING = re.compile(rf"^(?:The |A |An )?((?:[A-Z][^\s.,;:(]*|of|the|and)(?: {_PROPER})*) (?:\(|is |was |are |were )")
_ASIDE = re.compile(r"\s*\([^()]*\)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """An entity named by a lead, and other descriptions of it."""

    lead: Passage
    named: str
    """The folded name of the entity."""
    described: tuple[str, ...]


def facts(leads: Iterable[Passage]) -> Iterator[Fact]:
    """The facts in the leads: an entity described by another."""
    patterns = [(re.compile(rf"\b(?:{said}){_BETWEEN}"), most, described) for said, most, described in FACTS]
    for lead in leads:
        about, own = _ASIDE.sub("", lead.title), name(lead.title)
        for said, most, described in patterns:
            for match in said.finditer(lead.text):
                for mention in capitalised_names(lead.text[match.end() : match.end() + _FOLLOWING])[:most]:
                    if mention.name not in own:
                        yield Fact(lead=lead, named=mention.name, described=tuple(d.format(about) for d in described))


_ASKING: tuple[tuple[str, str], ...] = (
    (
        r"^(who|what|which) (?=(?:is|was|are|were|has|had|did|does|can|could|will|won|wrote|\w+ed|\w+s)\b)",
        r"the one \1 ",
    ),
    (r"^(?:in|at|on|of|from|to|by|for) (?:what|which) (\w+) ", r"the \1 where "),
    (r"^(?:what|which) (\w+) ", r"the \1 that "),
    (r"^where ", "the place where "),
    (r"^(?:who|whom|what) ", "the one that "),
)
"""Rules that turn a question into a description of its answer."""


def answered(questions: Sequence[SingleHop]) -> Iterator[tuple[SingleHop, str, str]]:
    """Questions whose answer is a name, the folded name, and a description of it made from the question."""
    for question in questions:
        answer = question.answers[0].strip()
        said = question.question.strip().rstrip("?").strip()
        said = said[:1].lower() + said[1:]
        if answer[:1].isupper() and 0 < answer.count(" ") + 1 < 6 and name(answer) not in STOPWORDS:
            for pattern, described in _ASKING:
                put, count = re.subn(pattern, described, said)
                if count:
                    yield question, name(answer), put
                    break


def by_name(questions: Sequence[SingleHop]) -> Mapping[str, list[int]]:
    """The questions that contain each possible name."""
    held: dict[str, list[int]] = {}
    for number, question in enumerate(questions):
        for run in possible_names(question.question):
            held.setdefault(run, []).append(number)
    return held


def passage_of(question: SingleHop) -> Passage:
    """The text that answers a question; without a title, its first words are used."""
    text = _PLAIN.sub(r"\1", " ".join(question.context.split())).replace("( ", "(").replace(" - ", "-")
    begins = _OPENING.match(text)
    title = question.title or (begins[1] if begins else _subject(text))
    return Passage(title=title, sentences=tuple(re.split(r"(?<=[.!?])\s+(?=[A-Z\"])", text)))


def _subject(text: str) -> str:
    """The most frequent name in a text, the first of equals."""
    folded = f" {name(text)} "
    runs = [m.name for m in capitalised_names(text)]
    best = max(runs, key=lambda n: folded.count(f" {n} "), default="")
    at = fold(text).find(best) if best else -1
    return text[at : at + len(best)] if at >= 0 else ""


def compose(
    leads: Sequence[Passage], questions: Sequence[SingleHop], rng: np.random.Generator, *, most: int, per_name: int = 6
) -> list[dict[str, Any]]:
    """Questions of two and three hops as records of `multihop`, with each name used at most `per_name` times."""
    held = by_name(questions)
    every = list(facts(leads))
    further: dict[str, list[Fact]] = {}
    for fact in every:
        further.setdefault(name(fact.lead.title), []).append(fact)
    every += [Fact(lead=passage_of(q), named=n, described=(d,)) for q, n, d in answered(questions)]
    made: list[dict[str, Any]] = []
    used: Counter[str] = Counter()
    asked: Counter[int] = Counter()
    for at in rng.permutation(len(every)):
        hops, described, last = _chain(every[at], further, held, rng)
        fitting = [n for n in held.get(last, ()) if asked[n] < PER_QUESTION]
        if not fitting or used[last] >= per_name or last in STOPWORDS:
            continue
        number = _sample_passage(rng, fitting)
        single = questions[number]
        question = _place_passage(single.question, last, described)
        if question is None:
            continue
        used[last] += 1
        asked[number] += 1
        gold = [*hops, passage_of(single)]
        if len({p.text for p in gold}) == len(gold):
            made.append(_record(f"composed-{len(made)}", question, single.answers[0], gold))
        if len(made) == most:
            break
    return made


def _chain(
    fact: Fact, further: Mapping[str, Sequence[Fact]], held: Mapping[str, object], rng: np.random.Generator
) -> tuple[list[Passage], str, str]:
    """The passages of a fact, its description of an entity, and the entity's name; half continue to another lead."""
    described = _sample_passage(rng, fact.described)
    if fact.named in further and rng.random() < 0.5:
        beyond = _sample_passage(rng, further[fact.named])
        if beyond.named in held:
            about = _ASIDE.sub("", beyond.lead.title)
            joined = _sample_passage(rng, beyond.described).replace(about, described)
            return [fact.lead, beyond.lead], joined, beyond.named
    return [fact.lead], described, fact.named


def _place_passage(question: str, named: str, described: str) -> str | None:
    """The question with the description instead of the name; None if the name is not a run of its words."""
    pattern = r"\b(?:the\s+)?" + r"\W+".join(map(re.escape, named.split())) + r"\b"
    match = re.search(pattern, fold(question)) if len(fold(question)) == len(question) else None
    if match is None or len(words(question)) - len(named.split()) < 3:
        return None
    put = question[: match.start()] + described + question[match.end() :]
    put = put[:1].upper() + put[1:]
    return put if put.endswith("?") else f"{put}?"


def _record(id: str, question: str, answer: str, gold: Sequence[Passage]) -> dict[str, Any]:
    paragraphs = [
        {"title": p.title, "sentences": list(p.sentences), "supporting": list(range(len(p.sentences)))} for p in gold
    ]
    return {
        "id": id, "dataset": "composed", "type": f"{len(gold)}hop", "question": question, "answer": answer,
        "aliases": [], "paragraphs": paragraphs,
    }  # fmt: skip


def _sample_passage(rng: np.random.Generator, of: Sequence[T]) -> T:
    return of[int(rng.integers(len(of)))]
