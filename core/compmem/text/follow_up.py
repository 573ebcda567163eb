"""Makes a follow-up question of a conversation standalone without a model: "Where was she born? (Ann Lee)"."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

_REFERS: Final = frozenset(
    # English, German, French, Spanish; words that often have another meaning (`es`, `le`, `la`) are left out.
    """he she it they him her them his hers its their theirs this that these those there then one ones same
    er sie ihn ihm ihr ihnen sein seine seiner seinem seinen ihre ihrer ihrem ihren dieser diese dieses diesem diesen
    dort dessen deren damals dabei davon daran
    il elle ils elles lui leur leurs ce cette ces cela celui celle ceux celles
    él ella ellos ellas su sus este esta estos estas ese esa esos esas eso esto allí""".split()
)
_NO_NAMES: Final = _REFERS | frozenset("the a an der die das ein eine le la les un une el los las una i".split())
"""Words that begin no name: pronouns and articles."""
_SHORT: Final = 3
_NAMES: Final = 3
_READ: Final = 4_000
"""Characters at the end of a message in which names are looked for."""
_LONGEST_NAME: Final = 100


def standalone_question(history: Sequence[Mapping[str, str]], question: str) -> str:
    """The question, followed by the names that it refers to, if it refers to any.

    It does if it contains a pronoun or a similar word, or has at most three words. It then refers to the names that
    were new in the last message, else to all names in it, else to the whole last question.

    Args:
        history: The messages before the question, oldest first: `{"role": "user" | "assistant", "content": text}`.
        question: The newest message of the user.
    """
    words = re.findall(r"[^\W\d_]+", question.lower())
    if not history or not words or (len(words) > _SHORT and not _REFERS.intersection(words)):
        return question
    *before, last = [message["content"][-_READ:] for message in history]
    earlier = {name for text in before for name in _names(text)}
    meant = [name for name in _names(last) if name not in earlier] or _names(last)
    if meant:
        return f"{question} ({'; '.join(meant[:_NAMES])})"
    asked = next((m["content"][-_READ:] for m in reversed(history) if m["role"] == "user" and m["content"]), "")
    return f"{asked} {question}".strip()


def _names(text: str) -> list[str]:
    """Runs of capitalised words, each once, without articles and pronouns; a longer run than a name has is none."""
    found: dict[str, None] = {}
    for run in re.findall(r"[^\W\d_]\w*(?:[ '’-][^\W\d_]\w*)*", text):
        words: list[str] = []
        for word in [*run.split(" "), ""]:
            if word[:1].isupper() and word.lower() not in _NO_NAMES:
                words.append(word)
            elif words:
                found[" ".join(words)] = None
                words = []
    return [name for name in found if len(name) <= _LONGEST_NAME]
