"""The last step of an ingestion pipeline."""

import asyncio
from collections.abc import Sequence
from typing import Any

from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.indices.base import BaseIndex
from llama_index.core.schema import BaseNode, TransformComponent


class Remember(TransformComponent):
    """Puts the nodes that reach it into an index and passes them on. Made by `CompMemIndex.as_transformation`."""

    index_id: str
    """Part of what a pipeline's cache goes by: another index has to be told, too."""
    _index: BaseIndex[Any] = PrivateAttr()

    @classmethod
    def into(cls, index: BaseIndex[Any]) -> "Remember":
        """The step that puts nodes into an index."""
        made = cls(index_id=index.index_id)
        made._index = index
        return made

    def __call__(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Puts the nodes in."""
        self._index.insert_nodes(nodes)
        return nodes

    async def acall(self, nodes: Sequence[BaseNode], **kwargs: Any) -> Sequence[BaseNode]:
        """Puts the nodes in without blocking the event loop."""
        await asyncio.to_thread(self._index.insert_nodes, nodes)
        return nodes
