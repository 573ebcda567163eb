"""Tenants, and an index as one of them sees it: its own documents, with its own ids."""

import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any, Final, Unpack

from compmem.config import RecallConfig
from compmem.index import MemoryIndex
from compmem.schema import AnswerModels, AnswerToken, Chunk, Document, Event, Recall, Step
from compmem.store import DocumentInfo
from compmem.store.columns import moment
from compmem.store.filters import Condition, Group, Node, Not, compile_filter
from compmem.text.unicode import nfc, valid

_NAME: Final = re.compile(r"[\w.-]{1,100}")
_RESERVED: Final = ("and", "or", "not", "document_id", "title")


@dataclass(frozen=True, slots=True)
class Tenant:
    """The holder of a token, and its rights.

    Raises:
        ValueError: The name or the metadata is invalid.
    """

    name: str = "default"
    """Letters, digits, `_`, `.` and `-`."""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """Only documents with this metadata are visible, and added ones get it. Empty: all documents are visible."""
    write: bool = True
    """May add and delete documents."""

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise ValueError(f"the name {self.name!r} of a token must be 1 to 100 letters, digits, '_', '.' or '-'")
        if not isinstance(self.metadata, Mapping) or not isinstance(self.write, bool):
            raise ValueError(f"token {self.name!r}: 'metadata' must be a JSON object, 'write' true or false")
        for key, value in self.metadata.items():
            if key in _RESERVED or "." in key or not isinstance(value, str) or valid(value) != value or "\0" in value:
                raise ValueError(f"token {self.name!r}: the metadata {key!r} must be a plain name with a text")
            if nfc(key) != key:  # as filters write a key
                raise ValueError(f"token {self.name!r}: the metadata {key!r} must be in composed characters (NFC)")
            if moment(value) is not None:  # filters take 2024-01-01 and 2024-01-01T00:00 as equal
                raise ValueError(f"token {self.name!r}: the metadata {key!r} must not be a date, but a name: {value!r}")

    @property
    def prefix(self) -> str:
        """What stands before the tenant's own ids in the index; documents that the server did not add have none."""
        return f"{self.name}/" if self.metadata else ""

    def filter(self, requested: Any = None) -> Any:
        """The requested filter and the tenant's metadata; the latter does not count towards the filter's size limit.

        The requested filter has the tenant's own ids.

        Raises:
            ValueError: The filter is invalid, or compares ids other than for equality.
        """
        if not self.metadata:
            return requested
        own = compile_filter(self.metadata)
        return own if requested is None else Group("AND", (own, self._with_index_ids(compile_filter(requested))))

    def _with_index_ids(self, node: Node) -> Node:
        if isinstance(node, Group):
            return Group(node.word, tuple(map(self._with_index_ids, node.parts)))
        if isinstance(node, Not):
            return Not(self._with_index_ids(node.part))
        if node.key != "document_id":
            return node
        if node.operator != "in":  # to which ==, != and "not in" are compiled
            raise ValueError(f"filter 'document_id' takes ==, !=, in and 'not in' here, not {node.operator!r}")
        stored = (nfc(id) for value in node.operand if isinstance(value, str) for id in self.possible_index_ids(value))
        return Condition(node.key, node.operator, (*(v for v in node.operand if not isinstance(v, str)), *stored))

    def possible_index_ids(self, document_id: str) -> list[str]:
        """Ids in the index that may belong to this id of the tenant; no other id of the tenant belongs to them."""
        stored = f"{self.prefix}{document_id}"
        return [stored] if document_id.startswith(self.prefix) else [stored, document_id]

    def owns(self, metadata: Mapping[str, Any]) -> bool:
        """Whether the tenant may see a document with this metadata."""
        held = [(metadata.get(key), value) for key, value in self.metadata.items()]
        return all(isinstance(here, str) and nfc(here) == nfc(value) for here, value in held)


