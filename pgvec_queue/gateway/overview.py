"""What the page shows, live: one look at the database for everybody who watches, and the stream to each of them.

While somebody watches, one task looks at most once a second, and less often where a look takes longer than a tenth of
that. Whoever watches is sent the newest state when it has changed, so that a slow reader skips states instead of
getting them late: nothing is queued for anybody. When nothing has changed for a while, a comment says that the stream
lives. A look that fails is told as an outage, and looks go on.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import psycopg

from pgvec_queue.async_database import AsyncPool, async_transaction
from pgvec_queue.database import one_line, statement
from pgvec_queue.log import get_logger

log = get_logger("pgvec.gateway")

EVERY = 1.0
"""Seconds between two looks, at least."""
HEARTBEAT = 15.0
"""Seconds without news after which a comment is sent."""
_AWAY = ("08", "53", "57P")
"""SQLSTATEs of a server that ends, begins, or takes no more connections."""
_SHARE = 0.1
"""Of the time, at most, that goes into looking."""
_SELDOM = 10.0
"""Seconds between two looks, at most."""
_STATEMENT_TIMEOUT = 5.0
_LOCK_TIMEOUT = 2.0
_PATIENCE = 12.0
"""Seconds after which a look is given up whose connection says nothing at all."""


@dataclass(frozen=True, slots=True)
class Look:
    """What the database said at one moment."""

    at: float
    """Seconds since 1970 by the database's clock."""
    state: str
    """A JSON object in one line; the same as before where nothing has happened."""


Read = Callable[[], Awaitable[Look]]


class Overview:
    """One gateway's look at the queue, shared by all who watch. Belongs to one event loop."""

    def __init__(self, read: Read, *, every: float = EVERY, heartbeat: float = HEARTBEAT) -> None:
        """``every`` and ``heartbeat`` are in seconds."""
        self._read = read
        self._every = every
        self._heartbeat = heartbeat
        self._watchers: set[asyncio.Event] = set()
        self._task: asyncio.Task[None] | None = None
        self._message: bytes | None = None
        """What is to be shown, as it is sent."""
        self._shown: str | None = None
        self._next_at = 0.0
        self._closed = False

    @property
    def watchers(self) -> int:
        return len(self._watchers)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Ends all streams, and what reads for them, with the block."""
        try:
            yield
        finally:
            self.close()
            if self._task is not None:
                self._task.cancel()
                await asyncio.wait([self._task])

    def close(self) -> None:
        """Ends all streams."""
        self._closed = True
        self._wake()

    async def events(self) -> AsyncGenerator[bytes]:
        """Yields server-sent events, the present state first, until the gateway stops or the reader leaves."""
        woken = asyncio.Event()
        self._watchers.add(woken)
        if self._task is None and not self._closed:
            self._task = asyncio.create_task(self._look_while_watched())
        seen: bytes | None = None
        try:
            while not self._closed:
                if self._message is not None and self._message is not seen:
                    seen = self._message
                    yield seen
                    continue
                woken.clear()
                try:
                    async with asyncio.timeout(self._heartbeat):
                        await woken.wait()
                except TimeoutError:
                    yield b": nothing new\n\n"
        finally:
            self._watchers.discard(woken)

    async def _look_while_watched(self) -> None:
        try:
            while True:
                await asyncio.sleep(max(self._next_at - time.monotonic(), 0))
                if not self._watchers or self._closed:
                    return
                began = time.monotonic()
                await self._look()
                took = time.monotonic() - began
                self._next_at = began + max(self._every, min(took / _SHARE, _SELDOM))
        finally:
            # Whoever comes later is not to see what was true then.
            self._task = None
            self._message = self._shown = None

    async def _look(self) -> None:
        try:
            look = await self._read()
        except (psycopg.Error, OSError) as error:
            self._tell("outage", json.dumps({"reason": reason_of(error)}))
        # All streams depend on this task: it goes on.
        except Exception as error:
            log.exception("overview cannot be read", error=str(error))
            self._tell("outage", json.dumps({"reason": "the gateway has failed; its log says why"}))
        else:
            self._tell("overview", look.state, look.at)

    def _tell(self, event: str, state: str, at: float | None = None) -> None:
        shown = f"{event} {state}"
        if shown == self._shown:
            return
        self._shown = shown
        data = state if at is None else f'{{"at": {at:.3f}, "state": {state}}}'
        self._message = f"event: {event}\ndata: {data}\n\n".encode()
        self._wake()

    def _wake(self) -> None:
        for woken in self._watchers:
            woken.set()


def reader(pool: AsyncPool) -> Read:
    """Returns what reads the queue over a connection of the pool, in one short read-only transaction."""

    async def read() -> Look:
        async with (
            asyncio.timeout(_PATIENCE),
            pool.connection() as connection,
            async_transaction(
                connection, statement_timeout=_STATEMENT_TIMEOUT, lock_timeout=_LOCK_TIMEOUT, read_only=True
            ),
        ):
            cursor = await connection.execute(statement("overview", "overview"))
            row = await cursor.fetchone()
        assert row is not None
        return Look(*row)

    return read


def reason_of(error: BaseException) -> str:
    """Says in a line why the database could not be read, without names of hosts or users."""
    if isinstance(error, psycopg.errors.QueryCanceled):
        return f"the database took longer than {_STATEMENT_TIMEOUT:.0f} s to answer"
    if isinstance(
        error, psycopg.errors.UndefinedTable | psycopg.errors.UndefinedColumn | psycopg.errors.InvalidSchemaName
    ):
        return "the pgvec schema is missing, or not the one that this gateway needs; run: pgvec init"
    state = error.sqlstate if isinstance(error, psycopg.Error) else None
    if state is not None and not state.startswith(_AWAY):
        return f"the database refuses: {one_line(error)}"
    return "the database cannot be reached"
