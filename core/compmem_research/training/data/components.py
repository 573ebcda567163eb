"""The kinds of rows in a mixture, each generated from a random generator.

Copying from memory is hard for a small model, so most kinds train it: random tokens to repeat, keys and values to look
up, made-up facts in plain text. Several questions follow one chunk, each in its own turn, so that one compression gives
more training signal.
"""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Literal, get_args

import numpy as np

from compmem.backbone import Backbone
from compmem.readers import StepPrompts
from compmem_research.tasks.multihop import read_lines
from compmem_research.tasks.names import Kind as NameKind
from compmem_research.tasks.names import draw
from compmem_research.tasks.relations import RELATIONS, Relation
from compmem_research.tasks.ruler import RulerTask, needle
from compmem_research.tasks.synthetic_facts import WorldConfig
from compmem_research.training.data.examples import Example, Ids, as_text
from compmem_research.training.data.packed import PackedText
from compmem_research.training.data.sources import source_of
from compmem_research.training.data.traces import ANSWER, SKIP, STEP, StepRows

Kind = Literal["text", "random", "rebuild", "continue", "facts", "singlehop", "multihop", "steps", "create"]
"""Plain text; random tokens to repeat; text to repeat; text to continue; made-up facts; questions about a
paragraph; questions about several; steps of the loop; what the model itself writes about a text that it sees
(self-distillation)."""

Rng = np.random.Generator
Maker = Callable[[Rng, int, int, bool], list[Example]]
"""Rows of one shape: generator, tokens of the chunk, items in it, whether they are held out."""