@dataclass(frozen=True, slots=True)
class TenantIndex:
    """The documents of one tenant.

    Two tenants may use one id for two documents: a document added by a tenant with metadata is stored as `name/id` and
    shown to the tenant as `id`. So no answer reveals whether another tenant has a document with some id.
    """

    index: MemoryIndex
    tenant: Tenant

    def add(self, documents: Sequence[Document]) -> int:
        """Adds documents with the tenant's metadata; returns how many were new or changed.

        Raises:
            ValueError: A document cannot be stored, or its metadata names another tenant.
        """
        stored = [self._document_for_index(document) for document in documents]
        try:
            return self.index.add(stored)
        except ValueError as error:  # the message names a document by its id in the index
            raise ValueError(str(error).replace(f"'{self.tenant.prefix}", "'")) from error

    def delete(self, document_id: str) -> bool:
        """Deletes a document; False if this tenant has none with that id."""
        index_id = self._index_id(document_id)
        return index_id is not None and self.index.delete([index_id]) == 1

    def documents(self, offset: int, limit: int) -> tuple[list[DocumentInfo], int]:
        """A page of the tenant's documents, and how many there are in all."""
        mine = self.tenant.filter(None)
        page = self.index.documents(mine, offset=offset, limit=limit)
        return [replace(info, id=self._tenant_id(info.id)) for info in page], self.index.count_documents(mine)

    async def arecall(
        self, question: str, k: int, *, min_score: float, filter: Any, config: RecallConfig
    ) -> list[Recall]:
        """The tenant's blocks that a question needs, best first. Errors are those of `MemoryIndex.recall`."""
        own = self.tenant.filter(filter)
        found = await self.index.arecall(question, k, min_score=min_score, filter=own, config=config)
        return list(map(self._recall_for_tenant, found))

    async def astream(
        self, question: str, config: RecallConfig, *, filter: Any, **models: Unpack[AnswerModels]
    ) -> AsyncGenerator[Event, None]:
        """The answer from the tenant's documents as a stream of events. Errors are those of `MemoryIndex.stream`."""
        own = self.tenant.filter(filter)
        async with aclosing(self.index.astream(question, config, filter=own, **models)) as events:
            async for event in events:
                yield self._event_for_tenant(event)

    def _event_for_tenant(self, event: Event) -> Event:
        """An event with the tenant's document ids."""
        if isinstance(event, AnswerToken):
            return event
        if isinstance(event, Step):
            return self._step_for_tenant(event)
        return replace(
            event,
            sources=tuple(map(self._recall_for_tenant, event.sources)),
            evidence=tuple(replace(e, chunk=self._chunk_for_tenant(e.chunk)) for e in event.evidence),
            steps=tuple(map(self._step_for_tenant, event.steps)),
        )

    def _step_for_tenant(self, step: Step) -> Step:
        return replace(step, recalls=tuple(map(self._recall_for_tenant, step.recalls)))

    def _recall_for_tenant(self, found: Recall) -> Recall:
        return replace(found, chunk=self._chunk_for_tenant(found.chunk))

    def _chunk_for_tenant(self, chunk: Chunk) -> Chunk:
        return replace(chunk, document_id=self._tenant_id(chunk.document_id))

    def _tenant_id(self, document_id: str) -> str:
        return document_id.removeprefix(self.tenant.prefix)

    def _index_id(self, document_id: str) -> str | None:
        """The id in the index of one of the tenant's documents; None if it has none with that id.

        A document with the tenant's metadata that was not added by the server keeps its own id.
        """
        for index_id in self.tenant.possible_index_ids(document_id):
            metadata = self.index.metadata(index_id)
            if metadata is not None and self.tenant.owns(metadata):
                return index_id
        return None

    def _document_for_index(self, document: Document) -> Document:
        for key, value in self.tenant.metadata.items():
            if document.metadata.get(key, value) != value:
                raise ValueError(f"document {document.id!r}: its metadata {key!r} is set by the token")
        index_id = self._index_id(document.id)
        if index_id is None:
            index_id = f"{self.tenant.prefix}{document.id}"
            if self.index.metadata(index_id) is not None:
                raise ValueError(f"document {document.id!r}: the index has another document with the id {index_id!r}")
        return replace(document, id=index_id, metadata={**document.metadata, **self.tenant.metadata}, chunks=None)
