"""Stage 0: a small decoder from scratch, trained on plain text and on the other kinds in the mixture.

With a `memory` table it has memory tokens from the start, and kinds that are read as memory train compression and
copying first: plain text alone does not teach such a small model to copy.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compmem.backbone import MemoryConfig
from compmem.readers import LatentPrompts, StepPrompts
from compmem_research.training.data.mixture import Mixture, MixtureSettings
from compmem_research.training.data.packed import read_tokenizer
from compmem_research.training.engine.settings import decisive_settings
from compmem_research.training.engine.trainer import RunSettings, Trainer
from compmem_research.training.from_scratch import DecoderConfig, untrained_backbone


@dataclass(frozen=True, kw_only=True, slots=True)
class LMTraining:
    """Settings of stage 0."""

    data: Path
    """Folder of tokenizer and packed text (`compmem train text`)."""
    run: RunSettings
    mixture: MixtureSettings
    decoder: DecoderConfig = field(default_factory=DecoderConfig)
    memory: MemoryConfig | None = None
    """Memory tokens. None: they are added in stage 1."""
    prompts: LatentPrompts = field(default_factory=LatentPrompts)
    """Prompts for a step of the loop; saved with the backbone."""


def train(settings: LMTraining) -> dict[str, Any]:
    """Train from random weights; returns the last metrics.

    Raises:
        CheckpointError: There is no tokenizer, or a checkpoint cannot be read or written.
        ValueError: A data file is broken.
    """
    trainer = Trainer(settings.run)
    tokenizer = read_tokenizer(settings.data)
    backbone = untrained_backbone(settings.decoder, tokenizer, seed=settings.run.seed, device=trainer.device)
    if settings.memory is not None:
        backbone.add_memory(settings.memory)
    trained = backbone.parameters("base") | backbone.parameters("memory")
    steps = StepPrompts(backbone, settings.prompts)
    stage = Mixture("lm", backbone, trained, settings.mixture, steps=steps, seed=settings.run.seed)
    return trainer.run(stage, decisive_settings(settings))
