"""A backbone as a few files of limited size, to move it to another machine between two phases.

The weights are split over safetensors files; the small text files (configs, tokenizer, prompts) are in the metadata of
the first one. Nothing else of a phase is moved: no optimiser state, no data.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from compmem.backbone import IMPORTANCE
from compmem.errors import CheckpointError
from compmem_research.training.engine import checkpoints

TEXTS: Final = (".json", ".jinja", ".txt")
"""Suffixes of the small files that belong to a backbone."""
MAX_WEIGHT_FILES: Final = 6


def pack(folder: Path, into: Path, *, name: str, dtype: torch.dtype, limit: int = 15_000_000) -> list[Path]:
    """Write a backbone's folder as files of at most `limit` bytes of weights each; returns them.

    `name` says on every machine which folder it is.

    Weights that predict importance are not rounded: their products add up to small differences.

    Raises:
        CheckpointError: The folder has no backbone, it needs too many files, or one cannot be written.
    """
    try:
        tensors = {
            f"{file.name}/{own}": t.to(dtype) if t.is_floating_point() and own != IMPORTANCE else t
            for file in sorted(folder.glob("*.safetensors"))
            for own, t in load_file(file).items()
        }
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{str(folder)!r} cannot be read: {error}") from error
    if not tensors:
        raise CheckpointError(f"{str(folder)!r} has no weights")
    texts = {file.name: file.read_text(encoding="utf-8") for file in sorted(folder.iterdir()) if file.suffix in TEXTS}
    parts = list(_parts(tensors, limit))
    if len(parts) > MAX_WEIGHT_FILES:
        raise CheckpointError(f"{str(folder)!r} takes {len(parts)} files of {limit} bytes, over {MAX_WEIGHT_FILES}")
    for old in into.glob("weights-*.safetensors"):
        old.unlink()
    files = []
    for number, part in enumerate(parts, 1):
        files.append(into / f"weights-{number}-of-{len(parts)}.safetensors")
        checkpoints.replace(files[-1], part, {"name": name, "texts": json.dumps(texts if number == 1 else {})})
    return files


def unpack(given: Path, folder: Path, *, name: str) -> None:
    """Restore a backbone's folder from the output of `pack`, in float32.

    Raises:
        CheckpointError: A file is missing or broken, or it is another folder than that of this name.
    """
    files = sorted(given.glob("weights-*.safetensors"))
    if not files or not files[0].stem.endswith(f"-of-{len(files)}"):
        raise CheckpointError(f"{str(given)!r} has only {len(files)} files of weights")
    stored: dict[str, dict[str, Tensor]] = {}
    texts: dict[str, str] = {}
    try:
        for file in files:
            with safe_open(file, "pt") as opened:
                told = opened.metadata() or {}
            if (of := told.get("name")) != name:
                raise CheckpointError(f"{str(given)!r} has the weights of {of!r}, not those of {name!r}")
            texts |= {_plain(short, TEXTS): text for short, text in json.loads(told["texts"]).items()}
            for whole, tensor in load_file(file).items():
                into, _, own = whole.partition("/")
                tensor = tensor.float() if tensor.is_floating_point() else tensor
                stored.setdefault(_plain(into, (".safetensors",)), {})[own] = tensor
        folder.mkdir(parents=True, exist_ok=True)
        for short, text in texts.items():
            (folder / short).write_text(text, encoding="utf-8")
        for short, tensors in stored.items():
            save_file(tensors, folder / short, metadata={"format": "pt"})
    except (OSError, SafetensorError, KeyError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{str(given)!r} cannot be unpacked: {error}") from error


def _parts(tensors: Mapping[str, Tensor], limit: int) -> Iterator[dict[str, Tensor]]:
    """The tensors in groups of at most `limit` bytes; a larger tensor is its own group."""
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        own = tensor.numel() * tensor.element_size()
        if part and size + own > limit:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += own
    yield part


def _plain(name: str, suffixes: tuple[str, ...]) -> str:
    """The name of a file in the folder itself; the input is untrusted."""
    if Path(name).name != name or Path(name).suffix not in suffixes:
        raise ValueError(f"{name!r} is not a file of a backbone")
    return name
