"""The synthetic tasks of RULER (2404.06654, table 2 and its published settings), with our own wordings.

| task | haystack | keys, values | asked |
| --- | --- | --- | --- |
| `niah_single_1` | one noise paragraph, repeated | word, number | 1 key, 1 value |
| `niah_single_2`, `_3` | essays | word, number; word, uuid | 1 key, 1 value |
| `niah_multikey_1` | essays | word, number | 1 of 4 keys |
| `niah_multikey_2`, `_3` | needles only | word, number; uuid, uuid | 1 of all keys |
| `niah_multivalue` | essays | word, number | 1 key, its 4 values |
| `niah_multiquery` | essays | word, number | 4 keys |
| `vt` | noise | 5 letters, 5 digits | the 5 variables of a chain of 4 copies |
| `cwe` | numbered words | 10 of them 30 times, the others 3 times | the 10 |
| `fwe` | coded words | word of rank k as often as k^-2; rank 1 is dots | those of rank 2, 3 and 4 |
| `qa_1`, `qa_2` | paragraphs | | a question about one, about several of them |

A word is an adjective and a noun, a number has 7 digits. Essays are the passages of a `Filler`. Keys, values, words,
noise and templates of `train` and `eval` are disjoint.
"""

import string
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, islice, pairwise, repeat
from random import Random
from typing import Literal, TypeVar, get_args
from uuid import UUID

from compmem.schema import Document
from compmem_research.tasks.contexts import Contexts
from compmem_research.tasks.haystack import Filler, insert
from compmem_research.tasks.names import Split, has_role, word
from compmem_research.tasks.sample import Sample, Span

RulerTask = Literal[
    "niah_single_1", "niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multikey_2", "niah_multikey_3",
    "niah_multivalue", "niah_multiquery", "vt", "cwe", "fwe", "qa_1", "qa_2",
]  # fmt: skip

_ValueKind = Literal["word", "number", "uuid"]
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Needles:
    """A needle task: number of keys, of values per key, and of keys in the question."""

    haystack: Literal["noise", "essay", "needle"]
    key: _ValueKind = "word"
    value: _ValueKind = "number"
    keys: int = 1
    values: int = 1
    asked: int = 1


_NIAH = {
    "niah_single_1": _Needles(haystack="noise"),
    "niah_single_2": _Needles(haystack="essay"),
    "niah_single_3": _Needles(haystack="essay", value="uuid"),
    "niah_multikey_1": _Needles(haystack="essay", keys=4),
    "niah_multikey_2": _Needles(haystack="needle"),
    "niah_multikey_3": _Needles(haystack="needle", key="uuid", value="uuid"),
    "niah_multivalue": _Needles(haystack="essay", values=4),
    "niah_multiquery": _Needles(haystack="essay", keys=4, asked=4),
}
_CHAIN_COPIES = 4
_COMMON, _COMMON_TIMES, _OTHER_TIMES = 10, 30, 3
_SLACK = 0.015
"""Share of the length that lists of words may leave empty."""
_LONG = 200_000
"""Longer lists need more words than there are with two syllables."""
_RUN = 256
_MIN_CODED_WORDS = 100
"""With this many words, the three most frequent ones can still be determined."""
_CODED_LETTERS, _CODED_WORDS, _ALPHA = 6, 2000, 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Templates:
    """The wordings of the tasks; a sample uses one of each kind."""

    noise: tuple[str, ...]
    needles: tuple[str, ...]
    asks_one: tuple[str, ...]
    asks_all: tuple[str, ...]
    assignments: tuple[tuple[str, str], ...]
    """The first assignment of a chain in variable tracking, and those that copy a variable."""
    asks_variables: tuple[str, ...]
    asks_common: tuple[str, ...]
    asks_coded: tuple[str, ...]


