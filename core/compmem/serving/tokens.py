"""Authentication: bearer tokens, and the metadata that each of them is limited to."""

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from compmem.store.columns import moment
from compmem.store.filters import Group, Node, Not, Test, compile_filter
from compmem.text.unicode import nfc, valid

_NAME: Final = re.compile(r"[\w.-]{1,100}")
_TOKEN: Final = re.compile("[!-~]+")
_RESERVED: Final = ("and", "or", "not", "document_id", "title")
LEAST_CHARACTERS: Final = 16
"""Least characters of a token; a shorter one could be guessed."""


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
            if moment(value) is not None:  # filters take 2024-01-01 and 2024-01-01T00:00 as equal
                raise ValueError(f"token {self.name!r}: the metadata {key!r} must not be a date, but a name: {value!r}")

    @property
    def prefix(self) -> str:
        """What stands before the tenant's own ids in the index; documents that the server did not add have none."""
        return f"{self.name}/" if self.metadata else ""

    def filter(self, wanted: Any = None) -> Any:
        """A filter limited to the tenant's metadata, which do not count for the limits of a filter.

        Its ids are the tenant's own.

        Raises:
            ValueError: The filter is invalid, or compares ids other than for equality.
        """
        if not self.metadata:
            return wanted
        own = compile_filter(self.metadata)
        return own if wanted is None else Group("AND", (own, self._with_stored_ids(compile_filter(wanted))))

    def _with_stored_ids(self, node: Node) -> Node:
        if isinstance(node, Group):
            return Group(node.word, tuple(map(self._with_stored_ids, node.parts)))
        if isinstance(node, Not):
            return Not(self._with_stored_ids(node.part))
        if node.key != "document_id":
            return node
        if node.operator != "in":  # to which ==, != and "not in" are compiled
            raise ValueError(f"filter 'document_id' takes ==, !=, in and 'not in' here, not {node.operator!r}")
        stored = (nfc(id) for value in node.operand if isinstance(value, str) for id in self.stored_ids(value))
        return Test(node.key, node.operator, (*(v for v in node.operand if not isinstance(v, str)), *stored))

    def stored_ids(self, document_id: str) -> list[str]:
        """The ids in the index that one of the tenant's own ids may stand for; no other of its ids stands for them."""
        stored = f"{self.prefix}{document_id}"
        return [stored] if document_id.startswith(self.prefix) else [stored, document_id]

    def owns(self, metadata: Mapping[str, Any]) -> bool:
        """Whether the tenant may see a document with this metadata."""
        held = [(metadata.get(key), value) for key, value in self.metadata.items()]
        return all(isinstance(here, str) and nfc(here) == nfc(value) for here, value in held)


class Tokens:
    """The valid tokens. Only their hashes are stored.

    Args:
        tenants: Tokens and their holders. A holder may have several tokens, which may differ in `write`.

    Raises:
        ValueError: A token is too short, has a space or is given twice, two tokens with different metadata have one
            name, or two names have the same metadata.
    """

    def __init__(self, tenants: Iterable[tuple[str, Tenant]]) -> None:
        self._held: list[tuple[bytes, Tenant]] = []
        names: dict[str, Mapping[str, str]] = {}
        owners: dict[frozenset[tuple[str, str]], str] = {}
        for token, tenant in tenants:
            if not isinstance(token, str) or len(token) < LEAST_CHARACTERS or not _TOKEN.fullmatch(token):
                raise ValueError(
                    f"the token of {tenant.name!r} must have {LEAST_CHARACTERS} or more visible ASCII characters, "
                    "and no space"
                )
            if names.setdefault(tenant.name, tenant.metadata) != tenant.metadata:
                raise ValueError(f"two tokens with different metadata have the name {tenant.name!r}")
            same = frozenset((nfc(key), nfc(value)) for key, value in tenant.metadata.items())
            if same and (owner := owners.setdefault(same, tenant.name)) != tenant.name:  # each would have its own ids
                raise ValueError(
                    f"the tokens of {owner!r} and {tenant.name!r} have the same metadata: give them one name"
                )
            digest = _digest(token)
            if any(digest == other for other, _ in self._held):
                raise ValueError(f"a token of {tenant.name!r} is given twice")
            self._held.append((digest, tenant))
        if not self._held:
            raise ValueError("no token is given")

    @classmethod
    def parse(cls, text: str, source: str) -> "Tokens":
        """Tokens from JSON, or one token alone, which sees everything.

        Args:
            text: `[{"token": ..., "name": ..., "metadata": {...}, "write": true}, ...]`, or a token.
            source: Name of the source, for messages.

        Raises:
            ValueError: It is neither; the message does not contain a token.
        """
        if not text.lstrip().startswith(("[", "{")):
            return cls([(text.strip(), Tenant())])
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError):
            raise ValueError(f"{source} is not JSON") from None
        if not isinstance(entries, list):
            raise ValueError(f"{source} must be a JSON list of tokens, or one token alone")
        held = []
        for entry in entries:
            if not isinstance(entry, dict) or not {"token", "name"} <= set(entry) <= _FIELDS:
                raise ValueError(f"{source}: each entry has 'token' and 'name', and may have 'metadata' and 'write'")
            about = {key: value for key, value in entry.items() if key != "token"}
            held.append((entry["token"], Tenant(**about)))
        return cls(held)

    @classmethod
    def read(cls, path: Path) -> "Tokens":
        """Tokens from a file; see `parse`.

        Raises:
            ValueError: It contains none.
            OSError: It cannot be read.
        """
        return cls.parse(path.read_text(encoding="utf-8"), str(path))

    def holder(self, authorization: str | None) -> Tenant | None:
        """The holder of the token in an `Authorization` header; None for a wrong or missing one.

        All hashes are compared, each in constant time.
        """
        kind, _, token = (authorization or "").partition(" ")
        given = _digest(token.strip()) if kind.lower() == "bearer" else b""
        found = None
        for digest, tenant in self._held:
            if hmac.compare_digest(digest, given):
                found = tenant
        return found


_FIELDS: Final = {"token", "name", "metadata", "write"}


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
