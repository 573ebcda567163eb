"""Questions per second and latency of `compmem serve` on loopback, by number of clients, processes and replicas."""

import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from compmem_research.bench.clock import tree_seconds

NOTE = (
    "Each client waits for its answer before its next question. The server and its clients share the cores. Answers a "
    "processor second count the server's processes, and Ray's own."
)
"""What a reader of a run has to know."""

START_SECONDS = 600
"""Longest time to wait for a server to load its models."""


def measure(
    index: Path,
    questions: Sequence[str],
    *,
    clients: Sequence[int] = (1, 8, 32, 64),
    processes: Sequence[int] = (1, 2),
    replicas: Sequence[int] = (),
    requests: int = 64,
    path: str = "/answer",
) -> dict[str, Any]:
    """Requests a second, latencies and processor time, for each number of processes or replicas, and of clients.

    Args:
        index: Folder of the index.
        questions: The questions, used in turn; each level starts with other ones.
        clients: Numbers of concurrent clients; each waits for its answer before its next question.
        processes: Processes of the server.
        replicas: Replicas on a Ray cluster of this machine.
        requests: Requests per level; at least two per client.
        path: The route: `/answer` or `/recall`.
    """
    asked = cycle(questions)
    rows = []
    ways = [("processes", "--processes", n) for n in processes] + [("replicas", "--replicas", n) for n in replicas]
    for name, option, count in ways:
        ray = ["--ray", "local"] if name == "replicas" else []
        with _serving(index, [*ray, option, str(count)]) as (port, pid):
            _ask(port, path, list(islice(asked, 4 * count)), 2 * count)  # loads what the first questions need
            for level in clients:
                batch = list(islice(asked, max(requests, 2 * level)))
                before, load = tree_seconds(pid), os.getloadavg()[0]
                began = time.perf_counter()
                outcomes = _ask(port, path, batch, level)
                seconds = time.perf_counter() - began
                spent = tree_seconds(pid) - before
                about = {"server": name, "count": count, "clients": level, "machine_load": round(load, 1)}
                rows.append(about | _summary(outcomes, seconds, spent))
    return {"index": index.name, "route": path, "levels": rows}


def pages(run: Mapping[str, Any]) -> Iterator[str]:
    """The run as a table in Markdown."""
    yield "| server | clients | requests | not answered | answers/s | answers a processor second | p50, p95, p99 ms |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    for row in run["levels"]:
        latencies, lost = ", ".join(map(str, row["latency_ms"].values())), row["refused"] + row["failed"]
        yield (
            f"| {row['server']}: {row['count']} | {row['clients']} | {row['requests']} | {lost} "
            f"| {row['requests_per_second']} | {row['requests_per_processor_second']} | {latencies} |"
        )


def _summary(outcomes: Sequence[tuple[int, float]], seconds: float, spent: float) -> dict[str, Any]:
    good = [latency for status, latency in outcomes if status == 200]
    cuts = statistics.quantiles(good, n=100, method="inclusive") if len(good) > 1 else [0.0] * 99
    return {
        "requests": len(outcomes),
        "refused": sum(status == 503 for status, _ in outcomes),
        "failed": sum(status not in (200, 503) for status, _ in outcomes),
        "requests_per_second": round(len(good) / seconds, 2),
        "requests_per_processor_second": round(len(good) / spent, 2) if spent else None,
        "latency_ms": {f"p{p}": round(1000 * cuts[p - 1]) for p in (50, 95, 99)},
    }


def _ask(port: int, path: str, questions: Sequence[str], clients: int) -> list[tuple[int, float]]:
    """Status and seconds of each request."""

    def one(question: str) -> tuple[int, float]:
        began = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
        try:
            headers = {"Content-Type": "application/json"}
            connection.request("POST", path, json.dumps({"question": question}), headers)
            reply = connection.getresponse()
            reply.read()
            return reply.status, time.perf_counter() - began
        finally:
            connection.close()

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, questions))


@contextmanager
def _serving(index: Path, how: Sequence[str]) -> Iterator[tuple[int, int]]:
    """A server on a free port; yields the port and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    start = [sys.executable, "-c", "from compmem.cli import main; main()", "serve", str(index)]
    options = ["--port", str(port), "--wait-seconds", "600", "--answer-seconds", "300"]
    with subprocess.Popen([*start, *options, *how], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as server:  # noqa: S603
        try:
            _wait(port, server)
            yield port, server.pid
        finally:
            server.terminate()


def _wait(port: int, server: "subprocess.Popen[bytes]") -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the server did not start")
