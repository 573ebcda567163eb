"""Makes a follow-up question of a conversation standalone without a model: "Where was she born? (Ann Lee)"."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from compmem.text.tokenize import STOPWORDS

_REFERS: Final = frozenset(
    # English, German, French, Spanish; words that often have another meaning (`es`, `le`, `la`) are left out.
    """he she it they him her them his hers its their theirs
    er sie ihn ihm ihr ihnen seine seiner seinem seinen ihre ihrer ihrem ihren dessen deren
    il elle ils elles lui leur leurs celui celle ceux celles
    él ella ellos ellas su sus""".split()
)
_POINTS: Final = frozenset(
    # Words that refer to what was said before if the question names nothing itself.
    """this that these those there then one ones same
    sein dieser diese dieses diesem diesen dort damals dabei davon daran
    ce cette ces cela
    este esta estos estas ese esa esos esas eso esto allí""".split()
)
_PERSONS: Final = frozenset("he she him her his hers".split())
_ASKING: Final = frozenset(
    """who whom whose what when where why which how wer wen wem was wann wo warum welche
    qui que quand où quién qué""".split()
)
_FOR_A_PERSON: Final = frozenset("who whom whose wer wen wem qui quién".split())
_AND: Final = frozenset("and und et y".split())
_ARTICLES: Final = frozenset("der die das ein eine le la les un une el los las una".split())
_REPLIES: Final = frozenset("ok okay yes no really sure thanks please ja nein oui non sí".split())
_NO_NAMES: Final = STOPWORDS | _REFERS | _POINTS | _ASKING | _AND | _ARTICLES | _REPLIES
_WORD: Final = re.compile(r"[^\W\d_]+")
_SHORT: Final = 3
"""Maximum number of words of a message that is a follow-up without a pronoun."""
_NAMES: Final = 3
"""Maximum number of names that are added."""
_READ: Final = 4_000
"""Characters at the end of a message in which names are looked for."""
_MAX_NAME_CHARS: Final = 100


def standalone_question(history: Sequence[Mapping[str, str]], question: str) -> str:
    """A follow-up question made clear without the conversation; any other question as it is.

    With a pronoun, or with a word such as `that` or `there` and no name, names are added: those in the last question,
    then those that are new in the answer to it. Only the latter if the last question asks for a person and the pronoun
    means one: "Who founded Bolt?", "Where was she born?". With at most three words and no pronoun, the last question
    that is longer is repeated: "And when?". It is asked for another name if both have one: "And Acme?" becomes "Who
    founded Acme?".

    Args:
        history: The messages before the question, oldest first: `{"role": "user" | "assistant", "content": text}`.
        question: The newest message of the user.
    """
    words, turns = _words(question), [(m["role"], m["content"][-_READ:]) for m in history if m["content"].strip()]
    refers = not _REFERS.isdisjoint(words) or not (_POINTS.isdisjoint(words) or _names(question))
    asks = "?" in question or not (_ASKING | _AND).isdisjoint(words)
    if not turns or not (refers or (0 < len(words) <= _SHORT and asks)):
        return question
    said = [text for role, text in reversed(turns) if role == "user"]
    asked = next((text for text in said if len(_words(text)) > _SHORT), next(iter(said), ""))
    about = next((names for role, text in reversed(turns) if role == "user" and (names := _names(text))), [])
    if asked and not refers:
        if len(named := _names(question)) == len(before := _names(asked)) == 1:
            return asked.replace(before[0], named[0])
        return _with_names(f"{asked} {question}", () if before else about)
    last, earlier = turns[-1][1], {name for _, text in turns[:-1] for name in _names(text)}
    new = [name for name in _names(last) if name not in earlier]
    if new and not _PERSONS.isdisjoint(words) and not _FOR_A_PERSON.isdisjoint(_words(asked)[:1]):
        return _with_names(question, new)
    meant = list(dict.fromkeys([*about, *new])) or _names(last)
    return _with_names(question if meant else f"{asked} {question}".strip(), meant)


def _with_names(question: str, names: Sequence[str]) -> str:
    return f"{question} ({'; '.join(names[:_NAMES])})" if names else question


def _words(text: str) -> list[str]:
    """The words of a text in lower case; an abbreviation such as IT, which is no pronoun, as it is."""
    spoken = not text.isupper()
    return [word if spoken and len(word) > 1 and word.isupper() else word.lower() for word in _WORD.findall(text)]


def _names(text: str) -> list[str]:
    """Runs of capitalised words, each once, without those that are no names; a longer run than a name has is none."""
    found: dict[str, None] = {}
    for run in re.findall(r"[^\W\d_]\w*(?:[ '’-][^\W\d_]\w*)*", text):
        words: list[str] = []
        for word in [*run.split(" "), ""]:
            if word[:1].isupper() and word.lower() not in _NO_NAMES:
                words.append(word)
            elif words:
                found[" ".join(words)] = None
                words = []
    return [name for name in found if len(name) <= _MAX_NAME_CHARS]
