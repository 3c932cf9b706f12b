"""Removes tasks that ended long ago, a few at a time; of several gateways one does it, the others pass by."""

from __future__ import annotations

import asyncio
import random

import psycopg
import psycopg_pool

from pgvec_queue import tasks
from pgvec_queue.async_database import AsyncPool
from pgvec_queue.database import one_line
from pgvec_queue.log import get_logger

log = get_logger("pgvec.gateway")

_DAY = 86_400
EVERY_SECONDS = 60.0


async def keep_house(pool: AsyncPool, keep_days: float) -> None:
    """Runs until it is cancelled."""
    while True:
        await asyncio.sleep(EVERY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        try:
            async with pool.connection() as connection:
                await tasks.housekeeping(connection, keep=keep_days * _DAY)
        except (psycopg.Error, psycopg_pool.PoolTimeout) as error:
            log.warning("old tasks cannot be removed; it is tried again", error=one_line(error))
