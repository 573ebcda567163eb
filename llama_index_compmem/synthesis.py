"""Answers from nodes that the caller chose."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from llama_index.core.schema import MetadataMode, NodeWithScore

import compmem
from compmem import Chunk, LoopConfig, RecallConfig
from llama_index_compmem.nodes import to_bare_document

if TYPE_CHECKING:
    from compmem import BaseIndex, MemoryIndex


def node_contents(nodes: Sequence[NodeWithScore]) -> Callable[[Chunk], str | None]:
    """The text of each chunk for a language model, in an index of these nodes."""
    contents = {n.node.node_id: n.node.get_content(metadata_mode=MetadataMode.LLM) for n in nodes}
    return lambda chunk: contents.get(chunk.document_id)


def index_of_nodes(like: "BaseIndex", nodes: Sequence[NodeWithScore]) -> "MemoryIndex":
    """A temporary index of these nodes in their current state: a postprocessor may have changed their text.

    It shares the encoder and the backbone of the other index and is removed with the object.
    """
    encoder = None if like.config.encoder is None else like.encoder
    backbone = like.backbone if isinstance(like, compmem.MemoryIndex) and like.config.memory == "kv" else None
    memory = compmem.MemoryIndex.create(None, replace(like.config, encoder=encoder), backbone=backbone)
    documents = [to_bare_document(n.node) for n in nodes]
    memory.add({d.id: d for d in documents if d.text.strip()}.values())
    return memory


def read_all_config(config: RecallConfig, nodes: int) -> RecallConfig:
    """Settings that read all of these nodes, in their order, with as many steps as needed."""
    settings = LoopConfig.complete(config)
    steps = min(settings.max_steps or nodes, nodes) or 1
    together = max(settings.blocks_per_step, -(-nodes // steps))
    return settings.replace(
        candidates="all",
        gate="off",
        order="best",
        requery=False,
        blocks_per_step=together,
        writer_blocks=max(nodes, 1),
        rounds=0,
    )


def scores_by_id(nodes: Sequence[NodeWithScore]) -> dict[str, float | None]:
    """The score of each node by its id."""
    return {found.node.node_id: found.score for found in nodes}


def nodes_above_threshold(
    nodes: Sequence[NodeWithScore], threshold: float, scores: Mapping[str, float | None]
) -> list[NodeWithScore]:
    """The nodes without those that still have their score and whose score is below the threshold."""

    def is_kept(found: NodeWithScore) -> bool:
        changed = found.score != scores.get(found.node.node_id)
        return changed or found.score is None or found.score >= threshold

    return [found for found in nodes if is_kept(found)]
