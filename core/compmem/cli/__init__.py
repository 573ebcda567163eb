"""The command `compmem`."""

# Importing a module adds its commands.
import compmem.cli.asking
import compmem.cli.demo
import compmem.cli.keeping
import compmem.cli.research
import compmem.cli.serving  # noqa: F401
from compmem.cli.app import app, main

__all__ = ["app", "main"]
