"""Converts nodes of LlamaIndex to documents of CompMem, and back without loss."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from string import Formatter
from typing import TYPE_CHECKING, Any, Final, TypeVar

from llama_index.core.schema import BaseNode, MetadataMode, NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore.utils import doc_to_json, json_to_doc

from compmem import Chunk, Document, Recall
from compmem.metadata import to_json_value
from compmem.schema import MAX_CONTEXT_CHARS

if TYPE_CHECKING:
    from compmem import MemoryIndex

_Node = TypeVar("_Node", bound=BaseNode)

logger = logging.getLogger(__name__)

NODE_KEY: Final = "compmem:node"
"""Key of the node in a document's metadata: as JSON (relationships, offsets, templates, class), or itself where nothing
is stored."""

REF_DOC_KEY: Final = "compmem:ref_doc_id"
"""Key of the id of the node's source document."""

NODE_ID_KEY: Final = "compmem:node_id"
"""Key of the node's id, for filters."""

_TEMPLATE_FIELDS: Final = {
    "metadata_template": frozenset(("key", "value")),
    "text_template": frozenset(("content", "metadata_str")),
}
"""What the templates of a node may contain."""

_MAX_SEPARATOR_CHARS: Final = 20

RESERVED_KEYS: Final = (NODE_KEY, REF_DOC_KEY, NODE_ID_KEY)
"""Keys that user metadata must not have."""

_TITLES: Final = ("title", "document_title", "file_name")
_MIN_SCORE: Final = 1e-9
_PLACE_OF_TEXT: Final = "\0text\0"


def to_document(node: BaseNode) -> Document:
    """The node as a document of one chunk, with the node's id.

    The metadata shown by `MetadataMode.EMBED` is the document's context, so it is searched with the text.

    Raises:
        ValueError: Its metadata is not JSON, or has a key that is reserved for CompMem.
    """
    if taken := sorted(set(RESERVED_KEYS) & set(node.metadata)):
        raise ValueError(f"node {node.node_id!r}: the metadata key {taken[0]!r} is reserved for CompMem")
    try:
        to_json_value(dict(node.metadata))  # fails here, before an index is created
        kept = json.dumps(to_json_value(_without_text(node)), ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"node {node.node_id!r} cannot be stored as JSON: {error}") from error
    own = {NODE_KEY: kept, REF_DOC_KEY: node.ref_doc_id, NODE_ID_KEY: node.node_id}
    return _document(node, {**node.metadata, **own})


def to_bare_document(node: BaseNode) -> Document:
    """The node's text, title and context with its id, for a temporary index; the node itself is not stored."""
    return _document(node, {NODE_KEY: None}, cut=True)


def to_wrapped_document(node: BaseNode) -> Document:
    """The node of another store as a document that is not stored: its metadata may be anything."""
    return _document(node, {NODE_KEY: node}, cut=True)


def node_list(nodes: Iterable[_Node]) -> list[_Node]:
    """The nodes that may be iterated once.

    Raises:
        TypeError: It is a single node, or nothing that has any.
    """
    given: object = nodes
    if isinstance(given, BaseNode) or not isinstance(given, Iterable):
        raise TypeError(f"there must be a list of documents or nodes, not one {type(given).__name__}")
    return list(nodes)


def to_documents(nodes: Sequence[BaseNode]) -> list[Document]:
    """The nodes with text, as documents.

    Raises:
        TypeError: Something is no node.
        ValueError: A node's metadata is not JSON, or has a key that is reserved for CompMem.
    """
    nodes = node_list(nodes)
    if others := [n for n in nodes if not isinstance(n, BaseNode)]:
        name = type(others[0]).__name__
        raise TypeError(f"there must be a list of documents or nodes, not of {name}: Document(text=...) makes one")
    kept = [n for n in nodes if n.get_content(metadata_mode=MetadataMode.NONE).strip()]
    if len(kept) < len(nodes):
        logger.warning("%d nodes have no text and are left out", len(nodes) - len(kept))
    return [to_document(n) for n in kept]


def ids_of_ref_docs(memory: "MemoryIndex", ref_doc_ids: Sequence[str]) -> dict[str, list[str]]:
    """Ids of the nodes of each document, or of the document itself if it was added whole."""
    found: dict[str, list[str]] = {name: [] for name in ref_doc_ids}
    for document in memory.documents({REF_DOC_KEY: {"in": list(found)}}):
        if (name := document.metadata[REF_DOC_KEY]) in found:  # a filter takes texts for the same time as equal
            found[name].append(document.id)
    for name, ids in found.items():
        whole = memory.metadata(name)
        if whole is not None and whole.get(REF_DOC_KEY) is None:
            ids.append(name)
    return found


