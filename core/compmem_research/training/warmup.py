"""The reasoner's warm-up: step traces with evidence labels, before rewards (the "SFT" of 2602.08382, table 4).

The mixture's `steps` are whole traces of the loop: the structured reply of each step after its block, and the answer
from the notes alone. Other kinds preserve earlier abilities.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compmem.backbone import AdapterConfig, Backbone
from compmem.readers import LatentPrompts, StepPrompts
from compmem_research.digests import backbone_digest
from compmem_research.training.data.mixture import Mixture, MixtureSettings, Trainable
from compmem_research.training.engine.settings import decisive_settings
from compmem_research.training.engine.trainer import RunSettings, Trainer


@dataclass(frozen=True, kw_only=True, slots=True)
class WarmupTraining:
    """Settings of the warm-up.

    Raises:
        ValueError: A value is out of its range.
    """

    start: Path
    """Folder of a backbone with memory tokens, or its name."""
    run: RunSettings
    mixture: MixtureSettings
    train: tuple[Trainable, ...] = ("reasoner",)
    """Trained parameters. "memory" adds the compressor, "base" everything."""
    adapter: AdapterConfig | None = None
    """Adapter of the reasoner, if the backbone has none yet."""
    dtype: str | None = None
    """Dtype of the frozen weights. None: the checkpoint's own."""
    prompts: LatentPrompts | None = None
    """Prompts of a step. None: the checkpoint's own."""

    def __post_init__(self) -> None:
        if not self.train:
            raise ValueError("train=[] leaves nothing to train")


def train(settings: WarmupTraining) -> dict[str, Any]:
    """Train the reasoner on traces; returns the last metrics.

    Raises:
        CheckpointError: The backbone cannot be loaded, or a checkpoint not be read or written.
        ValueError: There is nothing to train, or a data file is broken.
    """
    trainer = Trainer(settings.run)
    # A new adapter has random weights.
    torch.manual_seed(settings.run.seed)
    backbone = Backbone.load(settings.start, device=trainer.device, dtype=settings.dtype)
    made_of = decisive_settings(settings, backbone_digest(backbone))
    if settings.adapter is not None and "reasoner" not in backbone.adapters:
        backbone.add_adapter("reasoner", settings.adapter)
    trained = {name: p for part in settings.train for name, p in backbone.parameters(part).items()}
    if not trained:
        raise ValueError(
            f"train={list(settings.train)!r}: the backbone has nothing of it; give the reasoner an adapter"
        )
    steps = StepPrompts(backbone, settings.prompts or LatentPrompts.from_backbone(backbone))
    stage = Mixture("warmup", backbone, trained, settings.mixture, steps=steps, seed=settings.run.seed)
    return trainer.run(stage, made_of)
