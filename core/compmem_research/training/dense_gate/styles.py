"""One query in another style: a few keywords, a chat message, with typing errors, or in lower case."""

import re
from random import Random
from string import ascii_lowercase

from compmem.text.tokenize import STOPWORDS

CHATTY = (
    "Hello! I hope you can help me with something. {} Thank you very much!",
    "hi, one short question: {} it would be nice to know",
    "I looked for this in many places and found nothing, so I ask here. {}",
    "Good morning, a friend asked me this and I could not say: {} Keep it short, please.",
)

_STYLES = ("keywords", "keywords", "chatty", "typos", "lower")
_MISTYPED = 0.35
"""Share of the longer words that get a typing error."""


def restyle(query: str, rng: Random) -> tuple[str, str]:
    """The name of a style and the query in it; an empty query if it has too few words for the style."""
    style = rng.choice(_STYLES)
    if style == "lower":
        return style, query.lower().rstrip("?")
    if style == "chatty":
        return style, rng.choice(CHATTY).format(query)
    if style == "typos":
        return style, " ".join(_mistyped(word, rng) for word in query.split())
    words = keywords(query)
    if len(words) < 3:
        return style, ""
    kept = sorted(rng.sample(range(len(words)), rng.choice((2, 2, 3))))
    return style, " ".join(words[n] for n in kept)


def keywords(text: str) -> list[str]:
    """The words of a text that are no stopwords, in order."""
    return [w for w in re.findall(r"[\w'-]+", text) if w.lower() not in STOPWORDS and len(w) > 2]


def _mistyped(word: str, rng: Random) -> str:
    """A longer word, possibly with two letters swapped, one left out or one wrong, but not the first or last."""
    if len(word) < 5 or rng.random() >= _MISTYPED:
        return word
    at, kind = rng.randint(1, len(word) - 3), rng.random()
    if kind < 0.4:
        return word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    return word[:at] + ("" if kind < 0.7 else rng.choice(ascii_lowercase)) + word[at + 1 :]
