"""Names of models: shipped ones, folders on this machine, and names on a hub."""

import os
from pathlib import Path
from typing import Final

DEFAULT_ENCODER: Final = "all-MiniLM-L6-v2"
"""The default encoder of an index."""
EMBEDDED: Final = "embedded"
"""The small backbone that ships with the library."""
SMOLLM2: Final = "smollm2-135m-memory"
"""Compressed memory for SmolLM2-135M-Instruct that ships with the library, without that model."""
SHIPPED_BACKBONES: Final = (EMBEDDED, SMOLLM2)

_DEFAULT_ENCODER: Final = frozenset({DEFAULT_ENCODER, f"sentence-transformers/{DEFAULT_ENCODER}"})
_SHIPPED: Final = frozenset({*_DEFAULT_ENCODER, *SHIPPED_BACKBONES})


def is_default_encoder(name: str) -> bool:
    """Whether a name is that of the default encoder."""
    return name in _DEFAULT_ENCODER


def is_folder(name: str | Path) -> bool:
    """Whether a name that the caller chose is a folder.

    Names of shipped models never are, even if the working folder has such a folder: use `./name` for it.
    """
    return str(name) not in _SHIPPED and os.path.isdir(name)


def is_gguf(name: str | Path) -> bool:
    """Whether a name is a model in one `.gguf` file on this machine."""
    return Path(name).suffix == ".gguf" and os.path.isfile(name)


def absolute_path(name: str | None) -> str | None:
    """The name; for a folder or file, its absolute path, which does not depend on the working folder."""
    return str(Path(name).absolute()) if name is not None and (is_folder(name) or is_gguf(name)) else name


def is_safe_name(name: str) -> bool:
    """Whether a name read from a file may be looked up: an absolute path on this machine, or a model name."""
    if name.startswith(("//", "\\\\")):  # a folder on another machine: requesting it may reveal a password
        return False
    if os.path.normpath(name).startswith(("/proc/", "/dev/")):  # /proc/self/cwd is the working folder
        return False
    return Path(name).is_absolute() or not (is_folder(name) or is_gguf(name))
