"""The lexical index: FTS5 over the stemmed terms of titles, headings, contexts and texts, and the table of names.

FTS5 stores no text here: it gets the terms of a block when the block is added, and again when it is removed.
"""

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, get_args

import numpy as np

from compmem.errors import CorruptStoreError
from compmem.schema import Chunk
from compmem.store.blocks import BATCH, Numbers
from compmem.store.manifest import Rows, storable
from compmem.text.tokenize import NameKind, names_of, terms

KINDS: Final[tuple[NameKind, ...]] = get_args(NameKind)
_KINDS: Final = dict(enumerate(KINDS))
TITLE_WEIGHT: Final = 2.0
MAX_TERM_CHARS: Final = 256
"""Maximum number of characters of a term; the rest is ignored."""
COMMON: Final = 0.15
"""Terms in more than this share of the blocks are left out of a query that also has rarer terms."""
POSTINGS: Final = 12_000
"""Maximum number of occurrences that a query reads, rarest terms first; this limits its time in a large index."""
_MIN_TERMS: Final = 3
DIGITS: Final = 9
"""Decimals of a BM25 score: sums in another order differ by less, so equal blocks have equal scores."""
PER_NAME: Final = 64
"""Maximum number of blocks counted for one name."""
_LAST: Final = (1 << 63) - 1
_IN_ORDER: Final = "SELECT rowid FROM lexical WHERE lexical MATCH ? AND rowid BETWEEN ? AND ? ORDER BY rowid LIMIT ?"
_NAMED: Final = "SELECT block, kind FROM names WHERE name = ? AND block BETWEEN ? AND ? ORDER BY kind, block LIMIT ?"
_COUNTS: Final = "SELECT term, doc FROM json_each(?) CROSS JOIN vocabulary ON term = value"
_KNOWN: Final = "SELECT value FROM json_each(?) WHERE EXISTS (SELECT 1 FROM names WHERE name = value) ORDER BY key"
_RANKED: Final = "SELECT rowid, rank FROM lexical WHERE lexical MATCH ? AND rank MATCH ? ORDER BY rank LIMIT ?"
_PROBE: Final = "Die Straße; l'été, naïve running_2 ｆｕｌｌ 한국어의 東京都 ２０２４ Ελλάδα हिन्दी x 2024-04-08"


_HEADED: Final = f"Head (aside)\n{'A line of some length stands below it.' * 2}\n\nno head\n{'x' * 50}"


def fingerprint() -> str:
    """An example of how this version of the library splits text into terms and finds names."""
    return " ".join([*terms(_PROBE), *(name for name, _ in names_of("", (), _HEADED))])


def is_current(rows: Rows) -> bool:
    """Whether the terms in the index are those that this version of the library makes."""
    return rows("SELECT json_extract(value, '$') FROM manifest WHERE name = 'terms'") == [(fingerprint(),)]


def index_block(connection: sqlite3.Connection, number: int, chunk: Chunk) -> None:
    """Add a block's terms and names."""
    connection.execute("INSERT INTO lexical(rowid, title, body) VALUES (?, ?, ?)", (number, *_columns(chunk)))
    connection.executemany("INSERT INTO names VALUES (?, ?, ?)", name_rows(number, chunk))


def forget_block(connection: sqlite3.Connection, number: int, chunk: Chunk) -> None:
    """Remove a block's terms and names."""
    connection.execute(
        "INSERT INTO lexical(lexical, rowid, title, body) VALUES ('delete', ?, ?, ?)", (number, *_columns(chunk))
    )
    connection.execute("DELETE FROM names WHERE block = ?", (number,))


def rebuild(connection: sqlite3.Connection, blocks: Iterable[tuple[int, Chunk]]) -> None:
    """Rebuild the whole index from `(number, chunk)`."""
    connection.execute("INSERT INTO lexical(lexical) VALUES ('delete-all')")
    connection.execute("DELETE FROM names")
    for number, chunk in blocks:
        index_block(connection, number, chunk)


def name_rows(number: int, chunk: Chunk) -> list[tuple[str, int, int]]:
    """The rows of `names` for a block."""
    return [(name, KINDS.index(kind), number) for name, kind in names_of(chunk.title, chunk.headings, chunk.text)]


def indexed_terms(chunk: Chunk) -> list[str]:
    """Every term of a block, with repeats, as in the index."""
    return [term for part in (chunk.title, *_body(chunk)) for term in _terms(part)]


