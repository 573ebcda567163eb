"""Documents and sections that only their names tell apart: "Boat file Alba" and "Boat file Brisa"."""

from collections.abc import Sequence
from itertools import permutations
from typing import NamedTuple

from compmem.readers.outline import Outlines
from compmem.schema import Evidence
from compmem.text.tokenize import STOPWORDS, name, root, words

MAX_SECTIONS = 40
"""Maximum number of sections that are compared; beyond that, all are quoted."""

_COMPARING = frozenset(
    "after another before besides between both change changed changes compare compared comparison decrease decreased "
    "differ difference differences different earlier else except from gain grew grow growth increase increased instead "
    "later less like lose more next not other others previous rise rose same similar since than till unlike until "
    "versus vs without".split()
)
"""Words of a question that is about several such sections."""

_GENERAL = frozenset("all basics common everyone everything faq general info information overview rules".split())
"""Words in the names of sections that hold for all."""


class _Section(NamedTuple):
    headings: tuple[str, ...]
    """The title of the document, then the headings, outermost first."""
    split: tuple[tuple[str, ...], ...]
    """The words of each."""

    @classmethod
    def of(cls, evidence: Evidence, outlines: Outlines) -> "_Section":
        """The section that a sentence stands in."""
        headings = tuple(dict.fromkeys([evidence.chunk.title, *outlines.path(evidence)]))
        return cls(headings, tuple(tuple(words(heading)) for heading in headings))


def without_siblings(question: str, evidence: Sequence[Evidence], outlines: Outlines) -> list[Evidence]:
    """The sentences without those of sections that the question does not name, where it names another one like them.

    Of two titles or headings with equally many words, the second is left out if the question has all words in which
    the first one differs and none of those of the second. It stays if its differing words are general, if a kept
    sentence has its name, or if its own sentences have a word of the question that the kept sections lack, or one from
    the name of another section. All stay if the question compares.
    """
    asked = set(words(question)) - STOPWORDS
    sections = dict[_Section, list[Evidence]]()
    for e in evidence:
        sections.setdefault(_Section.of(e, outlines), []).append(e)
    if not 1 < len(sections) <= MAX_SECTIONS or not _COMPARING.isdisjoint(words(question)):
        return list(evidence)
    out = {other: at for one, other in permutations(sections, 2) if (at := _sibling_level(one, other, asked)) >= 0}
    if not out:
        return list(evidence)
    kept = {section: own for section, own in sections.items() if section not in out}
    texts = [f" {name(e.text)} " for own in kept.values() for e in own]
    in_headings = {word for section in kept for heading in section.split for word in heading}
    asked_roots = {root(word) for word in asked}
    said = {root(word) for word in in_headings.union(*(text.split() for text in texts))}

    def is_needed(section: _Section) -> bool:
        own = {word for e in sections[section] for word in words(e.text) if root(word) in asked_roots}
        other_names = in_headings.difference(*section.split)
        named = any(f" {name(section.headings[out[section]])} " in text for text in texts)
        return named or any(root(word) not in said or word in other_names for word in own)

    left = {(e.chunk.id, e.start) for section in out if not is_needed(section) for e in sections[section]}
    return [e for e in evidence if (e.chunk.id, e.start) not in left]


def _sibling_level(one: _Section, other: _Section, asked: set[str]) -> int:
    """The place of the first heading that differs, if the question asks by the first section's; else -1."""
    for at, (mine, yours) in enumerate(zip(one.split, other.split, strict=False)):
        if mine != yours:
            differing = [(a, b) for a, b in zip(mine, yours, strict=False) if a != b]
            alike = len(mine) == len(yours) > len(differing)
            named = all(a in asked and b not in asked | _GENERAL for a, b in differing)
            return at if alike and named else -1
    return -1
