"""Model folders: a stock pretrained model, the public LycheeMemory format, and our own, which adds two files.

`compmem.json` contains the memory and adapter settings, `compmem.safetensors` the added parameters. If the folder has
no stock model, `base` in `compmem.json` names it, and `base_fingerprint` and a sample of its weights say which it must
be.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compmem.backbone.config import AdapterConfig, MemoryConfig, Projection, Role
from compmem.backbone.decoder import Decoder
from compmem.backbone.fingerprint import base_fingerprint, base_sample, sample_similarity
from compmem.backbone.stock import (
    check_family,
    dtype_for,
    find_model,
    load_model,
    load_tokenizer,
    read_config,
    read_json,
    silence_transformers,
    weights_size,
)
from compmem.errors import CheckpointError
from compmem.naming import SHIPPED_BACKBONES, absolute_path, is_safe_name

log = logging.getLogger(__name__)

SETTINGS_FILE, WEIGHTS_FILE, FORMAT = "compmem.json", "compmem.safetensors", 1
SAMPLE = "base_sample"
"""Name of the tensor with values of the stock model, beside the parameters that were added to it."""
IMPORTANCE = "importance"
"""Name of the tensor that predicts the importance of KV states, if there is one."""
MIN_SIMILARITY = 0.98
"""Minimum similarity of a stock model to the one that the added parameters were trained on; 4-bit weights have 0.99."""

_LYCHEE_SUPPORTED = {
    "attn": "full-coverage", "pos": "interleave", "sink_size": 0, "attend_prev": True, "parallel_window": 1,
}  # fmt: skip
"""Settings of the public format that affect the computation, with the only supported value of each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BackboneComponents:
    """What a backbone consists of."""

    model: Any
    tokenizer: Any
    decoder: Decoder
    memory: MemoryConfig
    adapters: Mapping[Role, AdapterConfig]
    threshold: float = 0.5
    """Blocks with a lower gate score are rejected."""
    steps_trained: bool = False
    """Whether the reader was trained for the steps of the loop."""
    base: str | None = None
    """Name, folder or file of the stock model, if it is not in the same folder as what is added to it."""
    folder: Path | None = None
    """Folder of what was loaded; None for a file, or a model that was loaded elsewhere."""


def load(
    name: str | Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    ratio: int | None,
    allow_download: bool | None = None,
    base: str | Path | None = None,
) -> BackboneComponents:
    """Load a model with its memory.

    With `allow_download=None`, the model of that name may be downloaded, but not another one that its folder names.
    `base` replaces the stock model that the folder names; its weights must be the same.

    Raises:
        CheckpointError: The folder is incomplete, contains a model that is not supported, or was trained on another
            stock model.
    """
    place = find_model(name, fetch=allow_download is not False)
    settings = read_json(place / SETTINGS_FILE) if (place / SETTINGS_FILE).exists() else {}
    has_stock_model = _has_stock_model(place)
    if base is None and not has_stock_model:
        base = _base(settings, place)
        # The name in a folder of the library's own is as good as one that the caller passes.
        fetch = allow_download is not False if str(name) in SHIPPED_BACKBONES else bool(allow_download)
        try:
            stock = find_model(base, fetch=fetch)
        except CheckpointError as error:
            raise CheckpointError(
                f"{str(name)!r} needs its stock model, which RuntimeConfig(backbone_base=...) or --backbone-base may "
                f"name: {error}"
            ) from error
    else:
        stock = place if base is None else find_model(base, fetch=allow_download is not False)
    config = read_config(stock)
    check_family(config, str(stock))
    dtype = dtype or dtype_for(stock, config, device)
    # The fingerprint is not the same in float16.
    model = load_model(stock, config, torch.float32 if dtype == torch.float16 and settings.get("base") else dtype)
    decoder = Decoder(model)
    _check_base(decoder, settings, place, str(stock))
    model.to(device=device, dtype=dtype)
    adapters: dict[Role, AdapterConfig] = {}
    threshold, steps_trained = 0.5, False
    if settings:
        memory, adapters = _restore(decoder, settings, place)
        steps_trained = _steps_trained(settings, place, memory)
        threshold = _threshold(settings, place)
    elif any(key.startswith("lychee_memory_") for key in config):
        memory, steps_trained = _restore_lychee(decoder, config, place, ratio), True
    else:
        memory = MemoryConfig(trained=False, own=())
    if ratio is not None and ratio != memory.ratio:
        memory = replace(memory, ratio=ratio)
    decoder.to(device=device, dtype=model.dtype).eval()
    if memory.pruning == "kvzap":
        _restore_importance(decoder, place)
    return BackboneComponents(
        model=model, tokenizer=load_tokenizer(stock), decoder=decoder, memory=memory, adapters=adapters,
        threshold=threshold, steps_trained=steps_trained,
        base=absolute_path(str(base or name)) if not has_stock_model or not settings else None,
        folder=place if place.is_dir() else None,
    )  # fmt: skip


