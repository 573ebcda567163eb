"""Queries an index whose shards are open in Ray actors on the machine with the folder.

The actors of all shards are asked at the same time. Only queries, numbers, scores and the blocks that the gate compares
travel.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from compmem.backbone import Backbone
from compmem.checks import check_integer
from compmem.config import RuntimeConfig, SearchKind
from compmem.errors import StoreError
from compmem.index import MemoryIndex, reopen
from compmem.retrieval.open_shards import Opened, OpenShards, unpack_blocks
from compmem.retrieval.vector_search import DenseSearch, Scored, merge_scored
from compmem.schema import Encoder, Vectors
from compmem.store import JSON, ShardedSnapshot, Snapshot, Store, StoreInfo, open_store, sum_infos

try:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
except ImportError as error:
    raise ImportError("shards in actors need Ray: pip install 'compmem[ray]'") from error

CALL_TIMEOUT_SECONDS: Final = 120.0
"""Longest wait for the actors."""

MAX_CONCURRENCY: Final = 16
"""Calls that an actor works on at once, each in a thread."""

UNLIMITED_RETRIES: Final = -1
"""`max_task_retries` for Ray, unlimited: a call that needs no open view may be repeated after a restart."""


@dataclass(frozen=True, slots=True)
class ShardActors:
    """The actors that have the shards of a folder: shard n is in actor n modulo their number."""

    path: str
    config: Mapping[str, Any]
    """Settings that the index was made with."""
    folders: tuple[Path, ...]
    """The folders of the shards, in order; the index's own if it is not divided."""
    shard_count: int | None
    """Number of shards; None if the index is not divided."""
    handles: tuple[Any, ...]

    @classmethod
    def start(cls, path: str | Path, actors: int | None = None, search: SearchKind = "exact") -> Self:
        """Start the actors on this machine; they end with this process, or with `stop`.

        Args:
            path: The folder of an index, divided into shards or not.
            actors: Their number, at most one a shard. None: one a CPU of this machine.
            search: The kind of search by vectors.

        Raises:
            ValueError: The number of actors is below 1.
            StoreError: The index cannot be opened.
        """
        if actors is not None:
            check_integer("actors", actors)
        with open_store(Path(path).absolute()) as store:
            folders, shard_count, settings = tuple(store.folders), store.shard_count, dict(store.config)
        actor = local_actor(OpenShards, max_restarts=-1, max_concurrency=MAX_CONCURRENCY)
        handles = tuple(actor.remote(part, search) for part in assign_shards(folders, actors or os.cpu_count() or 1))
        return cls(str(Path(path).absolute()), settings, folders, shard_count, handles)

    def stop(self) -> None:
        """End the actors."""
        for handle in self.handles:
            ray.kill(handle)

    def call_each(
        self,
        method: str,
        arguments: Mapping[int, tuple[Any, ...]],
        *,
        retries: int = 0,
        seconds: float | None = CALL_TIMEOUT_SECONDS,
    ) -> dict[int, Any]:
        """Call a method of `OpenShards` on some actors at the same time; the result of each, or its exception.

        It is a `StoreError` if an actor has ended or does not answer, else what the method raised.
        """
        methods = {n: getattr(self.handles[n], method).options(max_task_retries=retries) for n in arguments}
        sent = {n: methods[n].remote(*args) for n, args in arguments.items()}
        ray.wait(list(sent.values()), num_returns=len(sent), timeout=seconds)
        return {n: self._answer(ref) for n, ref in sent.items()}

    def _answer(self, sent: Any) -> Any:
        """What a call has returned, or the error that it ended with."""
        try:
            return ray.get(sent, timeout=0)
        except ray.exceptions.RayTaskError as error:
            return error.cause
        except ray.exceptions.RayError as error:
            return StoreError(
                f"an actor with shards of {self.path!r} has ended or does not answer ({type(error).__name__}); "
                "Ray starts it again if its machine is there: ask again"
            )

    def call_all(self, method: str, *args: Any, seconds: float | None = CALL_TIMEOUT_SECONDS) -> dict[int, Any]:
        """Call a method that needs no open view on all actors; the result of each.

        Raises:
            StoreError: An actor has ended or does not answer. Also what the method raises.
        """
        everyone = dict.fromkeys(range(len(self.handles)), args)
        return _raise_first_error(self.call_each(method, everyone, retries=UNLIMITED_RETRIES, seconds=seconds))


