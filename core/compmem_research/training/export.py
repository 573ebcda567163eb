"""The last phase: exports the trained backbone, with a report from the training logs."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from compmem.backbone import Backbone
from compmem.errors import CheckpointError
from compmem.readers import LatentPrompts
from compmem_research.training.engine.log import read_log

REPORT = "training.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Settings of an export."""

    start: Path
    """Folder of the backbone."""
    out: Path
    """Folder for the export."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    logs: tuple[Path, ...] = ()
    """Folders of the runs, in order."""
    most_bytes: int = 38_000_000
    """Most bytes of all files together."""


def train(settings: Export) -> dict[str, Any]:
    """Write the backbone with its prompts and a report of its training; returns the report.

    Raises:
        CheckpointError: It cannot be loaded or written, or is too large.
    """
    backbone = Backbone.load(settings.start, device="cpu", dtype=settings.dtype)
    prompts = LatentPrompts.from_backbone(backbone)
    try:
        backbone.save(settings.out)
        prompts.write(settings.out)
        report = {
            "parameters": sum(p.numel() for p in backbone.decoder.parameters()),
            "dtype": settings.dtype,
            "fingerprint": backbone.fingerprint(),
            "runs": [summary(folder) for folder in settings.logs],
        }
        (settings.out / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{str(settings.out)!r} cannot be written: {error}") from error
    size = sum(file.stat().st_size for file in settings.out.iterdir())
    if size > settings.most_bytes:
        raise CheckpointError(f"{str(settings.out)!r} has {size} bytes, but only {settings.most_bytes} are allowed")
    return {**report, "bytes": size}


def summary(folder: Path) -> dict[str, Any]:
    """A summary of a run's log: stage, device, steps, seconds, throughput, the last held-out metrics."""
    lines = read_log(folder)
    if not lines:
        raise CheckpointError(f"{str(folder)!r} has no log of a run")
    heads, told = [n for n in lines if "stage" in n], [n for n in lines if "tokens_per_second" in n]
    rates = sorted(line["tokens_per_second"] for line in told)
    shares = sorted(line["ceiling_share"] for line in told)
    last = lines[-1]
    return {
        "stage": heads[0]["stage"],
        "device": heads[0]["device"],
        "processes": heads[0]["processes"],
        "steps": last["step"],
        "seconds": told[-1]["seconds"] if told else 0.0,
        "tokens_per_second": rates[len(rates) // 2] if rates else 0,
        "ceiling_share": shares[len(shares) // 2] if shares else 0.0,
        "held_out": {k: v for k, v in last.items() if k != "step"},
    }