def save(
    folder: Path, components: BackboneComponents, *, base: str | None = None, dtype: torch.dtype | None = None
) -> None:
    """Write a backbone; with `base`, only what is added to that model, in this dtype.

    Weights that predict importance are not rounded: their products add up to small differences.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if base is None:
        with silence_transformers():
            components.model.save_pretrained(folder)
            components.tokenizer.save_pretrained(folder)
    added = {
        name: tensor.detach().to("cpu", None if name == IMPORTANCE else dtype).contiguous()
        for name, tensor in components.decoder.added().items()
    }
    if base is not None:
        added[SAMPLE] = base_sample(components.decoder).to(dtype)
    save_file(added, folder / WEIGHTS_FILE, metadata={"format": f"compmem/{FORMAT}"})
    settings = {
        "format": FORMAT,
        "base": base,
        "base_fingerprint": None if base is None else base_fingerprint(components.decoder),
        "memory": asdict(components.memory),
        "adapters": {role: asdict(config) for role, config in components.adapters.items()},
        "gate": components.decoder.gate_head is not None,
        "threshold": components.threshold,
        "steps_trained": components.steps_trained,
    }
    # Written last, so a folder with settings always has weights.
    (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def size_on_disk(name: str | Path) -> int | None:
    """Bytes of a model's weights, those of its stock model included; None if not all are on this machine."""
    try:
        place = find_model(name, fetch=False)
        parts = [place]
        if not _has_stock_model(place):
            parts.append(find_model(_base(read_json(place / SETTINGS_FILE), place), fetch=False))
    except CheckpointError:
        return None
    return sum(map(weights_size, parts))


