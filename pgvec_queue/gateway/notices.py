"""One LISTEN connection per gateway, which wakes everybody who watches something in the database.

A notification is a hint: whoever subscribes is woken at once, at each notification (several within a moment count as
one), and at least every second besides, with the connection or without. Nothing is connected while nobody subscribes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psycopg

from pgvec_queue.async_database import AsyncConnection, async_connect
from pgvec_queue.database import Database, one_line, statement
from pgvec_queue.log import get_logger

log = get_logger("pgvec.gateway")

TICK_SECONDS = 1.0
_ECHO_SECONDS = 0.25
"""After a notification there is another look this soon: writers do not announce each of several writes in a row."""
_TOGETHER_SECONDS = 0.02


class Notices:
    """Wakes subscribers; ``close`` ends the connection."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._subscribers: set[asyncio.Event] = set()
        self._listening: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def subscribe(self) -> AsyncIterator[AsyncIterator[None]]:
        """Yields what yields whenever there may be something new, at once for the first time."""
        woken = asyncio.Event()
        woken.set()
        self._subscribers.add(woken)
        if self._listening is None or self._listening.done():
            self._listening = asyncio.create_task(self._run())
        try:
            yield _wakes(woken)
        finally:
            self._subscribers.discard(woken)

    async def close(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            with suppress(asyncio.CancelledError):
                await self._listening
            self._listening = None

    async def _run(self) -> None:
        while self._subscribers:
            try:
                async with await async_connect(self._database, "gateway listen") as connection:
                    await connection.execute(statement("gateway", "listen"))
                    # What was said before this is not heard any more.
                    self._wake()
                    await self._listen(connection)
            except (psycopg.Error, OSError) as error:
                log.warning("gateway cannot listen; it looks every second", error=one_line(error))
                self._wake()
                await asyncio.sleep(TICK_SECONDS)

    async def _listen(self, connection: AsyncConnection) -> None:
        wait = TICK_SECONDS
        while self._subscribers:
            heard = False
            async for _ in connection.notifies(timeout=wait, stop_after=1):
                heard = True
            self._wake()
            wait = _ECHO_SECONDS if heard else TICK_SECONDS
            await asyncio.sleep(_TOGETHER_SECONDS)

    def _wake(self) -> None:
        for woken in self._subscribers:
            woken.set()


async def _wakes(woken: asyncio.Event) -> AsyncIterator[None]:
    while True:
        await woken.wait()
        woken.clear()
        yield
