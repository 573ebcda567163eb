"""A stock pretrained model: a transformers folder, a `.gguf` file, or a name on the hub."""

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError

from compmem.errors import CheckpointError
from compmem.naming import EMBEDDED, SHIPPED_BACKBONES, is_gguf

log = logging.getLogger(__name__)

T = TypeVar("T")

FAMILIES = ("qwen2", "qwen3", "llama", "mistral")
SHIPPED_FOLDER = Path(__file__).parents[1] / "weights"
"""Folder of the models that ship with the library."""

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_GIB = 2**30


def find_model(name: str | Path, *, fetch: bool = True) -> Path:
    """The folder, or the `.gguf` file, of a model.

    Args:
        name: A folder or file, a name on the hub, or one of `SHIPPED_BACKBONES`.
        fetch: Whether a name may be downloaded; False: only models on this machine.

    Raises:
        CheckpointError: The model is not found.
    """
    if str(name) in SHIPPED_BACKBONES:
        if not (SHIPPED_FOLDER / name / "compmem.json").exists():
            raise CheckpointError(
                f"this build ships no backbone {str(name)!r}: train it with `compmem train embedded`, or name another "
                "model"
            )
        return SHIPPED_FOLDER / name
    place = Path(name)
    if place.is_dir() or is_gguf(name):
        return place
    if place.suffix == ".gguf":
        raise CheckpointError(f"there is no file {str(name)!r}")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(str(name), allow_patterns=patterns, local_files_only=not fetch))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        if not fetch:
            raise CheckpointError(
                f"the model {str(name)!r} is not on this machine, and its name was read from a file: pass the name, "
                "or allow_download=True to download it"
            ) from error
        raise CheckpointError(
            f"{str(name)!r} is neither a folder nor a .gguf file, and no model of that name can be downloaded: {error}"
        ) from error


def weights_size(place: Path) -> int:
    """Bytes of the weights in a folder or `.gguf` file."""
    files = [place] if place.is_file() else place.glob("*.safetensors")
    return sum(file.stat().st_size for file in files)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        CheckpointError: It cannot be read, or contains something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} is not a JSON object")
    return content


def read_config(place: Path) -> dict[str, Any]:
    """The settings of the model in a folder or `.gguf` file, as in transformers' `config.json`.

    Raises:
        CheckpointError: They cannot be read.
        ImportError: It is a `.gguf` file, and the gguf package is not installed.
    """
    if place.is_dir():
        return read_json(place / "config.json")
    from transformers import AutoConfig

    return _from_gguf(place, lambda source: AutoConfig.from_pretrained(**source).to_dict())


