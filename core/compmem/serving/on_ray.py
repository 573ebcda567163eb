"""Runs the HTTP server on Ray Serve: replicas of one application, each of which Ray starts again if it fails."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from compmem.index import MemoryIndex
from compmem.serving.run import CONNECTIONS, FINISH_SECONDS, TOKENS, Settings, application, check_access, open_index
from compmem.serving.tokens import Tokens
from compmem.threads import in_thread

APP: Final = "compmem"
"""Name of the application on Ray Serve."""

HEALTH_SECONDS: Final = 5
"""How often Ray Serve checks each replica; it replaces one that fails three times."""

_ENVIRONMENT: Final = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300"}
"""A busy machine takes longer than Ray's 5 seconds to start what listens."""


class Replica:
    """The application over an index that this process has opened."""

    def __init__(self, settings: Settings, tokens: Tokens | None) -> None:
        self._index = open_index(settings)
        self._app = application(settings, self._index, tokens)

    def __serve_build_asgi_app__(self) -> Any:
        """The ASGI application, for `ray.serve.ingress`."""
        return self._app

    async def check_health(self) -> None:
        """Called by Ray Serve.

        Raises:
            StoreError: The index cannot be read, or another one is in its folder now.
        """
        await in_thread(self._index.__len__)


def serve(settings: Settings, host: str, port: int, address: str) -> None:
    """Serves on Ray Serve until the process is told to stop, by SIGINT or SIGTERM.

    Args:
        settings: The server; its `processes` are the replicas.
        host: Address to listen on, of each machine with a replica.
        port: Port to listen on.
        address: The cluster: `auto`, `HOST:PORT`, or `local` for one of this machine that ends with the server.

    Raises:
        ValueError: Others could reach the server without a token, or a setting is wrong.
        StoreError: The index cannot be opened.
        ImportError: The extra `ray` or `serve` is not installed.
        ConnectionError: There is no cluster.
    """
    _ray_serve()
    from compmem import distributed

    tokens = check_access(settings, host)
    if tokens is None and address != "local":
        raise ValueError(f"serving on a cluster needs tokens: name a file with --tokens, or set {TOKENS}")
    MemoryIndex.open(settings.index).close()
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default Ray's processes give way to all others
    stop = threading.Event()
    with distributed.connected(address), running(settings, tokens, host, port):
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, lambda *_: stop.set())
        stop.wait()


@contextmanager
def running(settings: Settings, tokens: Tokens | None, host: str, port: int) -> Iterator[None]:
    """The server on the cluster that this process is connected to; at the end it finishes its requests and is removed.

    Raises:
        ValueError: The cluster has too few CPUs, or runs Ray Serve already.
        OSError: The port is in use on this machine.
        RuntimeError: A replica could not start.
    """
    serve, made = _ray_serve(), deployment(settings, tokens)
    if serve.status().proxies:
        raise ValueError("the cluster runs Ray Serve already: deploy compmem.serving.on_ray.deployment(...) there")
    socket.create_server((host, port)).close()
    try:
        with suppress(TimeoutError):  # Ray Serve goes on starting what listens
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": host, "port": port},
                controller_options={"runtime_env": {"env_vars": _ENVIRONMENT}},
            )
        serve.run(made, name=APP, route_prefix="/")
        yield
    finally:
        serve.delete(APP)  # waits for the requests at work
        serve.shutdown()


def deployment(settings: Settings, tokens: Tokens | None) -> Any:
    """The application for `ray.serve.run`, with a CPU for each replica, and a GPU if the settings name CUDA.

    Replicas that may write run on this machine, where the folder lies, since its lock does not work between machines.
    Those of a read-only server run on any machine; each needs the folder, or a copy of it, at the same path.

    Raises:
        ValueError: The cluster has too few CPUs or GPUs for the replicas.
        ImportError: Ray Serve is not installed.
    """
    serve = _ray_serve()
    import ray

    needs = {"num_cpus": 1.0, "num_gpus": 1.0 if str(settings.device or "").startswith("cuda") else 0.0}
    there = ray.cluster_resources()
    for name, kind in (("num_cpus", "CPU"), ("num_gpus", "GPU")):
        if (found := there.get(kind, 0)) < settings.processes * needs[name]:
            raise ValueError(f"the cluster has {found:g} {kind}s, too few for {settings.processes} replicas")
    here = {} if settings.read_only else {"resources": {f"node:{ray.util.get_node_ip_address()}": 0.001}}
    made = serve.deployment(
        name=APP,
        num_replicas=settings.processes,
        max_ongoing_requests=CONNECTIONS,
        max_queued_requests=CONNECTIONS,
        graceful_shutdown_timeout_s=FINISH_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
        ray_actor_options={**needs, **here},
    )(serve.ingress()(Replica))
    return made.bind(replace(settings, index=str(Path(settings.index).absolute())), tokens)


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError("serving on Ray needs Ray Serve: pip install 'compmem[ray,serve]'") from error
    return serve
