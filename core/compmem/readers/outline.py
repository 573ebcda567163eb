"""How the sentences of a chunk hang together: headings, questions, lists, tables, pronouns."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from compmem.schema import Chunk
from compmem.text.sentences import ATX, is_labelled, is_row
from compmem.text.tokenize import words

MAX_INTRODUCED_SENTENCES = 3
"""Maximum number of sentences that are quoted with the one that introduces them."""

MAX_LIST_ITEMS = 12
"""Maximum number of items of a list, or rows of a table, that are quoted together."""

MAX_PRECEDING_SENTENCES = 2
"""Maximum number of sentences that are quoted before one with a pronoun."""

_PRONOUNS = frozenset("he her his it its she that their these they this those".split())
_PERSONAL = frozenset("he she they".split())
_OPENING = 4
"""First words of a sentence in which `he`, `she` or `they` means someone named before."""
_ITEM = re.compile(r"[-*+•–]\s|\(?\d{1,3}[.)]\s")
_BOLD = re.compile(r"\*\*[^*]++\*\*(?<![.!?:]\*\*)")
_REPLY = re.compile(r"(?:A:\s*)?(?:yes|no)\b", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Outline:
    """The sentences of a chunk in their order, numbered from 0."""

    texts: tuple[str, ...]
    begins: tuple[bool, ...]
    """Whether a paragraph begins with each sentence."""
    heads: tuple[int, ...]
    """For each sentence, the one that introduces it: the last question or line with a colon in its paragraph, else the
    last heading; -1: none."""
    continues: bool = False
    """The chunk begins inside a table, whose head is its last heading."""

    @classmethod
    def of(cls, chunk: Chunk) -> "Outline":
        """The outline of a chunk; one without sentences is a single one."""
        texts = tuple(chunk.sentence_texts())
        begins = (True, *(chunk.text[a:b].count("\n") > 1 for (_, a), (b, _) in pairwise(chunk.spans)))
        heads = list[int]()
        heading, lead, said = -1, -1, False
        for place, text in enumerate(texts):
            if said and begins[place]:
                lead = -1
            if is_heading(text):
                heads.append(-1)
                heading, lead = place, -1
            elif introduces(text):
                heads.append(heading)
                lead, said = place, False
            else:
                heads.append(heading if lead < 0 else lead)
                said = True
        return cls(texts, begins, tuple(heads), bool(chunk.headings) and is_row(chunk.headings[-1]))

    def introduced(self, place: int) -> Iterator[int]:
        """The sentences that this one introduces: some of a paragraph, or a list or table of up to `MAX_LIST_ITEMS`."""
        if not introduces(self.texts[place]):
            return
        said = False
        for after in range(place + 1, len(self.texts)):
            item = is_item(self.texts[after]) or is_row(self.texts[after])
            ends = introduces(self.texts[after])
            if said and (ends or (self.begins[after] and not item)):
                return
            if after - place > (MAX_LIST_ITEMS if item else MAX_INTRODUCED_SENTENCES):
                return
            said = said or not ends
            yield after

    def named_before(self, place: int) -> Iterator[int]:
        """The sentences before one with a pronoun, back to one without, in its paragraph."""
        for at in range(place, max(place - MAX_PRECEDING_SENTENCES, 0), -1):
            if self.begins[at] or not is_of_someone(self.texts[at]):
                return
            yield at - 1

    def table(self, place: int) -> range:
        """The rows of the table that this one is a row of; empty if it is none."""
        if not is_row(self.texts[place]):
            return range(0)
        first = last = place
        while first and is_row(self.texts[first - 1]):
            first -= 1
        while last + 1 < len(self.texts) and is_row(self.texts[last + 1]):
            last += 1
        return range(first, last + 1)


def introduces(text: str) -> bool:
    """Whether a sentence only says what the next are about: a question, a heading, a line with a colon or bracket."""
    return text.endswith(("?", ":", "{", "[")) or is_heading(text)


def is_heading(text: str) -> bool:
    """Whether a sentence is a Markdown heading, or a line that is bold as a whole and no full sentence."""
    return ATX.match(text) is not None or _BOLD.fullmatch(text) is not None


def is_question(text: str) -> bool:
    """Whether a sentence is a question."""
    return text.endswith("?")


def is_item(text: str) -> bool:
    """Whether a sentence is an item of a list, or a line with a label."""
    return _ITEM.match(text) is not None or (is_labelled(text) and not text.endswith((".", "!", "?", ":")))


def is_reply(text: str) -> bool:
    """Whether a sentence begins with yes or no, so that it says nothing without its question."""
    return _REPLY.match(text) is not None


def is_of_someone(text: str) -> bool:
    """Whether a sentence is about someone or something that was named before it."""
    opening = words(text[:80])[:_OPENING]
    return not (_PRONOUNS.isdisjoint(opening[:1]) and _PERSONAL.isdisjoint(opening))
