"""Tokens for the gateway: made, listed and revoked.

A token is ``pgvec_api_`` and 256 random bits. The database has its SHA-256 alone, which is enough for a secret that
nobody can guess; whoever reads the table cannot use the gateway with what stands there.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from pgvec_queue.database import Connection, statement
from pgvec_queue.errors import PgvecError

Role = Literal["read", "write", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
"""Each may do what those before it may, and more."""

PREFIX = "pgvec_api_"
MOST = 10_000
"""Tokens that are not revoked: a gateway holds all of them in memory."""
_TOKEN = re.compile(rf"{PREFIX}[A-Za-z0-9_-]{{43}}")


@dataclass(frozen=True, slots=True)
class Token:
    """What is known of a token; ``state`` is valid, expired or revoked."""

    name: str
    role: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    """To the minute."""
    state: str


def digest(token: str) -> bytes | None:
    """Returns what the database has of a token; None for what cannot be one."""
    return hashlib.sha256(token.encode()).digest() if _TOKEN.fullmatch(token) else None


def create(connection: Connection, name: str, role: Role, *, days: float | None = None) -> str:
    """Makes a token and returns it; ``days`` is how long it is valid, None for ever.

    Raises ``PgvecError`` where there is one of that name, or too many.
    """
    row = connection.execute(statement("api_tokens", "count")).fetchone()
    if row is None or row[0] >= MOST:
        raise PgvecError(f"there are {MOST:,} tokens already; revoke those that nobody needs")
    token = PREFIX + secrets.token_urlsafe(32)
    values = {
        "name": name,
        "role": role,
        "digest": hashlib.sha256(token.encode()).digest(),
        "seconds": None if days is None else days * 86_400,
    }
    if connection.execute(statement("api_tokens", "create"), values).fetchone() is None:
        raise PgvecError(f"there is, or was, a token named {name!r}; choose another name")
    return token


def listed(connection: Connection) -> list[Token]:
    """Returns all tokens by name, revoked ones too."""
    return [Token(*row) for row in connection.execute(statement("api_tokens", "list"))]


def revoke(connection: Connection, name: str) -> None:
    """Ends a token; running gateways refuse it within seconds. Raises ``PgvecError`` where there is none."""
    if connection.execute(statement("api_tokens", "revoke"), {"name": name}).fetchone() is None:
        raise PgvecError(f"there is no token named {name!r}; `pgvec api-token list` shows those there are")
