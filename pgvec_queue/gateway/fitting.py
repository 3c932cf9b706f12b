"""Whether the schema is one that this gateway's program works with: looked at every few seconds, apart from requests.

A gateway that is too old or too new for it says so, answers all but its probes with 503, and goes on when it fits: it
need not be started again. Somebody may have upgraded the schema beneath it.
"""

from __future__ import annotations

import asyncio
import random

import psycopg
import psycopg_pool

from pgvec_queue import schema
from pgvec_queue.async_database import AsyncConnection, AsyncPool
from pgvec_queue.database import statement
from pgvec_queue.errors import SchemaMissingError, SchemaOutdatedError
from pgvec_queue.log import get_logger

log = get_logger("pgvec.gateway")

EVERY_SECONDS = 2.0


class Fitting:
    """What one gateway knows of it."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        """Why nothing can be done with the schema; None: it can, or that is not known."""

    async def run(self, pool: AsyncPool) -> None:
        """Looks until it is cancelled."""
        while True:
            try:
                async with pool.connection() as connection:
                    await self.look(connection)
            except (psycopg.Error, psycopg_pool.PoolTimeout):
                # Whoever asks for anything hears of it.
                pass
            except Exception as error:
                # The task would end, and the gateway never look again.
                log.exception("schema could not be looked at", error=str(error))
            await asyncio.sleep(EVERY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter

    async def look(self, connection: AsyncConnection) -> None:
        """Looks once. Raises ``psycopg.Error`` where that cannot be done."""
        try:
            await require_schema(connection)
        except SchemaMissingError:
            # Each request that needs it says so.
            trouble = None
        except SchemaOutdatedError as error:
            trouble = str(error)
        else:
            trouble = None
        if trouble != self.trouble and trouble is not None:
            log.warning("gateway waits for a schema that its program works with", error=trouble)
        elif trouble != self.trouble:
            log.info("schema is there; the gateway goes on")
        self.trouble = trouble


async def require_schema(connection: AsyncConnection) -> str:
    """Returns the schema's revision. Raises ``SchemaOutdatedError`` where this program does not work with it."""
    if await (await connection.execute(statement("schema", "version_table"))).fetchone() is None:
        schema.check("")
    row = await (await connection.execute(statement("schema", "revision"))).fetchone()
    found = str(row[0]) if row else ""
    oldest = None
    if found > schema.HEAD:
        try:
            row = await (await connection.execute(statement("schema", "oldest_program"))).fetchone()
        except psycopg.errors.UndefinedFunction:
            row = None
        oldest = str(row[0]) if row else None
    schema.check(found, oldest)
    return found
