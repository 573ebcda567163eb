"""Words, phrases and names of an index in shards, counted over all of them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from compmem.store import lexical
from compmem.store.lexical import PER_NAME, LexicalIndex
from compmem.text.tokenize import NameKind

_Wanted = tuple[str, tuple[Any, ...], Callable[[Any], None]]
"""A method of `ShardPart`, its arguments after the key, and what keeps the results of all shards."""


class ShardedWords(LexicalIndex):
    """The words of a selection of blocks of several shards, counted over all of them; nothing is asked twice.

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
        self._named: dict[str, list[tuple[int, NameKind]]] = {}
        self._phrases: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        self._ranked: dict[tuple[int, tuple[str, ...]], list[tuple[int, float]]] = {}

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
        """The number of blocks that hold each term."""
        self._fill(self._new_terms(terms))
        return {term: self._frequency[term] for term in terms}

    def bm25(self, queries: Sequence[Sequence[str]], limit: int) -> list[list[tuple[int, float]]]:
        """For each query, the blocks that contain any of its terms, with their BM25 score, best first."""
        self._fill(self._new_queries(queries, limit))
        return [self._ranked[limit, _cut(terms)] for terms in queries]

    def phrases(self, runs: Sequence[Sequence[str]], limit: int) -> list[list[int]]:
        """For each run of words, the blocks that contain them in sequence, by number."""
        self._fill(self._new_runs(runs, limit))
        return [self._phrases[limit, tuple(run)] for run in runs]

    def named(self, names: Iterable[str], per_name: int = PER_NAME) -> dict[str, list[tuple[int, NameKind]]]:
        """The blocks that answer to each name, titles first; names that none answers to are left out."""
        asked = list(dict.fromkeys(names))
        if per_name > PER_NAME:
            known = self._merged_names(self._ask_all("named", self._key, asked, per_name), per_name)
        else:
            self._fill(self._new_names(asked))
            known = self._named
        return {name: known[name][:per_name] for name in asked if known.get(name)}

    def _fill(self, wanted: Sequence[_Wanted]) -> None:
        """Ask the shards for several answers in one call, and keep them."""
        if len(wanted) == 1:
            ((name, args, keep),) = wanted
            keep(self._ask_all(name, self._key, *args))
        elif wanted:
            found = self._ask_all("several", [(name, (self._key, *args)) for name, args, _ in wanted])
            for (_, _, keep), answers in zip(wanted, zip(*found, strict=True), strict=True):
                keep(answers)

    def _new_terms(self, terms: Sequence[str]) -> list[_Wanted]:
        new = [term for term in dict.fromkeys(terms) if term not in self._frequency]

        def keep(found: Sequence[tuple[dict[str, int], float]]) -> None:
            self._frequency.update({term: sum(counts[term] for counts, _ in found) for term in new})
            self._length = sum(length for _, length in found)

        return [("statistics", (new,), keep)] if new else []

    def _new_names(self, names: Sequence[str]) -> list[_Wanted]:
        new = [name for name in dict.fromkeys(names) if name not in self._named]

        def keep(found: Sequence[dict[str, list[tuple[int, NameKind]]]]) -> None:
            merged = self._merged_names(found, PER_NAME)
            self._named.update({name: merged.get(name, []) for name in new})

        return [("named", (new, PER_NAME), keep)] if new else []

    def _new_runs(self, runs: Sequence[Sequence[str]], limit: int) -> list[_Wanted]:
        new = [run for run in dict.fromkeys(map(tuple, runs)) if (limit, run) not in self._phrases]

        def keep(found: Sequence[list[list[int]]]) -> None:
            rows = self._together(found, self._number)
            self._phrases.update(
                ((limit, run), sorted(own)[: max(limit, 0)]) for run, own in zip(new, rows, strict=True)
            )

        return [("phrases", (new, limit), keep)] if new else []

    def _new_queries(self, queries: Sequence[Sequence[str]], limit: int) -> list[_Wanted]:
        new = [terms for terms in dict.fromkeys(map(_cut, queries)) if (limit, terms) not in self._ranked]
        frequency = self.document_frequency([term for terms in new for term in terms])
        asked = [self._worth_asking({term: frequency[term] for term in terms}) for terms in new]
        mean = max((self._length or 0.0) / max(len(self), 1), 1.0)

        def keep(found: Sequence[list[list[tuple[int, float]]]]) -> None:
            rows = self._together(found, lambda shard, row: (self._number(shard, row[0]), row[1]))
            for terms, own in zip(new, rows, strict=True):
                self._ranked[limit, terms] = sorted(own, key=lambda row: (-row[1], row[0]))[: max(limit, 0)]

        if not any(asked):
            self._ranked.update({(limit, terms): [] for terms in new})
            return []
        return [("ranked", (asked, limit, len(self), mean), keep)]

    def _merged_names(
        self, found: Sequence[Mapping[str, list[tuple[int, NameKind]]]], per_name: int
    ) -> dict[str, list[tuple[int, NameKind]]]:
        merged: dict[str, list[tuple[int, NameKind]]] = {}
        for shard, part in enumerate(found):
            for name, blocks in part.items():
                merged.setdefault(name, []).extend((self._number(shard, own), kind) for own, kind in blocks)
        order = {kind: place for place, kind in enumerate(lexical.KINDS)}
        return {n: sorted(b, key=lambda row: (order[row[1]], row[0]))[:per_name] for n, b in merged.items()}

    def _worth_asking(self, frequency: Mapping[str, int]) -> dict[str, int]:
        return {term: frequency[term] for term in lexical.worth_asking(frequency, len(self))}

    def _together(self, found: Sequence[Sequence[Any]], renumbered: Callable[[int, Any], Any]) -> list[list[Any]]:
        """For each query, the rows of all shards under the numbers of the view."""
        return [
            [renumbered(shard, row) for shard, rows in enumerate(parts) for row in rows]
            for parts in zip(*found, strict=True)
        ]


def _cut(terms: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(term[: lexical.MAX_TERM_CHARS] for term in terms))
