"""More ways to say the same: things named with what they are ("the film {s}")."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from compmem.tasks.names import Kind

_NOUNS: dict[Kind, str] = {
    "city": "city of", "country": "country of", "company": "company", "film": "film", "book": "book", "band": "band",
    "school": "school",
}  # fmt: skip
"""What things are called in front of their names."""


def said_otherwise(wordings: Sequence[str], kinds: Mapping[str, Kind], *, shut: Sequence[str] = ()) -> tuple[str, ...]:
    """The wordings themselves, then what they become when their gaps are named, each once.

    Args:
        wordings: With gaps for names.
        kinds: What each gap stands for.
        shut: Wordings that must not come out.
    """
    made = [*wordings, *(named for wording in wordings for named in _named(wording, kinds))]
    return tuple(w for w in dict.fromkeys(made) if w not in shut)


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
