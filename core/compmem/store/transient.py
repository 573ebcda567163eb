"""A lexical index in memory, for blocks that are in no store, during one question."""

import sqlite3
from collections.abc import Sequence
from typing import Any

from compmem.schema import Chunk
from compmem.store import lexical
from compmem.store.lexical import PER_NAME
from compmem.store.manifest import LEXICAL_SCHEMA
from compmem.text.tokenize import NameKind


class TransientWords(lexical.OneByOne):
    """Terms and names of blocks, added one by one. Only one thread at a time may use it."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self._connection.executescript(LEXICAL_SCHEMA)
        self._blocks = 0
        self._frequency: dict[str, int] = {}

    def add(self, number: int, chunk: Chunk) -> None:
        """Adds a block with a new number."""
        lexical.index_block(self._connection, number, chunk)
        self._blocks += 1
        self._frequency.clear()

    def close(self) -> None:
        """Frees its memory."""
        self._connection.close()

    def __len__(self) -> int:
        return self._blocks

    def document_frequency(self, terms: Sequence[str]) -> dict[str, int]:
        """The number of blocks that contain each term."""
        return lexical.document_frequency(self._rows, terms, self._frequency)

    def lexical(self, terms: Sequence[str], limit: int) -> list[tuple[int, float]]:
        """Blocks that contain any of these terms, with their BM25 score, best first."""
        frequency = self.document_frequency([term[: lexical.LONGEST_TERM] for term in terms])
        return lexical.ranked(self._rows, frequency, limit, len(self))

    def phrase(self, words: Sequence[str], limit: int) -> list[int]:
        """Blocks that contain these words in sequence, ignoring endings, by number."""
        return [int(number) for number in lexical.with_phrase(self._rows, words, max(limit, 0))]

    def named(self, names: Sequence[str], per_name: int = PER_NAME) -> dict[str, list[tuple[int, NameKind]]]:
        """The blocks with each name, titles first; unknown names are left out."""
        return lexical.named(self._rows, names, per_name)

    def _rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(sql, parameters).fetchall()
