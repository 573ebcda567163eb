"""A build whose worker or whose whole program is killed: built again, every document is there once."""

import os
import random
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from compmem import MemoryIndex
from tests.building_killed import (
    CONFIG,
    COUNT,
    alive,
    committed,
    descendants,
    documents,
    kill,
    wait_until,
    workers,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="finds processes in /proc"),
]
WAYS = [
    "workers",
    pytest.param("ray", marks=pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")),
]


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("victim", ["worker", "program"])
@pytest.mark.parametrize("seed", range(5))
def test_a_killed_build_is_completed_by_building_again(tmp_path, how, victim, seed):
    rng, path = random.Random(seed), tmp_path / "index"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parent.parent
    with subprocess.Popen(
        [sys.executable, "-m", "tests.building_killed", str(path), how], env=env, cwd=root, stderr=subprocess.PIPE
    ) as program:
        moment = rng.random() * 0.7 * COUNT
        wait_until(lambda: committed(path) >= moment or program.poll() is not None)
        if victim == "program":
            started = descendants(program.pid)
            kill(program.pid)
            wait_until(lambda: not any(map(alive, started)))
        else:
            wait_until(lambda: workers(program.pid) or program.poll() is not None)
            kill(rng.choice(workers(program.pid)))
        told = program.communicate(timeout=600)[1].decode()
    before = committed(path)
    if victim == "worker":
        assert (program.returncode, before < COUNT) == ((3, True) if how == "workers" else (0, False)), told
    shards = 2 if how == "ray" else None
    with MemoryIndex.open_or_create(path, CONFIG, shards=shards) as index:
        assert index.add(documents()) == COUNT - before
        assert sorted(d.id for d in index.documents()) == sorted(d.id for d in documents())
        assert all(index.get(d.id).text == d.text for d in documents())
        assert len(index) == sum(len(index.split(d)) for d in documents())
        assert index.verify() == []
