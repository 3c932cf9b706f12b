"""What all requests of one gateway share: connections, limits, and the database behind them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import anyio.to_thread
from fastapi import Request

from pgvec_queue.async_database import AsyncConnection, AsyncPool
from pgvec_queue.database import Connection, Database
from pgvec_queue.gateway.limits import Limits
from pgvec_queue.gateway.notices import Notices
from pgvec_queue.gateway.pressure import Pressure
from pgvec_queue.gateway.watch import Watch
from pgvec_queue.queries import QueryEmbedder

T = TypeVar("T")


@dataclass
class Context:
    """One running gateway."""

    database: Database
    limits: Limits
    pool: AsyncPool
    notices: Notices
    watch: Watch
    pressure: Pressure
    queries: QueryEmbedder
    """What embeds the queries of searches; closed with the gateway."""

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[AsyncConnection]:
        """A connection of the pool, in autocommit mode, for as long as the block takes."""
        async with self.pool.connection() as connection:
            yield connection

    async def in_thread(self, stage: str, work: Callable[[Connection], T]) -> T:
        """Runs what is written for a plain connection in a thread, with a connection of its own.

        For what is rare, such as making a vectorizer; what requests do all the time goes through the pool.
        """

        def run() -> T:
            with self.database.connect(stage) as connection:
                return work(connection)

        return await anyio.to_thread.run_sync(run)


def context_of(request: Request) -> Context:
    """The gateway that serves the request: a dependency of the endpoints."""
    found = request.app.state.context
    assert isinstance(found, Context)
    return found