def local_actor(kind: type, **options: Any) -> Any:
    """An actor class whose actors run on this machine and take no CPU from others; `options` are Ray's."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(kind).options(num_cpus=0, scheduling_strategy=here, **options)


def assign_shards(folders: Sequence[Path], most: int) -> list[dict[int, Path]]:
    """The shards of at most so many actors, each with its folder: shard n is in actor n modulo their number."""
    number = min(len(folders), most)
    return [dict(list(enumerate(folders))[n::number]) for n in range(number)]


def _raise_first_error(answers: dict[int, Any]) -> dict[int, Any]:
    """The answers of all actors. Raises the first exception among them."""
    if failed := [answer for answer in answers.values() if isinstance(answer, Exception)]:
        raise failed[0]
    return answers


class ActorStore(Store):
    """The shards of an index in actors, as one store that is only read.

    Args:
        actors: The actors.
        owns_actors: Closing the store stops the actors.

    Attributes:
        round_trips: Calls to the actors so far; one asks all actors that it needs at the same time.
    """

    def __init__(self, actors: ShardActors, *, owns_actors: bool = False) -> None:
        self.path = Path(actors.path)
        self.config = actors.config
        self.folders = actors.folders
        self.shard_count = actors.shard_count
        self.actors = actors
        self.round_trips = 0
        self._owns_actors = owns_actors
        self._identities: dict[int, Any] | None = None

    @property
    def generation(self) -> int:
        """A number that is another one after every commit to any shard."""
        with self.snapshot() as snapshot:
            return snapshot.generation

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """A view of every shard, each consistent, kept open in the actors for as long as the block lasts.

        Raises:
            StoreError: An actor does not answer, or another index is in the folder now.
        """
        self.round_trips += 1
        answers = self.actors.call_each(
            "open", dict.fromkeys(range(len(self.actors.handles)), ()), retries=UNLIMITED_RETRIES
        )
        views = {n: opened for n, opened in answers.items() if isinstance(opened, Opened)}
        try:
            _raise_first_error(answers)
            facts = {shard: told for opened in views.values() for shard, told in opened.shards.items()}
            self._check({shard: identity for shard, (identity, _, _) in facts.items()})
            order = [facts[shard] for shard in range(len(self.folders))]
            ask = partial(self._ask, {n: opened.view for n, opened in views.items()})
            yield ShardedSnapshot(ask, [generation for _, generation, _ in order], sum(blocks for *_, blocks in order))
        finally:
            for n, opened in views.items():
                self.actors.handles[n].release.options(num_returns=0).remote(opened.view)  # not waited for

    def get_meta(self, key: str) -> JSON:
        """The fact under a name, or None; shards without it are skipped."""
        found = [fact for own in self._everywhere("meta", key).values() for fact in own]
        return next((fact for fact in found if fact is not None), None)

    def info(self) -> StoreInfo:
        """What all shards hold together."""
        return sum_infos([info for own in self._everywhere("infos").values() for info in own])

    def verify(self) -> list[str]:
        """Problems found after reading everything."""
        found = self.actors.call_all("verify", len(self.folders), seconds=None)
        return [problem for own in found.values() for problem in own]

    def close(self) -> None:
        """Stop the actors, if they were started for this store."""
        if self._owns_actors:
            self.actors.stop()

    def _read_only(self, *args: Any, **named: Any) -> NoReturn:
        raise StoreError(f"shards in actors are only read: open the folder {str(self.path)!r} itself to change it")

    add = delete = compact = copy_to = put_meta = hashes = writing = _read_only

    def _check(self, identities: dict[int, Any]) -> None:
        if self._identities is None:
            self._identities = identities
        if self._identities != identities:
            raise StoreError(
                f"the index that was opened in {str(self.path)!r} is no longer there: its folder was replaced; open it "
                "again"
            )

    def _everywhere(self, method: str, *args: Any) -> dict[int, Any]:
        self.round_trips += 1
        return self.actors.call_all(method, *args)

    def _ask(self, views: Mapping[int, str], name: str, asked: Mapping[int, tuple[Any, ...]]) -> dict[int, Any]:
        """Asks the actors of these shards at the same time; the `Ask` of a view."""
        packed = name == "blocks" and not any(kv for _, kv in asked.values())
        calls: dict[int, list[tuple[int, str, tuple[Any, ...]]]] = {}
        for shard, args in asked.items():
            call = (shard, "pack_blocks", args[:1]) if packed else (shard, name, args)
            calls.setdefault(shard % len(self.actors.handles), []).append(call)
        self.round_trips += 1
        found = _raise_first_error(self.actors.call_each("ask", {n: (views[n], own) for n, own in calls.items()}))
        results = {call[0]: result for n, own in calls.items() for call, result in zip(own, found[n], strict=True)}
        return {shard: unpack_blocks(*results[shard]) if packed else results[shard] for shard in asked}


@dataclass(frozen=True, slots=True)
class _ActorSearch(DenseSearch):
    """Searches the vectors of all shards in their actors and merges the nearest blocks."""

    view: ShardedSnapshot

    def search_with_scores(self, queries: Vectors, k: int, admitted: NDArray[np.int64] | None) -> list[Scored]:
        """The k nearest admitted blocks for each query `[queries, dim]`, with inner products."""
        found = self.view.ask_all("search_with_scores", self.view.key(admitted), queries, k)
        numbered = [
            [[(self.view.number(shard, own), score) for own, score in row] for row in rows]
            for shard, rows in enumerate(found)
        ]
        return merge_scored(numbered, k)


class ActorIndex(MemoryIndex):
    """An index that is asked through actors with its shards, and not changed. Made by `open_index`."""

    store: ActorStore

    def __reduce__(self) -> tuple[Callable[..., MemoryIndex], tuple[Any, ...]]:
        """Pickling and copying: a copy asks the same actors."""
        return reopen, (_over, self.store.actors, self._models.current_gate, self._opening_arguments())

    def _search(self, snapshot: Snapshot) -> DenseSearch:
        assert isinstance(snapshot, ShardedSnapshot)
        return _ActorSearch(snapshot)


def open_index(
    path: str | Path,
    *,
    actors: int | None = None,
    encoder: str | Encoder | None = None,
    backbone: str | Backbone | None = None,
    runtime: RuntimeConfig | None = None,
    allow_download: bool = False,
) -> ActorIndex:
    """The index in a folder of this machine, asked through Ray actors that have opened its shards.

    It has the methods of any index, but those that change it raise `StoreError`. What another process commits to the
    folder is seen by the next question. Closing the index stops the actors.

    Args:
        path: The folder, divided into shards or not.
        actors: Actors, at most one a shard. None: one a CPU of this machine.
        encoder: As in `MemoryIndex.open`.
        backbone: As in `MemoryIndex.open`.
        runtime: Device, types, gate and search of this process. The actors search vectors on the CPU.
        allow_download: As in `MemoryIndex.open`.

    Raises:
        ValueError: The number of actors is below 1.
        StoreError: The index cannot be opened.
        IncompatibleStoreError: As in `MemoryIndex.open`.
    """
    store = ActorStore(ShardActors.start(path, actors, (runtime or RuntimeConfig()).search), owns_actors=True)
    return ActorIndex.of_store(
        store, encoder=encoder, backbone=backbone, runtime=runtime, allow_download=allow_download
    )


def _over(actors: ShardActors, **arguments: Any) -> ActorIndex:
    return ActorIndex.of_store(ActorStore(actors), **arguments)
