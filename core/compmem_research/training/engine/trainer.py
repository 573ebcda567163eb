"""The training loop of every stage: accumulation, schedule, checkpoints, log, several processes.

A stage defines what is trained, the data of a step and the loss. The data of a step depends only on the seed and the
number of the example, so an interrupted run continues from its last checkpoint, and eight micro-batches of one example
equal one of eight. Loss parts are sums; they are divided by their counts over the whole step, on all processes.

The same file works for one device, several (`accelerate launch` or `torchrun`) and sharded weights (an accelerate
config with FSDP).
"""

import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn
from torch.nn.parameter import Parameter

from compmem.backbone import Backbone
from compmem_research.training.engine import checkpoints
from compmem_research.training.engine.checkpoints import Checkpoint
from compmem_research.training.engine.device import device_name, matmul_ceiling
from compmem_research.training.engine.log import Log, plot
from compmem_research.training.engine.stage import B, Stage

logger = logging.getLogger(__name__)

CHECKPOINT, BACKBONE = "checkpoint.safetensors", "backbone"
"""Files of a run, besides log and plot."""
NOT_FINITE = 10
"""Consecutive steps without a finite gradient after which a run stops with an error."""
DECISIVE = ("seed", "learning_rate", "final_rate", "warmup", "weight_decay", "betas", "clip", "bf16")
"""Settings that must stay the same when a run is continued. How long it runs, where, and what it writes may change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunSettings:
    """Settings of a run, for every stage.

    Raises:
        ValueError: A value is out of its range.
    """

    out: Path
    """Folder of checkpoint, log, plot and, at the end, the backbone."""
    steps: int = 1000
    batch: int = 8
    """Examples of one micro-batch on one process."""
    accumulate: int = 1
    """Micro-batches of one step on one process."""
    learning_rate: float = 1e-3
    """Peak learning rate; linear warm-up to it, cosine decay from it."""
    final_rate: float = 0.1
    """Final learning rate as a share of the peak."""
    warmup: int = 50
    """Steps of the warm-up."""
    weight_decay: float = 0.01
    betas: tuple[float, ...] = (0.9, 0.95)
    clip: float = 1.0
    """Largest norm of a gradient."""
    minutes: float | None = None
    """Training time after which the run ends; the learning-rate schedule takes it into account."""
    bf16: bool = False
    """Compute in bfloat16 with autocast; trained weights stay in float32."""
    checkpointing: bool = False
    """Gradient checkpointing: less memory, a third more time."""
    seed: int = 0
    device: str | None = None
    """None: a GPU if there is one."""
    workers: int | None = None
    """Processes that make batches ahead. None: with a GPU half as many as there are cores, at most 8, else none; a
    batch that needs the model is made in the training process."""
    checkpoint_every: int = 200
    """Steps between two checkpoints; 0: only at the end."""
    log_every: int = 10
    measure_every: int = 200
    """Steps between two measurements; 0: only at the end."""
    ceiling_seconds: float = 1.0
    """Seconds to measure the device's matrix-product speed before the first step."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")
        if self.workers is not None and self.workers < 0:
            raise ValueError(f"workers={self.workers!r} must not be negative")
        for name in ("warmup", "checkpoint_every", "measure_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)!r} must not be negative")
        if self.learning_rate <= 0 or self.clip <= 0:
            raise ValueError(f"learning_rate={self.learning_rate!r} and clip={self.clip!r} must be above 0")
        if self.minutes is not None and self.minutes <= 0:
            raise ValueError(f"minutes={self.minutes!r} must be above 0")
        if len(self.betas) != 2:
            raise ValueError(f"betas={self.betas!r} must be two numbers")