def to_node(chunk: Chunk) -> BaseNode:
    """The node of a chunk, as it was stored or came from another store; a new one if it never was a node.

    Raises:
        ValueError: The stored node cannot be read.
    """
    kept = chunk.metadata.get(NODE_KEY)
    if isinstance(kept, BaseNode):
        return kept.model_copy(update={"metadata": dict(kept.metadata)})  # a caller may change it
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
    _check_templates(node)
    node.metadata = {key: chunk.metadata.get(key) for key in node.metadata}
    return node


def _check_templates(node: BaseNode) -> None:
    """Replace templates of a stored node that do more than put each text once in its place."""
    for name, allowed in _TEMPLATE_FIELDS.items():
        if (field := type(node).model_fields.get(name)) is not None:
            try:
                parts = [part[1:] for part in Formatter().parse(getattr(node, name)) if part[1] is not None]
            except ValueError:
                parts = [("", "", None)]
            used = [text for text, form, conversion in parts if not form and conversion is None]
            if len(used) < len(parts) or len(set(used)) < len(used) or not allowed.issuperset(used):
                setattr(node, name, field.default)
    if len(node.metadata_separator) > _MAX_SEPARATOR_CHARS:
        node.metadata_separator = type(node).model_fields["metadata_separator"].default


def llm_content(chunk: Chunk) -> str | None:
    """The text of a chunk's node for a language model; None if the document did not come from LlamaIndex."""
    if chunk.metadata.get(NODE_KEY) is None:
        return None
    content: str = to_node(chunk).get_content(metadata_mode=MetadataMode.LLM)
    return content


def to_scored(recalls: Iterable[Recall]) -> list[NodeWithScore]:
    """Nodes with the gate's probability as their score, in order; the metadata is the user's own.

    The framework treats a score of exactly 0 as missing (`n.score or 1.0`), so no score is 0.
    """
    return [NodeWithScore(node=to_node(r.chunk), score=max(r.score, _MIN_SCORE)) for r in recalls]


def node_ids(recalls: Sequence[Recall]) -> list[str]:
    """Ids of the nodes of the recalled chunks."""
    return [r.chunk.document_id if NODE_KEY in r.chunk.metadata else r.chunk.id for r in recalls]


def source_hash(metadata: Mapping[str, Any]) -> str | None:
    """Hash of a node's source document, from the stored node."""
    try:
        found = json.loads(metadata[NODE_KEY])["__data__"]["relationships"][NodeRelationship.SOURCE.value]["hash"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _without_text(node: BaseNode) -> dict[str, Any]:
    data: dict[str, Any] = doc_to_json(node)
    inner = data["__data__"]
    inner["embedding"] = None
    inner["metadata"] = dict.fromkeys(node.metadata)  # the document has the values
    if isinstance(node, TextNode):
        inner["text"] = ""
    return data


def _document(node: BaseNode, metadata: Mapping[str, Any], *, cut: bool = False) -> Document:
    """The document of a node; a context that is too long is cut or refused."""
    key, title = _title(node)
    text: str = node.get_content(metadata_mode=MetadataMode.NONE)
    seen = node.model_copy(update={"excluded_embed_metadata_keys": [*node.excluded_embed_metadata_keys, key]})
    seen.set_content(_PLACE_OF_TEXT)  # the text itself may also occur in the metadata
    above, _, below = seen.get_content(metadata_mode=MetadataMode.EMBED).partition(_PLACE_OF_TEXT)
    context = "\n".join(part for part in (above.strip(), below.strip()) if part)
    if cut:
        context = context[:MAX_CONTEXT_CHARS]
    if len(context) > MAX_CONTEXT_CHARS:
        raise ValueError(
            f"node {node.node_id!r}: the metadata that embedding models see has {len(context):,} characters, but at "
            f"most {MAX_CONTEXT_CHARS:,} can be searched: hide large values with excluded_embed_metadata_keys"
        )
    return Document(
        id=node.node_id, title=title, context=context, chunks=[text], metadata=metadata, source=node.ref_doc_id or ""
    )


def _title(node: BaseNode) -> tuple[str, str]:
    """Key and value of the metadata that is the node's title; not one that is hidden from embedding models."""
    for key in _TITLES:
        value = node.metadata.get(key)
        if isinstance(value, str) and value.strip() and key not in node.excluded_embed_metadata_keys:
            return key, PurePath(value).stem if key == "file_name" else value.strip()
    return "", ""
