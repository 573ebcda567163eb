"""`compmem train STAGE --config FILE`: one stage of training, its settings in a TOML file."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from compmem_research.training.stages import run_stage

Config = Annotated[Path, typer.Option(help="Settings of the stage in TOML; see compmem_research/training/configs.")]

app = typer.Typer(no_args_is_help=True, help="Train the shipped weights.")


@app.callback()
def train() -> None:
    """Train the shipped weights, one stage at a time."""


@app.command()
def text(config: Config) -> None:
    """Before stage 0: a tokenizer and packed tokens from plain text."""
    _run("text", config)


@app.command()
def lm(config: Config) -> None:
    """Stage 0: a tokenizer and a small language model from scratch."""
    _run("lm", config)


@app.command()
def compressor(config: Config) -> None:
    """Stage 1: the memory tokens."""
    _run("compressor", config)


@app.command()
def importance(config: Config) -> None:
    """After stage 1, or for a stock model: what predicts which KV states to keep."""
    _run("importance", config)


@app.command()
def warmup(config: Config) -> None:
    """The reasoner's warm-up: step traces with evidence labels."""
    _run("warmup", config)


@app.command()
def rl(config: Config) -> None:
    """Stage 2: compressor and reasoner together, by reinforcement learning."""
    _run("rl", config)


@app.command()
def gate(config: Config) -> None:
    """Stage 3: the gate on the backbone."""
    _run("gate", config)


@app.command()
def evaluate(config: Config) -> None:
    """The loop over compressed chunks, on worlds and RULER tasks of any length."""
    _run("evaluate", config)


@app.command()
def export(config: Config) -> None:
    """Export the trained model as it is shipped."""
    _run("export", config)


@app.command()
def embedded(
    config: Annotated[Path, typer.Option(help="The phases, in TOML; see compmem_research/training/configs/embedded.")],
    out: Annotated[Path, typer.Option(help="Folder for data, runs and files to move between machines.")],
    phase: Annotated[int | None, typer.Option(help="Only this phase, from 1 on.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Longest training time of a phase.")] = None,
    base: Annotated[str | None, typer.Option(help="Pretrained model to add to: name, folder or .gguf file.")] = None,
) -> None:
    """A whole recipe: all stages, phase by phase."""
    from compmem_research.training.embedded import run_all

    sys.stdout.write(json.dumps(run_all(config, out, phase, minutes=minutes, base=base), indent=1) + "\n")


@app.command()
def estimate(
    stage: Annotated[str, typer.Argument(help="compressor, warmup, rl or gate.")],
    config: Config,
    model: Annotated[
        str | None, typer.Option(help="Folder or name of the stock model. None: the one in the settings.")
    ] = None,
) -> None:
    """GiB of device memory that a stage needs, by cause."""
    from compmem_research.training.memory_estimate.estimate import estimate_file

    sys.stdout.write(json.dumps(estimate_file(stage, config, model), indent=1) + "\n")


@app.command("dense-gate")
def dense_gate(config: Config) -> None:
    """The gate of dense memory: a calibrated classifier of question, working memory and block."""
    _run("dense-gate", config)


def _run(stage: str, config: Path) -> None:
    sys.stdout.write(json.dumps(run_stage(stage, config), indent=1) + "\n")
