"""How the relations of made-up worlds are put into words: `templates_train.toml`, `templates_eval.toml`.

Those of training are multiplied by naming things with what they are ("the film {s}"), but for what would be one of
evaluation.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from itertools import product
from typing import Any

from compmem_research.tasks.names import Kind, Split

_NOUNS: dict[Kind, str] = {
    "city": "city of", "country": "country of", "company": "company", "film": "film", "book": "book", "band": "band",
    "school": "school",
}  # fmt: skip
"""What things are called in front of their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """How one relation is put into words in one split."""

    statements: tuple[str, ...]
    """Sentences that say a fact of subject `{s}` and object `{o}`."""
    questions: tuple[str, ...]
    """They ask for the object."""
    phrases: tuple[str, ...]
    """They stand for the object, so they nest: "the spouse of {s}" of "the director of {s}"."""


def openings(split: Split) -> tuple[str, ...]:
    """What may precede a statement; half of the statements have nothing before them."""
    texts = tuple(_file(split)["openings"])
    return (*[""] * len(texts), *texts)


def wording(split: Split, relation: str, subject: Kind, object_: Kind) -> Wording:
    """How a relation between two kinds is put into words in a split."""
    parts = {part: tuple(texts) for part, texts in _file(split)[relation].items()}
    if split == "train":
        held, kinds = _file("eval")[relation], {"{s}": subject, "{o}": object_}
        parts = {part: said_otherwise(texts, kinds, shut=held[part]) for part, texts in parts.items()}
    return Wording(**parts)


def said_otherwise(wordings: Sequence[str], kinds: Mapping[str, Kind], *, shut: Sequence[str] = ()) -> tuple[str, ...]:
    """The wordings themselves, then what they become when their gaps are named, each once.

    Args:
        wordings: With gaps for names.
        kinds: What each gap stands for.
        shut: Wordings that must not come out.
    """
    made = [*wordings, *(named for wording in wordings for named in _named(wording, kinds))]
    return tuple(w for w in dict.fromkeys(made) if w not in shut)


@cache
def _file(split: Split) -> dict[str, Any]:
    return tomllib.loads((files("compmem_research.tasks") / f"templates_{split}.toml").read_text(encoding="utf-8"))


def _named(wording: str, kinds: Mapping[str, Kind]) -> Iterator[str]:
    """The wording, and with things named by what they are where it does not say so already."""
    forms = []
    for gap, kind in kinds.items():
        noun = _NOUNS.get(kind)
        plain = noun is None or noun.split()[0] in wording or gap not in wording
        forms.append([gap] if plain else [gap, f"the {noun} {gap}"])
    for chosen in product(*forms):
        made = wording
        for gap, form in zip(kinds, chosen, strict=True):
            made = made.replace(gap, form)
        yield made if wording[0].islower() else made[0].upper() + made[1:]
