"""Runs the HTTP server on Ray Serve: replicas of one application, each of which Ray starts again if it fails."""

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from compmem.index import MemoryIndex
from compmem.serving.run import (
    MAX_CONNECTIONS,
    SHUTDOWN_SECONDS,
    TOKENS_VARIABLE,
    Settings,
    check_access,
    make_app,
    open_index,
)
from compmem.serving.tokens import Tokens

if TYPE_CHECKING:
    from compmem.shard_actors import ShardActors

APP_NAME: Final = "compmem"
"""Name of the application on Ray Serve."""

HEALTH_SECONDS: Final = 5
"""How often Ray Serve checks each replica; it replaces one that fails three times."""

_ENVIRONMENT: Final = {"RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "300"}
"""On a busy machine, Ray's proxy needs more than the default 5 seconds to start."""


class Replica:
    """The application over an index that this process has opened, or over actors with its shards."""

    def __init__(self, settings: Settings, tokens: Tokens | None, shards: "ShardActors | None" = None) -> None:
        self._index = open_index(settings, None if shards is None else _index_opener(shards))
        self._app = make_app(settings, self._index, tokens)

    def __serve_build_asgi_app__(self) -> Any:
        """The ASGI application, for `ray.serve.ingress`."""
        return self._app

    async def check_health(self) -> None:
        """Called by Ray Serve.

        Raises:
            StoreError: The index cannot be read, or another one is in its folder now.
        """
        await asyncio.to_thread(self._index.__len__)  # the threads of questions may all be at work


def serve(settings: Settings, host: str, port: int, address: str, shard_actors: int | None = None) -> None:
    """Serves on Ray Serve until the process is told to stop, by SIGINT or SIGTERM.

    Args:
        settings: The server; its `processes` are the replicas.
        host: Address to listen on, of each machine with a replica.
        port: Port to listen on.
        address: The cluster: `auto`, `HOST:PORT`, or `local` for one of this machine that ends with the server.
        shard_actors: Actors on this machine that open the shards for all replicas; see `run_server`.

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
        raise ValueError(f"serving on a cluster needs tokens: name a file with --tokens, or set {TOKENS_VARIABLE}")
    MemoryIndex.open(settings.index).close()
    os.environ.setdefault("RAY_worker_niceness", "0")  # by default Ray's processes give way to all others
    stop = threading.Event()
    with distributed.ray_cluster(address), run_server(settings, tokens, host, port, shard_actors):
        for kind in (signal.SIGINT, signal.SIGTERM):
            signal.signal(kind, lambda *_: stop.set())
        stop.wait()


@contextmanager
def run_server(
    settings: Settings, tokens: Tokens | None, host: str, port: int, shard_actors: int | None = None
) -> Iterator[None]:
    """The server on the cluster that this process is connected to; at the end it finishes its requests and is removed.

    Args:
        settings: The server.
        tokens: Who may use it.
        host: Address to listen on.
        port: Port to listen on.
        shard_actors: Actors on this machine that open the shards of the index, at most one a shard. Replicas ask them,
            may be on any machine, and add and delete nothing. None: each replica opens the index itself.

    Raises:
        ValueError: The cluster has too few CPUs, or runs Ray Serve already; or `shard_actors` is below 1.
        OSError: The port is in use on this machine.
        RuntimeError: A replica could not start.
    """
    serve = _ray_serve()
    if serve.status().proxies:
        raise ValueError("the cluster runs Ray Serve already: deploy compmem.serving.on_ray.deployment(...) there")
    _check_free(host, port)
    with _shard_actors(settings, shard_actors) as shards, _deploy(deployment(settings, tokens, shards), host, port):
        yield


def _check_free(host: str, port: int) -> None:
    """Raises an `OSError` if the port is in use on this machine."""
    (family, *_, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    socket.create_server(address, family=family).close()


@contextmanager
def _shard_actors(settings: Settings, shard_actors: int | None) -> Iterator["ShardActors | None"]:
    """The actors with the shards of the index, for the block."""
    if shard_actors is None:
        yield None
        return
    from compmem.shard_actors import ShardActors

    shards = ShardActors.start(settings.index, shard_actors)
    try:
        yield shards
    finally:
        shards.stop()


@contextmanager
def _deploy(application: Any, host: str, port: int) -> Iterator[None]:
    """An application on Ray Serve, for the block."""
    serve = _ray_serve()
    try:
        with suppress(TimeoutError):  # Ray Serve goes on starting what listens
            serve.start(
                proxy_location="EveryNode",
                http_options={"host": host, "port": port},
                controller_options={"runtime_env": {"env_vars": _ENVIRONMENT}},
            )
        serve.run(application, name=APP_NAME, route_prefix="/")
        yield
    finally:
        serve.delete(APP_NAME)  # waits for the requests at work
        serve.shutdown()


def deployment(settings: Settings, tokens: Tokens | None, shards: "ShardActors | None" = None) -> Any:
    """The application for `ray.serve.run`, with a CPU for each replica, and a GPU if the settings name CUDA.

    Replicas that may write run on this machine, where the folder lies, since its lock does not work between machines.
    Those of a read-only server run on any machine; each needs the folder, or a copy of it, at the same path.

    Args:
        settings: The server.
        tokens: Who may use it.
        shards: Actors that have opened the shards, which the replicas ask; then the server is read-only, and replicas
            need no folder. The process that started the actors must stay.

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
    settings = settings if shards is None else replace(settings, read_only=True)
    here = {} if settings.read_only else {"resources": {f"node:{ray.util.get_node_ip_address()}": 0.001}}
    application = serve.deployment(
        name=APP_NAME,
        num_replicas=settings.processes,
        max_ongoing_requests=MAX_CONNECTIONS,
        max_queued_requests=MAX_CONNECTIONS,
        graceful_shutdown_timeout_s=SHUTDOWN_SECONDS,
        health_check_period_s=HEALTH_SECONDS,
        ray_actor_options={**needs, **here},
    )(serve.ingress()(Replica))
    return application.bind(replace(settings, index=str(Path(settings.index).absolute())), tokens, shards)


def _index_opener(shards: "ShardActors") -> Callable[..., MemoryIndex]:
    from compmem.shard_actors import ActorIndex, ActorStore

    return partial(ActorIndex.of_store, ActorStore(shards))


def _ray_serve() -> Any:
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError("serving on Ray needs Ray Serve: pip install 'compmem[ray,serve]'") from error
    return serve
