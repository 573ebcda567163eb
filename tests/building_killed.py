"""A program that builds an index and may be killed while it does; tests start it."""

import os
import re
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from compmem import Document, IndexConfig, MemoryIndex, WorkerError
from compmem.ingest import pipeline
from compmem.store import open_store, store_exists
from tests.hashing import HashEncoder

WORDS = "lease harbour clock mill rent owner roof ship crane audit letter bridge".split()
COUNT = 60
CONFIG = IndexConfig(encoder=HashEncoder(seconds=0.2), chunk_tokens=64)


def documents():
    """Documents of one or two chunks."""
    return [
        Document(id=f"d{n}", text=" ".join(f"The {WORDS[(n + i) % 12]} {n} rents the {i}." for i in range(n % 9 + 1)))
        for n in range(COUNT)
    ]


def build(path, how):
    """Adds the documents with two workers, or on Ray, to the index in a folder; made where there is none."""
    if how == "ray":
        from compmem import distributed

        with distributed.ray_cluster("local"):
            dataset = distributed.dataset_of(documents()).repartition(12)
            distributed.build(dataset, path, shards=2, config=CONFIG, batch_size=5)
        return
    pipeline.TASK_CHARACTERS = 400
    with MemoryIndex.open_or_create(path, CONFIG) as index:
        index.add(documents(), workers=2)


def committed(path):
    """How many documents an index holds by now."""
    if not store_exists(path):
        return 0
    store = open_store(path)
    try:
        return store.info().documents
    finally:
        store.close()


def descendants(pid):
    """The processes that a process started, and theirs."""
    try:
        tasks = list(Path(f"/proc/{pid}/task").iterdir())
        children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    except OSError:  # it has ended
        return []
    return children + [found for child in children for found in descendants(child)]


def workers(pid):
    """The processes that work for a build: those of the pool, or the actors on Ray."""
    return [d for d in descendants(pid) if re.search(r"forkserver|ray::.*(_Writer|MapWorker)", name_of(d)) and works(d)]


def works(pid):
    """Whether a process was forked by the pool's server, and is not that server; or is an actor."""
    return name_of(pid).startswith("ray::") or "forkserver" in name_of(parent_of(pid))


def name_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def parent_of(pid):
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill(pid):
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true, seconds=240):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


if __name__ == "__main__":
    try:
        build(sys.argv[1], sys.argv[2])
    except WorkerError:
        sys.exit(3)