NEEDLE = "needle"
HELD_SHARE = 50
"""One in this many paragraphs is held out."""
DRAWS = 100
"""Most attempts to sample facts that fit into a chunk, with one fewer each time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """One kind of rows in a mixture, and its curriculum.

    Raises:
        ValueError: A value is out of its range.
    """

    kind: Kind
    part: str = ""
    """Name of its part of the loss. Empty: its kind."""
    share: float = 1.0
    """How often it is sampled, relative to the others."""
    weight: float = 1.0
    """Weight of its part of the loss."""
    sizes: tuple[int, ...] = (128,)
    """Tokens of a chunk, at each level; for `multihop`, the most of a paragraph."""
    items: tuple[int, ...] = (1,)
    """Facts, pairs, questions or hops of a chunk, or paragraphs of a `multihop` question, at each level."""
    tokens: int = 1536
    """Source tokens of one sampling step: rows with the same shape up to this total."""
    raw: float = 0.0
    """Share of samples that are given as plain tokens instead of memory."""
    grow_at: float = 0.97
    """Metric above which the next level begins."""
    grow_by: Literal["accuracy", "exact"] = "accuracy"
    """The metric: accuracy of tokens, or of whole spans."""
    grow_over: int = 5
    """Consecutive steps with rows of this component in which the metric must be above."""
    tasks: tuple[str, ...] = ("world",)
    """Sampled uniformly: "world" (made-up facts), for `facts` also "needle", for `steps` any RULER task."""
    file: Path | None = None
    """File of questions, for `singlehop`, `multihop` and `steps`. None: made-up ones from `tasks`."""
    wordings: int | None = None
    """Most wordings of a made-up fact. None: all."""
    syllables: int = 2
    """Syllables of a made-up word."""
    distractors: int = 3
    """Distractors for each needed fact, for `steps`."""
    chunks: int = 3
    """Approximate number of chunks in the context of one question, for `steps`."""
    skips: int = 1
    """Most chunks without evidence before each one with it, for `steps`."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind={self.kind!r} must be one of {', '.join(get_args(Kind))}")
        known = {"facts": ("world", NEEDLE), "steps": ("world", *get_args(RulerTask))}.get(self.kind, ("world",))
        if not self.tasks or not set(self.tasks) <= set(known):
            raise ValueError(f"tasks={self.tasks!r} must be some of {', '.join(known)} for the kind {self.kind!r}")
        if self.kind in ("singlehop", "multihop") and self.file is None:
            raise ValueError(f"kind={self.kind!r} needs a file")
        if min(len(self.sizes), len(self.items)) != 1 and len(self.sizes) != len(self.items):
            raise ValueError(f"sizes={self.sizes!r} and items={self.items!r} must be as many, or one of them single")
        if min(*self.sizes, *self.items, self.tokens, self.grow_over) < 1:
            raise ValueError(f"sizes={self.sizes!r}, items={self.items!r} and tokens must be at least 1")
        if self.share <= 0 or not 0 <= self.raw <= 1:
            raise ValueError(f"share={self.share!r} must be above 0 and raw={self.raw!r} in [0, 1]")
        object.__setattr__(self, "part", self.part or self.kind)

    @property
    def levels(self) -> int:
        """Number of levels."""
        return max(len(self.sizes), len(self.items))

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of its parts of the loss; the first one controls the curriculum."""
        if self.kind != "steps":
            return (self.part,)
        return tuple(f"{self.prefix}{name}" for name in (STEP, SKIP, ANSWER))

    @property
    def prefix(self) -> str:
        """Prefix of the parts of `steps`, if it has its own name."""
        return "" if self.part == "steps" else f"{self.part}_"

    def at(self, level: int) -> tuple[int, int]:
        """Tokens and items of a chunk at a level."""
        return self.sizes[min(level, len(self.sizes) - 1)], self.items[min(level, len(self.items) - 1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPrompts:
    """Prompts for chunks, besides questions."""

    rebuild: str = "Repeat."
    create: str = "Summarize the text in a few sentences."


class Turns:
    """Makes rows after chunks, in the backbone's chat template.

    Args:
        backbone: The backbone with tokenizer and template.
        prompts: The prompts.
    """

    def __init__(self, backbone: Backbone, prompts: TaskPrompts) -> None:
        self._backbone = backbone
        self._turn = backbone.prompt("{text}")
        self.rebuild = self._turn.fill(text=backbone.encode(prompts.rebuild))
        self.create = self._turn.fill(text=backbone.encode(prompts.create))
        self.end: int = backbone.tokenizer.eos_token_id
        added = set(backbone.tokenizer.added_tokens_decoder)
        self._ordinary = np.array([i for i in range(len(backbone.tokenizer)) if i not in added])

    def random(self, rng: Rng, count: int) -> list[int]:
        """Random tokens without control tokens and tags."""
        drawn: list[int] = rng.choice(self._ordinary, count).tolist()
        return drawn

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self._backbone.encode(text)

    def asked(self, part: str, chunk: Ids, turns: Sequence[tuple[Ids, Ids]], *, raw: bool) -> Example:
        """Questions after a chunk, one turn each; the answers and their ends are learned."""
        return self.behind(
            part, chunk, [(self._turn.fill(text=question), [*answer, self.end]) for question, answer in turns], raw=raw
        )

    def behind(self, part: str, chunk: Ids, turns: Sequence[tuple[Ids, Ids]], *, raw: bool) -> Example:
        """Prompts and replies after a chunk; the replies are learned."""
        ids, spans = list[int](), list[tuple[int, int]]()
        for prompt, reply in turns:
            ids += prompt
            spans.append((len(ids), len(ids) + len(reply)))
            ids += reply
        row = Example(part=part, blocks=(chunk,), ids=ids, spans=tuple(spans))
        return as_text(self._backbone, row) if raw else row


def text_rows(component: Component, text: PackedText) -> Maker:
    """Plain text; every token is predicted from those before it."""

    def make(rng: Rng, size: int, items: int, held: bool) -> list[Example]:
        windows = [text.window(rng, size, held=held) for _ in range(max(1, component.tokens // size))]
        return [Example(part=component.part, ids=w, spans=((1, size),)) for w in windows]

    return make


def rebuilt_rows(component: Component, turns: Turns, text: PackedText | None) -> Maker:
    """Chunks to repeat, of text or of random tokens."""

    def make(rng: Rng, size: int, items: int, held: bool) -> list[Example]:
        raw, rows = rng.random() < component.raw, []
        for _ in range(max(1, component.tokens // size)):
            chunk = turns.random(rng, size) if text is None else text.window(rng, size, held=held)
            rows.append(turns.behind(component.part, chunk, [(turns.rebuild, [*chunk, turns.end])], raw=raw))
        return rows

    return make


def continued_rows(component: Component, text: PackedText) -> Maker:
    """Chunks, and half as many tokens of the text that comes after, which are learned."""

    def make(rng: Rng, size: int, items: int, held: bool) -> list[Example]:
        rows = []
        for _ in range(max(1, component.tokens // size)):
            window = text.window(rng, size + max(2, size // 2), held=held)
            rest = window[size:]
            rows.append(Example(part=component.part, blocks=(window[:size],), ids=rest, spans=((1, len(rest)),)))
        return rows

    return make


def created_rows(component: Component, turns: Turns, text: PackedText) -> Maker:
    """Chunks with a prompt but no reply yet: the model writes it from the uncompressed chunk."""

    def make(rng: Rng, size: int, items: int, held: bool) -> list[Example]:
        chunks = [text.window(rng, size, held=held) for _ in range(max(1, component.tokens // size))]
        return [turns.behind(component.part, c, [(turns.create, [])], raw=False) for c in chunks]

    return make


class FactRows:
    """Made-up facts in plain text, each with a question after the chunk; every chunk has exactly the given size.

    Half of the facts share the relation or the subject of another one, so that answers must be read, not guessed.

    Args:
        component: Its settings.
        turns: Makes the rows.
        text: Text between the facts. None: random tokens.
    """

    def __init__(self, component: Component, turns: Turns, text: PackedText | None) -> None:
        self._component = component
        self._turns = turns
        self._text = text

    def __call__(self, rng: Rng, size: int, items: int, held: bool) -> list[Example]:
        """Rows of one shape."""
        raw, chance = rng.random() < self._component.raw, Random(int(rng.integers(1 << 62)))
        rows = []
        for _ in range(max(1, self._component.tokens // size)):
            chunk, facts = self._chunk(rng, chance, size, items, held)
            asked = [(self._turns.encode(question), self._turns.encode(answer)) for _, question, answer in facts]
            chance.shuffle(asked)
            rows.append(self._turns.asked(self._component.part, chunk, asked, raw=raw))
        return rows

    def _chunk(
        self, rng: Rng, chance: Random, size: int, items: int, held: bool
    ) -> tuple[list[int], list[tuple[str, str, str]]]:
        """This many tokens with facts in them, and the facts; fewer and shorter ones if they do not fit."""
        for _ in range(DRAWS):
            needles = sum(chance.choice(self._component.tasks) == NEEDLE for _ in range(items))
            facts = [needle(chance, "train") for _ in range(needles)] + self._facts(chance, items - needles)
            chance.shuffle(facts)
            statements = [self._turns.encode(f" {statement}") for statement, _, _ in facts]
            room = size - sum(map(len, statements))
            if room >= 0:
                break
            items = max(1, items - 1)
        else:
            raise ValueError(f"a chunk of {size} tokens is too small for a fact of {len(statements[0])}")
        turns = self._turns
        between = self._text.window(rng, room, held=held) if self._text else turns.random(rng, room)
        cuts = [0, *sorted(rng.integers(0, room + 1, len(statements)).tolist()), room]
        chunk = between[: cuts[1]]
        for sentence, start, end in zip(statements, cuts[1:], cuts[2:], strict=False):
            chunk += [*sentence, *between[start:end]]
        return chunk, facts

    def _facts(self, chance: Random, count: int) -> list[tuple[str, str, str]]:
        """Statement, question and answer of made-up facts; no subject has a relation twice."""
        told: dict[tuple[str, str], tuple[Relation, str]] = {}
        while len(told) < count:
            relation, subject = self._subject(chance, told)
            told[subject, relation.name] = (relation, self._name(chance, relation.object))
        wordings, facts = self._component.wordings, []
        for (subject, _), (relation, answer) in told.items():
            statement = chance.choice(relation.train.statements[:wordings]).format(s=subject, o=answer)
            facts.append((statement, chance.choice(relation.train.questions[:wordings]).format(s=subject), answer))
        return facts

    def _subject(
        self, chance: Random, told: Mapping[tuple[str, str], tuple[Relation, str]]
    ) -> tuple[Relation, str]:  # fmt: skip
        """Topic of the next fact: in half of the cases the relation or the subject of an earlier one."""
        relation = chance.choice(RELATIONS)
        if told and chance.random() < 0.5:
            (known, _), (other, _) = chance.choice(list(told.items()))
            if chance.random() < 0.5:
                relation = other
            elif other.subject == relation.subject:
                return relation, known
        return relation, self._name(chance, relation.subject)

    def _name(self, chance: Random, kind: NameKind) -> str:
        return draw(chance, kind, "train", syllables=self._component.syllables).name


def singlehop_rows(component: Component, turns: Turns) -> Maker:
    """Paragraphs and questions whose answers are quotes; at most `items` questions for each.

    Raises:
        ValueError: The file has a broken line, or no paragraph is short enough.
    """
    assert component.file is not None
    grouped: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for _, line in read_lines(component.file, ("context", "question", "answer", "start")):
        if line["start"] >= 0:
            grouped[line["context"]].append((line["question"], line["answer"]))
    chunks = sorted(((turns.encode(context), asked) for context, asked in grouped.items()), key=lambda c: len(c[0]))
    parts = {held: [c for i, c in enumerate(chunks) if (i % HELD_SHARE == 0) is held] for held in (True, False)}
    lengths = {held: [len(c) for c, _ in part] for held, part in parts.items()}

    def make(rng: Rng, size: int, items: int, held: bool) -> list[Example]:
        if not (fitting := bisect_right(lengths[held], size)):
            raise ValueError(f"{component.file}: no paragraph has at most {size} tokens")
        raw, rows = rng.random() < component.raw, []
        for number in rng.integers(0, fitting, max(1, component.tokens // size)).tolist():
            chunk, asked = parts[held][number]
            picked = [asked[i] for i in rng.permutation(len(asked))[:items]]
            turns_of_questions = [(turns.encode(q), turns.encode(a)) for q, a in picked]
            rows.append(turns.asked(component.part, chunk, turns_of_questions, raw=raw))
        return rows

    return make


def step_rows(component: Component, prompts: StepPrompts, text: PackedText | None) -> Maker:
    """Steps of the loop over made-up worlds, or over the questions of a file.

    Raises:
        ValueError: The file has a broken line.
    """
    config = WorldConfig(distractors=component.distractors, wordings=component.wordings, syllables=component.syllables)
    source = source_of(prompts.backbone, component.file, config, component.tasks, chunks=component.chunks, text=text)
    return StepRows(prompts, source, tokens=component.tokens, skips=component.skips, prefix=component.prefix)
