"""Made-up worlds: people, films, companies and places whose names tell nothing, so that only the context can.

A question of `n` hops asks for the end of a chain of `n` facts ("In which city was the director of The Silent Brend
born?"). Each fact is one sentence somewhere in a context of filler; beside the chain stand facts that are easily taken
for it. Names, wordings and filler texts of `train` and `eval` are disjoint.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, cycle, islice
from random import Random
from typing import Literal, get_args

from compmem.schema import Document
from compmem_research.tasks.haystack import Filler, opened, plant
from compmem_research.tasks.names import Entity, Kind, Split, draw
from compmem_research.tasks.relations import OPENINGS, RELATIONS, Relation
from compmem_research.tasks.sample import Sample, Span

_Look = Literal["other subject", "other relation", "turned round"]
"""How a fact resembles one of the chain: it says the same of another subject; something else of the same subject;
of another subject what leads to the same entity (for a father: that the subject is another one's father)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """What one sentence of a world says."""

    subject: str
    relation: str
    object: str

    @property
    def note(self) -> str:
        """The fact as short as a working memory may keep it: "Anna Bel, birthplace: Dortal."."""
        return f"{self.subject}, {self.relation}: {self.object}."


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldSample(Sample):
    """A question about a made-up world, and the facts that answer it."""

    facts: tuple[Fact, ...]
    """In the order of the hops; fact `i` stands at `evidence[i]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """How hard worlds are."""

    split: Split = "train"
    tokens: int = 7000
    """Of the context."""
    hops: tuple[int, ...] = (1, 2, 3)
    """Each sample draws one of them."""
    distractors: int = 3
    """Facts for each hop that resemble it."""
    similar: float = 0.5
    """Share of those about another subject whose name has a part of the true subject's name."""
    wordings: int | None = None
    """Use only the first so many statements, questions, phrases and openings of the split; None: all."""
    syllables: int = 2
    """Of each made-up word; 1 makes names short."""
    unanswerable: float = 0.0
    """Share of samples whose context lacks the last fact."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.split not in get_args(Split):
            raise ValueError(f"split={self.split!r}; it is 'train' or 'eval'")
        if not self.hops or not all(1 <= h <= 3 for h in self.hops):
            raise ValueError(f"hops={self.hops!r}; each is 1, 2 or 3")
        for name, least in (("tokens", 1), ("distractors", 0), ("syllables", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)!r}; at least {least}")
        if self.wordings is not None and self.wordings < 1:
            raise ValueError(f"wordings={self.wordings!r}; at least 1, or None for all")
        for name in ("similar", "unanswerable"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)!r}; it is a share from 0 to 1")


class Worlds:
    """Any number of samples, each made from its number alone."""

    def __init__(self, config: WorldConfig, filler: Filler) -> None:
        self.config = config
        self._filler = filler

    def __iter__(self) -> Iterator[WorldSample]:
        """All samples from number 0 on, without end."""
        return map(self.sample, count())

    def samples(self, count: int, *, start: int = 0) -> list[WorldSample]:
        """So many samples from a number on."""
        return list(map(self.sample, range(start, start + count)))

    def sample(self, number: int) -> WorldSample:
        """The sample of this number.

        Raises:
            ValueError: The facts alone are longer than the context, or the filler is too short for it.
        """
        config = self.config
        rng = Random(f"worlds:{config.split}:{config.seed}:{number}")
        world = _World(config, rng)
        path = world.chain(rng.choice(config.hops))
        answerable = rng.random() >= config.unanswerable
        told = path if answerable else path[:-1]
        others = [list(world.resembling(fact)) for fact in path]
        sentences = [world.say(f) for f in (*told, *chain.from_iterable(others))]
        facts = tuple(Fact(subject=f.subject.name, relation=f.relation.name, object=f.object.name) for f in told)
        documents, spans, tokens = self._context(sentences, len(told), rng)
        evidence, rest = spans[: len(told)], iter(spans[len(told) :])
        return WorldSample(
            id=f"{config.split}-{config.seed}-{number}",
            task=f"world-{len(path)}hop",
            question=world.ask(path),
            answers=(path[-1].object.name,),
            documents=documents,
            evidence=evidence,
            metric="sub_em" if answerable else "unanswerable",
            tokens=tokens,
            notes=tuple(fact.note for fact in facts),
            distractors=tuple(tuple(islice(rest, len(own))) for own in others),
            facts=facts,
            contrasts=tuple(world.contrast(path[: hop + 1]) for hop in range(len(told))),
        )

    def _context(self, said: list[str], facts: int, rng: Random) -> tuple[tuple[Document, ...], tuple[Span, ...], int]:
        """The sentences set into filler between its sentences, where they stand, and the tokens.

        The first ones, the facts, stand apart.
        """
        own = sum(self._filler.counter([f" {s}" for s in said]))
        if own > self.config.tokens:
            raise ValueError(f"tokens={self.config.tokens}; the facts alone have {own}")
        pieces = self._filler.take(self.config.split, self.config.tokens - own, rng)
        documents, spans = plant(pieces, said, rng, apart=facts)
        return documents, spans, own + sum(p.tokens for p in pieces)


@dataclass(frozen=True, slots=True)
class _Link:
    """A fact before it is put into words."""

    subject: Entity
    relation: Relation
    object: Entity


class _World:
    """The facts of one sample: no name twice, and one object for each subject and relation."""

    def __init__(self, config: WorldConfig, rng: Random) -> None:
        self._config = config
        self._rng = rng
        self._names: set[str] = set()
        self._known: set[tuple[str, str]] = set()

    def chain(self, hops: int) -> list[_Link]:
        """Facts of which each tells of the object of the one before."""
        path = self._rng.choice(_PATHS[hops])
        links, subject = [], self._entity(path[0].subject)
        for relation in path:
            links.append(self._link(subject, relation, self._entity(relation.object)))
            subject = links[-1].object
        return links

    def resembling(self, link: _Link) -> Iterator[_Link]:
        """Facts that are easily taken for this one, each kind of them in turn."""
        looks: list[_Look] = list(get_args(_Look))
        self._rng.shuffle(looks)
        for look in islice(cycle(looks), self._config.distractors):
            yield self._resembling(link, look)

    def _resembling(self, link: _Link, look: _Look) -> _Link:
        relation = link.relation
        if look == "other relation":
            free = [r for r in RELATIONS if r.subject == relation.subject and self._free(link.subject, r)]
            if free:
                chosen = self._rng.choice(free)
                return self._link(link.subject, chosen, self._entity(chosen.object))
        if look == "turned round" and relation.shared:
            if relation.subject == relation.object:
                return self._link(self._entity(relation.subject), relation, link.subject)
            return self._link(self._entity(relation.subject), relation, link.object)
        like = link.subject if self._rng.random() < self._config.similar else None
        return self._link(self._entity(relation.subject, like), relation, self._entity(relation.object))

    def _entity(self, kind: Kind, like: Entity | None = None) -> Entity:
        while True:
            entity = draw(self._rng, kind, self._config.split, syllables=self._config.syllables, like=like)
            if entity.name not in self._names:
                self._names.add(entity.name)
                return entity

    def _free(self, subject: Entity, relation: Relation) -> bool:
        return (subject.name, relation.name) not in self._known

    def _link(self, subject: Entity, relation: Relation, object_: Entity) -> _Link:
        self._known.add((subject.name, relation.name))
        if relation.subject == relation.object and not relation.shared:
            self._known.add((object_.name, relation.name))
        return _Link(subject, relation, object_)

    def say(self, link: _Link) -> str:
        """A sentence that says it."""
        split = self._config.split
        sentence = opened(self._choice(OPENINGS[split]), self._choice(link.relation.wording(split).statements))
        return sentence.format(s=link.subject.name, o=link.object.name)

    def ask(self, chain: list[_Link]) -> str:
        """A question for the object of the last fact that names only the subject of the first."""
        subject = chain[0].subject.name
        for link in chain[:-1]:
            subject = self._choice(link.relation.wording(self._config.split).phrases).format(s=subject)
        question = self._choice(chain[-1].relation.wording(self._config.split).questions).format(s=subject)
        return question[0].upper() + question[1:]

    def contrast(self, chain: list[_Link]) -> str:
        """A question that the last fact does not answer, though it comes close."""
        last = chain[-1]
        other = [r for r in RELATIONS if r.subject == last.subject.kind and r != last.relation]
        if len(chain) == 1 and (not other or self._rng.random() < self._config.similar / 2):
            return self.ask([_Link(self._entity(last.subject.kind, last.subject), last.relation, last.object)])
        if not other:
            return ""
        return self.ask([*chain[:-1], _Link(last.subject, self._rng.choice(other), last.object)])

    def _choice(self, wordings: tuple[str, ...]) -> str:
        return self._rng.choice(wordings[: self._config.wordings])


def _paths() -> dict[int, list[tuple[Relation, ...]]]:
    """The chains of relations of each length, without a step straight back."""
    back = {("spouse", "spouse"), ("capital", "country")}
    found: dict[int, list[tuple[Relation, ...]]] = {1: [(r,) for r in RELATIONS]}
    for hops in (2, 3):
        found[hops] = [
            (*path, r)
            for path in found[hops - 1]
            for r in RELATIONS
            if r.subject == path[-1].object and (path[-1].name, r.name) not in back
        ]
    return found


_PATHS = _paths()
