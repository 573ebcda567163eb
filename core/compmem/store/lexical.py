"""The lexical index: FTS5 over the stemmed terms of titles, headings, contexts and texts, and the table of names.

FTS5 keeps no text of its own: it is handed the terms of a block when the block is added, and again when it goes.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, get_args

import numpy as np
from numpy.typing import NDArray

from compmem.errors import CorruptStoreError
from compmem.schema import Chunk
from compmem.store.manifest import Rows, storable
from compmem.terms import NameKind, names_of, terms

KINDS: Final[tuple[NameKind, ...]] = get_args(NameKind)
_KINDS: Final = dict(enumerate(KINDS))
TITLE_WEIGHT: Final = 2.0
LONGEST_TERM: Final = 256
"""Characters of a term that count."""
COMMON: Final = 0.15
"""Share of the blocks that a term may stand in before rarer ones are asked for alone."""
POSTINGS: Final = 12_000
"""Occurrences that one question may touch, rarest terms first: what bounds its time in a large index."""
_LEAST_TERMS: Final = 3
_IN_ORDER: Final = "SELECT rowid, 0.0 FROM lexical WHERE lexical MATCH ? ORDER BY rowid LIMIT ?"
_RANKED: Final = "SELECT rowid, rank FROM lexical WHERE lexical MATCH ? AND rank MATCH ? ORDER BY rank LIMIT ?"
_PROBE: Final = "Die Straße; l'été, naïve running_2 ｆｕｌｌ 한국어의 東京都 ２０２４ Ελλάδα x"


_HEADED: Final = f"Head (aside)\n{'A line of some length stands below it.' * 2}\n\nno head\n{'x' * 50}"


def fingerprint() -> str:
    """How this version of the library cuts text into terms and finds names, by example."""
    return " ".join([*terms(_PROBE), *(name for name, _ in names_of("", (), _HEADED))])


def index_block(connection: sqlite3.Connection, number: int, chunk: Chunk) -> None:
    """Add a block's terms and names."""
    connection.execute("INSERT INTO lexical(rowid, title, body) VALUES (?, ?, ?)", (number, *_columns(chunk)))
    connection.executemany("INSERT INTO names VALUES (?, ?, ?)", name_rows(number, chunk))


def forget_block(connection: sqlite3.Connection, number: int, chunk: Chunk) -> None:
    """Take a block's terms and names out."""
    connection.execute(
        "INSERT INTO lexical(lexical, rowid, title, body) VALUES ('delete', ?, ?, ?)", (number, *_columns(chunk))
    )
    connection.execute("DELETE FROM names WHERE block = ?", (number,))


def rebuild(connection: sqlite3.Connection, blocks: Iterable[tuple[int, Chunk]]) -> None:
    """Make the whole index anew from `(number, chunk)`."""
    connection.execute("INSERT INTO lexical(lexical) VALUES ('delete-all')")
    connection.execute("DELETE FROM names")
    for number, chunk in blocks:
        index_block(connection, number, chunk)


def name_rows(number: int, chunk: Chunk) -> list[tuple[str, int, int]]:
    """The rows of `names` for a block."""
    return [(name, KINDS.index(kind), number) for name, kind in names_of(chunk.title, chunk.headings, chunk.text)]


def indexed_terms(chunk: Chunk) -> list[str]:
    """Every term of a block, with repeats, as the index holds it."""
    return [term for part in (chunk.title, *_body(chunk)) for term in _terms(part)]


def document_frequency(rows: Rows, words: Iterable[str], known: dict[str, int]) -> dict[str, int]:
    """Blocks that hold each term; `known` remembers what was counted in this generation."""
    out = {}
    for word in words:
        if word not in known:
            found = rows("SELECT doc FROM vocabulary WHERE term = ?", word) if storable(word) else []
            known[word] = int(found[0][0]) if found else 0
        out[word] = known[word]
    return out


