"""Follows tasks for all who wait for one: a single look per tick, however many streams there are.

A follower that is slow misses what lies between, never the last state, and holds nothing but its own place.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import psycopg
import psycopg_pool

from pgvec_queue import tasks
from pgvec_queue.async_database import AsyncPool
from pgvec_queue.database import one_line
from pgvec_queue.gateway.notices import Notices
from pgvec_queue.log import get_logger
from pgvec_queue.tasks import Task

log = get_logger("pgvec.gateway")

_REST = 2.0
"""Times what a look took, until the next one."""


class Follower:
    """One who follows a task."""

    def __init__(self) -> None:
        self._latest: Task | None = None
        self._gone = False
        self._changed = asyncio.Event()

    async def next(self) -> Task | None:
        """Waits for the task's next state; None: it is there no more."""
        await self._changed.wait()
        self._changed.clear()
        return None if self._gone else self._latest

    def tell(self, task: Task | None) -> None:
        if task is None:
            self._gone = True
        elif self._latest is not None and _same(task, self._latest):
            return
        self._latest = task
        self._changed.set()


class Watch:
    """Looks at the tasks that anybody follows, whenever there is a notice."""

    def __init__(self, pool: AsyncPool, notices: Notices) -> None:
        self._pool = pool
        self._notices = notices
        self._followers: dict[uuid.UUID, set[Follower]] = {}
        self._looking: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def follow(self, id_: uuid.UUID) -> AsyncIterator[Follower]:
        """Follows a task; the first state comes within a second, and is not looked for at once."""
        follower = Follower()
        self._followers.setdefault(id_, set()).add(follower)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._run())
        try:
            yield follower
        finally:
            followers = self._followers[id_]
            followers.discard(follower)
            if not followers:
                del self._followers[id_]

    async def close(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            with suppress(asyncio.CancelledError):
                await self._looking
            self._looking = None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        async with self._notices.subscribe() as wakes:
            async for _ in wakes:
                if not self._followers:
                    # Nothing is awaited from here to the end: whoever comes now starts another.
                    self._looking = None
                    return
                began = loop.time()
                await self._look()
                await asyncio.sleep(_REST * (loop.time() - began))

    async def _look(self) -> None:
        ids = list(self._followers)
        try:
            async with self._pool.connection() as connection:
                found = {task.id: task for task in await tasks.look(connection, ids)}
        except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
            log.warning("tasks cannot be looked at; it is tried again", error=one_line(error))
            return
        for id_ in ids:
            for follower in self._followers.get(id_, ()):
                follower.tell(found.get(id_))


def _same(one: Task, other: Task) -> bool:
    fields = ("state", "done", "failed", "skipped", "superseded", "cancelled", "finished_at", "reason")
    return all(getattr(one, name) == getattr(other, name) for name in fields)
