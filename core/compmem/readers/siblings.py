"""Documents and sections that only their names tell apart: "Boat file Alba" and "Boat file Brisa"."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

from compmem.readers.outline import Outlines
from compmem.schema import Evidence
from compmem.text.tokenize import name, words

MAX_SECTIONS = 40
"""Maximum number of sections that are compared; beyond that, all are quoted."""

_COMPARING = frozenset(
    "after another before besides between both change changed changes compare compared comparison decrease decreased "
    "differ difference differences different earlier else except increase increased later less like more next other "
    "others previous same similar than unlike versus vs".split()
)
"""Words of a question that is about several such sections."""


class _Section(NamedTuple):
    headings: tuple[str, ...]
    """The title of the document, then the headings, outermost first."""
    split: tuple[tuple[str, ...], ...]
    """The words of each."""


def without_siblings(question: str, evidence: Sequence[Evidence], outlines: Outlines) -> list[Evidence]:
    """The sentences without those of sections that the question does not ask about, but about one named like them.

    Of two titles or headings with equally many words, the second is left out if the question has all words in which
    the first one differs and none of those of the second. A section that a sentence of another one names stays, and so
    do all if the question compares.
    """
    asked = set(words(question))
    sections = dict[_Section, list[Evidence]]()
    for e in evidence:
        headings = tuple(dict.fromkeys([e.chunk.title, *outlines.path(e)]))
        sections.setdefault(_Section(headings, tuple(tuple(words(h)) for h in headings)), []).append(e)
    if not 1 < len(sections) <= MAX_SECTIONS or not asked.isdisjoint(_COMPARING):
        return list(evidence)
    out = {other: at for one, other in permutations(sections, 2) if (at := _sibling_level(one, other, asked)) >= 0}
    said = [f" {name(e.text)} " for section, own in sections.items() if section not in out for e in own]
    named = {section for section, at in out.items() if any(f" {name(section.headings[at])} " in text for text in said)}
    left = {(e.chunk.id, e.start) for section in out.keys() - named for e in sections[section]}
    return [e for e in evidence if (e.chunk.id, e.start) not in left]


def _sibling_level(one: _Section, other: _Section, asked: set[str]) -> int:
    """The place of the first heading that differs, if the question asks by the first section's; else -1."""
    for at, (mine, yours) in enumerate(zip(one.split, other.split, strict=False)):
        if mine != yours:
            differing = [(a, b) for a, b in zip(mine, yours, strict=False) if a != b]
            alike = len(mine) == len(yours) > len(differing)
            return at if alike and all(a in asked and b not in asked for a, b in differing) else -1
    return -1
