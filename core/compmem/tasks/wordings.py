"""More ways to say the same: a wording turned, and things named with what they are.

A small model that meets few sentences learns the sentences; of many it learns the words.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from compmem.tasks.names import Kind

_NOUNS: dict[Kind, str] = {
    "city": "city of", "country": "country of", "company": "company", "film": "film", "book": "book", "band": "band",
    "school": "school",
}  # fmt: skip
"""What things are called in front of their names."""

_TURNS = tuple((re.compile(pattern), turned) for pattern, turned in (
    (r"\bthe (city|country) where\b", r"the \1 in which"),
    (r"\bthe (school|company) where\b", r"the \1 at which"),
    (r"\bthe person who\b", "the one who"),
    (r"\bthe one who\b", "the person who"),
    (r"^In which (city|country) (.*)\?$", r"Which \1 \2 in?"),
    (r"^At which (school|company) (.*)\?$", r"Which \1 \2 at?"),
    (r"^From which city (.*)\?$", r"Which city \1 from?"),
    (r"^Where ((?:is|was|are) .*)\?$", r"In which place \1?"),
    (r"^Who (.*)\?$", r"Which person \1?"),
    (r"^Who (?!is |was )(.*)\?$", r"Who was it that \1?"),
    (r"^The (.*) of \{s\} is \{o\}\.$", r"{o} is the \1 of {s}."),
    (r"^\{o\} is the (.*) of \{s\}\.$", r"{s} has {o} as the \1."),
    (r"^\{s\} (is|was) (\w+) by \{o\}\.$", r"It was by {o} that {s} \1 \2."),
    (r"^\{s\} (\w+(?: \w+)?) in \{o\}\.$", r"It is in {o} that {s} \1."),
))  # fmt: skip
"""How a wording may be turned without saying anything else."""


def said_otherwise(wordings: Sequence[str], kinds: Mapping[str, Kind], *, shut: Sequence[str] = ()) -> tuple[str, ...]:
    """The wordings themselves, then what they become when they are turned and their gaps named, each once.

    Args:
        wordings: With gaps for names.
        kinds: What each gap stands for.
        shut: Wordings that must not come out.
    """
    made = [*wordings, *(named for w in wordings for turned in _turned(w) for named in _named(turned, kinds))]
    return tuple(w for w in dict.fromkeys(made) if w not in shut)


def _turned(wording: str) -> Iterator[str]:
    """The wording, and each way to turn it."""
    yield wording
    for pattern, turned in _TURNS:
        if pattern.search(wording):
            yield pattern.sub(turned, wording)


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
