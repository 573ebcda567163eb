"""Authentication: bearer tokens and their holders."""

import hashlib
import hmac
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from compmem.serving.tenancy import Tenant
from compmem.text.unicode import nfc

_TOKEN: Final = re.compile("[!-~]+")
MIN_TOKEN_CHARS: Final = 16
"""Minimum number of characters of a token; a shorter one could be guessed."""


class Tokens:
    """The valid tokens. Only their hashes are stored.

    Args:
        tenants: Tokens and their holders. A holder may have several tokens, which may differ in `write`.

    Raises:
        ValueError: A token is too short, has a space or is given twice, two tokens with different metadata have one
            name, or two names have the same metadata.
    """

    def __init__(self, tenants: Iterable[tuple[str, Tenant]]) -> None:
        self._tenants: list[tuple[bytes, Tenant]] = []
        names: dict[str, Mapping[str, str]] = {}
        owners: dict[frozenset[tuple[str, str]], str] = {}
        for token, tenant in tenants:
            if not isinstance(token, str) or len(token) < MIN_TOKEN_CHARS or not _TOKEN.fullmatch(token):
                raise ValueError(
                    f"the token of {tenant.name!r} must have {MIN_TOKEN_CHARS} or more visible ASCII characters, "
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
            if any(digest == other for other, _ in self._tenants):
                raise ValueError(f"a token of {tenant.name!r} is given twice")
            self._tenants.append((digest, tenant))
        if not self._tenants:
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
        for digest, tenant in self._tenants:
            if hmac.compare_digest(digest, given):
                found = tenant
        return found


_FIELDS: Final = {"token", "name", "metadata", "write"}


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
