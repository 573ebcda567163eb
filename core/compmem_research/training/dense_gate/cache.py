"""The states of a source as one file, so that a later run can reuse them."""

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import compmem
import compmem_research
from compmem.gate import FEATURES
from compmem.naming import DEFAULT_ENCODER
from compmem.retrieval.ranking import SearchRanks
from compmem.schema import Encoder
from compmem_research.resume import replacing
from compmem_research.training.dense_gate.settings import DenseGateTraining
from compmem_research.training.dense_gate.sources import Source
from compmem_research.training.dense_gate.states import SYSTEMS, QueryStates, State, collect_states

logger = logging.getLogger(__name__)

FORMAT = "compmem-gate-states/2"

MADE_BY = {
    compmem: ("gate", "ingest", "loop", "readers/extractive.py", "retrieval", "text"),
    compmem_research: (
        "tasks",
        *(f"training/dense_gate/{name}.py" for name in (
            "collection", "pages", "sets", "sources", "states", "styles", "synthetic",
        )),
    ),
}  # fmt: skip
"""The modules and packages whose code makes states."""


def states_of(source: Source, settings: DenseGateTraining, encoder: Encoder | None) -> list[QueryStates]:
    """The states of a source: from the cache if it has them for the same data, else computed and stored.

    Raises:
        ValueError: A data file has a broken line.
    """
    if settings.cache is None:
        return list(collect_states(source, encoder, settings.steps))
    path, made_of = settings.cache / f"{source.name}.safetensors", fingerprint(source, settings, encoder)
    found = load(path, source, made_of)
    if found is None:
        found = list(collect_states(source, encoder, settings.steps))
        settings.cache.mkdir(parents=True, exist_ok=True)
        save(path, found, made_of)
    logger.info("%s: %d queries", source.name, len(found))
    return found


def fingerprint(source: Source, settings: DenseGateTraining, encoder: Encoder | None) -> str:
    """A hash of everything that affects the states of a source: files, some settings, encoder, features and code."""
    files = [(file.name, hashlib.sha256(file.read_bytes()).hexdigest()) for file in source.files]
    used = [settings.per_source, settings.passages, settings.steps]
    facts = [FORMAT, source.name, files, source.versions, used, _named(encoder), FEATURES, code()]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@cache
def code() -> str:
    """A hash of the code of `MADE_BY`."""
    found = hashlib.sha256()
    for package, names in MADE_BY.items():
        [root] = map(Path, package.__path__)
        for name in names:
            for file in sorted((root / name).rglob("*.py")) if (root / name).is_dir() else [root / name]:
                found.update(f"{package.__name__}/{file.relative_to(root).as_posix()}\n".encode() + file.read_bytes())
    return found.hexdigest()


def _named(encoder: Encoder | None) -> list[Any]:
    """Name and dimension of an encoder; those of the default one belong to its name."""
    if encoder is None:
        return [DEFAULT_ENCODER]
    return [getattr(encoder, "name", type(encoder).__qualname__), np.asarray(encoder.encode(["one"])).shape[-1]]


def save(path: Path, asked: Sequence[QueryStates], made_of: str) -> None:
    """Writes the states, under a temporary name until the file is complete."""
    states = [s for a in asked for s in (a.first_pass, *a.later)]
    lines = [
        {
            "id": a.id, "question": a.question, "part": a.part, "style": a.style, "chained": a.chained,
            "relevant": sorted(a.relevant), "ranked": a.ranked, "looks": 1 + len(a.later),
        }
        for a in asked
    ]  # fmt: skip
    arrays: dict[str, list[Any]] = {
        "own": [s.own for s in states],
        "rows": [s.rows for s in states],
        "blocks": [s.blocks for s in states],
        "relevant": [s.relevant for s in states],
        "dense": [s.search_ranks.dense for s in states],
        "bm25": [s.search_ranks.bm25 for s in states],
        "score": [s.search_ranks.score for s in states],
    }
    tensors: dict[str, Any] = {name: np.concatenate(parts) for name, parts in arrays.items()} if states else {}
    tensors["windows_each"] = np.array([len(s.rows) for s in states], dtype=np.int64)
    tensors["blocks_each"] = np.array([len(s.blocks) for s in states], dtype=np.int64)
    tensors["lines"] = np.frombuffer(json.dumps(lines).encode(), dtype=np.uint8)
    with replacing(path) as part:
        save_file(tensors, part, metadata={"format": FORMAT, "made_of": made_of})


def load(path: Path, source: Source, made_of: str) -> list[QueryStates] | None:
    """The states in a file; None if it does not exist, is broken, or was made from other data."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            facts = file.metadata() or {}
            if (facts.get("format"), facts.get("made_of")) != (FORMAT, made_of):
                return None
            held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except SafetensorError:
        return None
    lines = json.loads(held.pop("lines").tobytes())
    if not lines:
        return []
    windows, blocks = (np.cumsum(held.pop(name))[:-1] for name in ("windows_each", "blocks_each"))
    parts = {name: np.split(held[name], windows if name in ("own", "rows") else blocks) for name in held}
    states = iter([
        State(own, rows, numbers, relevant, SearchRanks(dense, bm25, score))
        for own, rows, numbers, relevant, dense, bm25, score in zip(
            *(parts[n] for n in ("own", "rows", "blocks", "relevant", "dense", "bm25", "score")), strict=True
        )
    ])  # fmt: skip
    return [
        QueryStates(
            id=line["id"],
            question=line["question"],
            source=source,
            part=line["part"],
            style=line["style"],
            chained=line["chained"],
            relevant=frozenset(line["relevant"]),
            ranked={name: tuple(line["ranked"][name]) for name in SYSTEMS},
            first_pass=next(states),
            later=tuple(next(states) for _ in range(line["looks"] - 1)),
        )
        for line in lines
    ]
