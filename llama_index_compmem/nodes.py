"""Nodes of LlamaIndex as documents of CompMem, and back again whole."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any, Final

from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc

from compmem import Chunk, Document, Recall
from compmem.metadata import plain

NODE: Final = "compmem:node"
"""Key under which a document keeps its node as JSON: relationships, offsets, templates, class."""

REF_DOC: Final = "compmem:ref_doc_id"
"""Key under which a document keeps the id of the document that its node was cut from."""

_TITLES: Final = ("title", "document_title", "file_name")
_LEAST_SCORE: Final = 1e-9


def to_document(node: BaseNode) -> Document:
    """The node as a document of one chunk, under the node's id.

    Raises:
        ValueError: Its metadata is not JSON, or has a key that is kept for CompMem.
    """
    if taken := sorted({NODE, REF_DOC} & set(node.metadata)):
        raise ValueError(f"node {node.node_id!r}: the metadata key {taken[0]!r} is kept for CompMem")
    try:
        kept = json.dumps(plain(_without_text(node)), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"node {node.node_id!r} cannot be kept as JSON: {error}") from error
    return Document(
        id=node.node_id,
        title=_title(node.metadata),
        chunks=[node.get_content(metadata_mode=MetadataMode.NONE)],
        metadata={**node.metadata, NODE: kept, REF_DOC: node.ref_doc_id},
    )


def to_bare_document(node: BaseNode) -> Document:
    """The node's text and title under its id, for an index that is thrown away: the node itself is not kept."""
    text = node.get_content(metadata_mode=MetadataMode.NONE)
    return Document(id=node.node_id, title=_title(node.metadata), chunks=[text], metadata={NODE: None})


def to_node(chunk: Chunk) -> BaseNode:
    """The node that a chunk was made of; a new one where the document did not come from LlamaIndex.

    Raises:
        ValueError: What the index keeps of the node cannot be read.
    """
    kept = chunk.metadata.get(NODE)
    if kept is None:
        source = RelatedNodeInfo(node_id=chunk.document_id)
        return TextNode(
            id_=chunk.id,
            text=chunk.text,
            metadata=dict(chunk.metadata),
            relationships={NodeRelationship.SOURCE: source},
            start_char_idx=chunk.start,
            end_char_idx=chunk.end,
        )
    try:
        node = json_to_doc(json.loads(kept))
    except (TypeError, ValueError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(f"the node {chunk.document_id!r} in the index cannot be read: {error}") from error
    if isinstance(node, TextNode):
        node.text = chunk.text
    return node


def to_scored(recalls: Iterable[Recall]) -> list[NodeWithScore]:
    """Nodes with the gate's probability as their score, in order.

    The framework takes a score of exactly 0 for a missing one (`n.score or 1.0`), so none is.
    """
    return [NodeWithScore(node=to_node(r.chunk), score=max(r.score, _LEAST_SCORE)) for r in recalls]


def node_ids(recalls: Sequence[Recall]) -> list[str]:
    """Ids of the nodes that the recalled chunks were made of."""
    return [r.chunk.document_id if NODE in r.chunk.metadata else r.chunk.id for r in recalls]


def source_hash(metadata: Mapping[str, Any]) -> str | None:
    """Hash of the document that a node was cut from, from what is kept of the node."""
    try:
        found = json.loads(metadata[NODE])["__data__"]["relationships"][NodeRelationship.SOURCE.value]["hash"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _without_text(node: BaseNode) -> dict[str, Any]:
    data: dict[str, Any] = doc_to_json(node)
    inner = data["__data__"]
    inner["embedding"] = None
    if isinstance(node, TextNode):
        inner["text"] = ""
    return data


def _title(metadata: dict[str, Any]) -> str:
    for key in _TITLES:
        value = metadata.get(key)
        if isinstance(value, str) and value.strip():
            return PurePath(value).stem if key == "file_name" else value.strip()
    return ""
