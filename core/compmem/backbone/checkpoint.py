"""Model folders: a stock pretrained model, the public LycheeMemory format, and our own, which adds two files.

`compmem.json` holds the memory and adapter settings, `compmem.safetensors` the parameters the stock model does not
have. Without a stock model beside them, `base` in `compmem.json` names the one they belong to.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compmem.backbone.config import AdapterConfig, MemoryConfig, Projection, Role
from compmem.backbone.decoder import Decoder
from compmem.errors import CheckpointError
from compmem.naming import EMBEDDED, is_plain

FAMILIES = ("qwen2", "qwen3", "llama", "mistral")
SETTINGS, WEIGHTS, FORMAT = "compmem.json", "compmem.safetensors", 1
_SHIPPED = Path(__file__).parents[1] / "weights" / EMBEDDED

_ROPE_TYPES = ("default", "linear", "llama3", "yarn")
_LYCHEE = {"attn": "full-coverage", "pos": "interleave", "sink_size": 0, "attend_prev": True, "parallel_window": 1}
"""Settings of the public format that change what is computed, and the one value of each that is released."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """What a backbone is made of."""

    model: Any
    tokenizer: Any
    decoder: Decoder
    memory: MemoryConfig
    adapters: Mapping[Role, AdapterConfig]
    threshold: float = 0.5
    """Gate score from which on a block is let through."""


def load(
    name: str | Path,
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    ratio: int | None,
    allow_download: bool | None = None,
) -> Parts:
    """Load a model with its memory.

    With `allow_download` None, the model of that name may be fetched, but not another one that its folder names.

    Raises:
        CheckpointError: The folder lacks something, or holds something this cannot run.
    """
    folder = _find(name, fetch=allow_download is not False)
    settings = _read_json(folder / SETTINGS) if (folder / SETTINGS).exists() else {}
    stock = folder if (folder / "config.json").exists() else _base(settings, folder, bool(allow_download))
    config = _read_json(stock / "config.json")
    check_family(config, str(stock))
    if dtype is None and folder == _SHIPPED and device.type == "cpu":
        # So small that a CPU is faster in it than in bfloat16: `embedded_dtype` in the results.
        dtype = torch.float32
    model = _load_stock(stock, dtype).to(device)
    decoder = Decoder(model)
    adapters: dict[Role, AdapterConfig] = {}
    threshold = 0.5
    if settings:
        memory = _restore(decoder, settings, folder)
        threshold = _threshold(settings, folder)
        adapters = {cast("Role", role): AdapterConfig(**values) for role, values in settings["adapters"].items()}
    elif any(key.startswith("lychee_memory_") for key in config):
        memory = _restore_lychee(decoder, config, folder, ratio)
    else:
        memory = MemoryConfig(trained=False, own=())
    if ratio is not None and ratio != memory.ratio:
        memory = MemoryConfig(**{**asdict(memory), "ratio": ratio})
    decoder.to(device=device, dtype=model.dtype).eval()
    return Parts(
        model=model, tokenizer=_load_tokenizer(stock), decoder=decoder, memory=memory, adapters=adapters,
        threshold=threshold,
    )  # fmt: skip


def save(folder: Path, parts: Parts, *, base: str | None = None) -> None:
    """Write a backbone; with `base`, only what is added to that model.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if base is None:
        with _quietly():
            parts.model.save_pretrained(folder)
            parts.tokenizer.save_pretrained(folder)
    added = {name: tensor.detach().contiguous().cpu() for name, tensor in parts.decoder.added().items()}
    save_file(added, folder / WEIGHTS, metadata={"format": f"compmem/{FORMAT}"})
    settings = {
        "format": FORMAT,
        "base": base,
        "memory": asdict(parts.memory),
        "adapters": {role: asdict(config) for role, config in parts.adapters.items()},
        "gate": parts.decoder.gate_head is not None,
        "threshold": parts.threshold,
    }
    # Written last: a folder with settings is a folder with weights.
    (folder / SETTINGS).write_text(json.dumps(settings, indent=1) + "\n", encoding="utf-8")


