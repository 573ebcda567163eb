"""Seconds, bytes and growth of four ways to answer from a long document, with one backbone and one engine.

CompMem, MemAgent's loop (2507.02259), the loop without a gate, and the whole document in the context. All have the same
backbone, dtype, document, tokens per step, and decoded tokens per step and answer. Weights may be random, since the
measurements do not depend on the text. The question's vector is random, and the gate's head is untrained if the
checkpoint has none; both cost the same as real ones, except for the encoder's milliseconds.

It needs only torch, transformers, safetensors and numpy, so it runs on a bare GPU machine:
`python -m compmem_research.bench.speed --shape qwen2.5-7b --device cuda --out speed_gpu.json --minutes 7.5`; repeat it
until it says that nothing is left.
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from compmem.backbone import Backbone
from compmem_research.bench.shapes import SHAPES, random_backbone
from compmem_research.bench.speed_cells import Cell, Planned, SpeedModels, plan
from compmem_research.bench.speed_report import report, table
from compmem_research.bench.timing_config import SpeedSettings
from compmem_research.resume import read_progress, write_whole

LENGTHS = {"7K": 7_000, "28K": 28_000, "112K": 112_000, "448K": 448_000, "1.75M": 1_750_000}


def run(
    models: SpeedModels, planned: Sequence[Planned], cells: dict[str, Cell], keep: Callable[[], None], *, until: float
) -> None:
    """Measure missing cells, storing each, and begin none that may end too late.

    Args:
        models: The backbone and the rules.
        planned: All cells.
        cells: Measured cells, which are updated.
        keep: Called after each.
        until: Deadline on the monotonic clock. The first cell is always measured.
    """
    left = [one for one in planned if one.name not in cells]
    for one in left:
        began = time.monotonic()
        if one is not left[0] and began + _expected(one, planned, cells) > until:
            return
        models.backbone.free_caches()
        try:
            with torch.inference_mode():
                cell = one.work()
        except (MemoryError, torch.OutOfMemoryError, ValueError, OSError, SafetensorError) as error:
            cell = {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
        cells[one.name] = {**cell, "took": time.monotonic() - began}
        keep()
        sys.stderr.write(f"{one.name}: {cells[one.name]['took']:.0f} s\n")


def _expected(one: Planned, planned: Sequence[Planned], cells: Mapping[str, Cell]) -> float:
    """Estimated seconds of a cell: scaled from the last shorter document; else the largest so far."""
    alike = [p for p in planned if p.kind == one.kind and p.name in cells and 0 < p.tokens < one.tokens]
    if not alike:
        return max((float(cell["took"]) for cell in cells.values()), default=0.0)
    last = max(alike, key=lambda p: p.tokens)
    times = one.tokens / last.tokens
    return float(cells[last.name]["took"]) * (times**2 if one.kind == "full" else times)


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser("compmem bench speed", description=__doc__.split("\n\n")[0])
    made.add_argument("--model", help="folder or name of a causal LM, in place of a shape")
    made.add_argument("--shape", choices=sorted(SHAPES), default="tiny-8x256", help="random weights of this shape")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), help="default: float32 on a CPU, else bfloat16")
    made.add_argument("--lengths", default=",".join(LENGTHS), help="of the document, by comma")
    made.add_argument("--full-until", type=int, help="longest document read as a whole; default 28000, GPU 448000")
    made.add_argument(
        "--out", type=Path, default=Path("speed.json"), help="result; what it holds is not measured again"
    )
    made.add_argument(
        "--minutes", type=float, default=600.0, help="begin no cell that may end later; run again to go on"
    )
    made.add_argument("--fresh", action="store_true", help="forget the cells that are finished")
    made.add_argument("--json", action="store_true", help="print JSON")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, write the result, print the table; returns 0 even if cells are left for the next call."""
    began, given = time.monotonic(), parser().parse_args(arguments)
    names = [name.strip() for name in given.lengths.split(",")]
    if unknown := [name for name in names if name not in LENGTHS]:
        raise SystemExit(f"--lengths {unknown[0]!r}: the lengths are {', '.join(LENGTHS)}")
    lengths = {name: LENGTHS[name] for name in names}
    on_gpu = torch.device(given.device).type == "cuda"
    dtype = given.dtype or ("bfloat16" if on_gpu else "float32")
    rules = SpeedSettings()
    if given.model:
        backbone = Backbone.load(given.model, device=given.device, dtype=dtype)
    else:
        backbone = random_backbone(given.shape, device=given.device, dtype=dtype, ratio=rules.ratio)
    if not backbone.has_gate:
        backbone.add_gate()
    full = given.full_until if given.full_until is not None else (448_000 if on_gpu else 28_000)
    models = SpeedModels(backbone, rules)
    parameters = sum(p.numel() for p in backbone.model.parameters())
    about = {
        "backbone": Path(given.model).name if given.model else given.shape, "parameters": parameters,
        "compressor": "memory tokens" if backbone.memory.trained else "training-free", "device": given.device,
        "dtype": dtype,
    }  # fmt: skip
    planned = plan(models, lengths, full)
    cells: dict[str, Cell] = {} if given.fresh else _measured(given.out, {**about, "rules": asdict(rules)})

    def made() -> dict[str, Any]:
        left = [one.name for one in planned if one.name not in cells]
        return report(cells, about, rules, lengths, left)

    run(models, planned, cells, lambda: _keep(given.out, made()), until=began + 60 * given.minutes)
    result = made()
    _keep(given.out, result)
    sys.stdout.write((json.dumps(result, indent=1) if given.json else "\n".join(table(result))) + "\n")
    for name in itertools.islice(result["left"], 8):
        sys.stderr.write(f"left: {name}\n")
    return 0


def _measured(file: Path, about: Mapping[str, Any]) -> dict[str, Cell]:
    """The cells of an earlier call with the same backbone, device and rules."""

    def read(found: Any) -> tuple[dict[str, Any], dict[str, Cell]]:
        return {name: found.get(name) for name in about}, found.get("cells", {})

    try:
        return read_progress(file, about, read) or {}
    except ValueError as error:
        raise SystemExit(f"{error}, or give --fresh") from error


def _keep(file: Path, result: Mapping[str, Any]) -> None:
    write_whole(file, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
