"""The questions that one text asks: "When does the lease end, and who insures the building?" asks two.

The rules are for English. A part that cannot be understood by itself stays in the whole text.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from compmem.text.tokenize import STOPWORDS, content_terms

MAX_PARTS: Final = 5
"""Maximum number of questions that a text is split into; one with more is not split."""
MAX_SPLIT_CHARS: Final = 2_000
"""Maximum number of characters of a text that is split; a longer one is more than questions."""

_MIN_WORDS: Final = 3
_ASKING: Final = frozenset("who whom whose what when where why which how".split())
_RELATIVE: Final = frozenset("who whom whose which".split())
_VERBS: Final = frozenset(
    "am is are was were be do does did has have had can could will would shall should may might must".split()
)
_BACK: Final = frozenset(
    "it its itself they them their theirs themselves he him his himself she her hers herself "
    "this these those both same one ones such other others former latter".split()
)
"""Words that stand for something said before."""
_DETERMINERS: Final = frozenset("the a an my our your".split())
_SENTENCE: Final = re.compile(r"[^.!?:\n]*+[.!?:\n]?")
_BETWEEN_SENTENCES: Final = re.compile(r"(?<=[!?])\s++|(?<=\.)\s++(?=[^\Wa-z])")
_AFTER_MARK: Final = re.compile(r"\?++\s{1,8}+")
_AND: Final = re.compile(
    r"[,;]?\s{1,8}and\s{1,8}(?:also\s{1,8})?(?=(?:(?:in|on|at|to|for|from|by|with|of|since|until)\s{1,8})?"
    r"(?:who|whom|whose|what|when|where|why|which|how)\s)",
    re.IGNORECASE,
)
_COMMA: Final = re.compile(r"[,;]\s{1,8}(?=(?:what|when|where|how)\s)", re.IGNORECASE)
_WORD: Final = re.compile(r"[^\W_]+(?:['’.\-][^\W_]+)*")


def asking(text: str) -> str:
    """The sentences of a text that end with a question mark, each from its last colon on; the text if none does."""
    return " ".join(part for part in _SENTENCE.findall(text) if part.endswith("?")) or text


def question_parts(question: str) -> list[str]:
    """The questions in a text, each as it is written; the text itself if it asks one, and for parts that need others.

    A part needs another one if it has a pronoun without a name before it, or no name where another part has some.
    """
    if len(question) > MAX_SPLIT_CHARS:
        return [question]
    each = (part for sentence in _sentences(question) for part in _coordinated(sentence))
    asked = list(islice(each, MAX_PARTS + 1))
    if not 1 < len(asked) <= MAX_PARTS:
        return [question]
    named = [_has_name(_WORD.findall(part)) for part in asked]
    alone = [_stands_alone(part) and (own or not any(named)) for part, own in zip(asked, named, strict=True)]
    return list(dict.fromkeys(part if own else question for part, own in zip(asked, alone, strict=True)))


def without_background(text: str) -> str:
    """The sentences that ask, without those around them; empty if there are no others, or they may be needed.

    They may be if the questions do not say what they are about, or the others have a number.
    """
    found = _BETWEEN_SENTENCES.split(text)
    asked = " ".join(sentence for sentence in found if sentence.endswith("?"))
    numbered = any(map(str.isdigit, "".join(sentence for sentence in found if not sentence.endswith("?"))))
    return asked if asked != text and not numbered and _stands_alone(asked) else ""


def _sentences(text: str) -> Iterator[str]:
    """The text cut behind question marks that another question follows; a mark may also be part of a title."""
    start = 0
    for mark in _AFTER_MARK.finditer(text):
        following = _WORD.search(text, mark.end(), mark.end() + 40)
        word = following[0] if following else ""
        if word.lower() in _ASKING or (word.lower() in _VERBS and word[0].isupper()):
            yield text[start : mark.end()].strip()
            start = mark.end()
    yield text[start:].strip()


def _coordinated(sentence: str) -> Iterator[str]:
    """The sentence cut before each "and" that begins another question, and not a relative clause.

    Also before a comma, if such an "and" follows: "What does it cost, when is it, and who teaches it?"
    """
    *listed, last = _cut(sentence, _AND)
    for part in listed:
        yield from _cut(part, _COMMA)
    yield last


def _cut(text: str, border: re.Pattern[str]) -> Iterator[str]:
    start = 0
    for found in border.finditer(text):
        before = _WORD.findall(text, start, found.start())
        after = [word[0] for word in islice(_WORD.finditer(text, found.end()), _MIN_WORDS)]
        if _begins_question([word.lower() for word in before], after):
            yield _capitalised(text, start, found.start())
            start = found.end()
    yield _capitalised(text, start, len(text))


def _capitalised(text: str, start: int, end: int) -> str:
    part = text[start:end].strip()
    return part if start == 0 else part[:1].upper() + part[1:]


def _begins_question(before: Sequence[str], after: Sequence[str]) -> bool:
    """Whether the words after an "and" ask something else than those before it."""
    if len(before) < _MIN_WORDS or len(after) < _MIN_WORDS:
        return False
    asking = [word for word in before if word in _ASKING]
    at = 0 if after[0].lower() in _ASKING else 1
    word, following = after[at].lower(), after[at + 1]
    if after[at].isupper():  # the WHO
        return False
    if not (asking or before[0] in _VERBS) or word in asking[1:]:
        return False
    if word in _RELATIVE and ("that" in before or len(asking) > 1):
        return False
    if before[0] not in _ASKING and asking:  # an indirect question: "tell me when it ends and where it is"
        return True
    if word in ("when", "where", "why", "whom"):
        return following.lower() in _VERBS
    return word != "which" or following.islower()


def _stands_alone(part: str) -> bool:
    """Whether a question says what it is about."""
    found, named = _WORD.findall(part), False
    for place, word in enumerate(found):
        if word.lower() in _BACK and not named:
            return False
        named = named or _is_name(place, word)
    about = content_terms(part)
    return len(about) > 1 or (bool(about) and not _DETERMINERS.isdisjoint(w.lower() for w in found))


def _has_name(found: Sequence[str]) -> bool:
    return any(_is_name(place, word) for place, word in enumerate(found))


def _is_name(place: int, word: str) -> bool:
    """Whether a word is a name or a number; the first one of a sentence is capitalised anyway."""
    capital = place > 0 and word[0].isupper() and word.lower() not in STOPWORDS
    return capital or any(c.isdigit() for c in word)
