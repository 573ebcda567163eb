"""An estimate of the device memory of a stage, before it is run.

    weights     stored numbers of all parameters, and 4 bytes more of each trained one that is kept in float32
    gradients   4 bytes of each trained parameter
    optimiser   8 bytes of each trained parameter (AdamW's two means)
    reference   a copy of the trained parameters, if a divergence is used
    activations tokens of one pass x (a layer's input x layers + what one layer keeps and its gradient); all layers keep
                it without checkpointing
    logits      tokens with a loss x vocabulary x 12 bytes (logits, their float32 form, the gradient)
    rollouts    keys and values of every chunk and of every rollout's slots, at the longest

Rollouts and updates alternate, so the total contains the larger of the two. Attention is assumed to store no scores
(flash or memory-efficient kernels). The memory of the allocator and the CUDA context, 1 to 2 GiB, is left out.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from compmem_research.training.compressor import CompressorTraining
from compmem_research.training.engine.settings import read_settings
from compmem_research.training.engine.trainer import RunSettings
from compmem_research.training.gate import GateTraining
from compmem_research.training.memory_estimate.shape import Shape
from compmem_research.training.rl import RLTraining
from compmem_research.training.rollouts.rollouts import RolloutSettings
from compmem_research.training.warmup import WarmupTraining

Settings = CompressorTraining | WarmupTraining | RLTraining | GateTraining

ESTIMATED: Final[dict[str, type[Settings]]] = {
    "compressor": CompressorTraining, "warmup": WarmupTraining, "rl": RLTraining, "gate": GateTraining,
}  # fmt: skip

PROMPT: Final = 512
"""Approximate tokens of a step's instruction and question."""
PROBE: Final = 16
"""Approximate tokens of the gate's prompt after a block."""
SIZES: Final = {"float32": 4, "bfloat16": 2, "float16": 2, None: 2}
RATIO: Final = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceLoad:
    """What a stage stores on the device."""

    added: int
    """Parameters besides those of the stock model."""
    trained: int
    tokens: int
    """Tokens of one pass with its activations."""
    learned: int
    """Tokens with a loss."""
    kept: int = 0
    """Tokens whose keys and values are kept while rollouts run."""
    copied: int = 0
    """Parameters of the reference."""


def estimate_file(stage: str, config: Path, model: str | None = None) -> dict[str, float]:
    """The estimate of a stage from a settings file, for a stock model; None: the folder that the stage starts from.

    Raises:
        ValueError: There is no estimate for the stage, the settings are wrong, or the model is unknown.
    """
    if stage not in ESTIMATED:
        raise ValueError(f"no estimate for {stage!r}; there are {', '.join(ESTIMATED)}")
    settings = read_settings(config, ESTIMATED[stage])
    return estimate(settings, Shape.find(settings.start if model is None else model))


def estimate(settings: Settings, shape: Shape) -> dict[str, float]:
    """GiB of device memory by cause, and in total."""
    load = _load(settings, shape)
    each, run = SIZES[settings.dtype], settings.run
    # Trained weights stay in float32 even if the rest is computed in bfloat16.
    main = 4 if run.bf16 else each
    parts = {
        "weights": (shape.parameters + load.added - load.trained) * each + load.trained * main,
        "gradients": load.trained * main,
        "optimizer": 2 * load.trained * main,
        "reference": load.copied * each,
        "activations": activation_bytes(shape, load.tokens, 2 if run.bf16 else each, run),
        "logits": load.learned * shape.vocabulary * 12,
        "rollouts": load.kept * shape.kv_bytes(each),
    }
    fixed = sum(parts[name] for name in ("weights", "gradients", "optimizer", "reference"))
    total = fixed + max(parts["activations"] + parts["logits"], parts["rollouts"])
    return {name: round(size / 2**30, 2) for name, size in {**parts, "total": total}.items()}


