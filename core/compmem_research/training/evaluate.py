"""Accuracy of a backbone's loop over compressed chunks: made-up worlds, RULER tasks, the questions of a set.

Every question runs through `compmem.loop`, many at once. Names, wordings and keys are those for evaluation, which are
not used in training, unless the settings choose those of training.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch

from compmem.backbone import Backbone, chunk_ids
from compmem.config import LoopConfig
from compmem.readers import LatentPrompts, StepPrompts
from compmem.schema import Chunk, KVStates
from compmem_research.digests import backbone_digest, file_digest
from compmem_research.metrics import bootstrap_interval
from compmem_research.resume import read_progress, write_whole
from compmem_research.tasks.contexts import Contexts
from compmem_research.tasks.haystack import Filler
from compmem_research.tasks.multihop import read_corpus
from compmem_research.tasks.names import Split
from compmem_research.tasks.ruler import Ruler, RulerTask
from compmem_research.tasks.sample import Sample
from compmem_research.tasks.synthetic_facts import WorldConfig, Worlds
from compmem_research.training.data.packed import TOKENS, PackedText
from compmem_research.training.data.sources import chunks_of, passages_of, token_counter
from compmem_research.training.engine.device import device_name, precision
from compmem_research.training.rollouts.loops import Loop, Loops

logger = logging.getLogger(__name__)

System = Literal[
    "compmem", "compmem-gate-alone", "compmem-no-exit", "compmem-question-gate", "scan", "gru-mem", "memagent"
]
"""Best block first, by gate and reader; by the gate alone; without the exit gate; by a gate without the working memory.
Every block in document order, gated in one pass (2602.08382); all of them with update and exit gate (2602.10560); with
neither (2507.02259)."""

TAGS = 64
"""Tokens of a structured reply besides the memory; these backbones write no thoughts."""
WORLDS = ("world-1hop", "world-2hop", "world-3hop")
UNANSWERABLE = "world-1hop-unanswerable"
"""The needed fact is missing and distractors are there: the right answer is to find nothing."""
QUESTIONS = "questions"
"""The task with a set's questions, each among its own paragraphs and others of the set."""
TASKS = (*WORLDS, UNANSWERABLE, *get_args(RulerTask), QUESTIONS)

CHANGEABLE = frozenset({"out", "tasks", "lengths", "systems", "minutes"})
"""Settings that need not be the same when an evaluation continues; all others are those of every line."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Settings of one evaluation.

    Raises:
        ValueError: A value is out of its range.
    """

    start: Path
    """Folder of the backbone, or its name."""
    out: Path
    """JSON file of the results; an interrupted run with the same settings continues it."""
    tasks: tuple[str, ...] = ("world-2hop", "niah_single_2")
    file: Path | None = None
    """A multi-hop set, for the task "questions"; see `compmem_research.tasks.multihop`."""
    split: Split = "eval"
    """Split of names, wordings and keys of made-up tasks; "train" shows the effect of unseen wordings."""
    lengths: tuple[int, ...] = (7000, 28000)
    """Tokens of the context."""
    systems: tuple[System, ...] = ("compmem",)
    questions: int = 100
    """Questions of each task and length."""
    at_once: int = 25
    """Questions whose loops run together."""
    chunk_tokens: int = 512
    ratio: int | None = None
    """Compression ratio. None: the backbone's own."""
    threshold: float | None = None
    """Threshold of the gate. None: the gate's own."""
    max_steps: int | None = 12
    """Most steps of systems that select blocks; those that scan read all."""
    memory_tokens: int = 256
    answer_tokens: int = 64
    distractors: int = 3
    syllables: int = 2
    wordings: int | None = None
    data: Path | None = None
    """Packed text as filler. None: made-up facts."""
    device: str | None = None
    dtype: str | None = None
    minutes: float | None = None
    """Minutes after which no new batch of questions begins."""
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.tasks) - set(TASKS)):
            raise ValueError(f"tasks has {unknown[0]!r}; there are {', '.join(TASKS)}")
        if self.split not in get_args(Split):
            raise ValueError(f"split={self.split!r} must be 'train' or 'eval'")
        if QUESTIONS in self.tasks and self.file is None:
            raise ValueError(f"the task {QUESTIONS!r} needs a file of them")
        if unknown := sorted(set(self.systems) - set(get_args(System))):
            raise ValueError(f"systems has {unknown[0]!r}; there are {', '.join(get_args(System))}")
        for name in ("questions", "at_once", "chunk_tokens", "memory_tokens", "answer_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")


