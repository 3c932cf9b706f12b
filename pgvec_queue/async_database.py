"""Connections for what runs in an event loop: the same settings, timeouts and named statements as ``database``."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import TupleRow
from psycopg_pool import AsyncConnectionPool

from pgvec_queue.database import CONNECTION, Database, statement

AsyncConnection = psycopg.AsyncConnection[TupleRow]
AsyncPool = AsyncConnectionPool[AsyncConnection]


class AsyncTimedCursor(psycopg.AsyncCursor[Any]):
    """Runs a statement that stands alone in a transaction of its own, since only there a timeout can be set for it."""

    async def execute(self, query: Any, params: Any = None, **options: Any) -> AsyncTimedCursor:
        if self.connection.info.transaction_status is not TransactionStatus.IDLE:
            await super().execute(query, params, **options)
        else:
            async with self.connection.transaction():
                await super().execute(statement("database", "timeouts"))
                await super().execute(query, params, **options)
        return self


def async_pool(database: Database, stage: str, *, size: int, timeout: float) -> AsyncPool:
    """Returns a pool that is still closed; ``async with`` opens it. ``timeout``: seconds to wait for a connection."""
    return AsyncConnectionPool(
        database.conninfo(stage),
        min_size=0,
        max_size=size,
        kwargs={"cursor_factory": AsyncTimedCursor, **CONNECTION},
        timeout=timeout,
        reconnect_timeout=1.0,
        open=False,
    )


async def async_connect(database: Database, stage: str) -> AsyncConnection:
    """Opens a connection in autocommit mode, such as for LISTEN. Raises ``psycopg.Error``."""
    return await psycopg.AsyncConnection.connect(
        database.conninfo(stage), cursor_factory=AsyncTimedCursor, **CONNECTION
    )


@asynccontextmanager
async def async_transaction(
    connection: AsyncConnection,
    *,
    statement_timeout: float = 15.0,
    lock_timeout: float = 5.0,
    read_only: bool = False,
) -> AsyncGenerator[None]:
    """Runs a READ COMMITTED transaction with timeouts (seconds) and the settings that canonical keys depend on."""
    async with connection.transaction():
        await connection.execute(
            statement("database", "transaction_settings"),
            {
                "statement_timeout": f"{round(statement_timeout * 1000)}ms",
                "lock_timeout": f"{round(lock_timeout * 1000)}ms",
                "read_only": "on" if read_only else "off",
                "application_name": None,
            },
        )
        yield
