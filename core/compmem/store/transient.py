"""A lexical index in memory, for blocks that are in no store, during one question."""

import sqlite3

from compmem.schema import Chunk
from compmem.store import lexical
from compmem.store.connection import Connection
from compmem.store.manifest import LEXICAL_SCHEMA


class TransientLexicalIndex(lexical.SqliteLexicalIndex):
    """Terms and names of blocks, added one by one. Only one thread at a time may use it."""

    def __init__(self) -> None:
        self._connection = sqlite3.connect(
            ":memory:", check_same_thread=False, isolation_level=None, factory=Connection
        )
        self._connection.executescript(LEXICAL_SCHEMA)
        super().__init__(self._connection.rows, 0, {})

    def add(self, number: int, chunk: Chunk) -> None:
        """Adds a block with a new number."""
        lexical.index_block(self._connection, number, chunk)
        self._blocks += 1
        self._frequency.clear()

    def close(self) -> None:
        """Frees its memory."""
        self._connection.close()
