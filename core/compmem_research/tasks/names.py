"""Made-up names: many, pronounceable, each with one role, so that no whole name in training occurs in evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal
from zlib import crc32

Kind = Literal["person", "city", "country", "company", "film", "book", "band", "school"]
Split = Literal["train", "eval"]
Role = Literal["train", "eval", "train filler", "eval filler"]
"""The use of a name. Filler facts have their own names, so they never contradict a question's facts."""

_ROLES: tuple[Role, ...] = ("train", "eval", "train filler", "eval filler")

_ONSETS = "b br c d dr f fl g gr h j k kl l m n p pr r s st t tr v w z".split()
_NUCLEI = "a e i o u ai ei ou".split()
_SYLLABLES = [onset + nucleus for onset in _ONSETS for nucleus in _NUCLEI]
_CODAS = "l ld m n nd nk r rd rk rn s sk st t th x".split()
_WORD: list[str] = []
_SHAPES: dict[Kind, tuple[str, tuple[list[str], list[str]]]] = {
    "person": ("{} {}", (_WORD, _WORD)),
    "city": ("{}{}", (_WORD, "burg ton mouth stad ford haven dale wick".split())),
    "country": ("{}{}", (_WORD, "ia land istan ora mark esia avia onia".split())),
    "company": (
        "{} {}",
        (_WORD, "Works Motors Foods Labs Mills Steel Energy Glass Airlines Textiles Optics Shipping".split()),
    ),
    "film": (
        "The {} {}",
        (
            "Silent Golden Broken Hidden Scarlet Distant Frozen Burning Hollow Crooked Wild Lonely Secret".split(),
            _WORD,
        ),
    ),
    "book": (
        "{} of {}",
        (
            "Letters Songs Shadows Chronicles Gardens Ashes Rivers Tales Winters Echoes Maps Lanterns Stones".split(),
            _WORD,
        ),
    ),
    "band": (
        "{} {}",
        (_WORD, "Brothers Quartet Trio Orchestra Sisters Ensemble Collective Choir Parade Union".split()),
    ),
    "school": ("{} {}", (_WORD, "College University Academy Institute Conservatory Polytechnic".split())),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entity:
    """A person, place or thing of a made-up world."""

    kind: Kind
    parts: tuple[str, str]

    @property
    def name(self) -> str:
        """Its whole name."""
        return _SHAPES[self.kind][0].format(*self.parts)


def draw(rng: Random, kind: Kind, role: Role, *, syllables: int = 2, like: Entity | None = None) -> Entity:
    """An entity with a name of this role.

    Args:
        rng: Source of randomness.
        kind: The kind of entity.
        role: The use of its name.
        syllables: Syllables of each made-up word.
        like: One of the two parts of its name is taken from this entity of the same kind.
    """
    form, shapes = _SHAPES[kind]
    while True:
        new = [_pick(rng, words) if words else word(rng, syllables) for words in shapes]
        if like is not None:
            kept = _below(rng, 2)
            new[kept] = like.parts[kept]
        if has_role(form.format(*new), role) and (like is None or tuple(new) != like.parts):
            return Entity(kind=kind, parts=(new[0], new[1]))


def has_role(name: str, role: Role) -> bool:
    """Whether a name has this role; each name has exactly one."""
    return _ROLES[crc32(name.encode()) % len(_ROLES)] == role


def word(rng: Random, syllables: int = 2) -> str:
    """A made-up capitalised word."""
    return "".join([_pick(rng, _SYLLABLES) for _ in range(syllables)]).capitalize() + _pick(rng, _CODAS)


def _pick(rng: Random, items: Sequence[str]) -> str:
    return items[_below(rng, len(items))]


def _below(rng: Random, count: int) -> int:
    """A random number below a count, several times faster than `randrange`."""
    return int(rng.random() * count)