class Trainer:
    """Runs one stage.

    Args:
        settings: The settings.
        asks: A batch needs the model, so no other process can make it.

    Attributes:
        device: The device of this process; load the backbone there.
    """

    def __init__(self, settings: RunSettings, *, asks: bool = False) -> None:
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        # In the last layer, a part of the memory's weights is not used.
        unused = DistributedDataParallelKwargs(find_unused_parameters=True)
        self._accelerator = Accelerator(cpu=settings.device == "cpu", kwargs_handlers=[unused])
        self.device: torch.device = self._accelerator.device
        spare = min(8, (os.cpu_count() or 1) // 2) if self.device.type == "cuda" and not asks else 0
        self.settings = settings if settings.workers is not None else replace(settings, workers=spare)
        self.main: bool = self._accelerator.is_main_process

    def run(self, stage: Stage[B], provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Train from the last checkpoint, or from the start; returns the last metrics.

        Args:
            stage: The stage.
            provenance: What decides on its weights, besides the settings of the run; see `settings.decisive_settings`.

        Raises:
            CheckpointError: The checkpoint has another stage or shape, was trained with other settings or cannot be
                continued, or none can be written.
            FloatingPointError: The gradient is no longer finite.
        """
        return _Run(stage, self.settings, self._accelerator, provenance or {}).run()


class _CallInForward(nn.Module):
    """Runs a call inside the wrapped module's forward pass, where shards are gathered and gradients are exchanged."""

    def __init__(self, decoder: nn.Module) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, call: Callable[[], Any]) -> Any:
        return call()


class _Run(Generic[B]):
    def __init__(self, stage: Stage[B], settings: RunSettings, accelerator: Any, provenance: Mapping[str, Any]) -> None:
        self._stage = stage
        self._provenance = provenance
        self._settings = settings
        self._accelerator = accelerator
        self._file = settings.out / CHECKPOINT
        self._trained = stage.parameters()
        decoder = stage.backbone.decoder
        decoder.checkpointing = settings.checkpointing
        for name, parameter in decoder.named_parameters():
            parameter.requires_grad_(name in self._trained)
            if settings.bf16 and name in self._trained:
                parameter.data = parameter.data.float()
        optimizer = torch.optim.AdamW(
            _groups(self._trained, settings.weight_decay),
            settings.learning_rate,
            betas=(settings.betas[0], settings.betas[1]),
        )
        self._module, self._optimizer = accelerator.prepare(_CallInForward(decoder), optimizer)
        self._step, self._spent, self._broken, self._stale = 0, 0.0, 0, False

    def run(self) -> dict[str, Any]:
        settings, stage = self._settings, self._stage
        self._resume()
        self._log = Log(settings.out, self._step, main=self._accelerator.is_main_process)
        self._ceiling = matmul_ceiling(stage.backbone.device, bf16=settings.bf16, seconds=settings.ceiling_seconds)
        self._operations = operations(stage.backbone, self._trained)
        self._log.write(self._heading())
        told, tokens = self._spent, 0
        began = time.monotonic()
        for micro in self._batches():
            if self._time_is_up():
                break
            line, used = self._make_step(micro)
            self._spent += time.monotonic() - began
            tokens += used
            if self._step % settings.log_every == 0 or self._step == settings.steps:
                self._log.write({**line, **self._throughput(tokens, self._spent - told)})
                told, tokens = self._spent, 0
            if self._step < settings.steps:
                self._measure_and_save()
            # Measuring and saving do not count as training time.
            began = time.monotonic()
        return self._end()

    def _heading(self) -> dict[str, Any]:
        return {
            "step": self._step,
            "stage": self._stage.name,
            "parameters": sum(p.numel() for p in self._stage.backbone.decoder.parameters()),
            "trained": sum(p.numel() for p in self._trained.values()),
            "device": device_name(self._stage.backbone.device),
            "processes": self._processes,
            "ceiling_tflops": round(self._ceiling / 1e12, 3),
        }

    def _throughput(self, tokens: int, seconds: float) -> dict[str, float]:
        """Tokens per second, and a lower bound of the share of the matrix-product ceiling."""
        speed = tokens / max(seconds, 1e-9)
        share = self._operations * speed / (self._ceiling * self._processes)
        return {"seconds": round(self._spent, 2), "tokens_per_second": round(speed), "ceiling_share": round(share, 4)}

    def _measure_and_save(self) -> None:
        settings = self._settings
        if settings.measure_every and self._step % settings.measure_every == 0:
            self._log.write({"step": self._step, **self._measure()})
        if settings.checkpoint_every and self._step % settings.checkpoint_every == 0:
            self._save()

    def _end(self) -> dict[str, Any]:
        self._save()
        figures = self._measure()
        self._log.write({"step": self._step, **figures})
        if self._accelerator.is_main_process:
            self._stage.save(self._settings.out / BACKBONE)
            plot(self._settings.out)
        return {"stage": self._stage.name, "steps": self._step, "seconds": round(self._spent, 1), **figures}

    @property
    def _processes(self) -> int:
        return int(self._accelerator.num_processes)

    def _decisive(self) -> dict[str, Any]:
        """What must be the same when the run is continued, as JSON values."""
        settings = self._settings
        own = {name: getattr(settings, name) for name in DECISIVE}
        own |= {"betas": list(settings.betas), "examples": settings.batch * settings.accumulate * self._processes}
        return {**own, **self._provenance}

    def _time_is_up(self) -> bool:
        limit = self._settings.minutes
        over = torch.tensor(float(limit is not None and self._spent >= 60 * limit), device=self._accelerator.device)
        return bool(self._accelerator.reduce(over, "sum").item())

    def _batches(self) -> Iterator[Sequence[B]]:
        """The micro-batches of each step from now on, for this process."""
        settings, each = self._settings, self._settings.accumulate
        view = _MicroBatches(self._stage, settings, self._accelerator.process_index, self._processes)
        while self._step < settings.steps:
            self._stale = False
            made = self._prefetch(view, range(self._step * each, settings.steps * each))
            while self._step < settings.steps and not self._stale:
                yield [next(made) for _ in range(each)]

    def _prefetch(self, view: "_MicroBatches[B]", numbers: range) -> Iterator[B]:
        if not self._settings.workers:
            return (view[number] for number in numbers)
        loader: Any = torch.utils.data.DataLoader
        return iter(
            loader(
                view, batch_size=None, sampler=numbers, num_workers=self._settings.workers,
                multiprocessing_context="fork", prefetch_factor=4,
            )
        )  # fmt: skip

    def _make_step(self, micro: Sequence[B]) -> tuple[dict[str, Any], int]:
        """One update of the weights; returns the loss with its parts, and the number of tokens."""
        settings, accelerator = self._settings, self._accelerator
        torch.manual_seed((settings.seed * 1_000_003 + self._step) * 1_009 + accelerator.process_index)
        names = sorted(self._stage.weights)
        own = torch.tensor([[batch.counts.get(n, 0.0) for n in names] for batch in micro], dtype=torch.float64)
        counts = accelerator.reduce(own.sum(0).to(accelerator.device), "sum").clamp(min=1e-9)
        told = torch.zeros(len(names), dtype=torch.float64, device=accelerator.device)
        self._stage.backbone.decoder.train()
        for number, batch in enumerate(micro):
            last = number == len(micro) - 1
            with accelerator.no_sync(self._module) if not last else nullcontext():
                loss, parts = self._module(lambda batch=batch: self._loss(batch, names, counts))
                # Gradients are averaged over the processes, but a step's loss is a sum over them.
                accelerator.backward(loss * self._processes)
            told += parts
        self._stage.backbone.decoder.eval()
        told = accelerator.reduce(told, "sum")
        rate = self._rate()
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        norm = float(accelerator.clip_grad_norm_(list(self._trained.values()), settings.clip))
        self._check_finite(norm)
        if math.isfinite(norm):
            self._optimizer.step()
        self._optimizer.zero_grad()
        self._step += 1
        # A part without rows in this step has no value.
        values = {n: v for n, v, count in zip(names, told.tolist(), counts.tolist(), strict=True) if count > 1e-6}
        self._stale = self._stage.after(values)
        tokens = torch.tensor(sum(batch.tokens for batch in micro), device=accelerator.device)
        line = {
            "step": self._step,
            "loss": sum(self._stage.weights[n] * value for n, value in values.items()),
            **{f"loss_{n}" if self._stage.weights[n] else n: v for n, v in values.items() if len(names) > 1},
            "gradient_norm": round(norm, 4),
            "learning_rate": rate,
        }
        return line, int(accelerator.reduce(tokens, "sum"))

    def _loss(self, batch: B, names: Sequence[str], counts: Tensor) -> tuple[Tensor, Tensor]:
        device = self._accelerator.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self._settings.bf16):
            sums = self._stage.losses(batch)
        parts = [sums[n].float() / counts[i].float() if n in sums else torch.zeros((), device=device)
                 for i, n in enumerate(names)]  # fmt: skip
        loss = torch.stack([self._stage.weights[n] * part for n, part in zip(names, parts, strict=True)]).sum()
        return loss, torch.stack([part.detach().double() for part in parts])

    def _rate(self) -> float:
        settings = self._settings
        done = self._step / settings.steps
        if settings.minutes is not None:
            done = max(done, self._spent / (60 * settings.minutes))
        rise = min(1.0, (self._step + 1) / max(1, settings.warmup))
        fall = settings.final_rate + (1 - settings.final_rate) * (1 + math.cos(math.pi * min(1.0, done))) / 2
        return settings.learning_rate * rise * fall

    def _check_finite(self, norm: float) -> None:
        self._broken = 0 if math.isfinite(norm) else self._broken + 1
        if self._broken:
            logger.warning("step %d is left out: its gradient is not finite", self._step)
        if self._broken == NOT_FINITE:
            raise FloatingPointError(
                f"the last {NOT_FINITE} gradients were not finite: go on from {str(self._file)!r} with a lower "
                f"learning rate than {self._settings.learning_rate}"
            )

    def _measure(self) -> dict[str, float]:
        self._stage.backbone.decoder.eval()
        with torch.no_grad():
            figures: dict[str, float] = self._module(lambda: self._stage.measure(self._step))
        self._stage.backbone.free_caches()
        return figures

    def _save(self) -> None:
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        states: Any = get_state_dict(self._module, self._optimizer.optimizer, options=options)
        model, optimizer = states
        if not self._accelerator.is_main_process:
            return
        weights: dict[str, Any] = {n.removeprefix("decoder."): t for n, t in model.items()}
        place = Checkpoint(
            stage=self._stage.name,
            settings=self._decisive(),
            step=self._step,
            seconds=self._spent,
            state=dict(self._stage.state),
            weights={n: t for n, t in weights.items() if n in self._trained},
            optimizer={f"{n}/{k}": t for n, kept in optimizer["state"].items() for k, t in kept.items()},
        )
        checkpoints.write(self._file, place)

    def _resume(self) -> None:
        if not self._file.exists():
            return
        from torch.distributed.checkpoint.state_dict import (
            StateDictOptions,
            get_optimizer_state_dict,
            set_model_state_dict,
            set_optimizer_state_dict,
        )

        shapes = {name: tuple(p.shape) for name, p in self._trained.items()}
        found = checkpoints.read(self._file, self._stage.name, self._decisive(), shapes)
        self._step, self._spent = found.step, found.seconds
        self._stage.state.update(found.state)
        whole = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self._module, {f"decoder.{n}": t for n, t in found.weights.items()}, options=whole)
        state: Any = get_optimizer_state_dict(self._module, self._optimizer.optimizer, options=whole)
        state["state"] = _nested(found.optimizer)
        set_optimizer_state_dict(self._module, self._optimizer.optimizer, state, options=whole)
        logger.info("going on from step %d of %s", self._step, self._file)


