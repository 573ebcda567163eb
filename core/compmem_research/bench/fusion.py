"""Answers from recalled paragraphs as text and as KV states, by every method that lets blocks see one another.

Retrieval plays no part: for each question its gold paragraphs and others of its own context are recalled, or the
chunks of a long context that hold the gold ones. Each question, method and ratio is a line of a JSONL file; a line
with the same fingerprint is not measured again.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Any, Final, cast, get_args

import torch

from compmem.backbone import Backbone, chunk_ids, fuse_blocks, stream_parallel, window_sizes
from compmem.config import SHARED_BUDGET_METHODS, KVFusion, KVPruning, KVType
from compmem.kv_format import pack, unpack
from compmem.readers import LatentPrompts
from compmem.schema import Chunk, KVStates
from compmem_research.bench.answers import KEY, MAX_ANSWER_CHARS
from compmem_research.bench.clock import Times, none, now
from compmem_research.bench.fusion_report import Condition, summary
from compmem_research.digests import digest, part_digest
from compmem_research.metrics import exact_match, f1
from compmem_research.resume import Key, Row, Rows
from compmem_research.tasks.multihop import Corpus, Question, read_corpus

TRAINED_PRUNING: Final = "trained"
"""Name of the pruning method in a row of a backbone with trained memory."""
READER: Final = "reasoner"
"""The role that reads, whose adapter is no part of a backbone's fingerprint."""
PLAN_SETTINGS: Final = ("methods", "ratios", "pruning", "windows", "kv", "limit")
"""Settings that choose systems and questions; all others change each answer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is asked and how.

    Raises:
        ValueError: A method is unknown, or a number is too small.
    """

    methods: tuple[str, ...]
    """Names of `KVFusion`, joined by + where several act at once."""
    ratios: tuple[int, ...] = (1, 2, 4, 8)
    pruning: tuple[str, ...] = ("attention",)
    """Names of `KVPruning`: how states are chosen at ratios above 1."""
    blocks: int = 5
    """Paragraphs that are recalled; at least the gold ones."""
    windows: tuple[int, ...] = (0,)
    """Most tokens that are read in one pass, of a document that is all paragraphs of the question's own context in
    their order; 0: each paragraph alone. See `IndexConfig.kv_window`."""
    chunk_tokens: int = 0
    """Above 0, recalled paragraphs stand in the order of the context, and neighbours are one chunk of at most so many
    tokens."""
    context_tokens: int = 0
    """Above 0, a question's own paragraphs and others of the set, together so many tokens in random order, are joined
    to chunks, and those with gold paragraphs are recalled."""
    kv: tuple[str, ...] = ("bf16",)
    """Names of `KVType`: how the states are stored before they are read."""
    limit: int = 20
    """Questions of a set, drawn by the seed."""
    max_tokens: int = 24
    share: float = 0.1
    first: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        methods = [name for method in self.methods for name in method.split("+")]
        for kind, names, known in (
            ("method", methods, KVFusion), ("pruning", self.pruning, KVPruning), ("kv", self.kv, KVType),
        ):  # fmt: skip
            if unknown := set(names) - set(get_args(known)):
                raise ValueError(f"unknown {kind} {min(unknown)!r}: there are {', '.join(get_args(known))}")
        if set(SHARED_BUDGET_METHODS) & set(self.pruning) and "ape" in methods:
            raise ValueError(
                f"blocks pruned by {' and '.join(SHARED_BUDGET_METHODS)} cannot be read with the method ape"
            )
        for name in ("blocks", "limit", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")
        if min(self.windows, default=-1) < 0:
            raise ValueError(f"windows={self.windows!r}: at least one number, none below 0")
        if self.chunk_tokens < 0 or (self.chunk_tokens and self.windows != (0,)):
            raise ValueError(f"chunk_tokens={self.chunk_tokens!r} must be 0, or above it and without windows")
        if self.context_tokens and not 0 < self.chunk_tokens <= self.context_tokens:
            raise ValueError(f"context_tokens={self.context_tokens!r} must be 0, or at least chunk_tokens, above 0")

    def fingerprint(self, data: bytes, backbone: Backbone) -> str:
        """The first 16 digits of a SHA-256 of everything that decides on an answer; not how many are asked."""
        answer_settings = {k: v for k, v in asdict(self).items() if k not in PLAN_SETTINGS}
        for name in ("chunk_tokens", "context_tokens"):
            if not answer_settings[name]:
                del answer_settings[name]  # rows from before there were these settings stay valid
        told = {"backbone": backbone.fingerprint(), "prompt": LatentPrompts().from_blocks}
        told |= {"dtype": str(backbone.decoder.embed_tokens.weight.dtype), "data": hashlib.sha256(data).hexdigest()}
        if backbone.parameters(READER):
            told["reader"] = part_digest(backbone, READER)
        return digest(json.dumps(answer_settings | told, sort_keys=True).encode())


def measure(
    files: Sequence[Path], settings: Settings, models: Mapping[str, Backbone], *, rows: Path
) -> dict[str, Any]:  # fmt: skip
    """The figures of text and of each method at each ratio, for each model, over all sets and in each.

    Args:
        files: Sets of questions with their own paragraphs; see `compmem_research.tasks.multihop`.
        settings: What is asked and how.
        models: A stock model, and others made from it, by name. One with trained memory reads text and that memory.
        rows: The JSONL file of the run.

    Raises:
        ValueError: A file has a broken line or no question with two gold paragraphs.
    """
    kept = Rows.open(rows, KEY)
    asked = {file.name.split(".")[0]: _answer(file, settings, models, kept) for file in files}
    own = {name: model.memory.pruning for name, model in models.items() if model.memory.trained}
    made: dict[str, Any] = {"data": ", ".join(asked), "models": list(models), "settings": asdict(settings)}
    made["fusion"] = summary(kept.of(set().union(*asked.values())), list(models), own)
    if len(asked) > 1:
        made["by_set"] = {name: summary(kept.of(keys), list(models), own) for name, keys in asked.items()}
    return made


def _answer(file: Path, settings: Settings, models: Mapping[str, Backbone], kept: Rows) -> set[Key]:
    """Answer the questions of a set that have no row yet; returns the keys of all its rows."""
    corpus, data = read_corpus(file), file.read_bytes()
    questions = [q for q in corpus.questions if q.answers[0].strip() and len(q.gold) > 1]
    if not questions:
        raise ValueError(f"{file}: no question with two gold paragraphs")
    Random(settings.seed).shuffle(questions)
    asked, marks = set[Key](), {n: settings.fingerprint(data, m) for n, m in models.items()}
    for question in questions[: settings.limit]:
        for name, model in models.items():
            answering = _Answering(model, settings, corpus, question)
            for condition in _conditions(settings, name, model):
                key = (marks[name], question.id, condition.system)
                asked.add(key)
                if key not in kept.by_key:
                    kept.add({"fingerprint": key[0], "system": key[2]} | answering.row(condition))
    return asked


def _conditions(settings: Settings, name: str, model: Backbone) -> Iterator[Condition]:
    """Each method possible with each ratio, pruning (above 1), window and format; text is one of ratio 0."""
    yield Condition(name)
    methods, pruning = settings.methods, tuple(n for n in get_args(KVPruning) if n in settings.pruning)
    if trained := model.memory.trained:
        methods = ("none",) if model.memory.inserted else methods
        methods = tuple(
            m for m in methods if "ape" not in m.split("+") or model.memory.pruning not in SHARED_BUDGET_METHODS
        )
        pruning = (TRAINED_PRUNING,)
    for ratio in settings.ratios:
        if ratio > 1 or not trained:
            wanted = pruning if ratio > 1 else ("attention",)
            windows = (0,) if model.memory.inserted else settings.windows
            for p, w, kv, m in product(wanted, windows, settings.kv, methods):
                yield Condition(name, m, ratio, p, w, kv)


def _recalled(question: Question, settings: Settings) -> list[int]:
    """The paragraph of the first hop, then the other gold ones and others of the question's own, in random order.

    With long chunks, all in the order of the context.
    """
    random = Random(f"{settings.seed} {question.id}")
    gold = [number for number, _ in question.support]
    others = sorted(question.own - question.gold)
    random.shuffle(others)
    later = [*gold[1:], *others[: max(0, settings.blocks - len(gold))]]
    random.shuffle(later)
    return sorted((gold[0], *later)) if settings.chunk_tokens else [gold[0], *later]


class _Answering:
    """One question over its recalled paragraphs, which are compressed once for each ratio."""

    def __init__(self, backbone: Backbone, settings: Settings, corpus: Corpus, question: Question) -> None:
        self._backbone = backbone
        self._settings = settings
        self._question = question
        self._asked = backbone.encode(question.question)
        read = partial(_tokens, backbone, corpus)
        if settings.context_tokens:
            self._document = _context(question, settings, read, len(corpus.passages))
            groups = _joined(self._document, settings.chunk_tokens)
            groups = [group for group in groups if question.gold & set(group)]
        else:
            self._document = {number: read(number) for number in sorted(question.own)}
            recalled = _recalled(question, settings)
            groups = _joined({number: self._document[number] for number in recalled}, settings.chunk_tokens)
        self._recalled = [number for group in groups for number in group]
        self._texts = [[i for number in group for i in self._document[number]] for group in groups]
        self._prompt = backbone.prompt(LatentPrompts().from_blocks).fill(question=self._asked)
        self._compressed: dict[tuple[int, str, int], tuple[list[KVStates], Times]] = {}

    def row(self, condition: Condition) -> Row:
        """What was answered, and what it took."""
        backbone, (_, method, ratio, pruning, window, kv) = self._backbone, condition
        with torch.inference_mode():
            blocks, compressing = self._blocks(ratio, pruning, window) if ratio else ([], none())
            packed = [pack(states, cast("KVType", kv)) for states in blocks]
            blocks = [unpack(parts) for parts in packed] if kv != "bf16" else blocks
            stored = sum(tensor.nbytes for parts in packed for tensor in parts.values())
            began, prompt, start = now(), self._prompt, None
            if not ratio:
                lead = len(backbone.chat_prefix_ids)
                text = [*prompt[:lead], *(i for text in self._texts for i in text), *prompt[lead:-1]]
                # Read once, for the answer and for its loss.
                blocks, prompt, start = backbone.prompt_states([text]), prompt[-1:], len(text)
            elif _named(method) != ("none",):
                blocks = fuse_blocks(
                    backbone, blocks, self._texts, self._asked, methods=_named(method),
                    share=self._settings.share, first=self._settings.first,
                )  # fmt: skip
            written, first = list[int](), now()
            parallel = "ape" in _named(method)
            stream = partial(stream_parallel, backbone) if parallel else partial(backbone.stream, start=start)
            for token in stream(prompt, blocks, max_new_tokens=self._settings.max_tokens, stop_on_repetition=True):
                if not written:
                    first = now()
                written.append(token)
            seconds = now() - began
            loss = None if parallel else self._loss(prompt, blocks, start)
        answer = backbone.decode(written)
        return {
            **condition._asdict(), "id": self._question.id,
            "answer": " ".join(answer.split())[:MAX_ANSWER_CHARS],
            "em": exact_match(answer, self._question.answers), "f1": round(f1(answer, self._question.answers), 4),
            "first_seconds": _seconds(first - began), "seconds": _seconds(seconds),
            "compress_seconds": _seconds(compressing), "loss": loss,
            "tokens": sum(map(len, self._texts)), "bytes": stored,
        }  # fmt: skip

    def _loss(self, prompt: Sequence[int], blocks: Sequence[KVStates], start: int | None) -> float:
        """Cross entropy of the right answer behind the prompt, in nats a token."""
        answer = self._backbone.encode(self._question.answers[0])
        hidden = self._backbone.read([[*prompt, *answer[:-1]]], [blocks], start=start)[0, -len(answer) :]
        target = torch.tensor(answer, device=hidden.device)
        return round(float(torch.nn.functional.cross_entropy(self._backbone.logits(hidden).float(), target)), 4)

    def _blocks(self, ratio: int, pruning: str, window: int) -> tuple[list[KVStates], Times]:
        """The recalled blocks, and the time that it took to compress them, with a window the whole document."""
        key = (ratio, pruning, window)
        if key not in self._compressed:
            texts, given = self._texts, None if pruning == TRAINED_PRUNING else cast("KVPruning", pruning)
            began, windows = now(), None
            if window:
                texts = list(self._document.values())
                windows = list(window_sizes(["document"] * len(texts), list(map(len, texts)), window))
            made = self._backbone.compress(texts, ratio=ratio, pruning=given, windows=windows)
            if window:
                of = dict(zip(self._document, made, strict=True))
                made = [of[number] for number in self._recalled]
            self._compressed = {key: (made, now() - began)}
        return self._compressed[key]


def _tokens(backbone: Backbone, corpus: Corpus, number: int) -> list[int]:
    passage = corpus.passages[number]
    return chunk_ids(backbone, Chunk(text=passage.text, title=passage.title))


def _context(
    question: Question, settings: Settings, read: Callable[[int], list[int]], passages: int
) -> dict[int, list[int]]:
    """The tokens of a question's own paragraphs and of others up to `context_tokens`, in random order."""
    random = Random(f"{settings.seed} {question.id}")
    made = {number: read(number) for number in sorted(question.own)}
    count = sum(map(len, made.values()))
    for number in random.sample(range(passages), passages):
        if number in made:
            continue
        ids = read(number)
        if (count := count + len(ids)) > settings.context_tokens:
            break
        made[number] = ids
    order = list(made)
    random.shuffle(order)
    return {number: made[number] for number in order}


def _joined(texts: Mapping[int, Sequence[int]], most: int) -> list[list[int]]:
    """Numbers of texts in groups of neighbours that have at most so many tokens together."""
    rest, sizes = iter(texts), list(map(len, texts.values()))
    return [[*islice(rest, count)] for count in window_sizes([""] * len(sizes), sizes, most)]


def _named(method: str) -> tuple[KVFusion, ...]:
    parts = method.split("+")
    return tuple(name for name in get_args(KVFusion) if name in parts)


def _seconds(times: Times) -> list[float]:
    return [round(float(t), 3) for t in times]