TEMPLATES: dict[Split, Templates] = {
    "train": Templates(
        noise=(
            "The wind is mild. The road is long. The tea is warm. On it goes. Round and round once more.",
            "Leaves fall. Clocks tick on the wall, and nobody counts the hours. The kettle sings again.",
            "Snow lies on the roof. A dog barks far away. Morning comes, then noon, then evening.",
            "She waits at the station. The train is late. Another train passes by without a stop.",
            "A door opens and shuts. Someone hums a tune. The stairs lead to the next floor.",
            "Waves roll in and roll out. Gulls cry above the pier. The sand dries in the sun.",
        ),
        needles=(
            "The hidden {thing} of {key} is {value}.",
            "{value} is the hidden {thing} of {key}.",
            "Note that {key} has the hidden {thing} {value}.",
            "For {key} the hidden {thing} is {value}.",
            "{key} has a hidden {thing}: {value}.",
            "It is {value} that was hidden as the {thing} of {key}.",
            "The hidden {thing} given to {key} reads {value}.",
            "Keep in mind the hidden {thing} {value}, which is that of {key}.",
            "Under {key} the hidden {thing} {value} is kept.",
        ),
        asks_one=(
            "What is the hidden {thing} of {key}?",
            "Tell the hidden {thing} of {key}.",
            "What hidden {thing} does {key} have?",
            "For {key}, what is the hidden {thing}?",
            "Which {thing} is hidden under {key}?",
            "Say what {key} has for a hidden {thing}.",
            "Find the hidden {thing} given to {key}.",
        ),
        asks_all=(
            "What are the hidden {thing}s of {key}?",
            "Tell all hidden {thing}s of {key}.",
            "What hidden {thing}s does {key} have?",
            "Find all the hidden {thing}s given to {key}.",
        ),
        assignments=(
            ("LET {new} = {old}", "LET {new} = LET {old}"),
            ("SET {new} = {old}", "SET {new} = SET {old}"),
            ("DEFINE {new} = {old}", "DEFINE {new} = {old}"),
            ("{new} := {old}", "{new} := {old}"),
            ("ASSIGN {new} = {old}", "ASSIGN {new} = ASSIGN {old}"),
            ("const {new} = {old};", "const {new} = {old};"),
            ("STORE {old} IN {new}", "STORE {old} IN {new}"),
            ("NUM {new} = {old}", "NUM {new} = NUM {old}"),
        ),
        asks_variables=(
            "Which variables have the value {value}?",
            "List each variable whose value is {value}.",
            "Find every variable that equals {value}.",
            "Name all variables to which {value} was assigned, directly or by another variable.",
            "What variables contain {value}?",
            "Give the names of all variables set to {value}.",
            "Which of the variables in the text end up as {value}?",
            "The value {value} is held by which variables?",
        ),
        asks_common=(
            "Which {count} words stand in the list most often?",
            "Name the {count} words that occur most often in this list.",
            "Find the {count} words with the highest counts in the numbered list.",
        ),
        asks_coded=(
            "Which {count} coded words stand in the text most often? Dots do not count.",
            "Name the {count} coded words with the highest counts, without the dots.",
            "Ignore the dots: which {count} coded words occur most often?",
        ),
    ),
    "eval": Templates(
        noise=("The lamp is low. The river is slow. The bread is fresh. So it stays. Up the hill and down again.",),
        needles=("One hidden {thing} that belongs to {key} is: {value}.",),
        asks_one=("Which hidden {thing} belongs to {key}?",),
        asks_all=("What are all the hidden {thing}s that belong to {key}?",),
        assignments=(("VAR {new} = {old}", "VAR {new} = VAR {old}"),),
        asks_variables=("What are all the variables that hold the value {value}?",),
        asks_common=("What are the {count} most common words of the list above?",),
        asks_coded=("Dots aside, what are the {count} most frequent words of the coded text above?",),
    ),
}

_ADJECTIVES = (
    "able amber ample basic blue bold brave brief bright brisk broad calm cheap civil clean clear clever close cold "
    "common cool crisp curly daily damp dark dear deep dense dry dull eager early easy empty equal exact faint fair "
    "fast fine firm flat fond frank free fresh full gentle glad grand gray great green handy happy hard heavy high "
    "honest humble icy ideal jolly keen kind large late lazy lean light little local loose loud low loyal lucky major "
    "merry mild modest narrow neat new noble odd old open pale plain polite prime proud pure quick quiet rapid rare raw"
).split()
_NOUNS = (
    "acorn anchor apple arrow badge bagel barn basin basket beach bell bench berry bike bird blanket boat bottle bowl "
    "branch brick bridge broom bucket button cabin cactus camel candle canoe carpet castle cellar chair chalk cherry "
    "circle clock cloud coat coin comb compass copper corn cotton cradle crane crayon crown cup curtain desk door "
    "dragon drum eagle engine fabric falcon feather fence ferry fiddle field flag flute forest fork fountain fox "
    "garden gate ginger glove goat hammer harbor harp hat hinge honey horse island jacket jar kettle key kite ladder"
).split()


