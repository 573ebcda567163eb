"""The last phase: exports the trained backbone, with a report from the training logs.

Of a backbone whose stock model was not trained, only what was added is written, with a card; the stock model is the
user's own.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from compmem.backbone import Backbone
from compmem.errors import CheckpointError
from compmem.readers import LatentPrompts
from compmem_research.training.engine.log import read_log

REPORT, CARD = "training.json", "README.md"


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """Settings of an export."""

    start: Path
    """Folder of the backbone."""
    out: Path
    """Folder for the export."""
    base: str | None = None
    """What the settings and the card call the stock model. None: the name that it was loaded by, without folders."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    logs: tuple[Path, ...] = ()
    """Folders of the runs, in order."""
    data: str = ""
    """What it was trained on, with licences, for the card."""
    most_bytes: int = 38_000_000
    """Most bytes of all files together."""


def train(settings: Export) -> dict[str, Any]:
    """Write the backbone with its prompts and a report of its training; returns the report.

    Raises:
        CheckpointError: It cannot be loaded or written, or is too large.
    """
    whole = (settings.start / "config.json").exists()
    backbone = Backbone.load(settings.start, device="cpu", dtype=settings.dtype if whole else "float32")
    prompts, base = LatentPrompts.from_backbone(backbone), backbone.base
    try:
        named = base and (settings.base or (Path(base).name if Path(base).is_absolute() else base))
        backbone.save(settings.out, base=named, dtype=getattr(torch, settings.dtype))
        prompts.write(settings.out)
        folder = settings.out.absolute()  # a relative one may have the name of what ships
        written = Backbone.load(folder, device="cpu", dtype=settings.dtype if whole else "float32", base=base)
        parameters = written.decoder.added() if base else dict(written.decoder.named_parameters())
        report = {
            "parameters": sum(p.numel() for p in parameters.values()),
            "dtype": settings.dtype,
            "fingerprint": written.fingerprint(),
            "runs": [summary(folder) for folder in settings.logs],
        }
        if named:
            (settings.out / CARD).write_text(
                card(settings.out.name, named, written, report, settings.data), encoding="utf-8"
            )
        (settings.out / REPORT).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"{str(settings.out)!r} cannot be written: {error}") from error
    size = sum(file.stat().st_size for file in settings.out.iterdir())
    if size > settings.most_bytes:
        raise CheckpointError(f"{str(settings.out)!r} has {size} bytes, but only {settings.most_bytes} are allowed")
    return {**report, "bytes": size}


def card(name: str, base: str, backbone: Backbone, report: Mapping[str, Any], data: str) -> str:
    """The model card of what was added to a stock model, in Markdown; `data` describes what it was trained on."""
    memory = backbone.memory
    adapters = ", ".join(f"{role} (rank {config.rank})" for role, config in backbone.adapters.items())
    runs = "".join(
        f"| {run['stage']} | {run['steps']} | {run['seconds'] / 60:.0f} | {run['device']} |\n" for run in report["runs"]
    )
    return f"""\
# Compressed memory for {base}

Low-rank adapters that compress passages into KV states and read them, for `compmem`. The stock model is not included:
get it yourself, under its own licence. Another quantisation of it is taken with a warning, another model refused.

```python
from compmem.backbone import Backbone

backbone = Backbone.load("{name}", base="{base}")   # a name, folder or .gguf file
```

In an index: `IndexConfig(memory="kv", backbone="{name}")`, and `RuntimeConfig(backbone_base=...)` or
`--backbone-base` where the base is not at the place that `{name}/compmem.json` names.

| | |
| --- | --- |
| added parameters | {report["parameters"]:,}, {report["dtype"]} |
| adapters | {adapters or "none"} |
| states of a chunk | {memory.states} ({memory.pruning}), one for every {memory.ratio} tokens |
| gate | {"trained" if backbone.has_gate else "none"} |
| fingerprint | {report["fingerprint"]} |

| stage | steps | minutes | device |
| --- | ---: | ---: | --- |
{runs}
The last held-out measurements of each stage are in `{REPORT}`.

{data}
"""


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
