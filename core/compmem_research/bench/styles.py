"""Other ways to ask the same question: how people type, while data sets have complete, correct sentences."""

from collections.abc import Callable
from random import Random
from typing import Final

from compmem.text.tokenize import STOPWORDS

UNCHANGED: Final = "as asked"

KEYWORDS = 2

OPENINGS = (
    "Hi there! I was just wondering about something.",
    "Hey, quick question, I hope that is okay.",
    "Hello, my colleague and I could not agree on this one.",
    "Good morning! Sorry to bother you again.",
)
CLOSINGS = (
    "Thanks a lot in advance!",
    "Any help would be great, thank you.",
    "It has been on my mind all day.",
    "Please take your time.",
)

MISTYPED = 0.25
"""Share of the longer words with a typing error."""

LONGER = 4
"""Least letters of a word that may get a typing error."""


def two_keywords(question: str, random: Random) -> str:
    """The two longest content words, in the question's order; the question if it has fewer."""
    bare = [w.strip("?!.,;:\"'()[]") for w in question.split()]
    said = dict.fromkeys(w for w in bare if w and w.casefold() not in STOPWORDS)
    longest = sorted(said, key=lambda w: -len(w))[:KEYWORDS]
    return " ".join(w for w in said if w in longest) if len(longest) == KEYWORDS else question


def chatty(question: str, random: Random) -> str:
    """The question between a greeting and thanks."""
    return f"{random.choice(OPENINGS)} {question} {random.choice(CLOSINGS)}"


def typing_errors(question: str, random: Random) -> str:
    """About a quarter of the longer words with two letters swapped, one left out or one doubled; at least one word."""
    words = question.split(" ")
    longer = [i for i, word in enumerate(words) if len(word) >= LONGER and word.isalpha()]
    chosen = [i for i in longer if random.random() < MISTYPED]
    for i in chosen or longer[:1]:
        words[i] = _mistyped(words[i], random)
    return " ".join(words)


def lower_case(question: str, random: Random) -> str:
    """The question without capitals."""
    return question.lower()


STYLES: Final[dict[str, Callable[[str, Random], str]]] = {
    "two keywords": two_keywords,
    "chatty": chatty,
    "typing errors": typing_errors,
    "lower case": lower_case,
}


def styled(question: str, style: str, seed: int = 0) -> str:
    """The question in that style; the same for the same seed."""
    return question if style == UNCHANGED else STYLES[style](question, Random(f"{seed}:{style}:{question}"))


def _mistyped(word: str, random: Random) -> str:
    at = random.randrange(1, len(word) - 1)  # people notice errors in the first letter
    kinds = (
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[: at + 1] + word[at:],
    )
    return random.choice([kind for kind in kinds if kind != word])  # swapping two equal letters changes nothing