class LexicalIndex(ABC):
    """Terms, runs of words and names of blocks."""

    __slots__ = ()

    @abstractmethod
    def __len__(self) -> int:
        """The number of blocks."""

    @abstractmethod
    def document_frequency(self, terms: Sequence[str]) -> dict[str, int]:
        """The number of blocks that contain each term."""

    @abstractmethod
    def bm25(self, queries: Sequence[Sequence[str]], limit: int) -> list[list[tuple[int, float]]]:
        """For each query, the blocks that contain any of its terms, with their BM25 score, best first.

        In a large index, very common terms count only if the query has no rarer ones.

        Args:
            queries: Terms (see `compmem.text.tokenize.terms`), in any order; repeats count once.
            limit: Maximum number of blocks for a query.
        """

    @abstractmethod
    def phrases(self, runs: Sequence[Sequence[str]], limit: int) -> list[list[int]]:
        """For each run of words, the blocks that contain them in sequence, ignoring endings, by number."""

    @abstractmethod
    def blocks_by_name(self, names: Sequence[str], per_name: int = PER_NAME) -> dict[str, list[tuple[int, NameKind]]]:
        """The blocks with each name (`compmem.text.tokenize.name`), titles first; unknown names are left out."""

    def prepare(self, names: Sequence[str], terms: Sequence[str]) -> None:
        """Names and terms that will be looked up, so that an index elsewhere may be asked once for all."""
        return

    def prepare_search(
        self, queries: Sequence[Sequence[str]], limit: int, runs: Sequence[Sequence[str]], per_run: int
    ) -> None:
        """Queries of `bm25` and runs of `phrases` that will follow, likewise."""
        return


class SqliteLexicalIndex(LexicalIndex):
    """A lexical index in SQLite tables.

    Args:
        rows: Reads them.
        blocks: The number of blocks in them.
        frequency: The numbers of blocks that are known to contain a term; more are added.
    """

    def __init__(self, rows: Rows, blocks: int, frequency: dict[str, int]) -> None:
        self._rows = rows
        self._blocks = blocks
        self._frequency = frequency

    def __len__(self) -> int:
        return self._blocks

    def document_frequency(self, terms: Sequence[str]) -> dict[str, int]:
        """The number of blocks that contain each term; what is found is kept."""
        return document_frequency(self._rows, terms, self._frequency)

    def bm25(self, queries: Sequence[Sequence[str]], limit: int) -> list[list[tuple[int, float]]]:
        """For each query, the blocks that contain any of its terms, with their BM25 score, best first."""
        asked = [self.document_frequency([term[:MAX_TERM_CHARS] for term in terms]) for terms in queries]
        return [rank(self._rows, frequency, limit, len(self)) for frequency in asked]

    def phrases(self, runs: Sequence[Sequence[str]], limit: int) -> list[list[int]]:
        """For each run of words, the blocks that contain them in sequence, by number."""
        return [blocks_with_phrase(self._rows, words, max(limit, 0)).tolist() for words in runs]

    def blocks_by_name(self, names: Sequence[str], per_name: int = PER_NAME) -> dict[str, list[tuple[int, NameKind]]]:
        """The blocks with each name, titles first."""
        return blocks_by_name(self._rows, names, per_name)


class StoredLexicalIndex(SqliteLexicalIndex):
    """The tables of an index, which may not be this library's: they have no other blocks than the index.

    Args:
        rows: Reads them.
        numbers: The numbers of the index's blocks, ascending.
        frequency: As in `SqliteLexicalIndex`.
    """

    def __init__(self, rows: Rows, numbers: Numbers, frequency: dict[str, int]) -> None:
        super().__init__(rows, len(numbers), frequency)
        self._numbers = numbers

    def bm25(self, queries: Sequence[Sequence[str]], limit: int) -> list[list[tuple[int, float]]]:
        """For each query, the blocks that contain any of its terms, with their BM25 score, best first."""
        found = super().bm25(queries, limit)
        self._check([number for blocks in found for number, _ in blocks])
        return found

    def phrases(self, runs: Sequence[Sequence[str]], limit: int) -> list[list[int]]:
        """For each run of words, the blocks that contain them in sequence, by number."""
        found = super().phrases(runs, limit)
        self._check([number for numbers in found for number in numbers])
        return found

    def blocks_by_name(self, names: Sequence[str], per_name: int = PER_NAME) -> dict[str, list[tuple[int, NameKind]]]:
        """The blocks with each name, titles first."""
        found = super().blocks_by_name(names, per_name)
        self._check([number for blocks in found.values() for number, _ in blocks])
        return found

    def _check(self, numbers: Sequence[int]) -> None:
        found = np.array(numbers, np.int64)
        places = np.searchsorted(self._numbers, found, side="right") - 1
        if len(found) and not (len(self) and np.array_equal(self._numbers[places], found)):
            raise CorruptStoreError("the lexical index has a block that is not in the index")


