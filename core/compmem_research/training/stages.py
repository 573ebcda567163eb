"""The stages by name: module and settings of each. Imports only what the stage itself needs."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from compmem_research.training.engine.settings import read_settings

STAGES = {
    "text": ("text", "TextPreparation"),
    "lm": ("lm", "LMTraining"),
    "compressor": ("compressor", "CompressorTraining"),
    "importance": ("importance", "ImportanceTraining"),
    "warmup": ("warmup", "WarmupTraining"),
    "rl": ("rl", "RLTraining"),
    "gate": ("gate", "GateTraining"),
    "evaluate": ("evaluate", "Evaluation"),
    "export": ("export", "Export"),
    "dense-gate": ("dense_gate", "DenseGateTraining"),
}
"""Module and settings of each stage; a module's `train` takes the settings and returns its metrics."""


def load_stage(name: str) -> tuple[type[Any], Callable[[Any], dict[str, Any]]]:
    """A stage's type of settings, and the function that runs it and returns its metrics.

    Raises:
        ValueError: There is no such stage.
    """
    if name not in STAGES:
        raise ValueError(f"no stage is called {name!r}; there are {', '.join(STAGES)}")
    place, settings = STAGES[name]
    module = import_module(f"compmem_research.training.{place}")
    return getattr(module, settings), module.train


def run_stage(name: str, config: Path) -> dict[str, Any]:
    """Run one stage with the settings in a file; returns its metrics.

    Raises:
        ValueError: There is no such stage, or the settings are wrong.
        CheckpointError: A checkpoint cannot be read or written.
    """
    kind, train = load_stage(name)
    return train(read_settings(config, kind))