class Ruler:
    """Samples of the RULER tasks, each determined by task, length and number."""

    def __init__(
        self, filler: Filler, *, split: Split = "eval", seed: int = 0, questions: Mapping[str, Contexts] | None = None
    ) -> None:
        """Set up the contents of contexts.

        Args:
            filler: Its passages of the split are the essays; its counter counts tokens.
            split: The keys, words, templates and essays to use.
            seed: Together with task, length and number, the seed of a sample.
            questions: Contexts for `qa_1` (about one paragraph) and `qa_2` (about several).
        """
        if split not in get_args(Split):
            raise ValueError(f"split={split!r}; it is 'train' or 'eval'")
        self._filler = filler
        self._split: Split = split
        self._templates = TEMPLATES[split]
        self._seed = seed
        self._questions = questions or {}

    def samples(self, task: RulerTask, tokens: int, count: int, *, start: int = 0) -> list[Sample]:
        """This many samples, from number `start` on."""
        return [self.sample(task, tokens, n) for n in range(start, start + count)]

    def sample(self, task: RulerTask, tokens: int, number: int) -> Sample:
        """The sample with this number over a context of this length.

        Raises:
            ValueError: The task is unknown, has no contexts, or does not fit into so few tokens.
        """
        if task in ("qa_1", "qa_2"):
            return self._qa(task, tokens, number)
        name = f"{task}-{self._split}-{self._seed}-{number}"
        rng = Random(f"{name}:{tokens}")
        if task in _NIAH:
            made = self._niah(_NIAH[task], tokens, rng)
        elif task == "vt":
            made = self._variables(tokens, rng)
        elif task == "cwe":
            made = self._common_words(tokens, rng)
        elif task == "fwe":
            made = self._coded_words(tokens, rng)
        else:
            raise ValueError(f"task={task!r}; it is one of {', '.join(get_args(RulerTask))}")
        return replace(made, id=name, task=task)

    def _qa(self, task: str, tokens: int, number: int) -> Sample:
        contexts = self._questions.get(task)
        if contexts is None:
            raise ValueError(f"task={task!r} needs paragraphs; give questions={{{task!r}: Contexts(...)}}")
        if number >= len(contexts.questions):
            raise ValueError(f"number={number}, but {task!r} has {len(contexts.questions)} questions")
        return replace(contexts.sample(contexts.questions[number], tokens), task=task, metric="any")

    def _niah(self, kind: _Needles, tokens: int, rng: Random) -> Sample:
        keys = self._distinct(kind.key, max(kind.keys, kind.asked), rng)
        values = self._distinct(kind.value, len(keys) * kind.values, rng)
        template = rng.choice(self._templates.needles)
        pairs = [(key, values[i * kind.values + j]) for i, key in enumerate(keys) for j in range(kind.values)]
        needles = [template.format(thing=_noun(kind.value), key=k, value=v) for k, v in pairs]
        documents, spans, used = self._haystack(kind, template, needles, tokens, rng, excluded={*keys, *values})
        wanted = keys[: kind.asked]
        hit = [i for i, (key, _) in enumerate(pairs) if key in wanted]
        asks = self._templates.asks_all if len(hit) > 1 else self._templates.asks_one
        question = rng.choice(asks).format(thing=_noun(kind.value), key=_listed(wanted))
        made = _sample(question, [pairs[i][1] for i in hit], documents, [spans[i] for i in hit], used)
        return replace(made, notes=tuple("{}: {}.".format(*pairs[i]) for i in hit))

    def _haystack(
        self, kind: _Needles, template: str, needles: list[str], tokens: int, rng: Random, excluded: set[str]
    ) -> tuple[tuple[Document, ...], Sequence[Span], int]:
        if kind.haystack == "essay":
            own = sum(self._filler.counter([f" {n}" for n in needles]))
            pieces = self._filler.take(self._split, _room(tokens, own), rng)
            documents, spans = insert(pieces, needles, rng, apart=len(needles))
            return documents, spans, own + sum(p.tokens for p in pieces)
        if kind.haystack == "noise":
            return self._needle_document(needles, repeat(_one_of(self._templates.noise, rng)), tokens, rng)
        keys, values = self._distractors(kind.key, rng, excluded), self._distractors(kind.value, rng, excluded)
        others = (template.format(thing=_noun(kind.value), key=k, value=v) for k, v in zip(keys, values, strict=False))
        return self._needle_document(needles, others, tokens, rng)

    def _needle_document(
        self, said: list[str], hay: Iterator[str], tokens: int, rng: Random
    ) -> tuple[tuple[Document, ...], list[Span], int]:
        """One document: filler lines, and the needles in order at random positions among them."""
        own = sum(self._filler.counter([f"{s}\n" for s in said]))
        lines, used = self._lines(hay, _room(tokens, own))
        places = sorted(rng.randint(0, len(lines)) for _ in said)
        for place, needle in reversed(list(zip(places, said, strict=True))):
            lines.insert(place, needle)
        starts = [0, *accumulate(len(line) + 1 for line in lines)]
        document = Document(text="\n".join(lines))
        spans = [
            Span(document=document.id, start=starts[place + i], end=starts[place + i] + len(said[i]))
            for i, place in enumerate(places)
        ]
        return (document,), spans, own + used

    def _lines(self, hay: Iterator[str], room: int) -> tuple[list[str], int]:
        """As many filler lines as fit, tokenised in batches."""
        lines: list[str] = []
        used, batch = 0, 16
        while True:
            some = list(islice(hay, batch))
            different = list(dict.fromkeys(some))
            sizes = dict(zip(different, self._filler.counter([f"{s}\n" for s in different]), strict=True))
            for line in some:
                if used + sizes[line] > room:
                    return lines, used
                lines.append(line)
                used += sizes[line]
            batch = min(4096, 2 * batch)

    def _variables(self, tokens: int, rng: Random) -> Sample:
        names = self._distinct_of(lambda: "".join(rng.choices(string.ascii_uppercase, k=5)), _CHAIN_COPIES + 1)
        value = self._distinct_of(lambda: str(rng.randint(10_000, 99_999)), 1)[0]
        first, copy = _one_of(self._templates.assignments, rng)
        said = [first.format(new=names[0], old=value)]
        said += [copy.format(new=new, old=old) for old, new in pairwise(names)]
        noise = _one_of(self._templates.noise, rng)
        documents, spans, used = self._needle_document(said, repeat(noise), tokens, rng)
        question = rng.choice(self._templates.asks_variables).format(value=value)
        return _sample(question, names, documents, spans, used)

    def _common_words(self, tokens: int, rng: Random) -> Sample:
        syllables = 2 if tokens < _LONG else 3
        words = self._distinct_of(lambda: word(rng, syllables).lower(), _COMMON)
        others: dict[str, None] = dict.fromkeys(words)

        def make_words(number: int) -> list[str]:
            rare = (number - _COMMON * _COMMON_TIMES) // _OTHER_TIMES
            while len(others) < _COMMON + rare:
                other = word(rng, syllables).lower()
                if self._in_split(other):
                    others[other] = None
            texts = words * _COMMON_TIMES + list(others)[_COMMON : _COMMON + rare] * _OTHER_TIMES
            Random(number).shuffle(texts)
            return [f"{i}. {w}" for i, w in enumerate(texts, 1)]

        text, used = self._fit_text(make_words, tokens, least=_COMMON * _COMMON_TIMES + _OTHER_TIMES)
        question = rng.choice(self._templates.asks_common).format(count=_COMMON)
        return _sample(question, words, (Document(text=text),), (), used)

    def _coded_words(self, tokens: int, rng: Random) -> Sample:
        def coded() -> str:
            return "".join(rng.choices(string.ascii_lowercase, k=_CODED_LETTERS))

        words = ["." * _CODED_LETTERS, *self._distinct_of(coded, _CODED_WORDS - 1)]
        shares = [rank**-_ALPHA for rank in range(1, _CODED_WORDS + 1)]

        def make_words(number: int) -> list[str]:
            times = [int(number * share / sum(shares)) for share in shares]
            texts = [w for w, n in zip(words, times, strict=True) for _ in range(n)]
            Random(number).shuffle(texts)
            return texts

        text, used = self._fit_text(make_words, tokens, least=_MIN_CODED_WORDS)
        question = rng.choice(self._templates.asks_coded).format(count=3)
        return _sample(question, words[1:4], (Document(text=text),), (), used)

    def _fit_text(self, make_words: Callable[[int], list[str]], tokens: int, *, least: int) -> tuple[str, int]:
        """A text with the largest number of words that fits into the tokens, found by iteration."""
        number = max(least, tokens // 4)
        for _ in range(8):
            texts = make_words(number)
            runs = [" ".join(texts[i : i + _RUN]) + " " for i in range(0, len(texts), _RUN)]
            used = sum(self._filler.counter(runs))
            if (1 - _SLACK) * tokens <= used <= tokens:
                break
            number = max(least, int(number * (1 - _SLACK / 2) * tokens / used))
        if used > tokens:
            raise ValueError(f"tokens={tokens}, but the shortest text has {used}")
        return "".join(runs).rstrip(), used

    def _distinct(self, kind: _ValueKind, count: int, rng: Random) -> list[str]:
        return self._distinct_of(lambda: _random_value(kind, rng), count)

    def _distinct_of(self, make: Callable[[], str], count: int) -> list[str]:
        """Different texts of this split."""
        found: dict[str, None] = {}
        while len(found) < count:
            text = make()
            if self._in_split(text):
                found[text] = None
        return list(found)

    def _distractors(self, kind: _ValueKind, rng: Random, excluded: set[str]) -> Iterator[str]:
        """An endless sequence of texts of this split, without the excluded ones; words repeat in a long haystack."""
        while True:
            text = _random_value(kind, rng)
            if text not in excluded and self._in_split(text):
                yield text

    def _in_split(self, text: str) -> bool:
        return has_role(text, self._split)


def needle(rng: Random, split: Split) -> tuple[str, str, str]:
    """One needle, the question for its value, and the value, for training without a haystack."""
    kind: _ValueKind = rng.choice(("number", "number", "uuid"))
    while not has_role(key := _random_value("word", rng), split):
        pass
    while not has_role(value := _random_value(kind, rng), split):
        pass
    templates, thing = TEMPLATES[split], _noun(kind)
    said = rng.choice(templates.needles).format(thing=thing, key=key, value=value)
    return said, rng.choice(templates.asks_one).format(thing=thing, key=key), value


def _random_value(kind: _ValueKind, rng: Random) -> str:
    if kind == "word":
        return f"{rng.choice(_ADJECTIVES)}-{rng.choice(_NOUNS)}"
    if kind == "number":
        return str(rng.randint(1_000_000, 9_999_999))
    return str(UUID(int=rng.getrandbits(128), version=4))


def _noun(kind: _ValueKind) -> str:
    return "code" if kind == "uuid" else kind


def _one_of(wordings: Sequence[_T], rng: Random) -> _T:
    """One of them; a single one takes no random number, so its samples stay as they are."""
    return wordings[0] if len(wordings) == 1 else rng.choice(wordings)


def _listed(keys: Sequence[str]) -> str:
    return keys[0] if len(keys) == 1 else f"{', '.join(keys[:-1])} and {keys[-1]}"


def _room(tokens: int, used: int) -> int:
    if used > tokens:
        raise ValueError(f"tokens={tokens}, but the text that the question needs has {used}")
    return tokens - used


def _sample(
    question: str, answers: Sequence[str], documents: tuple[Document, ...], spans: Sequence[Span], tokens: int
) -> Sample:
    return Sample(
        id="", task="", question=question, answers=tuple(answers), documents=documents, evidence=tuple(spans),
        metric="all", tokens=tokens,
    )  # fmt: skip
