"""The default node parser: documents are split by the core, not by the framework's default splitter."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from llama_index.core import Settings
from llama_index.core.constants import DEFAULT_CHUNK_SIZE
from llama_index.core.node_parser import NodeParser, SentenceSplitter
from llama_index.core.node_parser.node_utils import build_nodes_from_splits, default_id_func
from llama_index.core.node_parser.text.sentence import SENTENCE_CHUNK_OVERLAP
from llama_index.core.schema import BaseNode, MetadataMode, RelatedNodeInfo, TextNode, TransformComponent
from llama_index.core.schema import Document as LlamaDocument
from pydantic import PrivateAttr

import compmem

if TYPE_CHECKING:
    from compmem import MemoryIndex

HEADER_PATH_KEY: Final = "header_path"
"""Metadata key of the headings above a node, as in `MarkdownNodeParser`."""


class CompMemNodeParser(NodeParser):
    """Splits documents as the index does: chunks of its `chunk_tokens`, counted by its encoder, at sentence ends.

    The headings above a chunk are in its metadata under `header_path`. The fields make the keys of a pipeline's cache
    differ where chunks do.

    Args:
        memory: The index whose settings and encoder are used.

    Attributes:
        chunk_tokens: Maximum number of tokens of a chunk.
        tokenizer: Name of the model that counts them.
    """

    chunk_tokens: int = 0
    tokenizer: str = ""

    _memory: Any = PrivateAttr()

    def __init__(self, memory: "MemoryIndex") -> None:
        super().__init__()
        self.chunk_tokens, self.tokenizer = memory.config.chunk_tokens, _tokenizer_name(memory)
        self._memory = memory

    @classmethod
    def class_name(cls) -> str:
        """Name of the class for the framework."""
        return "CompMemNodeParser"

    def _parse_nodes(self, nodes: Sequence[BaseNode], show_progress: bool = False, **kwargs: Any) -> list[BaseNode]:
        return [cut for node in nodes for cut in self._cut(node)]

    def _postprocess_parsed_nodes(
        self, nodes: list[BaseNode], parent_doc_map: dict[str, LlamaDocument]
    ) -> list[BaseNode]:  # fmt: skip
        """The nodes with relations and metadata; each keeps its offsets, for which the framework searches again."""
        texts = [node for node in nodes if isinstance(node, TextNode)]
        places = [(node.start_char_idx, node.end_char_idx) for node in texts]
        made = super()._postprocess_parsed_nodes(nodes, parent_doc_map)
        for node, (start, end) in zip(texts, places, strict=True):
            node.start_char_idx, node.end_char_idx = start, end
        return made

    def _cut(self, node: BaseNode) -> list[BaseNode]:
        document = compmem.Document(text=node.get_content(metadata_mode=MetadataMode.NONE))
        chunks = [chunk for chunk in self._memory.split(document) if chunk.text.strip()]
        made: list[BaseNode] = [*build_nodes_from_splits([c.text.strip() for c in chunks], node, id_func=self.id_func)]
        for cut, chunk in zip(made, chunks, strict=True):
            if isinstance(cut, TextNode):
                cut.start_char_idx = chunk.start + len(chunk.text) - len(chunk.text.lstrip())
                cut.end_char_idx = cut.start_char_idx + len(cut.text)
            if chunk.headings:
                cut.metadata[HEADER_PATH_KEY] = " > ".join(chunk.headings)
        return made


def _tokenizer_name(memory: "MemoryIndex") -> str:
    config = memory.config
    named = config.backbone if config.memory == "kv" else config.encoder
    return named if isinstance(named, str) else type(named).__name__


def settings_name_transformations() -> bool:
    """Whether `Settings` has other transformations than the framework's default splitter."""
    named = Settings.transformations
    if len(named) != 1 or type(named[0]) is not SentenceSplitter:
        return True
    return (named[0].chunk_size, named[0].chunk_overlap) != (DEFAULT_CHUNK_SIZE, SENTENCE_CHUNK_OVERLAP)


def has_random_ids(transformations: Sequence[TransformComponent]) -> bool:
    """Whether nodes get random ids, so that a stored node cannot be found by its id."""
    return all(isinstance(t, NodeParser) and t.id_func is default_id_func for t in transformations)


def assign_ids(nodes: Sequence[BaseNode], ids: Sequence[str]) -> None:
    """Give the nodes these ids, in order, also in their relations; nodes beyond the last id keep theirs."""
    names = {node.node_id: name for node, name in zip(nodes, ids, strict=False)}
    for node in nodes:
        related = [one for any_of in node.relationships.values() for one in _listed(any_of)]
        for one in related:
            one.node_id = names.get(one.node_id, one.node_id)
        node.node_id = names.get(node.node_id, node.node_id)


def _listed(related: RelatedNodeInfo | list[RelatedNodeInfo]) -> list[RelatedNodeInfo]:
    return related if isinstance(related, list) else [related]
