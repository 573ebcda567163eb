"""Text as terms and names, which the lexical index, the links and the gate's features compare.

A term is a stemmed word, or a pair of adjacent characters in scripts without spaces (Chinese, Japanese) or with
attached particles (Korean). A name is a run of whole words: a title, a heading, a defined term.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from compmem.text.code_names import spell_code_names
from compmem.text.dates import spell_dates
from compmem.text.unicode import nfc

NameKind = Literal["title", "heading", "term"]

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
_HANGUL = "\u1100-\u11ff\uac00-\ud7af"
_PAIRED = re.compile(f"[{_CJK}{_HANGUL}]+")
_NOT_ASCII = re.compile(r"[^\x00-\x7f]+")
_MARKS = "".join(c for c in map(chr, range(0x300, 0x1D00)) if unicodedata.category(c).startswith("M"))
"""Accents, and the vowel signs of Indic scripts: parts of words, though `\\w` has not all of them."""
_LETTERS = rf"[^\W{_CJK}{_HANGUL}]+"
_WORD = re.compile(rf"[{_CJK}]+|[{_HANGUL}]+|{_LETTERS}(?:[{_MARKS}]+(?:{_LETTERS})?)*")
_ASIDE = re.compile(r"[(（][^()（）]*+[)）]\s*+$")
_DEFINED = re.compile(
    r"^[ \t]*(?:class|def|async def|module|package)[ \t]+([\w.]+)"
    r"|^[ \t]*([\w.]+)\([^()\n]*\)\s*(?:->|$)"
    r"|[\"“]([^\"”\n]{2,60})[\"”]\s+(?:means|is|are)\b",
    re.MULTILINE,
)
_HEADED = re.compile(r"(?:\A|\n[ \t\r]*\n)([^\s.!?:;,|>#*=\-][^\n]{1,99}(?<![\s.!?:;,]))\r?\n(?=[^\n]{40})")
_BLANK_LINES = re.compile(r"\n(?:[ \t\r]*\n)+")

_HEAD = 400
"""Maximum number of characters of a paragraph that are searched for its heading."""

MAX_NAME_WORDS = 12
"""Maximum number of words of a name that is searched in a text."""

NEARBY = 5
"""Words on each side of a mention that count as its context."""

_JOINTS = frozenset((" ", "-", "'", "\u2019"))
_INITIAL = 2
"""A full stop after a word of at most this many letters does not end a sentence: `J. R. R. Tolkien`, `St. Louis`."""
_WITHIN = frozenset(("of", "the", "de", "la", "le", "du", "von", "van", "der", "den", "del", "di", "da", "al"))

STOPWORDS = frozenset(
    """a about above after again all also am an and any are as at be because been before being below between both but
    by can could did do does doing down during each few for from further had has have having he her here hers him his
    how i if in into is it its itself just me more most my no nor not now of off on once only or other our out over own
    s same she should so some such t than that the their theirs them then there these they this those through to too
    under until up very was we were what when where which while who whom whose why will with would you your""".split()
)
"""English words without a meaning of their own for search."""

_ENGLISH_ALONE = frozenset(
    "did does how that the there this were what when where which who whom whose why with".split()
)


_MAX_STEMMED_CHARS, _MAX_FOLDED_CHARS = 64, 512
"""Maximum number of characters of a word whose stem, and of a run whose folded form, this process keeps."""


def fold(text: str) -> str:
    """The text with case, width and accents removed."""
    folded = text.casefold()
    return folded if folded.isascii() else _NOT_ASCII.sub(_fold_run, folded)


def _fold_run(found: re.Match[str]) -> str:
    run = found[0]
    return _cached_fold(run) if len(run) <= _MAX_FOLDED_CHARS else _new_fold(run)


def _new_fold(run: str) -> str:
    """A run of non-ASCII characters, folded separately: nothing in it combines with the text before it."""
    # Folded twice: characters that decompose into a plain capital, such as mathematical letters, have no lower case.
    # One by one: sorting combining marks would take quadratic time, so they are left out.
    decomposed = "".join(unicodedata.normalize("NFKD", c) for c in run).casefold()
    return unicodedata.normalize("NFC", "".join(c for c in decomposed if not unicodedata.combining(c)))


_cached_fold = lru_cache(maxsize=1 << 14)(_new_fold)


def words(text: str, *, code_parts: bool = True) -> list[str]:
    """The folded words of a text, and those that its dates (see `spell_dates`) and names in code consist of.

    A run of characters of a script without spaces is one word.

    Args:
        text: The text.
        code_parts: With the parts of names in code; without them, a name in a question counts once.
    """
    return _WORD.findall(spell_dates(fold(spell_code_names(text) if code_parts else text)))


def word_spans(text: str) -> Iterator[tuple[int, int]]:
    """Start and end of each word of a text, as they stand in it."""
    return (match.span() for match in _WORD.finditer(text))


def terms(text: str) -> list[str]:
    """The terms of a text, in order, with repeats."""
    return terms_of(words(text))


def terms_of(parts: Iterable[str]) -> list[str]:
    """The terms of words returned by `words`."""
    parts = list(parts)
    if "".join(parts).isascii():
        return list(map(_stem, parts))
    out: list[str] = []
    for word in parts:
        if word.isascii() or not _PAIRED.match(word):
            out.append(_stem(word))
        elif len(word) == 1:
            out.append(word)
        else:
            out.extend(word[i : i + 2] for i in range(len(word) - 1))
    return out


def content_terms(text: str, *, code_parts: bool = True) -> list[str]:
    """The distinct terms of a text that are not stopwords, in order of first use; see `words`."""
    kept = [w for w in words(text, code_parts=code_parts) if w not in STOPWORDS]
    return list(dict.fromkeys(terms_of(kept)))


def in_english(text: str) -> bool:
    """Whether a text has a word that only English has, of those that most questions and sentences have."""
    return not _ENGLISH_ALONE.isdisjoint(_WORD.findall(text.casefold()))


def name(text: str) -> str:
    """The form in which a name is stored and looked up: folded words, separated by single spaces."""
    return " ".join(_name_words(text))


def _name_words(text: str) -> list[str]:
    return _WORD.findall(fold(text))


def names_of(title: str, headings: Sequence[str], text: str) -> list[tuple[str, NameKind]]:
    """The names of a chunk, each once: title and headings (with and without final brackets), defined terms.

    The headings are those above it and those in its text.
    """
    found: dict[str, NameKind] = {}

    def keep(raw: str, kind: NameKind) -> None:
        for form in (name(raw), name(_ASIDE.sub("", raw))):
            if len(form) > 1 and form not in STOPWORDS and form.count(" ") < MAX_NAME_WORDS:
                found.setdefault(form, kind)

    keep(title, "title")
    for heading in (*headings, *headings_in(text)):
        keep(heading, "heading")
    for match in _DEFINED.finditer(text):
        keep(next(g for g in match.groups() if g), "term")
    return list(found.items())


def headings_in(text: str) -> list[str]:
    """Headings in plain text: short lines that are no sentences, with a long line below."""
    found = [(m[1], text[m.end() : text.find("\n", m.end()) % (len(text) + 1)]) for m in _HEADED.finditer(text)]
    return [line for line, below in found if _is_heading(line, below)]


def heading_at(text: str, start: int) -> str:
    """The heading of a paragraph that starts at this position; empty if it has none."""
    part = text[start : start + _HEAD]
    found = headings_in(part)
    return found[0] if found and part.startswith(found[0]) else ""


def heading_over(text: str, at: int) -> str:
    """The heading of the paragraph at this position; empty if it has none."""
    return heading_at(text, max((blank.end() for blank in _BLANK_LINES.finditer(text, 0, at + 1)), default=0))


def has_paragraph_break(text: str, start: int, end: int) -> bool:
    """Whether there is an empty line, and so the end of a paragraph, between two positions."""
    return _BLANK_LINES.search(text, start, end) is not None


def _is_heading(line: str, below: str) -> bool:
    return not line[0].islower() and len(line) < len(below) and len(line.split()) <= MAX_NAME_WORDS


def possible_names(text: str) -> list[str]:
    """Every run of up to `MAX_NAME_WORDS` words of the text, longest first: possible names."""
    parts = _name_words(text)
    runs: dict[str, None] = {}
    for length in range(min(MAX_NAME_WORDS, len(parts)), 0, -1):
        for i in range(len(parts) - length + 1):
            if length == 1 and parts[i] in STOPWORDS:
                continue
            runs[" ".join(parts[i : i + length])] = None
    return list(runs)


@dataclass(frozen=True, slots=True)
class Mention:
    """A known name in a text."""

    name: str
    capitalised: float
    """Share of its words that are capitalised in the text."""
    nearby: frozenset[str]
    """Stems of the words within `NEARBY` words of it: its context."""


def mentions(text: str, known: Iterable[str]) -> list[Mention]:
    """The known names in a text, in order; without those that only occur inside a longer one."""
    raw = _WORD.findall(nfc(text))
    parts = [fold(word) for word in raw]
    known = frozenset(known)
    capitalised: dict[str, float] = {}
    nearby = defaultdict[str, set[str]](set)
    at = 0
    while at < len(parts):
        for length in range(min(MAX_NAME_WORDS, len(parts) - at), 0, -1):
            run = " ".join(parts[at : at + length])
            if run in known and run not in STOPWORDS:
                share = sum(not word[0].islower() for word in raw[at : at + length]) / length
                capitalised[run] = max(share, capitalised.get(run, 0.0))
                nearby[run].update(_stems_around(parts, at, at + length))
                at += length
                break
        else:
            at += 1
    return [Mention(run, share, frozenset(nearby[run])) for run, share in capitalised.items()]


def capitalised_names(text: str) -> list[Mention]:
    """Runs of capitalised words, known as names or not, each once in order of first use.

    A word such as "of" may be inside a run; punctuation ends it.
    """
    text = nfc(text)
    found = list(_WORD.finditer(text))
    parts = [fold(match[0]) for match in found]
    nearby = defaultdict[str, set[str]](set)
    for first, last in _capital_runs(text, found, parts):
        nearby[" ".join(parts[first:last])].update(_stems_around(parts, first, last))
    return [Mention(run, 1.0, frozenset(stems)) for run, stems in nearby.items()]


def _stems_around(parts: list[str], first: int, last: int) -> Iterator[str]:
    """Stems of the words before the first and after the last word of a name."""
    around = parts[max(0, first - NEARBY) : first] + parts[last : last + NEARBY]
    return (root(word) for word in around if word not in STOPWORDS)


def capital_runs(text: str) -> list[str]:
    """Runs of capitalised words as written in the text, each once in order of first use."""
    text = nfc(text)
    found = list(_WORD.finditer(text))
    runs = _capital_runs(text, found, [fold(match[0]) for match in found])
    return list(dict.fromkeys(text[found[first].start() : found[last - 1].end()] for first, last in runs))


def _capital_runs(text: str, found: Sequence[re.Match[str]], parts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Start and end of runs of capitalised words, as word indices."""
    first = last = -1
    for at, match in enumerate(found):
        capital = match[0][0].isupper()
        if first >= 0:
            gap = text[found[at - 1].end() : match.start()]
            joined = gap in _JOINTS or (gap == ". " and len(parts[at - 1]) <= _INITIAL)
            within = capital or match[0][0].isdigit() or parts[at] in _WITHIN
            if not (joined and within and at - first < MAX_NAME_WORDS):
                yield first, last
                first = -1
        if capital and (first >= 0 or parts[at] not in STOPWORDS):
            first = at if first < 0 else first
            last = at + 1
    if first >= 0:
        yield first, last


def root(word: str) -> str:
    """The first five letters of a folded word: `director` and `directed` share them, but not their stems."""
    return word[:5]


def _stem(word: str) -> str:
    return _cached_stem(word) if len(word) <= _MAX_STEMMED_CHARS else _new_stem(word)


def _new_stem(word: str) -> str:
    return str(_stemmer().stemWord(word))


_cached_stem = lru_cache(maxsize=1 << 17)(_new_stem)


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    # Imported on first use: reading with the backbone alone does not need it.
    import snowballstemmer

    return snowballstemmer.stemmer("english")