def fill(decoder: Decoder, names: Mapping[str, str], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill added parameters with tensors; `names` maps ours to the file's.

    Raises:
        CheckpointError: A tensor is missing, or of another shape.
    """
    if missing := sorted(set(names.values()) - set(tensors)):
        raise CheckpointError(f"{str(folder)!r} lacks {len(missing)} memory weights, such as {missing[0]!r}")
    added = decoder.added()
    for name, theirs in names.items():
        parameter, tensor = added[name], tensors[theirs]
        if tensor.shape != parameter.shape:
            raise CheckpointError(
                f"{theirs!r} in {str(folder)!r} has the shape {tuple(tensor.shape)}, not {tuple(parameter.shape)}"
            )
        parameter.data.copy_(tensor)


def _base(settings: Mapping[str, Any], folder: Path, fetch: bool) -> Path:
    """The folder of the model that a checkpoint names; a folder's name counts only where it is absolute."""
    base = str(_field(settings, "base", folder))
    if not is_plain(base):
        raise CheckpointError(f"{str(folder)!r} names the folder {base!r}, which is not absolute, as its base")
    return _find(base, fetch=fetch)


def _find(name: str | Path, *, fetch: bool = True) -> Path:
    if str(name) == EMBEDDED:
        if not (_SHIPPED / "config.json").exists():
            raise CheckpointError(
                "this build ships no embedded backbone: train one with `compmem train embedded`, or name another model"
            )
        return _SHIPPED
    folder = Path(name)
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
    try:
        return Path(snapshot_download(str(name), allow_patterns=patterns, local_files_only=not fetch))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        if not fetch:
            raise CheckpointError(
                f"the model {str(name)!r} is not on this machine, and its name was read from a file: give the name "
                "itself, or allow_download=True to fetch it"
            ) from error
        raise CheckpointError(
            f"{str(name)!r} is no folder, and no model of that name could be fetched: {error}"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{str(path)!r} holds no JSON object")
    return content


def _field(settings: Mapping[str, Any], key: str, folder: Path) -> Any:
    if settings.get(key) is None:
        raise CheckpointError(f"{str(folder)!r} holds no model: no config.json, and no {key!r} in {SETTINGS}")
    return settings[key]


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a model folder, or of a model's name.

    Raises:
        CheckpointError: There is none.
    """
    return _load_tokenizer(_find(name))


def check_family(config: Mapping[str, Any], name: str) -> None:
    """Refuse what this cannot run, by a model's config.

    Raises:
        CheckpointError: Another family, a sliding window, or positions that change with the length.
    """
    family = config.get("model_type")
    if family not in FAMILIES:
        raise CheckpointError(f"{name!r} is of the family {family!r}; supported are {', '.join(FAMILIES)}")
    slides = config.get("sliding_window") if family == "mistral" else config.get("use_sliding_window")
    if slides or "sliding_attention" in (config.get("layer_types") or ()):
        raise CheckpointError(f"{name!r} uses sliding-window attention, which cannot see a memory left of its window")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in _ROPE_TYPES:
        raise CheckpointError(
            f"{name!r} uses {kind!r} rotary positions, which change with the length; "
            f"supported are {', '.join(_ROPE_TYPES)}"
        )


def _load_stock(folder: Path, dtype: torch.dtype | None) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        with _quietly():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype or "auto",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{str(folder)!r} cannot be loaded: {error}") from error
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise CheckpointError(f"{str(folder)!r} lacks {len(missing)} weights of the model, such as {missing[0]!r}")
    return model


@contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from drawing bars, and from listing the memory's weights as unexpected: they are read next."""
    from transformers.utils import logging as told

    logger = logging.getLogger("transformers")
    level, bars = logger.level, told.is_progress_bar_enabled()
    logger.setLevel(logging.ERROR)
    told.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        logger.setLevel(level)
        if bars:
            told.enable_progress_bar()  # type: ignore[no-untyped-call]


def _load_tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # AutoTokenizer puts a family's own splitting rules in place of those in tokenizer.json, without a word.
    cls = PreTrainedTokenizerFast if (folder / "tokenizer.json").exists() else AutoTokenizer
    try:
        return cls.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"the tokenizer in {str(folder)!r} cannot be loaded: {error}") from error


def _restore(decoder: Decoder, settings: Mapping[str, Any], folder: Path) -> MemoryConfig:
    if settings.get("format") != FORMAT:
        raise CheckpointError(f"{str(folder)!r} has the format {settings.get('format')!r}; this reads {FORMAT}")
    try:
        memory = MemoryConfig(**settings["memory"])
        adapters = {role: AdapterConfig(**values) for role, values in settings["adapters"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{str(folder / SETTINGS)!r} cannot be understood: {error}") from error
    if unknown := sorted(set(adapters) - set(get_args(Role))):
        raise CheckpointError(f"{str(folder / SETTINGS)!r} names the roles {unknown!r}; there are {get_args(Role)!r}")
    if memory.trained:
        decoder.add_memory(memory, 0)
    for role, config in adapters.items():
        decoder.add_adapter(role, config)
    if settings.get("gate"):
        decoder.add_gate()
    names = {name: name for name in decoder.added()}
    fill(decoder, names, _read_tensors([folder / WEIGHTS], set(names)), folder)
    return memory


def _threshold(settings: Mapping[str, Any], folder: Path) -> float:
    value = settings.get("threshold", 0.5)
    if not isinstance(value, int | float) or not 0 <= value <= 1:
        raise CheckpointError(f"{str(folder / SETTINGS)!r} has the threshold {value!r}; it lies between 0 and 1")
    return float(value)


def _restore_lychee(decoder: Decoder, config: Mapping[str, Any], folder: Path, ratio: int | None) -> MemoryConfig:
    for key, value in _LYCHEE.items():
        found = config.get(f"lychee_memory_{key}", value)
        if found != value:
            raise CheckpointError(f"{str(folder)!r} has lychee_memory_{key}={found!r}; supported is {value!r}")
    window, ratios = config.get("lychee_memory_window", 1024), config.get("lychee_memory_ratio", [4])
    if config.get("lychee_memory_stride", window) != window:
        raise CheckpointError(f"{str(folder)!r} has a stride other than its window of {window}")
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
    fill(decoder, names, tensors, folder)
    return memory


def _read_tensors(files: list[Path], names: set[str] | None) -> dict[str, Tensor]:
    """Tensors of these names that the files hold; all of them for None."""
    tensors = {}
    for path in files:
        try:
            with safe_open(path, "pt") as file:
                wanted = set(file.keys()) if names is None else names & set(file.keys())
                tensors.update({name: file.get_tensor(name) for name in wanted})
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{str(path)!r} cannot be read: {error}") from error
    return tensors
