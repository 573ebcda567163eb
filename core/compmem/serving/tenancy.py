"""An index as the holder of a token sees it: its documents, under its own ids."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from compmem.index import MemoryIndex
from compmem.schema import Answer, Chunk, Document, Recall, Step
from compmem.serving.tokens import Tenant
from compmem.store import DocumentInfo


@dataclass(frozen=True, slots=True)
class TenantIndex:
    """The documents of one tenant.

    Two tenants may use one id for two documents: what a tenant with metadata adds is kept under `name/id`, and is shown
    to it under `id`. So no answer tells whether another one has a document of some id.
    """

    index: MemoryIndex
    tenant: Tenant

    def add(self, documents: Sequence[Document]) -> int:
        """Adds documents with the tenant's metadata; returns how many were new or changed.

        Raises:
            ValueError: A document cannot be kept, or says that it is another tenant's.
        """
        return self.index.add([self._own(document) for document in documents])

    def delete(self, document_id: str) -> bool:
        """Deletes a document; False where this tenant has none of that id."""
        kept = self._kept(document_id)
        return kept is not None and self.index.delete([kept]) == 1

    def documents(self, filter: Any = None) -> list[DocumentInfo]:
        """The tenant's documents that a filter admits.

        Raises:
            ValueError: The filter is none.
        """
        found = self.index.documents(self.tenant.filter(filter))
        return [replace(info, id=self.shown_id(info.id)) for info in found]

    def shown_id(self, document_id: str) -> str:
        """The id by which the tenant knows a document."""
        return document_id.removeprefix(self._prefix)

    def shown(self, found: Recall) -> Recall:
        """A recall with the id by which the tenant knows the document."""
        return replace(found, chunk=self._chunk(found.chunk))

    def shown_step(self, step: Step) -> Step:
        """A step with the ids by which the tenant knows the documents."""
        return replace(step, recalls=tuple(map(self.shown, step.recalls)))

    def shown_answer(self, answer: Answer) -> Answer:
        """An answer with the ids by which the tenant knows the documents."""
        return replace(
            answer,
            sources=tuple(map(self.shown, answer.sources)),
            evidence=tuple(replace(e, chunk=self._chunk(e.chunk)) for e in answer.evidence),
            steps=tuple(map(self.shown_step, answer.steps)),
        )

    @property
    def _prefix(self) -> str:
        return f"{self.tenant.name}/" if self.tenant.metadata else ""

    def _chunk(self, chunk: Chunk) -> Chunk:
        return replace(chunk, document_id=self.shown_id(chunk.document_id))

    def _kept(self, document_id: str) -> str | None:
        """The id under which a document of the tenant is kept; None where it has none of that id.

        One that was added without the server, with the tenant's metadata, is kept under its own id.
        """
        for kept in dict.fromkeys((f"{self._prefix}{document_id}", document_id)):
            metadata = self.index.metadata(kept)
            if metadata is not None and self.tenant.owns(metadata):
                return kept
        return None

    def _own(self, document: Document) -> Document:
        for key, value in self.tenant.metadata.items():
            if document.metadata.get(key, value) != value:
                raise ValueError(f"document {document.id!r}: its metadata {key!r} is set by the token")
        kept = self._kept(document.id)
        if kept is None:
            kept = f"{self._prefix}{document.id}"
            if self.index.metadata(kept) is not None:
                raise ValueError(f"document {document.id!r}: the index holds another document under {kept!r}")
        return replace(document, id=kept, metadata={**document.metadata, **self.tenant.metadata}, chunks=None)
