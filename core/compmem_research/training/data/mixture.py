"""Common part of the supervised stages: rows from a mixture of kinds with a curriculum."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import Parameter

from compmem.backbone import Backbone
from compmem.readers import StepPrompts
from compmem_research.training.data.components import (
    Component,
    FactRows,
    Maker,
    TaskPrompts,
    Turns,
    continued_rows,
    created_rows,
    rebuilt_rows,
    singlehop_rows,
    step_rows,
    text_rows,
)
from compmem_research.training.data.examples import Example, Rows, figures_of, row_losses, written_exactly
from compmem_research.training.data.multihop import MultihopRows
from compmem_research.training.data.packed import PackedText
from compmem_research.training.engine.device import precision
from compmem_research.training.engine.stage import HELD_OUT_START, save_added

Trainable = Literal["base", "memory", "reasoner"]
"""Parts of the backbone that a supervised stage may train."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureSettings:
    """Data settings of a supervised stage.

    Raises:
        ValueError: A value is out of its range.
    """

    components: tuple[Component, ...]
    data: Path | None = None
    """Folder of packed text (`compmem train text`); needed for plain text. Without it, random tokens surround facts."""
    ratios: tuple[int, ...] = (4,)
    """Compression ratios; each step samples one."""
    prompts: TaskPrompts = field(default_factory=TaskPrompts)
    distill: float = 0.0
    """Share of the loss behind memory that compares with the same model behind the text; the rest is cross-entropy."""
    held: int = 2
    """Samples of each kind in one measurement."""

    def __post_init__(self) -> None:
        if not self.components:
            raise ValueError("a mixture needs components")
        if not 0 <= self.distill <= 1:
            raise ValueError(f"distill={self.distill!r} must be in [0, 1]")
        parts = [c.part for c in self.components]
        if len(set(parts)) != len(parts):
            raise ValueError(f"two components have the name {max(parts, key=parts.count)!r}: give one a 'part'")
        if not self.ratios or min(self.ratios) < 1:
            raise ValueError(f"ratios={self.ratios!r} must be at least 1")
        if self.data is None and any(c.kind in ("text", "rebuild", "continue", "create") for c in self.components):
            raise ValueError("plain text needs 'data', a folder made with `compmem train text`")