def activation_bytes(shape: Shape, tokens: int, each: int, run: RunSettings) -> int:
    """Bytes that a pass over this many tokens stores for its gradient."""
    wide, narrow = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # Both norms in and out, queries and keys before and after rotation, values, attention, the three of the
    # feed-forward and their product.
    layer = 6 * shape.hidden + 3 * wide + 3 * narrow + 4 * shape.inner
    if run.checkpointing:
        return tokens * each * (shape.layers * shape.hidden + 2 * layer)
    return tokens * each * (shape.layers * (shape.hidden + layer) + layer)


def _load(settings: Settings, shape: Shape) -> DeviceLoad:
    match settings:
        case RLTraining():
            return _rl(settings, shape)
        case GateTraining():
            trained = shape.adapter(settings.adapter) + shape.hidden + 1
            asked = PROMPT + settings.rollouts.memory_tokens
            tokens = settings.run.batch * (asked + settings.blocks * PROBE)
            chunks, ratio = settings.questions.chunks * settings.at_once, settings.ratio or RATIO
            kept = _rolled(settings.rollouts, settings.questions.chunk_tokens, chunks, settings.at_once, ratio)
            return DeviceLoad(added=trained, trained=trained, tokens=tokens, learned=0, kept=kept)
        case _:
            return _supervised(settings, shape)


def _rl(settings: RLTraining, shape: Shape) -> DeviceLoad:
    reading = shape.adapter(settings.adapter)
    memory = shape.hidden + shape.adapter(settings.memory_adapter)
    trained = 0 if settings.freeze_compressor else memory
    trained += reading if "reasoner" in settings.train else 0
    trained += shape.parameters if "base" in settings.train else 0
    questions = settings.run.batch * settings.updates
    kept = _rolled(
        settings.rollouts, settings.questions.chunk_tokens, settings.questions.chunks * questions, questions,
        settings.ratio or RATIO,
    )  # fmt: skip
    # If the longest turn exceeds the limit of a piece, it is a piece of its own.
    read = 1 if settings.rollouts.steps else settings.questions.chunks
    turn = read * settings.questions.chunk_tokens + PROMPT + _reply(settings.rollouts) + _notes(settings.rollouts)
    copied = trained if settings.beta else 0
    tokens = max(settings.piece_tokens, turn)
    learned = tokens * _reply(settings.rollouts) // turn
    return DeviceLoad(added=reading + memory, trained=trained, tokens=tokens, learned=learned, kept=kept, copied=copied)


def _supervised(settings: CompressorTraining | WarmupTraining, shape: Shape) -> DeviceLoad:
    adapter = shape.adapter(settings.adapter)
    if isinstance(settings, CompressorTraining):
        sizes = {"memory": shape.memory(settings.memory.own) + adapter, "reasoner": 0}
    else:
        sizes = {"memory": shape.hidden, "reasoner": adapter}
    trained = sum(shape.parameters if part == "base" else sizes[part] for part in settings.train)
    # A chunk is compressed, and at most read again as a whole.
    drawn = settings.run.batch * max(component.tokens for component in settings.mixture.components)
    tokens = 2 * drawn + drawn // min(settings.mixture.ratios)
    return DeviceLoad(added=sum(sizes.values()), trained=trained, tokens=tokens, learned=drawn)


def _reply(rollouts: RolloutSettings) -> int:
    """Most tokens of one reply."""
    return max(rollouts.step_tokens, rollouts.answer_tokens) if rollouts.steps else rollouts.answer_tokens


def _notes(rollouts: RolloutSettings) -> int:
    """Most tokens of the working memory in a prompt."""
    return rollouts.memory_tokens if rollouts.steps else 0


def _rolled(rollouts: RolloutSettings, chunk: int, chunks: int, questions: int, ratio: int) -> int:
    """Tokens whose keys and values are on the device during rollouts of these questions."""
    block = -(-chunk // ratio)
    read = 1 if rollouts.steps else -(-chunks // questions)
    row = read * block + PROMPT + _notes(rollouts) + _reply(rollouts)
    return chunks * block + questions * rollouts.group * row
