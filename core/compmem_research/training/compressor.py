"""Stage 1: the compressor, L = w1 L_reconstruction + w2 L_questions + w3 L_created (2602.08382, section 4).

What a block must hold is learned through what is read out of it: its own text, answers to questions about it, and what
the model itself makes of the text when it sees it (self-distilled). The weights are those of the mixture's components
`rebuild`, `facts` or `singlehop`, and `create`; the ratio is drawn anew in each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from compmem.backbone import AdapterConfig, Backbone, MemoryConfig
from compmem.readers import LatentPrompts, StepPrompts
from compmem_research.training.data.examples import Example
from compmem_research.training.data.mixture import Mixture, MixtureSettings, Trainable
from compmem_research.training.engine.device import precision
from compmem_research.training.engine.trainer import RunSettings, Trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class CompressorTraining:
    """Settings of stage 1, and of anything that goes on from a backbone with a mixture.

    Raises:
        ValueError: A value is out of its range.
    """

    start: Path
    """Folder of the backbone, or its name."""
    run: RunSettings
    mixture: MixtureSettings
    train: tuple[Trainable, ...] = ("memory",)
    """What changes. "base": the decoding side too, for small backbones; else it is frozen."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """Memory tokens, where the backbone has none yet."""
    adapter: AdapterConfig | None = None
    """Of the memory tokens, where the backbone has none yet (rank 64, alpha 128 in 2602.08382)."""
    dtype: str | None = None
    """Of the weights that are frozen. None: the checkpoint's own."""
    prompts: LatentPrompts | None = None
    """What it is told in a step of the loop. None: the checkpoint's own."""
    created_tokens: int = 256
    """Most tokens that the model writes about a text it sees."""

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("train=[] leaves nothing to train")
        if self.created_tokens < 1:
            raise ValueError(f"created_tokens={self.created_tokens!r} must be at least 1")
        if self.run.workers and self.asks:
            raise ValueError("a mixture with 'create' asks the model for its rows: set workers=0")

    @property
    def asks(self) -> bool:
        """Some rows are written by the model that is trained."""
        return any(component.kind == "create" for component in self.mixture.components)


def train(settings: CompressorTraining) -> dict[str, Any]:
    """Train the memory tokens; gives the last figures.

    Raises:
        CheckpointError: The backbone cannot be loaded, or a checkpoint not be read or written.
        ValueError: A data file is broken.
    """
    trainer = Trainer(settings.run, asks=settings.asks)
    backbone = Backbone.load(settings.start, device=trainer.device, dtype=settings.dtype)
    if not backbone.memory.trained:
        backbone.add_memory(settings.memory)
    if settings.adapter is not None and "memory" not in backbone.adapters:
        backbone.add_adapter("memory", settings.adapter)
    trained = {name: p for part in settings.train for name, p in backbone.parameters(part).items()}
    steps = StepPrompts(backbone, settings.prompts or LatentPrompts.from_backbone(backbone))
    stage = Mixture(
        "compressor", backbone, trained, settings.mixture, steps=steps, seed=settings.run.seed,
        finish=lambda rows: written_by_itself(backbone, rows, settings.created_tokens),
    )  # fmt: skip
    return trainer.run(stage)


def written_by_itself(backbone: Backbone, rows: Sequence[Example], most: int) -> list[Example]:
    """The rows, those without a reply with what the model writes when it sees the chunk uncompressed."""
    open_ = [number for number, row in enumerate(rows) if row.spans[-1][0] == row.spans[-1][1]]
    if not open_:
        return list(rows)
    prompts = [[*(i for block in rows[n].blocks for i in block), *rows[n].ids] for n in open_]
    with torch.no_grad(), precision(backbone):
        written = backbone.generate(prompts, max_new_tokens=most, role=None)
    done = list(rows)
    end = backbone.tokenizer.eos_token_id
    for number, reply in zip(open_, written, strict=True):
        ids = [*rows[number].ids, *reply, end]
        done[number] = replace(rows[number], ids=ids, spans=((len(rows[number].ids), len(ids)),))
    return done
