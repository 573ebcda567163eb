"""Recalled blocks as compact numbered text, for an agent that calls recall as a tool."""

import threading
from collections.abc import Callable, Sequence
from textwrap import indent
from typing import Final

from compmem.schema import Chunk, Recall

DESCRIPTION: Final = "Searches the documents. Ask in a whole sentence, with full names; ask again for what is missing."
"""When an agent should call recall."""
BLANK: Final = "Nothing was searched for, since the question is empty. Ask in a whole sentence, with full names."
"""What an agent reads after a call with a blank question."""
NOTHING: Final = "Nothing was found."
NOTHING_NEW: Final = "Nothing was found that was not shown before."


class Listing:
    """Numbers the blocks of all calls of one conversation and formats them as text, each with its title and id.

    A block keeps its number, so an answer may cite it as `[2]` whichever call showed it. The text of a block is
    indented, so no document can imitate a new entry.

    Args:
        skip_seen: Blocks that an earlier call showed are replaced by other blocks; only their numbers are listed at the
            end.
        render: The text shown for a chunk. By default, or if it returns None: the chunk's text.
    """

    def __init__(self, *, skip_seen: bool = False, render: Callable[[Chunk], str | None] = lambda chunk: None) -> None:
        self._skip_seen = skip_seen
        self._render = render
        self._numbers: dict[str, int] = {}
        self._guard = threading.Lock()

    def wanted(self, k: int) -> int:
        """How many blocks to recall so that k can be shown."""
        return k + len(self._numbers) if self._skip_seen else k

    def show(self, recalls: Sequence[Recall], k: int) -> tuple[str, list[Recall]]:
        """The text of a call, and the recalled blocks in it.

        Args:
            recalls: The recalled blocks, best first.
            k: Maximum number of blocks that are shown.
        """
        with self._guard:
            seen = [r for r in recalls[:k] if r.chunk.id in self._numbers] if self._skip_seen else []
            shown = [r for r in recalls if not (self._skip_seen and r.chunk.id in self._numbers)][:k]
            for recall in shown:
                self._numbers.setdefault(recall.chunk.id, len(self._numbers) + 1)
            parts = [self._entry(recall.chunk) for recall in shown]
            parts = parts or [NOTHING_NEW if seen else NOTHING]
            if seen:
                parts.append("Shown before: " + ", ".join(self._head(recall.chunk) for recall in seen))
            return "\n".join(parts), shown

    def _entry(self, chunk: Chunk) -> str:
        text = self._render(chunk)
        return f"{self._head(chunk)}\n{indent((chunk.text if text is None else text).strip(), '  ', lambda line: True)}"

    def _head(self, chunk: Chunk) -> str:
        named = " > ".join(part for part in (chunk.title, *chunk.headings) if part.strip())
        head = f"{named} (id: {chunk.document_id})" if named else f"id: {chunk.document_id}"
        return f"[{self._numbers[chunk.id]}] {' '.join(head.split())}"
