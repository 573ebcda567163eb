"""Lexical search over the blocks that a filter admits, with statistics of these blocks alone."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from compmem.errors import CorruptStoreError
from compmem.store import lexical
from compmem.store.blocks import BATCH, Numbers, number_list
from compmem.store.lexical import PER_NAME
from compmem.store.manifest import Rows, storable
from compmem.text.tokenize import NameKind

_K1: Final = 1.2
_B: Final = 0.75
_MIN_IDF: Final = 1e-6
"""The constants of BM25 in FTS5, so that a filter that admits everything gives the same ranking as no filter."""
_HOLDERS: Final = "SELECT json_group_array(rowid) FROM lexical WHERE lexical MATCH ? AND rowid BETWEEN ? AND ?"
_COUNTS: Final = (
    "SELECT doc, sum(CASE col WHEN 'title' THEN ? ELSE 1.0 END) FROM temp.occurrences "
    "WHERE term = ? AND doc BETWEEN ? AND ? GROUP BY doc ORDER BY doc"
)
_LENGTHS: Final = "SELECT sz FROM lexical_docsize WHERE id IN (SELECT value FROM json_each(?)) ORDER BY id"

Lengths = NDArray[np.float64]


@dataclass(slots=True)
class FilteredLexicalIndex(lexical.LexicalIndex):
    """The lexical index without the blocks that a filter excludes: they affect no count, no score and no rank."""

    rows: Rows
    numbers: Numbers
    """The admitted blocks, ascending."""
    _frequency: dict[str, int] = field(default_factory=dict)
    _counted: dict[str, tuple[Numbers, Lengths]] = field(default_factory=dict)
    _length: float | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    def document_frequency(self, terms: Sequence[str]) -> dict[str, int]:
        """The number of admitted blocks that contain each term."""
        new = [term for term in dict.fromkeys(terms) if term not in self._frequency]
        anywhere = lexical.document_frequency(self.rows, new, {})  # one call for all, of which most may be in no block
        self._frequency.update((term, self._count_blocks(term) if anywhere[term] else 0) for term in new)
        return {term: self._frequency[term] for term in terms}

    def bm25(self, queries: Sequence[Sequence[str]], limit: int) -> list[list[tuple[int, float]]]:
        """For each query, the admitted blocks that contain any of its terms, with their BM25 score, best first."""
        return [self.rank(self._query_terms(terms), limit, len(self), self._mean()) for terms in queries]

    def rank(
        self, frequency: Mapping[str, int], limit: int, blocks: int, mean_length: float
    ) -> list[tuple[int, float]]:
        """Admitted blocks with their BM25 score, best first; the statistics may cover more blocks than these.

        Args:
            frequency: The query terms, and the number of blocks that contain each.
            limit: Maximum number of blocks.
            blocks: Number of blocks.
            mean_length: Mean number of terms in a block.
        """
        if not frequency or limit <= 0 or not len(self):
            return []
        found = [(*self._occurrences(term), n) for term, n in frequency.items()]
        numbers = np.unique(np.concatenate([places for places, _, _ in found]))
        spans = 1 - _B + _B * self._lengths(numbers) / mean_length
        scores = np.zeros(len(numbers))
        for places, counts, n in found:
            idf = math.log((blocks - n + 0.5) / (n + 0.5)) if 0 < n <= blocks else 0.0
            at = np.searchsorted(numbers, places)
            scores[at] += max(idf, _MIN_IDF) * (counts * (_K1 + 1) / (counts + _K1 * spans[at]))
        scores = scores.round(lexical.DIGITS)
        best = np.argsort(-scores, kind="stable")[:limit]
        return list(zip(numbers[best].tolist(), scores[best].tolist(), strict=True))

    def phrases(self, runs: Sequence[Sequence[str]], limit: int) -> list[list[int]]:
        """For each run of words, the admitted blocks that contain them in sequence, in document order."""
        found = [lexical.blocks_with_phrase(self.rows, words, -1, *self._range()) for words in runs]
        return [blocks[self._is_admitted(blocks)][: max(limit, 0)].tolist() for blocks in found]

    def blocks_by_name(self, names: Iterable[str], per_name: int = PER_NAME) -> dict[str, list[tuple[int, NameKind]]]:
        """The admitted blocks with each name, titles first; names without blocks are left out."""
        out: dict[str, list[tuple[int, NameKind]]] = {}
        for name, found in lexical.blocks_by_name(self.rows, names, -1, *self._range()).items():
            kept = self._is_admitted(np.array([block for block, _ in found], np.int64))
            if kept.any():
                out[name] = [found[i] for i in np.flatnonzero(kept)[:per_name].tolist()]
        return out

    def _query_terms(self, terms: Sequence[str]) -> dict[str, int]:
        frequency = self.document_frequency([term[: lexical.MAX_TERM_CHARS] for term in terms])
        return {term: frequency[term] for term in lexical.query_terms(frequency, len(self))}

    def _count_blocks(self, term: str) -> int:
        if not len(self) or not storable(term):
            return 0
        ((text,),) = self.rows(_HOLDERS, lexical.quote_term(term), *self._range())
        return int(self._is_admitted(np.array(json.loads(text), np.int64)).sum())

    def _occurrences(self, term: str) -> tuple[Numbers, Lengths]:
        """The admitted blocks that contain a term, ascending, and how often, with a higher weight for titles."""
        if term not in self._counted:
            table = np.array(self.rows(_COUNTS, lexical.TITLE_WEIGHT, term, *self._range()), np.float64).reshape(-1, 2)
            places = table[:, 0].astype(np.int64)
            kept = self._is_admitted(places)
            self._counted[term] = places[kept], table[kept, 1]
        return self._counted[term]

    def _mean(self) -> float:
        """Mean number of terms in an admitted block."""
        return max(self.length() / max(len(self), 1), 1.0)

    def length(self) -> float:
        """Terms in all admitted blocks together."""
        if self._length is None:
            self._length = float(self._lengths(self.numbers).sum()) if len(self) else 0.0
        return self._length

    def _lengths(self, blocks: Numbers) -> Lengths:
        """Terms in each of these blocks, which are ascending."""
        parts = (number_list(blocks[at : at + BATCH]) for at in range(0, len(blocks), BATCH))
        sizes = [size for part in parts for (size,) in self.rows(_LENGTHS, part)]
        lengths = _sums_of_pairs(sizes)
        if len(lengths) != len(blocks):
            raise CorruptStoreError("the lexical index lacks blocks of the index")
        return lengths

    def _range(self) -> tuple[int, int]:
        return (int(self.numbers[0]), int(self.numbers[-1])) if len(self) else (1, 0)

    def _is_admitted(self, blocks: Numbers) -> NDArray[np.bool_]:
        if not len(self):
            return np.zeros(len(blocks), bool)
        at = np.minimum(np.searchsorted(self.numbers, blocks), len(self) - 1)
        return np.asarray(self.numbers[at] == blocks)


def _sums_of_pairs(sizes: Sequence[bytes]) -> Lengths:
    """The sums of the two numbers in each entry: SQLite's variable-length integers, seven bits per byte, highest first.

    Raises:
        CorruptStoreError: An entry has another format.
    """
    if not all(isinstance(size, bytes) for size in sizes):
        raise CorruptStoreError("the lengths in the lexical index are not bytes")
    data = np.frombuffer(b"".join(sizes), np.uint8)
    ends = np.flatnonzero(data < 128)
    if len(ends) != 2 * len(sizes) or (len(data) and ends[-1] != len(data) - 1):
        raise CorruptStoreError("the lengths in the lexical index cannot be read")
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.repeat(ends, ends - starts + 1) - np.arange(len(data))
    values = (data & 127) * 128.0**place
    return np.add.reduceat(values, starts).reshape(-1, 2).sum(1) if len(data) else np.zeros(0)
