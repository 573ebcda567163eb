"""The command `compmem`."""

# Importing a module adds its commands.
import compmem.cli.demo
import compmem.cli.index_commands
import compmem.cli.query_commands
import compmem.cli.research
import compmem.cli.serve_commands  # noqa: F401
from compmem.cli.app import app, main

__all__ = ["app", "main"]
