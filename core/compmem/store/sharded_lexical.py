"""The lexical index of an index in shards, with counts over all of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from compmem.store import lexical
from compmem.store.lexical import PER_NAME, LexicalIndex
from compmem.text.tokenize import NameKind

_Lookup = tuple[str, tuple[Any, ...], Callable[[Any], None]]
"""A method of `ShardPart`, its arguments after the key, and a function that stores the results of all shards."""


class ShardedLexicalIndex(LexicalIndex):
    """The lexical index of a selection of blocks of several shards, with counts over all; nothing is asked twice.

    Args:
        ask_all: Calls a method of `ShardPart` on every shard, with the same arguments.
        number: The number in the view of a shard's block.
        key: Key of the selection.
        blocks: The number of its blocks.
    """

    def __init__(
        self, ask_all: Callable[..., list[Any]], number: Callable[[int, int], int], key: int, blocks: int
    ) -> None:
        self._ask_all = ask_all
        self._number = number
        self._key = key
        self._blocks = blocks
        self._length: float | None = None
        self._frequency: dict[str, int] = {}
        self._blocks_by_name: dict[str, list[tuple[int, NameKind]]] = {}
        self._phrases: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        self._rankings: dict[tuple[int, tuple[str, ...]], list[tuple[int, float]]] = {}

    def __len__(self) -> int:
        return self._blocks

    def prepare(self, names: Sequence[str], terms: Sequence[str]) -> None:
        """Look up names and terms that will be asked for, all in one call to the shards."""
        self._fill([*self._new_names(names), *self._new_terms(terms)])

    def prepare_search(
        self, queries: Sequence[Sequence[str]], limit: int, runs: Sequence[Sequence[str]], per_run: int
    ) -> None:
        """Search for queries and runs of words that will be asked for, all in one call to the shards."""
        self._fill([*self._new_queries(queries, limit), *self._new_runs(runs, per_run)])

    def document_frequency(self, terms: Sequence[str]) -> dict[str, int]:
        """The number of blocks that contain each term."""
        self._fill(self._new_terms(terms))
        return {term: self._frequency[term] for term in terms}

    def bm25(self, queries: Sequence[Sequence[str]], limit: int) -> list[list[tuple[int, float]]]:
        """For each query, the blocks that contain any of its terms, with their BM25 score, best first."""
        self._fill(self._new_queries(queries, limit))
        return [self._rankings[limit, _cut(terms)] for terms in queries]

    def phrases(self, runs: Sequence[Sequence[str]], limit: int) -> list[list[int]]:
        """For each run of words, the blocks that contain them in sequence, by number."""
        self._fill(self._new_runs(runs, limit))
        return [self._phrases[limit, tuple(run)] for run in runs]

    def blocks_by_name(self, names: Iterable[str], per_name: int = PER_NAME) -> dict[str, list[tuple[int, NameKind]]]:
        """The blocks with each name, titles first; names without blocks are left out."""
        asked = list(dict.fromkeys(names))
        if per_name > PER_NAME:
            known = self._merged_names(self._ask_all("blocks_by_name", self._key, asked, per_name), per_name)
        else:
            self._fill(self._new_names(asked))
            known = self._blocks_by_name
        return {name: known[name][:per_name] for name in asked if known.get(name)}

    def _fill(self, lookups: Sequence[_Lookup]) -> None:
        """Ask the shards for several answers in one call, and keep them."""
        if len(lookups) == 1:
            ((name, args, store),) = lookups
            store(self._ask_all(name, self._key, *args))
        elif lookups:
            found = self._ask_all("call_many", [(name, (self._key, *args)) for name, args, _ in lookups])
            for (_, _, store), answers in zip(lookups, zip(*found, strict=True), strict=True):
                store(answers)

    def _new_terms(self, terms: Sequence[str]) -> list[_Lookup]:
        new = [term for term in dict.fromkeys(terms) if term not in self._frequency]

        def store(found: Sequence[tuple[dict[str, int], float]]) -> None:
            self._frequency.update({term: sum(counts[term] for counts, _ in found) for term in new})
            self._length = sum(length for _, length in found)

        return [("statistics", (new,), store)] if new else []

    def _new_names(self, names: Sequence[str]) -> list[_Lookup]:
        new = [name for name in dict.fromkeys(names) if name not in self._blocks_by_name]

        def store(found: Sequence[dict[str, list[tuple[int, NameKind]]]]) -> None:
            merged = self._merged_names(found, PER_NAME)
            self._blocks_by_name.update({name: merged.get(name, []) for name in new})

        return [("blocks_by_name", (new, PER_NAME), store)] if new else []

    def _new_runs(self, runs: Sequence[Sequence[str]], limit: int) -> list[_Lookup]:
        new = [run for run in dict.fromkeys(map(tuple, runs)) if (limit, run) not in self._phrases]

        def store(found: Sequence[list[list[int]]]) -> None:
            rows = self._together(found, self._number)
            self._phrases.update(
                ((limit, run), sorted(own)[: max(limit, 0)]) for run, own in zip(new, rows, strict=True)
            )

        return [("phrases", (new, limit), store)] if new else []

    def _new_queries(self, queries: Sequence[Sequence[str]], limit: int) -> list[_Lookup]:
        new = [terms for terms in dict.fromkeys(map(_cut, queries)) if (limit, terms) not in self._rankings]
        frequency = self.document_frequency([term for terms in new for term in terms])
        asked = [self._query_terms({term: frequency[term] for term in terms}) for terms in new]
        mean = max((self._length or 0.0) / max(len(self), 1), 1.0)

        def store(found: Sequence[list[list[tuple[int, float]]]]) -> None:
            rows = self._together(found, lambda shard, row: (self._number(shard, row[0]), row[1]))
            for terms, own in zip(new, rows, strict=True):
                self._rankings[limit, terms] = sorted(own, key=lambda row: (-row[1], row[0]))[: max(limit, 0)]

        if not any(asked):
            self._rankings.update({(limit, terms): [] for terms in new})
            return []
        return [("rank", (asked, limit, len(self), mean), store)]

    def _merged_names(
        self, found: Sequence[Mapping[str, list[tuple[int, NameKind]]]], per_name: int
    ) -> dict[str, list[tuple[int, NameKind]]]:
        merged: dict[str, list[tuple[int, NameKind]]] = {}
        for shard, part in enumerate(found):
            for name, blocks in part.items():
                merged.setdefault(name, []).extend((self._number(shard, own), kind) for own, kind in blocks)
        order = {kind: place for place, kind in enumerate(lexical.KINDS)}
        return {n: sorted(b, key=lambda row: (order[row[1]], row[0]))[:per_name] for n, b in merged.items()}

    def _query_terms(self, frequency: Mapping[str, int]) -> dict[str, int]:
        return {term: frequency[term] for term in lexical.query_terms(frequency, len(self))}

    def _together(self, found: Sequence[Sequence[Any]], renumbered: Callable[[int, Any], Any]) -> list[list[Any]]:
        """For each query, the rows of all shards under the numbers of the view."""
        return [
            [renumbered(shard, row) for shard, rows in enumerate(parts) for row in rows]
            for parts in zip(*found, strict=True)
        ]


def _cut(terms: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(term[: lexical.MAX_TERM_CHARS] for term in terms))
