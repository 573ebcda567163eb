"""The settings of an index as they are stored in it: as JSON, with names for models."""

import dataclasses
from typing import Any

from compmem.backbone import Backbone
from compmem.config import DEFAULT_KV_TYPE, IndexConfig
from compmem.errors import CorruptStoreError, IncompatibleStoreError
from compmem.metadata import to_json_value
from compmem.naming import absolute_path
from compmem.provenance import stored_pruning
from compmem.schema import Encoder
from compmem.store import Store

_OBJECT_PREFIX = "object:"


def settings_json(config: IndexConfig) -> dict[str, Any]:
    """The settings as they are stored."""
    values = {f.name: to_json_value(getattr(config, f.name)) for f in dataclasses.fields(config) if f.name != "encoder"}
    return {**values, "kv": config.kv or DEFAULT_KV_TYPE, "encoder": _encoder_name(config.encoder)}


def with_absolute_folders(config: IndexConfig) -> IndexConfig:
    """The settings with absolute paths of folders, so that they do not depend on the working folder."""
    encoder = absolute_path(config.encoder) if isinstance(config.encoder, str) else config.encoder
    return dataclasses.replace(config, encoder=encoder, backbone=absolute_path(config.backbone))


def config_of_store(store: Store, encoder: str | Encoder | None, backbone: str | Backbone | None) -> IndexConfig:
    """The settings that an index was made with, and the given encoder and backbone.

    Raises:
        CorruptStoreError: The settings are invalid.
        IncompatibleStoreError: The encoder is another one, or an object that has to be given; or a newer version made
            the index.
    """
    settings = _stored_settings(store)
    stored_name = settings["encoder"]
    if encoder is None and str(stored_name).startswith(_OBJECT_PREFIX):
        raise IncompatibleStoreError(
            f"{str(store.path)!r} was made with the encoder object {stored_name.removeprefix(_OBJECT_PREFIX)!r}: "
            "open it with encoder="
        )
    given = stored_name if encoder is None else encoder
    if stored_name not in (_encoder_name(given), absolute_path(_encoder_name(given))):
        raise IncompatibleStoreError(
            f"{str(store.path)!r} was made with the encoder {stored_name!r}, not with {_encoder_name(given)!r}"
        )
    if isinstance(backbone, str):
        settings["backbone"] = backbone
    settings["kv_pruning"] = settings.get("kv_pruning") or stored_pruning(store)
    return IndexConfig(**{**settings, "encoder": given})


def _stored_settings(store: Store) -> dict[str, Any]:
    """The settings that an index was made with.

    Raises:
        IncompatibleStoreError: A newer version made it, with settings that this one does not know.
        CorruptStoreError: They are invalid.
    """
    settings = dict(store.config)
    settings.pop("search", None)  # a setting of older indexes; now it is chosen when an index is opened
    if settings.get("memory") == "dense":
        settings.pop("kv", None)  # stored for dense memory as well
    if unknown := settings.keys() - {setting.name for setting in dataclasses.fields(IndexConfig)}:
        raise IncompatibleStoreError(
            f"{str(store.path)!r} was made by a newer compmem: it has the setting {min(unknown)!r}"
        )
    try:
        for name in ("encoder", "backbone"):
            if not isinstance(settings[name], str | None):
                raise ValueError(f"{name}={settings[name]!r} is not a name")
        IndexConfig(**settings)
    except (TypeError, ValueError, KeyError) as error:
        raise CorruptStoreError(f"the settings of the index {str(store.path)!r} cannot be used: {error}") from error
    return settings


def _encoder_name(encoder: str | Encoder | None) -> str | None:
    return encoder if encoder is None or isinstance(encoder, str) else f"{_OBJECT_PREFIX}{type(encoder).__name__}"