def train(settings: Evaluation) -> dict[str, Any]:
    """Measure, write and return the results. The name `train` is that of every stage; this one trains nothing.

    Raises:
        CheckpointError: The backbone or the packed text cannot be loaded.
        ValueError: The file of questions has a broken line, or `out` has results of another backbone, device or
            version of torch, with other settings, or of other data.
    """
    began = time.monotonic()
    backbone = Backbone.load(settings.start, device=settings.device, dtype=settings.dtype)
    about = _about(settings, backbone)
    now = _decisive(about)
    lines = read_progress(settings.out, now, lambda kept: (_decisive(kept, now), kept["lines"])) or []
    done = {(line["task"], line["length"], line["system"]) for line in lines}
    makers = _SampleSource(settings, backbone)
    for length in settings.lengths:
        for task in settings.tasks:
            for system in settings.systems:
                spent = (time.monotonic() - began) / 60
                if (task, length, system) in done or (settings.minutes is not None and spent > settings.minutes):
                    continue
                figures = _measure(settings, backbone, makers.samples(task, length), config_of(system, settings))
                lines.append({"task": task, "length": length, "system": system, **figures})
                logger.info("%s", lines[-1])
                write_whole(settings.out, json.dumps({**about, "lines": lines}, indent=1) + "\n")
    return {"lines": lines, "seconds": round(time.monotonic() - began, 1)}


def config_of(system: System, settings: Evaluation) -> LoopConfig:
    """The loop settings of a system."""
    picks = {"candidates": "all", "max_steps": settings.max_steps, "memory_tokens": settings.memory_tokens}
    match system:
        case "compmem":
            return LoopConfig(**cast("Any", picks))
        case "compmem-gate-alone":
            return LoopConfig(**cast("Any", picks), reader_threshold=None)
        case "compmem-no-exit":
            return LoopConfig(**cast("Any", picks), exit_gate=False)
        case "compmem-question-gate":
            return LoopConfig(**cast("Any", picks), gate="question", reader_threshold=None)
        case "scan":
            return LoopConfig.lychee(memory_tokens=settings.memory_tokens, update_gate=True)
        case "gru-mem":
            return LoopConfig.gru_mem(memory_tokens=settings.memory_tokens)
        case "memagent":
            return LoopConfig.memagent(memory_tokens=settings.memory_tokens)


class _SampleSource:
    """Samples by task, length and number."""

    def __init__(self, settings: Evaluation, backbone: Backbone) -> None:
        self._settings = settings
        text = PackedText(settings.data, len(backbone.tokenizer)) if settings.data else None
        count = token_counter(backbone)
        self._contexts = Contexts(read_corpus(settings.file), count) if settings.file else None
        # One passage in four is for evaluation, and none is used twice in a context.
        self._filler = Filler(count, passages_of(backbone, text, tokens=6 * max(settings.lengths), held=True))
        self._ruler = Ruler(self._filler, split=settings.split, seed=settings.seed)

    def samples(self, task: str, length: int) -> list[Sample]:
        """The questions of a task at a length, each over one document."""
        settings = self._settings
        if task == QUESTIONS:
            assert self._contexts is not None, "the settings were checked"
            return [sample.joined() for sample in self._contexts.samples(length, settings.questions)]
        if task not in (*WORLDS, UNANSWERABLE):
            made = self._ruler.samples(cast("RulerTask", task), length, settings.questions)
            return [sample.joined() for sample in made]
        hops, unanswerable = (1, 1.0) if task == UNANSWERABLE else (1 + WORLDS.index(task), 0.0)
        config = WorldConfig(
            split=settings.split, tokens=length, hops=(hops,), distractors=settings.distractors,
            syllables=settings.syllables, wordings=settings.wordings, unanswerable=unanswerable, seed=settings.seed,
        )  # fmt: skip
        return [sample.joined() for sample in Worlds(config, self._filler).samples(settings.questions)]


