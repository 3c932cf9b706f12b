"""Who asks, and what they may: tokens as the database has them, looked at every other second.

``read`` searches and looks, ``write`` adds and deletes texts as well, ``admin`` may do everything. A gateway on this
machine's own address asks for no token as long as none was ever made; any other one asks for them always, unless told
otherwise in so many words.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated

import psycopg
from fastapi import Request, Security
from fastapi.security import HTTPBearer

from pgvec_queue import api_tokens
from pgvec_queue.api_tokens import ROLES, Role
from pgvec_queue.async_database import AsyncPool
from pgvec_queue.database import one_line, statement
from pgvec_queue.gateway.problems import Problem
from pgvec_queue.log import get_logger

log = get_logger("pgvec.gateway")

LIFE = 2.0
"""Seconds after which tokens are read again: how long a revoked one may still be good."""
_SOONEST = 0.25
"""Seconds between two looks, however many unknown tokens are shown."""
IDENTITY = "pgvec.identity"
"""Where the identity stands in an ASGI scope."""

BEARER = HTTPBearer(
    scheme_name="token",
    bearerFormat="pgvec_api_…",
    description="A token of `pgvec api-token create`. None is asked for on 127.0.0.1 until the first one is made.",
    auto_error=False,
)


@dataclass(frozen=True, slots=True)
class Access:
    """Who may come in."""

    loopback: bool = True
    """The gateway listens at an address that only this machine reaches."""
    allow_unauthenticated: bool = False
    hosts: frozenset[str] = frozenset({"localhost", "127.0.0.1", "::1"})
    """What ``Host`` may name where no token is asked for: a page of somebody else's has another name there, even where
    that name leads to this machine (DNS rebinding)."""

    def asks_for_tokens(self, there_are_any: bool) -> bool:
        return not self.allow_unauthenticated and (not self.loopback or there_are_any)


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks."""

    token_id: int | None
    """None where no token was asked for or given."""
    name: str | None
    role: Role

    def may(self, role: Role) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


ANYBODY = Identity(None, None, "admin")
"""Whoever comes where no token is asked for."""


@dataclass(frozen=True, slots=True)
class _Known:
    """A valid token."""

    identity: Identity
    digest: bytes
    ends: float
    """By this process's monotonic clock."""


@dataclass(slots=True)
class _Look:
    """What one look at the database has found."""

    any: bool
    by_digest: Mapping[bytes, _Known]
    unmarked: set[int] = field(default_factory=set)
    """Tokens that were not used in this minute yet."""


class Tokens:
    """The tokens of one gateway; requests that come at the same time share one look at the database."""

    def __init__(self, pool: AsyncPool, *, timeout: float, life: float = LIFE) -> None:
        """``timeout`` is how long a look waits for a connection, in seconds."""
        self._pool = pool
        self._timeout = timeout
        self._life = life
        self._found: _Look | None = None
        self._began = 0.0
        self._looking: asyncio.Task[_Look] | None = None
        self._marking: set[asyncio.Task[None]] = set()

    async def there_are_any(self) -> bool:
        """Whether a token was ever made. Raises ``psycopg.Error``."""
        return (await self._look(self._life)).any

    async def identify(self, token: str) -> Identity | None:
        """Returns whose token it is; None where it is not valid. Raises ``psycopg.Error``."""
        digest = api_tokens.digest(token)
        if digest is None:
            return None
        look = await self._look(self._life)
        if digest not in look.by_digest:
            # It may have been made a moment ago.
            look = await self._look(min(self._life, _SOONEST))
        known = look.by_digest.get(digest)
        if known is None or not hmac.compare_digest(known.digest, digest) or time.monotonic() >= known.ends:
            return None
        if known.identity.token_id in look.unmarked:
            look.unmarked.discard(known.identity.token_id)
            task = asyncio.create_task(self._mark(known.identity.token_id))
            self._marking.add(task)
            task.add_done_callback(self._marking.discard)
        return known.identity

    async def close(self) -> None:
        """Waits for what is still being written."""
        tasks = [*self._marking, *([self._looking] if self._looking is not None else [])]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _look(self, life: float) -> _Look:
        if self._found is not None and time.monotonic() < self._began + life:
            return self._found
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._read())
            # Nobody may be left to hear of it.
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        # Whoever gives up waiting takes nothing from the others.
        return await asyncio.shield(self._looking)

    async def _read(self) -> _Look:
        began = time.monotonic()
        async with self._pool.connection(self._timeout) as connection:
            row = await (await connection.execute(statement("api_tokens", "any"))).fetchone()
            valid = await (await connection.execute(statement("api_tokens", "valid"))).fetchall()
        known, unmarked = {}, set()
        for token_id, name, role, digest, seconds, marked in valid:
            ends = float("inf") if seconds is None else began + seconds
            known[bytes(digest)] = _Known(Identity(token_id, name, role), bytes(digest), ends)
            if not marked:
                unmarked.add(token_id)
        self._found = _Look(bool(row and row[0]), known, unmarked)
        self._began = began
        return self._found

    async def _mark(self, token_id: int | None) -> None:
        try:
            async with self._pool.connection(self._timeout) as connection:
                await connection.execute(statement("api_tokens", "used"), {"id": token_id})
        except psycopg.Error as error:
            log.debug("use of a token is not written down", error=one_line(error))


def identity_of(request: Request) -> Identity:
    """Who asks: a dependency of the endpoints."""
    found = request.scope.get(IDENTITY)
    if not isinstance(found, Identity):
        raise unauthorized(given=False)
    return found


def requires(role: Role) -> Callable[..., Awaitable[None]]:
    """Returns a dependency that lets those pass who have this role, or a higher one.

    Who asks was found out before (``admission``); this decides what they may.
    """

    async def check(request: Request, bearer: Annotated[object, Security(BEARER)]) -> None:  # noqa: ARG001
        identity = identity_of(request)
        if not identity.may(role):
            raise Problem(403, f"this needs a token of the role {role}; yours is of {identity.role}")

    return check


def unauthorized(*, given: bool) -> Problem:
    """What is said to whoever has no valid token."""
    if given:
        detail = "the token is not valid; it may have been revoked, or it has expired"
    else:
        detail = "a token is needed: Authorization: Bearer pgvec_api_…; `pgvec api-token create` makes one"
    challenge = 'Bearer realm="pgvec"' + (', error="invalid_token"' if given else "")
    return Problem(401, detail, {"WWW-Authenticate": challenge})


def bearer_of(authorization: str | None) -> str | None:
    """Returns the token of a header ``Authorization``; None where there is none."""
    with suppress(ValueError):
        scheme, token = (authorization or "").split(None, 1)
        if scheme.lower() == "bearer":
            return token.strip()
    return None