def ranked(
    rows: Rows, frequency: Mapping[str, int], limit: int, live: NDArray[np.int64], admitted: NDArray[np.int64] | None
) -> list[tuple[int, float]]:
    """Blocks by BM25 over any of the terms, best first.

    Args:
        rows: The read transaction.
        frequency: The terms and the number of blocks that hold each.
        limit: Most blocks.
        live: Numbers of all live blocks, rising.
        admitted: The blocks that may be named, rising. None: all.
    """
    asked = _worth_asking(frequency, len(live))
    if not asked or limit <= 0:
        return []
    query = " OR ".join(map(_quoted, asked))
    allowed = live if admitted is None else admitted
    for most in (_likely_enough(limit, len(allowed), len(live)), -1):
        found = rows(_RANKED, query, f"bm25({TITLE_WEIGHT}, 1.0)", most)
        kept = _kept(found, allowed, limit)
        if len(kept) == limit or len(found) < most:
            break
    return kept


def with_phrase(
    rows: Rows, words: Sequence[str], limit: int, live: NDArray[np.int64], admitted: NDArray[np.int64] | None
) -> list[int]:
    """Blocks in which the terms of these words follow one another, in document order."""
    run = _terms(" ".join(words))
    if not run or limit <= 0:
        return []
    every = admitted is None or len(admitted) == len(live)
    found = rows(_IN_ORDER, _quoted(" ".join(run)), limit if every else -1)
    return [number for number, _ in _kept(found, live if admitted is None else admitted, limit)]


def named(rows: Rows, names: Iterable[str], per_name: int) -> dict[str, list[tuple[int, NameKind]]]:
    """The blocks that answer to each name, titles first; names that nothing answers to are left out."""
    out: dict[str, list[tuple[int, NameKind]]] = {}
    for name in dict.fromkeys(names):
        if not storable(name):
            continue
        found = rows("SELECT block, kind FROM names WHERE name = ? ORDER BY kind, block LIMIT ?", name, per_name)
        if found:
            try:
                out[name] = [(int(block), _KINDS[kind]) for block, kind in found]
            except (KeyError, TypeError, ValueError) as error:
                raise CorruptStoreError(f"the name {name!r} is stored with an unknown kind") from error
    return out


def _likely_enough(limit: int, allowed: int, live: int) -> int:
    """How many of the best rows are likely to hold `limit` allowed ones."""
    return limit if allowed == live else 64 + 2 * limit * live // max(allowed, 1)


def _worth_asking(frequency: Mapping[str, int], blocks: int) -> list[str]:
    rising = sorted((n, term) for term, n in frequency.items() if n)
    if sum(n for n, _ in rising) <= POSTINGS:
        return [term for _, term in rising]
    kept: list[str] = []
    total = 0
    for n, term in rising:
        total += n
        if (kept and n > COMMON * blocks) or (len(kept) >= _LEAST_TERMS and total > POSTINGS):
            break
        kept.append(term)
    return kept


def _kept(found: list[tuple[int, float]], admitted: NDArray[np.int64], limit: int) -> list[tuple[int, float]]:
    if not found or not len(admitted):
        return []
    numbers = np.fromiter((n for n, _ in found), np.int64, len(found))
    at = np.minimum(np.searchsorted(admitted, numbers), len(admitted) - 1)
    keep = np.flatnonzero(admitted[at] == numbers)[:limit]
    return [(found[i][0], -found[i][1]) for i in keep.tolist()]


def _columns(chunk: Chunk) -> tuple[str, str]:
    return " ".join(_terms(chunk.title)), " ".join(term for part in _body(chunk) for term in _terms(part))


def _body(chunk: Chunk) -> tuple[str, ...]:
    return (*chunk.headings, chunk.context, chunk.text)


def _terms(text: str) -> list[str]:
    return [term[:LONGEST_TERM] for term in terms(text)]


def _quoted(term: str) -> str:
    return '"' + term.replace('"', '""') + '"'
