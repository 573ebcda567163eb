"""Names of models: of what ships with packages, of folders on this machine, and on a hub."""

from pathlib import Path
from typing import Final

DEFAULT_ENCODER: Final = "all-MiniLM-L6-v2"
"""The encoder of an index that names none."""
EMBEDDED: Final = "embedded"
"""The small backbone that ships with the library."""

_SHIPPED: Final = frozenset({DEFAULT_ENCODER, f"sentence-transformers/{DEFAULT_ENCODER}", EMBEDDED})


def is_folder(name: str | Path) -> bool:
    """Whether a name that the caller chose means a folder.

    The names of what ships never do, whatever lies in the working folder: such a folder is meant by `./name`.
    """
    return str(name) not in _SHIPPED and Path(name).is_dir()


def is_gguf(name: str | Path) -> bool:
    """Whether a name means a model in one `.gguf` file on this machine."""
    return Path(name).suffix == ".gguf" and Path(name).is_file()


def absolute(name: str | None) -> str | None:
    """The name; where it means a folder or a file, its absolute path, the same from every working folder."""
    return str(Path(name).absolute()) if name is not None and (is_folder(name) or is_gguf(name)) else name


def is_plain(name: str) -> bool:
    """Whether a name that was read from a file may be looked up: an absolute path here, or a model's name."""
    if name.startswith(("//", "\\\\")):  # another machine's folder, which asking for may give a password away
        return False
    return Path(name).is_absolute() or not (is_folder(name) or is_gguf(name))