def _measure(
    settings: Evaluation, backbone: Backbone, samples: Sequence[Sample], config: LoopConfig
) -> dict[str, Any]:  # fmt: skip
    """One line of results."""
    scores, read, blocks, compressing, asking, malformed = list[float](), list[int](), list[int](), 0.0, 0.0, 0
    for at in range(0, len(samples), settings.at_once):
        group = samples[at : at + settings.at_once]
        chunks = [chunks_of(sample, backbone, settings.chunk_tokens) for sample in group]
        start = time.monotonic()
        states = [_compressed(backbone, own, settings.ratio) for own in chunks]
        middle = time.monotonic()
        loops = answer_all(settings, backbone, config, [s.question for s in group], chunks, states)
        compressing, asking = compressing + middle - start, asking + time.monotonic() - middle
        scores += [s.score(loop.text, found=loop.answer is not None) for s, loop in zip(group, loops, strict=True)]
        read += [len(loop.steps) for loop in loops]
        malformed += sum(step.reply is None for loop in loops for step in loop.steps)
        blocks += [len(own) for own in chunks]
    low, high = bootstrap_interval(scores)
    count = len(samples)
    return {
        "questions": count,
        "accuracy": round(100 * sum(scores) / count, 1),
        "interval": [round(100 * low, 1), round(100 * high, 1)],
        "blocks": round(sum(blocks) / count, 1),
        "blocks_read": round(sum(read) / count, 2),
        "seconds_compress": round(compressing / count, 3),
        "seconds_answer": round(asking / count, 3),
        "malformed": malformed,
    }


def _compressed(backbone: Backbone, chunks: Sequence[Chunk], ratio: int | None) -> list[KVStates]:
    with torch.no_grad(), precision(backbone):
        return backbone.compress([chunk_ids(backbone, chunk) for chunk in chunks], ratio=ratio)


def answer_all(
    settings: Evaluation,
    backbone: Backbone,
    config: LoopConfig,
    questions: Sequence[str],
    chunks: Sequence[Sequence[Chunk]],
    states: Sequence[Sequence[KVStates]],
) -> list[Loop]:
    """The loop of each question over its own blocks, run to its answer."""
    prompts = StepPrompts(backbone, LatentPrompts.from_backbone(backbone))
    config = config if prompts.can_score else config.replace(reader_threshold=None)
    loops = [
        Loop(backbone, question, own, kv, config, threshold=settings.threshold)
        for question, own, kv in zip(questions, chunks, states, strict=True)
    ]
    Loops(
        prompts=prompts,
        step_tokens=settings.memory_tokens + TAGS,
        answer_tokens=settings.answer_tokens,
        ends=backbone.end_ids,
    ).run(loops)
    return loops


def _about(settings: Evaluation, backbone: Backbone) -> dict[str, Any]:
    """The results without their lines."""
    return {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in asdict(settings).items()},
        "backbone": {
            "fingerprint": backbone.fingerprint(),
            "parameters": sum(p.numel() for p in backbone.decoder.parameters()),
            "ratio": settings.ratio or backbone.memory.ratio,
            "gate": backbone.has_gate,
            "weights": backbone_digest(backbone),
        },
        "digests": {
            "file_digest": file_digest(settings.file),
            "data_digest": file_digest(settings.data and settings.data / TOKENS),
        },
        "device": device_name(backbone.device),
        "torch": torch.__version__,
    }


def _decisive(report: Mapping[str, Any], now: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What must be the same for all lines of a report; one without a set of questions may get that of `now`."""
    made = {name: value for name, value in report["settings"].items() if name not in CHANGEABLE}
    made |= {**report["backbone"], **report.get("digests", {}), "device": report["device"], "torch": report["torch"]}
    if now is not None and not made["file"]:
        made |= {"file": now["file"], "file_digest": now["file_digest"]}
    return made
