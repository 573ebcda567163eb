"""Which models made the blocks of a store: recorded with the blocks, and compared when the store is used again."""

from collections.abc import Callable, Mapping
from typing import Any, get_args

import numpy as np

from compmem.config import KVPruning
from compmem.errors import IncompatibleStoreError
from compmem.store import JSON, KV_WRITTEN, Store

MIN_ENCODER_SIMILARITY = 0.99
"""Minimum cosine of the probe vectors of two encoders that count as the same; rounding differs between devices."""

ENCODER_KEY, BACKBONE_KEY = "encoder fingerprint", "backbone"
"""Keys of the store for the fingerprints of its models."""


def stored_pruning(store: Store) -> KVPruning | None:
    """How the KV states in a store were chosen; None if it has none, or does not say."""
    made = store.get_meta(BACKBONE_KEY)
    name = made.get("pruning") if isinstance(made, dict) else None
    return next((known for known in get_args(KVPruning) if known == name), None)


def record_provenance(store: Store, provenance: Mapping[str, JSON]) -> None:
    """Writes what `IndexModels.provenance` says of blocks into the store that takes them, with the blocks.

    Raises:
        IncompatibleStoreError: Earlier blocks were made by other models.
    """
    if (here := provenance.get(ENCODER_KEY)) is not None:
        check_encoder(store, lambda: here, str(store.config.get("encoder")))
    if isinstance(made := provenance.get(BACKBONE_KEY), dict):
        check_backbone(store, made, str(made["name"]))
    for name in (ENCODER_KEY, BACKBONE_KEY):
        if name in provenance and store.get_meta(name) is None:
            store.put_meta(name, provenance[name])
    if isinstance(written := provenance.get(KV_WRITTEN), dict):
        stored = store.get_meta(KV_WRITTEN)
        whole = isinstance(stored, dict) and all(isinstance(stored.get(name), int) for name in written)
        before = stored if isinstance(stored, dict) and whole else dict.fromkeys(written, 0)
        store.put_meta(KV_WRITTEN, {name: before[name] + count for name, count in written.items()})


def check_encoder(store: Store, fingerprint: Callable[[], Any], name: str) -> None:
    """Refuse an encoder other than the one that a store was made with.

    Raises:
        IncompatibleStoreError: The vectors of the probe text differ.
    """
    stored = store.get_meta(ENCODER_KEY)
    if stored is None:
        return
    here = fingerprint()
    vector = (
        stored if isinstance(stored, list) and all(isinstance(x, int | float) and abs(x) <= 2 for x in stored) else []
    )
    if len(vector) != len(here) or not float(np.dot(vector, here)) >= MIN_ENCODER_SIMILARITY:
        raise IncompatibleStoreError(
            f"{str(store.path)!r} was made with other weights than the encoder {name!r} has "
            "here: their vectors of the probe text differ"
        )


def check_backbone(store: Store, here: Mapping[str, Any], current_name: str) -> None:
    """Refuse a backbone other than the one that a store was made with, or other settings of it.

    Raises:
        IncompatibleStoreError: Fingerprint, ratio or pruning differ.
    """
    stored = store.get_meta(BACKBONE_KEY)
    if stored is None:
        return
    name, made = (stored.get("name"), stored.get("fingerprint")) if isinstance(stored, dict) else (None, None)
    if made != here["fingerprint"]:
        raise IncompatibleStoreError(
            f"{str(store.path)!r} was made with the backbone {name!r} ({made}), not with {current_name!r} "
            f"({here['fingerprint']}): weights or memory settings differ"
        )
    for setting in ("ratio", "pruning"):
        if isinstance(stored, dict) and stored.get(setting) != here[setting]:
            raise IncompatibleStoreError(
                f"{str(store.path)!r} was made with {setting}={stored.get(setting)!r}, and the backbone "
                f"{name!r} compresses at {setting}={here[setting]!r} now"
            )