class _MicroBatches(Generic[B]):
    """The micro-batches of one process by number: steps times accumulation."""

    def __init__(self, stage: Stage[B], settings: RunSettings, process: int, processes: int) -> None:
        self._stage = stage
        self._settings = settings
        self._process = process
        self._processes = processes

    def __getitem__(self, number: int) -> B:
        step, micro = divmod(number, self._settings.accumulate)
        each = self._settings.accumulate * self._processes
        first = (step * each + micro * self._processes + self._process) * self._settings.batch
        return self._stage.batch(step, range(first, first + self._settings.batch))


def operations(backbone: Backbone, trained: Mapping[str, Parameter]) -> int:
    """Least floating-point operations per token: those of the matrices that every token passes through.

    Two each forward and two for the gradient of their input, two more if they are trained. Attention, the head and the
    memory tokens' own projections, which only some tokens use, are left out.
    """
    matrices = {n: p for n, p in backbone.decoder.named_parameters() if ".stock." in n and p.dim() == 2}
    return sum(p.numel() * (6 if name in trained else 4) for name, p in matrices.items())


def _groups(trained: Mapping[str, Parameter], decay: float) -> list[dict[str, Any]]:
    """Matrices have weight decay, vectors (norms, biases) do not."""
    return [
        {"params": [p for p in trained.values() if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in trained.values() if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _nested(flat: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """An optimiser's tensors, by parameter and then by their own name."""
    nested: dict[str, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        parameter, _, key = name.rpartition("/")
        nested.setdefault(parameter, {})[key] = tensor
    return nested