def document_frequency(rows: Rows, words: Iterable[str], known: dict[str, int]) -> dict[str, int]:
    """Number of blocks that contain each term; `known` caches the counts of this generation, but not those of 0."""
    words = list(words)
    new = [word for word in dict.fromkeys(words) if word not in known and storable(word)]
    for at in range(0, len(new), BATCH):
        known.update((word, int(count)) for word, count in rows(_COUNTS, json.dumps(new[at : at + BATCH])))
    return {word: known.get(word, 0) for word in words}


def rank(rows: Rows, frequency: Mapping[str, int], limit: int, blocks: int) -> list[tuple[int, float]]:
    """Blocks by BM25 over any of the terms, best first; equal scores by number.

    Args:
        rows: The read transaction.
        frequency: The terms, and the number of blocks that contain each.
        limit: Maximum number of blocks.
        blocks: Number of live blocks.
    """
    asked = query_terms(frequency, blocks)
    if not asked or limit <= 0:
        return []
    query, count = " OR ".join(map(quote_term, asked)), limit
    while True:  # SQLite's order of equal scores is not defined: read on to a lower one
        count = min(2 * count, _LAST)
        found = rows(_RANKED, query, f"bm25({TITLE_WEIGHT}, 1.0)", count)
        if any(rank is None for _, rank in found):
            raise CorruptStoreError("the lexical index gives blocks without a score")
        scores = [(int(number), round(-float(rank), DIGITS)) for number, rank in found]
        if len(scores) < count or scores[-1][1] < scores[limit - 1][1]:
            return sorted(scores, key=lambda row: (-row[1], row[0]))[:limit]


def blocks_with_phrase(rows: Rows, words: Sequence[str], limit: int, first: int = 0, last: int = _LAST) -> Numbers:
    """Blocks of a range that contain the terms of these words in sequence, in document order; limit -1: all."""
    run = _terms(" ".join(words))
    found = rows(_IN_ORDER, quote_term(" ".join(run)), first, last, limit) if run and limit else []
    return np.array([number for (number,) in found], np.int64)


def blocks_by_name(
    rows: Rows, names: Iterable[str], per_name: int, first: int = 0, last: int = _LAST
) -> dict[str, list[tuple[int, NameKind]]]:
    """The blocks of a range with each name, titles first; names without blocks are left out."""
    out: dict[str, list[tuple[int, NameKind]]] = {}
    for name in _known(rows, [name for name in dict.fromkeys(names) if storable(name)]):
        found = rows(_NAMED, name, first, last, per_name)
        if found:
            try:
                out[name] = [(int(block), _KINDS[kind]) for block, kind in found]
            except (KeyError, TypeError, ValueError) as error:
                raise CorruptStoreError(f"the name {name!r} is stored with an unknown kind") from error
    return out


def _known(rows: Rows, names: Sequence[str]) -> Iterator[str]:
    """Those of these names that any block has, in the order given; of the runs of words of a text, few are names."""
    for at in range(0, len(names), BATCH):
        for (name,) in rows(_KNOWN, json.dumps(names[at : at + BATCH])):
            yield name


def query_terms(frequency: Mapping[str, int], blocks: int) -> list[str]:
    """The terms to query, rarest first; in a large index without the most common ones."""
    ascending = sorted((n, term) for term, n in frequency.items() if n)
    if sum(n for n, _ in ascending) <= POSTINGS:
        return [term for _, term in ascending]
    kept: list[str] = []
    total = 0
    for n, term in ascending:
        total += n
        if (kept and n > COMMON * blocks) or (len(kept) >= _MIN_TERMS and total > POSTINGS):
            break
        kept.append(term)
    return kept


def _columns(chunk: Chunk) -> tuple[str, str]:
    return " ".join(_terms(chunk.title)), " ".join(term for part in _body(chunk) for term in _terms(part))


def _body(chunk: Chunk) -> tuple[str, ...]:
    return (*chunk.headings, chunk.context, chunk.text)


def _terms(text: str) -> list[str]:
    return [term[:MAX_TERM_CHARS] for term in terms(text)]


def quote_term(term: str) -> str:
    """A term quoted for an FTS5 query."""
    return '"' + term.replace('"', '""') + '"'
