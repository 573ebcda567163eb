"""Wordings of the relations of made-up worlds: `templates_train.toml`, `templates_eval.toml`.

Training wordings are multiplied by putting the kind of entity before names ("the film {s}"), except for results that
are evaluation wordings.
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
"""The kinds of entities, as words before their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Wording:
    """The wordings of one relation in one split."""

    statements: tuple[str, ...]
    """Statements of a fact with subject `{s}` and object `{o}`."""
    questions: tuple[str, ...]
    """Questions for the object."""
    phrases: tuple[str, ...]
    """Descriptions of the object, which can be nested: "the spouse of {s}" of "the director of {s}"."""


def openings(split: Split) -> tuple[str, ...]:
    """Text before a statement; half of the statements have none."""
    texts = tuple(_file(split)["openings"])
    return (*[""] * len(texts), *texts)


def wording(split: Split, relation: str, subject: Kind, object_: Kind) -> Wording:
    """The wordings of a relation between two kinds in a split."""
    parts = {part: tuple(texts) for part, texts in _file(split)[relation].items()}
    if split == "train":
        held, kinds = _file("eval")[relation], {"{s}": subject, "{o}": object_}
        parts = {part: reworded(texts, kinds, excluded=held[part]) for part, texts in parts.items()}
    return Wording(**parts)


def reworded(wordings: Sequence[str], kinds: Mapping[str, Kind], *, excluded: Sequence[str] = ()) -> tuple[str, ...]:
    """The wordings themselves, then those with kinds before the names, each once.

    Args:
        wordings: Templates with gaps for names.
        kinds: The kind of entity of each gap.
        excluded: Wordings to exclude.
    """
    made = [*wordings, *(named for wording in wordings for named in _named(wording, kinds))]
    return tuple(w for w in dict.fromkeys(made) if w not in excluded)


@cache
def _file(split: Split) -> dict[str, Any]:
    return tomllib.loads((files("compmem_research.tasks") / f"templates_{split}.toml").read_text(encoding="utf-8"))


def _named(wording: str, kinds: Mapping[str, Kind]) -> Iterator[str]:
    """The wording, and the wording with the kinds before the names if it does not have them already."""
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
