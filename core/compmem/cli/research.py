"""`compmem train` and `compmem bench`: command groups of `compmem_research`, imported when they are called."""

from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

from compmem.cli.app import app

PACKAGES = {"train": "training", "bench": "bench"}
"""The sub-package of `compmem_research` with the commands of each group."""


class _ResearchGroup(TyperGroup):
    """A group whose commands are in a module that is imported on first use."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the commands, in the order of their definition."""
        return self._load().list_commands(ctx)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of this name, or None."""
        return self._load().get_command(ctx, cmd_name)

    def invoke(self, ctx: Any) -> Any:
        """Run the command.

        Raises:
            ImportError: A package of the extra is not installed.
        """
        try:
            return super().invoke(ctx)
        except ModuleNotFoundError as error:
            raise self._missing(error) from error

    def _load(self) -> TyperGroup:
        try:
            module = import_module(f"compmem_research.{PACKAGES[str(self.name)]}.commands")
        except ModuleNotFoundError as error:
            raise self._missing(error) from error
        return typer.main.get_group(module.app)

    def _missing(self, error: ModuleNotFoundError) -> ImportError:
        return ImportError(
            f'`compmem {self.name}` needs the package {error.name!r}: pip install "compmem[{self.name}]"',
            name=error.name,
        )


for _name, _help in (
    ("bench", "Measure quality, recall and speed, as in the published results."),
    ("train", "Train the gate and the embedded backbone."),
):
    app.add_typer(typer.Typer(cls=_ResearchGroup, no_args_is_help=True, help=_help), name=_name)
