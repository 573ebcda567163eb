"""Stage 3: the gate on the backbone, a classifier of (question, working memory, block) on rollouts (2602.08382).

All other weights are frozen: the gate learns its own adapter and head. Its logits are calibrated on held-out questions,
and the calibration is folded into the head, so that a score is a probability.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.nn.parameter import Parameter

from compmem.backbone import AdapterConfig, Backbone
from compmem.gate import NO_NOTES, gate_prompt
from compmem.kv_cache import KVCache
from compmem.readers import LatentPrompts
from compmem.schema import KVStates
from compmem_research.digests import backbone_digest
from compmem_research.metrics import calibration_error
from compmem_research.training.engine.device import precision
from compmem_research.training.engine.settings import decisive_settings
from compmem_research.training.engine.stage import HELD_OUT_START, save_added
from compmem_research.training.engine.trainer import RunSettings, Trainer
from compmem_research.training.gating import gate_examples
from compmem_research.training.gating.calibration import auc, platt, threshold_for
from compmem_research.training.gating.gate_examples import GateContext, GateState
from compmem_research.training.rollouts.questions import ContextSource, QuestionSettings, context_source
from compmem_research.training.rollouts.rollouts import Rollouts, RolloutSettings, check_not_sharded, drawn_seeds

ROLLOUTS = "rollouts.jsonl"
"""The training examples, stored in the run's folder."""
ROLLED_OUT_BY = ("start", "questions", "rollouts", "contexts", "ratio", "prompts")
"""Settings that decide on them, besides `held` and the seed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GateTraining:
    """Settings of stage 3; `run.batch` counts working memories, each with several blocks.

    Raises:
        ValueError: A value is out of its range.
    """

    start: Path
    """Folder of a backbone whose reasoner is trained, or its name."""
    run: RunSettings
    questions: QuestionSettings = field(default_factory=QuestionSettings)
    rollouts: RolloutSettings = field(default_factory=lambda: RolloutSettings(exit_gate=False, group=2))
    contexts: int = 512
    """Number of training questions."""
    held: int = 64
    """Questions to calibrate on, and as many to measure on."""
    at_once: int = 16
    """Questions rolled out at once."""
    blocks: int = 16
    """Most blocks per working memory in training: those that help, and others sampled at random."""
    pos_weight: float = 3.0
    """Weight of a block that helps."""
    blind: bool = False
    """Hide the working memory: the question-only gate, for comparison."""
    recall: float = 0.98
    """Share of the helpful blocks that the threshold should accept."""
    adapter: AdapterConfig | None = field(default_factory=AdapterConfig)
    """Adapter of the gate, if the backbone has none yet."""
    ratio: int | None = None
    """Compression ratio. None: the checkpoint's own."""
    dtype: str | None = None
    """Dtype of the frozen weights. None: the checkpoint's own."""
    prompts: LatentPrompts | None = None
    """Prompts of the reasoner. None: the checkpoint's own."""

    def __post_init__(self) -> None:
        if not self.rollouts.steps:
            raise ValueError("system='answer' reads no chunk alone: the gate learns from steps")
        if min(self.contexts, self.held, self.at_once, self.blocks) < 1:
            raise ValueError("contexts, held, at_once and blocks must be at least 1")
        if self.pos_weight <= 0:
            raise ValueError(f"pos_weight={self.pos_weight!r} must be above 0")
        if not 0 < self.recall <= 1:
            raise ValueError(f"recall={self.recall!r} must be in (0, 1]")
        if self.rollouts.exit_gate:
            raise ValueError("the gate learns from every chunk: set exit_gate = false in [rollouts]")
        if self.run.workers:
            raise ValueError("chunks are compressed by the model: set workers=0")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Working memories, with blocks for each."""

    prompts: Sequence[Sequence[int]]
    """Question and working memory of each pair, as tokens."""
    blocks: Sequence[Sequence[KVStates]]
    labels: Tensor
    counts: Mapping[str, float]
    tokens: int


def train(settings: GateTraining) -> dict[str, Any]:
    """Train the gate; returns the last metrics.

    Raises:
        CheckpointError: The backbone cannot be loaded, or a checkpoint not be read or written.
        ValueError: A data file is broken, or the weights are sharded.
    """
    trainer = Trainer(settings.run, asks=True)
    check_not_sharded()
    # A new adapter has random weights.
    torch.manual_seed(settings.run.seed)
    backbone = Backbone.load(settings.start, device=trainer.device, dtype=settings.dtype, ratio=settings.ratio)
    made_of = decisive_settings(settings, backbone_digest(backbone))
    if settings.adapter is not None and "gate" not in backbone.adapters:
        backbone.add_adapter("gate", settings.adapter)
    if not backbone.has_gate:
        backbone.add_gate()
    draw = context_source(settings.questions, backbone, settings.run.seed)
    train_examples, held_out = make_examples(settings, backbone, draw, made_of["start"], keep=trainer.main)
    return trainer.run(GateStage(settings, backbone, train_examples, held_out), made_of)


def make_examples(
    settings: GateTraining, backbone: Backbone, draw: ContextSource, start: str | None = None, *, keep: bool = True
) -> tuple[list[GateContext], list[GateContext]]:
    """Training examples, and held-out ones; read from the run's folder if they are there.

    Args:
        settings: Settings of the stage.
        backbone: Makes the rollouts.
        draw: Returns contexts by number.
        start: The digest of its weights.
        keep: Write them to the run's folder.

    Raises:
        ValueError: The file in the run's folder is broken, or was made with other settings or weights.
    """
    file, chosen = settings.run.out / ROLLOUTS, decisive_settings(settings, start)
    made_of = {name: chosen[name] for name in ROLLED_OUT_BY} | {"held": settings.held, "seed": settings.run.seed}
    if file.exists():
        made = gate_examples.read(file, made_of)
    else:
        prompts = settings.prompts or LatentPrompts.from_backbone(backbone)
        rollouts = Rollouts(backbone, settings.rollouts, prompts, settings.ratio or backbone.memory.ratio)
        numbers = [(n, False) for n in range(settings.contexts)]
        numbers += [(HELD_OUT_START + n, True) for n in range(2 * settings.held)]
        made = []
        for at in range(0, len(numbers), settings.at_once):
            part = numbers[at : at + settings.at_once]
            seeds = [drawn_seeds(settings.run.seed, n, settings.rollouts.group) for n, _ in part]
            made += gate_examples.collect(rollouts, [draw(n, held_out) for n, held_out in part], seeds)
        backbone.free_caches()
        if keep:
            gate_examples.write(file, made, made_of)
    if len(made) != settings.contexts + 2 * settings.held:
        raise ValueError(f"{file} has {len(made)} questions, not those of these settings; remove it")
    return made[: settings.contexts], made[settings.contexts :]


class GateStage:
    """Stage 3 in the interface of the trainer.

    Args:
        settings: Settings of the stage.
        backbone: With an adapter and a head for the gate.
        train_examples: Training examples.
        held_out: Examples to calibrate and measure on, half for each.
    """

    name = "gate"

    def __init__(
        self,
        settings: GateTraining,
        backbone: Backbone,
        train_examples: Sequence[GateContext],
        held_out: Sequence[GateContext],
    ) -> None:
        self.backbone = backbone
        self.state: dict[str, float] = {}
        self.weights = {"gate": 1.0}
        self._settings = settings
        self._rows = [(context, state) for context in train_examples for state in context.states]
        self._held_out = held_out
        self._ratio = settings.ratio or backbone.memory.ratio
        self._prompt = gate_prompt(backbone)
        self._scale = (1.0, 0.0)
        self._numbers: dict[tuple[int, ...], int] = {}
        weight = backbone.decoder.embed_tokens.weight
        self._resident = KVCache(weight.device, weight.dtype)

    def parameters(self) -> dict[str, Parameter]:
        """The trained parameters."""
        return self.backbone.parameters("gate")

    def batch(self, step: int, rows: range) -> Pairs:
        """Working memories by number, in a different order in each epoch."""
        pairs = []
        for number in rows:
            turn, place = divmod(number, len(self._rows))
            order = np.random.default_rng((self._settings.run.seed, turn)).permutation(len(self._rows))
            context, state = self._rows[order[place]]
            pairs += self._beside(context, state, number)
        return self._paired(pairs)

    def losses(self, batch: Pairs) -> dict[str, Tensor]:
        """Binary cross-entropy, with a higher weight for blocks that help."""
        logits = self._logits(batch).float()
        weight = torch.tensor(self._settings.pos_weight, device=logits.device)
        return {"gate": binary_cross_entropy_with_logits(logits, batch.labels, pos_weight=weight, reduction="sum")}

    def after(self, figures: Mapping[str, float]) -> bool:
        """Does nothing, since no batch depends on the trained weights."""
        return False

    def measure(self, step: int) -> dict[str, float]:
        """Calibrates on one half of the held-out questions and measures on the other."""
        half = len(self._held_out) // 2
        logits, labels = self._scored(self._held_out[:half])
        self._scale = platt(logits, labels)
        chances = torch.sigmoid(self._scale[0] * logits + self._scale[1])
        self.backbone.threshold = threshold_for(chances, labels, self._settings.recall)
        logits, labels = self._scored(self._held_out[half:])
        chances = torch.sigmoid(self._scale[0] * logits + self._scale[1])
        passed = chances >= self.backbone.threshold
        return {
            "held_auc": auc(logits, labels),
            "held_calibration_error": calibration_error(chances.numpy(), labels.numpy()),
            "held_recall": float(passed[labels.bool()].double().mean()) if labels.any() else 1.0,
            "held_let_through": float(passed.double().mean()),
            "held_helping": float(labels.mean()),
            "threshold": self.backbone.threshold,
        }

    def save(self, folder: Path) -> None:
        """Save the backbone with the last calibration folded into its head: a (w h + b) + c is a linear head again."""
        head = self.backbone.decoder.gate_head
        assert head is not None, "the stage needs a gate head"
        slope, bias = self._scale
        with torch.no_grad():
            head.weight.mul_(slope)
            head.bias.mul_(slope).add_(bias)
        self._scale = (1.0, 0.0)
        save_added(self.backbone, self.parameters(), folder)
        (self._settings.prompts or LatentPrompts.from_backbone(self.backbone)).write(folder)

    def _beside(self, context: GateContext, state: GateState, number: int) -> list[tuple[GateContext, GateState, int]]:
        """The blocks that help, and as many others as fit."""
        rng = np.random.default_rng((self._settings.run.seed, number, 3))
        helping = [n for n, helps in enumerate(state.labels) if helps]
        others = [n for n, helps in enumerate(state.labels) if not helps]
        rng.shuffle(helping)
        rng.shuffle(others)
        picked = helping[: self._settings.blocks]
        picked += others[: self._settings.blocks - len(picked)]
        return [(context, state, n) for n in picked]

    def _paired(self, pairs: Sequence[tuple[GateContext, GateState, int]]) -> Pairs:
        chunks = list(dict.fromkeys(context.chunks[n] for context, _, n in pairs))
        new = sum(len(chunk) for chunk in chunks if chunk not in self._numbers)
        states = dict(zip(chunks, self._compressed(chunks), strict=True))
        # A working memory has several blocks, and is tokenised once.
        turns = [(context.question, state.memory) for context, state, _ in pairs]
        halves = {turn: self._asked(*turn) for turn in dict.fromkeys(turns)}
        tokens = new + sum(len(asked) for asked, _ in halves.values()) + sum(len(halves[turn][1]) for turn in turns)
        return Pairs(
            prompts=[halves[turn][0] for turn in turns],
            blocks=[[states[context.chunks[n]]] for context, _, n in pairs],
            labels=torch.tensor([float(state.labels[n]) for _, state, n in pairs], device=self.backbone.device),
            counts={"gate": float(len(pairs))},
            tokens=tokens,
        )

    def _compressed(self, chunks: Sequence[tuple[int, ...]]) -> list[KVStates]:
        """The memory of these chunks; the compressor is frozen, so recent ones are cached."""
        named = {self._numbers.setdefault(chunk, len(self._numbers)): chunk for chunk in chunks}

        def make(numbers: Sequence[int]) -> list[KVStates]:
            with torch.no_grad(), precision(self.backbone):
                return self.backbone.compress([named[n] for n in numbers], ratio=self._ratio)

        return self._resident.get(list(named), make)

    def _asked(self, question: str, memory: str) -> tuple[list[int], list[int]]:
        encode = self.backbone.encode
        notes = NO_NOTES if self._settings.blind or not memory else memory
        return self._prompt.around("block", question=encode(question), memory=encode(notes))

    def _logits(self, pairs: Pairs) -> Tensor:
        _, probe = self._prompt.around("block", question=[], memory=[])
        return self.backbone.score(pairs.prompts, pairs.blocks, probe)

    def _scored(self, contexts: Sequence[GateContext]) -> tuple[Tensor, Tensor]:
        """Logits and labels of every block with every working memory of these questions."""
        logits, labels = [torch.empty(0)], [torch.empty(0)]
        with torch.no_grad(), precision(self.backbone):
            for context in contexts:
                pairs = self._paired([(context, s, n) for s in context.states for n in range(len(context.chunks))])
                logits.append(self._logits(pairs).float().cpu())
                labels.append(pairs.labels.cpu())
        return torch.cat(logits), torch.cat(labels)
