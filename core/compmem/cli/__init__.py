"""The command `compmem`."""

from compmem.cli import asking, demo, keeping, research  # noqa: F401 (importing a module adds its commands)
from compmem.cli.app import app, main

__all__ = ["app", "main"]
