"""Makes a follow-up question of a conversation standalone without a model: "Where was she born? (Ann Lee)"."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

from compmem.text.dates import DAYS, MONTHS
from compmem.text.sentences import sentences
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
_BEGINNINGS: Final = (["what", "about"], ["how", "about"])
_VERBS: Final = frozenset(
    """is are was were do does did can could will would has have had should may must ist sind war hat haben kann
    est sont es son""".split()
)
"""Verbs that begin a question."""
_ARTICLES: Final = frozenset("der die das ein eine le la les un une el los las una".split())
_REPLIES: Final = frozenset(
    """ok okay yes no really sure thank thanks please hello hi hey ja nein danke hallo oui non merci bonjour salut
    sí gracias hola""".split()
)
_NO_NAMES: Final = STOPWORDS | _REFERS | _POINTS | _ASKING | _AND | _ARTICLES | _REPLIES
_BESIDE_NUMBER: Final = _AND | frozenset("what how about in on for of the im am en le".split())
_WORD: Final = re.compile(r"[^\W\d_]+")
_RUN: Final = re.compile(r"[^\W\d_]\w*(?:[ '’-][^\W\d_]\w*|[-./]\d\w*)*")
_NUMBER: Final = re.compile(r"(?<![\w.,-])\d+(?:[.,]\d+)*(?![\w-])")
_LABEL_END: Final = re.compile(r":[*_]*\s")
_DIGIT: Final = re.compile(r"\d")
_SHORT: Final = 3
"""Maximum number of words of a message that is a follow-up without a pronoun."""
_SHORT_IF_BEGUN: Final = 6
"""The same for one that begins with "and", "what about" or "how about"."""
_NAMES: Final = 3
"""Maximum number of names that are added."""
_READ: Final = 4_000
"""Characters at the end of a message in which names are looked for."""
_MAX_NAME_CHARS: Final = 100


def standalone_question(history: Sequence[Mapping[str, str]], question: str) -> str:
    """A follow-up question made clear without the conversation; any other question as it is.

    With a pronoun, or with a word such as `that` or `there` and no name, names are added: those in the last question,
    then those that are new in the answer to it. Only the latter if the last question asks for a person and the pronoun
    means one: "Who founded Bolt?", "Where was she born?". With at most three words and no pronoun, or six after "and",
    "what about" or "how about", the last question that is longer is repeated: "And when?". It is asked for another
    name, day, month or number if the follow-up has nothing else and the question has one like it: "And Acme?" becomes
    "Who founded Acme?".

    Args:
        history: The messages before the question, oldest first: `{"role": "user" | "assistant", "content": text}`.
        question: The newest message of the user.
    """
    words, turns = _words(question), [(m["role"], m["content"][-_READ:]) for m in history if m["content"].strip()]
    refers = not _REFERS.isdisjoint(words) or not (_POINTS.isdisjoint(words) or _names(question))
    asks = "?" in question or not (_ASKING | _AND).isdisjoint(words)
    if not turns or not (refers or (_is_short(question) and asks)):
        return question
    said = [text for role, text in reversed(turns) if role == "user"]
    asked = next((text for text in said if _words(text) and not _is_short(text)), next(iter(said), ""))
    about = next((names for role, text in reversed(turns) if role == "user" and (names := _names(text))), [])
    if asked and not refers:
        return _about_another(asked, question) or _with_names(f"{asked} {question}", () if _names(asked) else about)
    earlier = {name for role, text in turns[:-1] for name in _names_of(role, text)}
    last = _names_of(*turns[-1])
    new = [name for name in last if name not in earlier]
    if new and not _PERSONS.isdisjoint(words) and not _FOR_A_PERSON.isdisjoint(_words(asked)[:1]):
        return _with_names(question, new)
    meant = list(dict.fromkeys([*about, *new])) or last
    return _with_names(question if meant else f"{asked} {question}".strip(), meant)


def _about_another(asked: str, question: str) -> str:
    """The last question, asked for the name or number that is all a follow-up has; empty if it has more or another."""
    words, named, numbers = _words(question), _names(question), _NUMBER.findall(question)
    own = {word.lower() for name in named for word in _WORD.findall(name)}
    repeats = {word.lower() for word in words} - own <= {*_words(asked), *_NO_NAMES}
    if len(named) == 1 and not numbers and (len(words) <= _SHORT or repeats):
        return _replaced(asked, named[0], _names(asked))
    begun = words[:1] and (words[0] in _AND or words[:2] in _BEGINNINGS)
    if len(numbers) == 1 and not named and begun and _BESIDE_NUMBER.issuperset(words):
        return _replaced(asked, numbers[0], _NUMBER.findall(asked))
    return ""


def _replaced(asked: str, name: str, before: Sequence[str]) -> str:
    """The question asked for this name; empty if it is not clear instead of which one."""
    alike = _replaceable(name, before)
    pattern = re.compile(rf"(?<=\W){re.escape(alike[0])}(?!\w)") if len(alike) == 1 else None
    return pattern.sub(lambda _: name, asked) if pattern and pattern.search(asked) else ""


def _replaceable(name: str, before: Sequence[str]) -> Sequence[str]:
    """Those of the names that this one may stand in for: days for a day, numbers with as many digits for a number."""
    for kind in (DAYS, MONTHS):
        if name.lower() in kind:
            return [other for other in before if other.lower() in kind]
    if not _WORD.search(name):
        return [other for other in before if _DIGIT.sub("9", other) == _DIGIT.sub("9", name)]
    letters = _DIGIT.sub("", name)
    return [other for other in before if _DIGIT.search(other) and _DIGIT.sub("", other) == letters] or before


def _with_names(question: str, names: Sequence[str]) -> str:
    added = [name for name in names if name.lower() not in DAYS | MONTHS][:_NAMES]
    return f"{question} ({'; '.join(added)})" if added else question


def _is_short(text: str) -> bool:
    """Whether a message is so short that it may be a follow-up without a pronoun; not a question about a name."""
    words = _words(text)
    if len(words) <= _SHORT:
        return bool(words)
    begun = words[0] in _AND or words[:2] in _BEGINNINGS
    if not begun or len(words) > _SHORT_IF_BEGUN or text.rstrip().endswith((".", "!")):
        return False
    return words[0] not in _AND or words[1] not in _ASKING | _VERBS or not _names(text)


def _words(text: str) -> list[str]:
    """The words of a text in lower case; an abbreviation such as IT, which is no pronoun, as it is."""
    spoken = not text.isupper()
    return [word if spoken and len(word) > 1 and word.isupper() else word.lower() for word in _WORD.findall(text)]


def _names_of(role: str, text: str) -> list[str]:
    """The names of a message; in an answer, the capital of the first word of a sentence or a label makes no name."""
    if role == "user":
        return _names(text)
    found: dict[str, None] = {}
    for start, end in sentences(text):
        parts = _LABEL_END.split(text[start:end])
        for place, part in enumerate(parts, 1):
            names = _names(part)
            first = _WORD.search(part)
            if names and first and part.startswith(names[0], first.start()) and _WORD.fullmatch(names[0]):
                alone = place == len(parts) and len(_WORD.findall(part)) == 1
                names = names if alone else names[1:]
            found.update(dict.fromkeys(names))
    return list(found)


def _names(text: str) -> list[str]:
    """Runs of capitalised words, each once, without those that are no names; a longer run than a name has is none."""
    found: dict[str, None] = {}
    for run in _RUN.findall(text):
        words: list[str] = []
        for word in [*run.split(" "), ""]:
            if word[:1].isupper() and word.lower() not in _NO_NAMES:
                words.append(word)
            elif words:
                found[" ".join(words)] = None
                words = []
    return [name for name in found if len(name) <= _MAX_NAME_CHARS]