def check_family(config: Mapping[str, Any], name: str) -> None:
    """Refuse models that are not supported, by their config.

    Raises:
        CheckpointError: Another family, a sliding window, positions that depend on the length, or a setting of a wrong
            type.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(f"{name!r} is of the family {family!r}; supported are {', '.join(FAMILIES)}")
    slides = config.get("sliding_window") if family == "mistral" else config.get("use_sliding_window")
    layers = config.get("layer_types") or []
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(layers, list | tuple) or not isinstance(rope, Mapping):
        raise CheckpointError(f"{name!r} has a config whose 'layer_types' is no list, or rotary positions no object")
    if slides or "sliding_attention" in layers:
        raise CheckpointError(f"{name!r} uses sliding-window attention, which cannot see memory before its window")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise CheckpointError(
            f"{name!r} uses {kind!r} rotary positions, which depend on the length; "
            f"supported are {', '.join(_ROPE_TYPES)}"
        )


def dtype_for(place: Path, config: Mapping[str, Any], device: torch.device) -> torch.dtype | None:
    """The default dtype of a model; None: the one that its folder names.

    On a CPU, 16-bit weights and `.gguf` files (which are dequantised) are loaded in bfloat16 or float32, whichever is
    faster. The embedded model is so small that it is faster in float32 (`embedded_dtype` in the results).
    """
    if device.type != "cpu":
        return torch.bfloat16 if place.is_file() else None
    if place == SHIPPED_FOLDER / EMBEDDED:
        return torch.float32
    stored = str(config.get("dtype") or config.get("torch_dtype"))
    return faster_cpu_dtype() if place.is_file() or stored in ("bfloat16", "float16") else None


@cache
def faster_cpu_dtype() -> torch.dtype:
    """The faster of bfloat16 and float32 on this CPU for a prompt and a decoding step; measured once."""

    def seconds(dtype: torch.dtype) -> float:
        weight, taken = torch.ones(2048, 2048, dtype=dtype), 0.0
        for rows in (128, 1):
            x = torch.ones(rows, 2048, dtype=dtype)
            best = float("inf")
            for _ in range(4):
                began = time.perf_counter()
                torch.nn.functional.linear(x, weight)
                best = min(best, time.perf_counter() - began)
            taken += best
        return taken

    with torch.inference_mode():
        return min((torch.bfloat16, torch.float32), key=seconds)


def load_model(place: Path, config: Mapping[str, Any], dtype: torch.dtype | None) -> Any:
    """The model in a folder or `.gguf` file with this config, in this dtype; None: the folder's own.

    Raises:
        CheckpointError: It cannot be loaded, or weights are missing.
        ImportError: It is a `.gguf` file, and the gguf package is not installed.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    size, made = weights_size(place), AutoConfig.for_model(**config)
    if size > _GIB // 4:
        shown = "its own type" if dtype is None else str(dtype).removeprefix("torch.")
        log.info("loading %s (%.1f GiB on disk) in %s: %s", place.name, size / _GIB, shown, _memory(made, dtype))
    options: dict[str, Any] = {"dtype": dtype or "auto", "trust_remote_code": False, "output_loading_info": True}
    if place.is_file():
        loaded: Any = _from_gguf(place, lambda source: _load_dequantised(source, config=made, **options))
    else:
        try:
            with silence_transformers():
                loaded = AutoModelForCausalLM.from_pretrained(
                    place, **options, use_safetensors=True, local_files_only=True
                )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(f"{str(place)!r} cannot be loaded: {error}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{str(place)!r} lacks {len(missing)} weights of the model, such as {missing[0]!r}")
    return model


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model folder, of a `.gguf` file, or of a model's name.

    Raises:
        CheckpointError: It is not found.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    place = find_model(name)
    if place.is_file():  # AutoTokenizer would read the file twice
        return _from_gguf(place, lambda source: PreTrainedTokenizerFast.from_pretrained(**source))
    # AutoTokenizer silently replaces the splitting rules of tokenizer.json by those of the model family.
    cls = PreTrainedTokenizerFast if (place / "tokenizer.json").exists() else AutoTokenizer
    try:
        return cls.from_pretrained(place, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the tokenizer in {str(place)!r} cannot be loaded: {error}") from error


@contextmanager
def silence_transformers() -> Iterator[None]:
    """Silence transformers: no progress bars, and no list of unexpected weights (the memory's are loaded later)."""
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("transformers")
    level, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def _from_gguf(file: Path, load: Callable[[dict[str, Any]], T]) -> T:
    """The object that transformers makes from a `.gguf` file; `load` gets the arguments of `from_pretrained`."""
    source = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name, "local_files_only": True}
    try:
        with silence_transformers():
            return load(source)
    except ImportError as error:
        raise ImportError('a .gguf file needs its reader: pip install "compmem[gguf]"') from error
    except Exception as error:  # the reader raises any exception for a damaged file
        raise CheckpointError(f"{str(file)!r} cannot be loaded: {error}") from error


def _load_dequantised(source: dict[str, Any], **options: Any) -> Any:
    from transformers import AutoModelForCausalLM, GgufConfig

    # With its config, which takes seconds to read from the file once more.
    return AutoModelForCausalLM.from_pretrained(**source, **options, quantization_config=GgufConfig(dequantize=True))


def _memory(config: Any, dtype: torch.dtype | None) -> str:
    """The memory that a loaded model takes, in words."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        parameters = AutoModelForCausalLM.from_config(config).num_parameters()  # type: ignore[no-untyped-call]
    width = (dtype or config.dtype or torch.float32).itemsize
    return f"{parameters / 1e6:,.0f} M parameters, {parameters * width / _GIB:.1f} GiB of memory"
