"""The command `compmem`."""

from compmem.bench.commands import app as bench
from compmem.cli import asking, demo, keeping  # noqa: F401 (importing a module adds its commands)
from compmem.cli.app import app, main
from compmem.training.commands import app as training

app.add_typer(bench, name="bench")
app.add_typer(training, name="train")

__all__ = ["app", "main"]