class Mixture:
    """A stage over a mixture, in the interface of the trainer.

    Args:
        name: Name of the stage.
        backbone: The backbone to train.
        trained: The trained parameters.
        settings: The mixture.
        steps: Prompts for a step of the loop.
        seed: Seed of all sampling.
        finish: Completes rows whose replies the model itself writes.
    """

    def __init__(
        self,
        name: str,
        backbone: Backbone,
        trained: Mapping[str, Parameter],
        settings: MixtureSettings,
        *,
        steps: StepPrompts,
        seed: int,
        finish: Callable[[Sequence[Example]], list[Example]] = list,
    ) -> None:
        self.name = name
        backbone.steps_trained |= any(component.kind == "steps" for component in settings.components)
        self.backbone = backbone
        self.state: dict[str, float] = {}
        self._trained = dict(trained)
        self._settings = settings
        self._seed = seed
        self._finish = finish
        text = PackedText(settings.data, len(backbone.tokenizer)) if settings.data else None
        turns = Turns(backbone, settings.prompts)
        self._steps = steps
        self._makers = [_maker(c, turns, text, steps) for c in settings.components]
        shares = np.array([c.share for c in settings.components])
        self._shares = shares / shares.sum()
        self.weights = _weights(settings.components)

    def parameters(self) -> dict[str, Parameter]:
        """The trained parameters."""
        return self._trained

    def batch(self, step: int, rows: range) -> Rows:
        """The rows with these numbers."""
        drawn = [example for number in rows for example in self._draw(number)]
        return Rows.of(self._finish(drawn), self._ratio(step))

    def losses(self, batch: Rows) -> dict[str, Tensor]:
        """The parts of the loss and their metrics."""
        return row_losses(self.backbone, batch, role="reasoner", distill=self._settings.distill)

    def after(self, figures: Mapping[str, float]) -> bool:
        """Start the next level of each kind that is learned well enough; True if any did."""
        grown = False
        for component in self._settings.components:
            figure = figures.get(f"{component.grow_by}_{component.parts[0]}")
            if figure is None or self._level(component) == component.levels - 1:
                continue
            name = f"learned/{component.part}"
            self.state[name] = self.state.get(name, 0.0) + 1.0 if figure > component.grow_at else 0.0
            if self.state[name] == component.grow_over:
                self.state |= {f"level/{component.part}": self._level(component) + 1.0, name: 0.0}
                grown = True
        return grown

    def measure(self, step: int) -> dict[str, float]:
        """Loss of held-out rows, exact match of their last replies with greedy decoding, and the current levels."""
        figures: dict[str, float] = {}
        for component, make in zip(self._settings.components, self._makers, strict=True):
            level = self._level(component)
            rows = [
                row for number in range(self._settings.held)
                for row in make(
                    np.random.default_rng((self._seed, HELD_OUT_START + number)), *component.at(level), True
                )
            ]  # fmt: skip
            if component.levels > 1:
                figures[f"level_{component.part}"] = float(level)
            finished = self._finish(rows)
            figures |= self._held_losses(finished)
            if component.kind in ("text", "continue"):
                continue
            for part in sorted({row.part for row in rows}):
                own = [row for row in finished if row.part == part]
                exact = written_exactly(self.backbone, own, self._settings.ratios[0], role="reasoner")
                figures[f"held_exact_{part}"] = exact
        return figures

    def save(self, folder: Path) -> None:
        """Save the backbone with its training prompts."""
        save_added(self.backbone, self._trained, folder)
        self._steps.prompts.write(folder)

    def _held_losses(self, rows: Sequence[Example]) -> dict[str, float]:
        """Cross entropy a learned token, of each part of held-out rows."""
        batch = Rows.of(rows, self._settings.ratios[0])
        with torch.no_grad(), precision(self.backbone):
            sums = row_losses(self.backbone, batch, role="reasoner")
        return {f"held_loss_{part}": float(sums[part]) / batch.counts[part] for part in sorted({r.part for r in rows})}

    def _draw(self, number: int) -> list[Example]:
        rng = np.random.default_rng((self._seed, number))
        which = int(rng.choice(len(self._makers), p=self._shares))
        component = self._settings.components[which]
        return self._makers[which](rng, *component.at(self._level(component)), False)

    def _level(self, component: Component) -> int:
        return int(self.state.get(f"level/{component.part}", 0))

    def _ratio(self, step: int) -> int:
        return int(np.random.default_rng((self._seed, HELD_OUT_START, step)).choice(self._settings.ratios))


def _maker(component: Component, turns: Turns, text: PackedText | None, steps: StepPrompts) -> Maker:
    match component.kind:
        case "random":
            return rebuilt_rows(component, turns, None)
        case "facts":
            return FactRows(component, turns, text)
        case "singlehop":
            return singlehop_rows(component, turns)
        case "multihop":
            assert component.file is not None, "the settings were checked"
            return MultihopRows(component.part, component.file, steps, tokens=component.tokens, raw=component.raw)
        case "steps":
            return step_rows(component, steps, text)
    assert text is not None, "the settings were checked"
    match component.kind:
        case "text":
            return text_rows(component, text)
        case "rebuild":
            return rebuilt_rows(component, turns, text)
        case "continue":
            return continued_rows(component, text)
        case "create":
            return created_rows(component, turns, text)


def _weights(components: Sequence[Component]) -> dict[str, float]:
    """The weight of each part, and 0 for metrics that are only logged."""
    weights: dict[str, float] = {}
    for component in components:
        for part in component.parts:
            loss, *told = figures_of(part)
            weights |= {loss: component.weight, **dict.fromkeys(told, 0.0)}
    return weights