def load_added(decoder: Decoder, names: Mapping[str, str], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Load tensors into the added parameters; `names` maps our names to those in the file.

    Raises:
        CheckpointError: A tensor is missing or has another shape.
    """
    if missing := sorted(set(names.values()) - set(tensors)):
        raise CheckpointError(f"{str(folder)!r} lacks {len(missing)} memory weights, such as {missing[0]!r}")
    added = decoder.added()
    for name, stored_name in names.items():
        parameter, tensor = added[name], tensors[stored_name]
        if tensor.shape != parameter.shape:
            raise CheckpointError(
                f"{stored_name!r} in {str(folder)!r} has the shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}"
            )
        parameter.data.copy_(tensor)


def _has_stock_model(place: Path) -> bool:
    """Whether a folder contains a whole model and not only what is added to one; a file always does."""
    return place.is_file() or (place / "config.json").exists()


def _base(settings: Mapping[str, Any], folder: Path) -> str:
    """The model that a checkpoint names; a folder name must be absolute."""
    base = str(_field(settings, "base", folder))
    if not is_safe_name(base):
        raise CheckpointError(f"{str(folder)!r} names the folder {base!r} as its base, which is not an absolute path")
    return base


def _check_base(decoder: Decoder, settings: Mapping[str, Any], folder: Path, stock: str) -> None:
    """Refuse a stock model other than the one that the added parameters were trained on, or another quantisation of it.

    Raises:
        CheckpointError: Its weights are not alike.
    """
    wanted = settings.get("base_fingerprint")
    if wanted is None or wanted == (found := base_fingerprint(decoder)):
        return
    message = f"{str(folder)!r} was trained on {settings.get('base')!r} with the fingerprint {wanted!r}; {stock!r} has "
    sample = _read_tensors([folder / WEIGHTS_FILE], {SAMPLE}).get(SAMPLE)
    similarity = 0.0 if sample is None else sample_similarity(sample.flatten(), base_sample(decoder))
    if not similarity >= MIN_SIMILARITY:  # not a number is not alike either
        raise CheckpointError(f"{message}{found!r}: it is another model")
    log.warning("%s%r and is alike to %.3f, as another quantisation: answers may differ", message, found, similarity)


def _field(settings: Mapping[str, Any], key: str, folder: Path) -> Any:
    if settings.get(key) is None:
        raise CheckpointError(f"{str(folder)!r} contains no model: no config.json, and no {key!r} in {SETTINGS_FILE}")
    return settings[key]


def _restore(
    decoder: Decoder, settings: Mapping[str, Any], folder: Path
) -> tuple[MemoryConfig, dict[Role, AdapterConfig]]:
    """The memory and the adapters that the settings name, added to the decoder with their weights."""
    if settings.get("format") != FORMAT:
        raise CheckpointError(f"{str(folder)!r} has the format {settings.get('format')!r}; supported is {FORMAT}")
    try:
        memory = MemoryConfig(**settings["memory"])
        adapters = {cast("Role", role): AdapterConfig(**values) for role, values in settings["adapters"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{str(folder / SETTINGS_FILE)!r} is invalid: {error}") from error
    if unknown := sorted(set(adapters) - set(get_args(Role))):
        raise CheckpointError(
            f"{str(folder / SETTINGS_FILE)!r} has the roles {unknown!r}; supported are {get_args(Role)!r}"
        )
    if memory.trained:
        decoder.add_memory(memory, 0)
    for role, config in adapters.items():
        decoder.add_adapter(role, config)
    if settings.get("gate"):
        decoder.add_gate()
    names = {name: name for name in decoder.added()}
    load_added(decoder, names, _read_tensors([folder / WEIGHTS_FILE], set(names)), folder)
    return memory, adapters


def _restore_importance(decoder: Decoder, folder: Path) -> None:
    """Weights that predict importance; they are not rounded to the model's dtype.

    Raises:
        CheckpointError: They are missing, have another shape or are not finite.
    """
    found = _read_tensors([folder / WEIGHTS_FILE], {IMPORTANCE})
    if IMPORTANCE not in found:
        raise CheckpointError(f"{str(folder)!r} lacks the weights {IMPORTANCE!r}")
    try:
        decoder.set_importance(found[IMPORTANCE])
    except ValueError as error:
        raise CheckpointError(f"{str(folder / WEIGHTS_FILE)!r}: {error}") from error


def _threshold(settings: Mapping[str, Any], folder: Path) -> float:
    value = settings.get("threshold", 0.5)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise CheckpointError(
            f"{str(folder / SETTINGS_FILE)!r} has the threshold {value!r}; it must be between 0 and 1"
        )
    return float(value)


def _steps_trained(settings: Mapping[str, Any], folder: Path, memory: MemoryConfig) -> bool:
    """Checkpoints without the setting were trained for the steps if their memory is trained."""
    value = settings.get("steps_trained", memory.trained)
    if not isinstance(value, bool):
        raise CheckpointError(f"{str(folder / SETTINGS_FILE)!r} has steps_trained={value!r}; it must be true or false")
    return value


def _restore_lychee(decoder: Decoder, config: Mapping[str, Any], folder: Path, ratio: int | None) -> MemoryConfig:
    for key, value in _LYCHEE_SUPPORTED.items():
        found = config.get(f"lychee_memory_{key}", value)
        if found != value:
            raise CheckpointError(f"{str(folder)!r} has lychee_memory_{key}={found!r}; supported is {value!r}")
    window, ratios = config.get("lychee_memory_window", 1024), config.get("lychee_memory_ratio", [4])
    if config.get("lychee_memory_stride", window) != window:
        raise CheckpointError(f"{str(folder)!r} has a stride that differs from its window of {window}")
    ratios = [ratios] if isinstance(ratios, int) else ratios
    own = tuple(config.get("lychee_memory_param", ()))
    try:
        memory = MemoryConfig(
            ratio=ratio or (4 if 4 in ratios else ratios[0]),
            window=window,
            own=cast("tuple[Projection, ...]", own),
            positions="unrotated",
        )
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{str(folder)!r}: {error}") from error
    decoder.add_memory(memory, 0)
    names = {"memory_embedding": "model.lychee_memory_embed_tokens.weight"}
    for name in decoder.added():
        if name.startswith("layers."):
            _, layer, _, projection, kind = name.split(".")
            names[name] = f"model.layers.{layer}.self_attn.lychee_memory_{projection}_proj.{kind}"
    tensors = _read_tensors(sorted(folder.glob("*.safetensors")), set(names.values()))
    load_added(decoder, names, tensors, folder)
    return memory


def _read_tensors(files: list[Path], names: set[str]) -> dict[str, Tensor]:
    """Tensors with these names in the files."""
    tensors = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                tensors.update({name: file.get_tensor(name) for name in names & set(file.keys())})
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from error
    return tensors
