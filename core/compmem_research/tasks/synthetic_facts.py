"""Made-up worlds: people, films, companies and places with meaningless names, so that only the context gives answers.

A question of `n` hops asks for the end of a chain of `n` facts ("In which city was the director of The Silent Brend
born?"). Each fact is one sentence somewhere in a context of filler, together with similar facts as distractors. Names,
wordings and filler texts of `train` and `eval` are disjoint.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, count, cycle, islice
from random import Random
from typing import Literal, get_args

from compmem.schema import Document
from compmem_research.tasks.haystack import Filler, insert, with_opening
from compmem_research.tasks.names import Entity, Kind, Split, draw
from compmem_research.tasks.relations import OPENINGS, RELATIONS, Relation
from compmem_research.tasks.sample import Sample, Span

_Look = Literal["other subject", "other relation", "turned round"]
"""How a distractor is similar to a fact of the chain: the same relation of another subject; another relation of the
same subject; or a relation of another subject to the same entity (for a father: he is another one's father too)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fact:
    """The content of one sentence of a world."""

    subject: str
    relation: str
    object: str

    @property
    def note(self) -> str:
        """The fact as a short note: "Anna Bel, birthplace: Dortal."."""
        return f"{self.subject}, {self.relation}: {self.object}."


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldSample(Sample):
    """A question about a made-up world, and the facts that answer it."""

    facts: tuple[Fact, ...]
    """In the order of the hops; fact `i` is at `evidence[i]`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """The difficulty of worlds."""

    split: Split = "train"
    tokens: int = 7000
    """Tokens of the context."""
    hops: tuple[int, ...] = (1, 2, 3)
    """Numbers of hops; each sample uses one of them."""
    distractors: int = 3
    """Distractors for each hop."""
    similar: float = 0.5
    """Share of distractors about another subject whose name shares a part with the true subject's name."""
    wordings: int | None = None
    """Use only this many first statements, questions, phrases and openings of the split; None: all."""
    syllables: int = 2
    """Syllables of each made-up word; 1 makes names short."""
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
    """Any number of samples, each determined by its number."""

    def __init__(self, config: WorldConfig, filler: Filler) -> None:
        self.config = config
        self._filler = filler

    def __iter__(self) -> Iterator[WorldSample]:
        """An endless sequence of samples, from number 0 on."""
        return map(self.sample, count())

    def samples(self, count: int, *, start: int = 0) -> list[WorldSample]:
        """This many samples, from number `start` on."""
        return list(map(self.sample, range(start, start + count)))

    def sample(self, number: int) -> WorldSample:
        """The sample with this number.

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
        """The sentences inserted into filler, their positions, and the tokens.

        The first ones, the facts, are in different documents.
        """
        own = sum(self._filler.counter([f" {s}" for s in said]))
        if own > self.config.tokens:
            raise ValueError(f"tokens={self.config.tokens}, but the facts alone have {own}")
        pieces = self._filler.take(self.config.split, self.config.tokens - own, rng)
        documents, spans = insert(pieces, said, rng, apart=facts)
        return documents, spans, own + sum(p.tokens for p in pieces)


@dataclass(frozen=True, slots=True)
class _Link:
    """A fact before it is worded."""

    subject: Entity
    relation: Relation
    object: Entity


class _World:
    """The facts of one sample: unique names, and one object for each subject and relation."""

    def __init__(self, config: WorldConfig, rng: Random) -> None:
        self._config = config
        self._rng = rng
        self._names: set[str] = set()
        self._known: set[tuple[str, str]] = set()

    def chain(self, hops: int) -> list[_Link]:
        """Facts in which each subject is the object of the previous one."""
        path = self._rng.choice(_PATHS[hops])
        links, subject = [], self._entity(path[0].subject)
        for relation in path:
            links.append(self._link(subject, relation, self._entity(relation.object)))
            subject = links[-1].object
        return links

    def resembling(self, link: _Link) -> Iterator[_Link]:
        """Distractors for this fact, each kind in turn."""
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
        """A sentence that states the fact."""
        split = self._config.split
        sentence = with_opening(self._choice(OPENINGS[split]), self._choice(link.relation.wording(split).statements))
        return sentence.format(s=link.subject.name, o=link.object.name)

    def ask(self, chain: list[_Link]) -> str:
        """A question for the object of the last fact that names only the subject of the first."""
        subject = chain[0].subject.name
        for link in chain[:-1]:
            subject = self._choice(link.relation.wording(self._config.split).phrases).format(s=subject)
        question = self._choice(chain[-1].relation.wording(self._config.split).questions).format(s=subject)
        return question[0].upper() + question[1:]

    def contrast(self, chain: list[_Link]) -> str:
        """A similar question that the last fact does not answer."""
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
    """The chains of relations of each length, without a direct step back."""
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
