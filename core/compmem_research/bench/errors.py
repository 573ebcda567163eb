"""Errors of a run that goes on."""

import sys


def to_stderr(line: str) -> None:
    """Writes a line to standard error."""
    sys.stderr.write(f"{line}\n")
