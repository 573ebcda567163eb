"""Checkpoints of a run: one safetensors file with weights, optimiser state and step, replaced atomically.

No random state is stored: the data of a step depends only on the run's seed and the step's number.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compmem.errors import CheckpointError
from compmem_research.resume import changes, replacing

WEIGHTS, OPTIMIZER = "weights/", "optimizer/"


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The state of a run."""

    stage: str
    settings: Mapping[str, Any]
    """What decides on the weights, by name, as JSON values."""
    step: int
    """Finished steps, which determine the position in the data."""
    seconds: float
    """Training time so far."""
    state: Mapping[str, float]
    """Numbers of the stage itself."""
    weights: Mapping[str, Tensor]
    """The trained parameters by name."""
    optimizer: Mapping[str, Tensor]
    """The optimiser's tensors, by parameter name and tensor name: `norm.weight/exp_avg`."""


def write(file: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in a file; if the process is killed or the disk is full, the old one remains.

    Raises:
        CheckpointError: It cannot be written.
    """
    tensors = {f"{WEIGHTS}{name}": t for name, t in checkpoint.weights.items()}
    tensors |= {f"{OPTIMIZER}{name}": t for name, t in checkpoint.optimizer.items()}
    place = {
        "stage": checkpoint.stage,
        "settings": dict(checkpoint.settings),
        "step": checkpoint.step,
        "seconds": round(checkpoint.seconds, 3),
        "state": dict(checkpoint.state),
    }
    replace(file, tensors, {"compmem": json.dumps(place)})


def replace(file: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically.

    Raises:
        CheckpointError: It cannot be written; the old file remains.
    """
    try:
        with replacing(file) as part:
            save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, part, metadata=metadata)
            with part.open("rb+") as written:
                os.fsync(written.fileno())
    except (OSError, SafetensorError) as error:
        kept = "; the last one is as it was" if file.exists() else ""
        raise CheckpointError(f"{str(file)!r} could not be written: {error}{kept}") from error


def read(file: Path, stage: str, settings: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Checkpoint:
    """The checkpoint in a file, for parameters of these shapes.

    Raises:
        CheckpointError: It cannot be read, or has another stage, other settings or parameters of other shapes.
    """
    try:
        with safe_open(file, "pt") as opened:
            place = json.loads((opened.metadata() or {})["compmem"])
            tensors: dict[str, Tensor] = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        found = Checkpoint(
            stage=place["stage"],
            settings=dict(place.get("settings", {})),
            step=int(place["step"]),
            seconds=float(place["seconds"]),
            state={str(k): float(v) for k, v in place["state"].items()},
            weights={n.removeprefix(WEIGHTS): t for n, t in tensors.items() if n.startswith(WEIGHTS)},
            optimizer={n.removeprefix(OPTIMIZER): t for n, t in tensors.items() if n.startswith(OPTIMIZER)},
        )
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{str(file)!r} is no checkpoint: {error}") from error
    if found.stage != stage:
        raise CheckpointError(f"{str(file)!r} is of the stage {found.stage!r}, not {stage!r}: use another folder")
    check_shapes(file, found.weights, shapes)
    if other := changes(found.settings, settings):
        raise CheckpointError(f"{str(file)!r} was trained with {other}: use another folder")
    return found


def check_shapes(file: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the shapes of tensors with the required ones.

    Raises:
        CheckpointError: A tensor is missing, superfluous, or of another shape; the message names the first.
    """
    here = str(file)
    if missing := sorted(set(shapes) - set(tensors)):
        raise CheckpointError(f"{here!r} lacks {len(missing)} weights, such as {missing[0]!r}")
    if more := sorted(set(tensors) - set(shapes)):
        raise CheckpointError(f"{here!r} has {len(more)} weights too many, such as {more[0]!r}")
    for name, tensor in tensors.items():
        if tuple(tensor.shape) != tuple(shapes[name]):
            raise CheckpointError(f"{name!r} in {here!r} has the shape {tuple(tensor.shape)}, not {shapes[name]}")
