"""The default node parser: documents are split by the core, not by the framework's default splitter."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from llama_index.core import Settings
from llama_index.core.constants import DEFAULT_CHUNK_SIZE
from llama_index.core.node_parser import NodeParser, SentenceSplitter
from llama_index.core.node_parser.node_utils import build_nodes_from_splits
from llama_index.core.node_parser.text.sentence import SENTENCE_CHUNK_OVERLAP
from llama_index.core.schema import BaseNode, MetadataMode
from pydantic import PrivateAttr

import compmem

if TYPE_CHECKING:
    from compmem import MemoryIndex

HEADERS: Final = "header_path"
"""Metadata key of the headings above a node, as in `MarkdownNodeParser`."""


class CompMemNodeParser(NodeParser):
    """Splits documents as the index does: chunks of its `chunk_tokens`, counted by its encoder, at sentence ends.

    The headings above a chunk are in its metadata under `header_path`.

    Args:
        memory: The index whose settings and encoder are used.
    """

    _memory: Any = PrivateAttr()

    def __init__(self, memory: "MemoryIndex") -> None:
        super().__init__()
        self._memory = memory

    @classmethod
    def class_name(cls) -> str:
        """Name of the class for the framework."""
        return "CompMemNodeParser"

    def _parse_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any) -> list[BaseNode]:
        return [cut for node in nodes for cut in self._cut(node)]

    def _cut(self, node: BaseNode) -> list[BaseNode]:
        document = compmem.Document(text=node.get_content(metadata_mode=MetadataMode.NONE))
        chunks = [chunk for chunk in self._memory.split(document) if chunk.text.strip()]
        made: list[BaseNode] = [*build_nodes_from_splits([c.text.strip() for c in chunks], node, id_func=self.id_func)]
        for cut, chunk in zip(made, chunks, strict=True):
            if chunk.headings:
                cut.metadata[HEADERS] = " > ".join(chunk.headings)
        return made


def settings_name_transformations() -> bool:
    """Whether `Settings` has other transformations than the framework's default splitter."""
    named = Settings.transformations
    if len(named) != 1 or type(named[0]) is not SentenceSplitter:
        return True
    return (named[0].chunk_size, named[0].chunk_overlap) != (DEFAULT_CHUNK_SIZE, SENTENCE_CHUNK_OVERLAP)
