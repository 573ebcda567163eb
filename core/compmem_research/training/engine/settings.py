"""Settings from TOML files: one frozen dataclass per table; an unknown key is an error."""

import dataclasses
import json
import tomllib
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

Settings = TypeVar("Settings")

NOT_DECISIVE = frozenset({"run", "start", "held", "at_once", "piece_tokens"})
"""Settings that do not change the trained weights, or that are recorded elsewhere."""


def read_settings(path: Path, kind: type[Settings], *, base: Path | None = None) -> Settings:
    """A stage's settings from a TOML file. Paths in it are relative to `base`; None: to the file.

    Raises:
        ValueError: The file cannot be read or is not TOML, has an unknown key, lacks a required one, or has an invalid
            value.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from error
    return _from_table(values, kind, path, path.parent if base is None else base)


def decisive_settings(settings: Any, start: str | None = None) -> dict[str, Any]:
    """The settings of a stage that decide on its weights, as JSON values; files and folders by their names.

    Args:
        settings: A stage's settings.
        start: The digest of the weights that it starts from. None: it starts from random ones.
    """
    kept = {name: value for name, value in dataclasses.asdict(settings).items() if name not in NOT_DECISIVE}
    values: dict[str, Any] = json.loads(json.dumps({**kept, "start": start}, default=lambda path: Path(path).name))
    return values


def _from_table(values: dict[str, Any], kind: type[Settings], file: Path, base: Path, name: str = "") -> Settings:
    """Settings from one table of a file."""
    fields = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    inside = f"{file}: in [{name}]" if name else f"{file}"
    if unknown := sorted(set(values) - set(fields)):
        raise ValueError(f"{inside}: unknown setting {unknown[0]!r}; there are {', '.join(sorted(fields))}")
    needed = {n for n, f in fields.items() if f.default is f.default_factory is dataclasses.MISSING}
    if lacking := sorted(needed - set(values)):
        raise ValueError(f"{inside}: the setting {lacking[0]!r} is missing")
    hints = get_type_hints(kind)
    try:
        return kind(**{key: _read(value, hints[key], file, base, key) for key, value in values.items()})
    except TypeError as error:
        raise ValueError(f"{inside}: {error}") from error


def _read(value: Any, hint: Any, file: Path, base: Path, name: str) -> Any:
    if get_origin(hint) in (Union, types.UnionType):
        hint = next(kind for kind in get_args(hint) if kind is not type(None))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise ValueError(f"{file}: {name!r} must be a table")
        return _from_table(value, hint, file, base, name)  # type: ignore[arg-type]
    if hint is Path:
        return base / Path(value).expanduser()
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{file}: {name}={value!r} must be a list")
        return tuple(_read(item, get_args(hint)[0], file, base, name) for item in value)
    if get_origin(hint) is Literal:
        if all(value != choice or type(value) is not type(choice) for choice in get_args(hint)):
            raise ValueError(f"{file}: {name}={value!r} must be one of {', '.join(map(repr, get_args(hint)))}")
        return value
    if type(value) is int and hint is float:
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise ValueError(f"{file}: {name}={value!r} must be of the type {hint.__name__}")
    return value
