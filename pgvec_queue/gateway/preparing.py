"""Loads the model that searches will need next: the new one of a migration, before anybody switches to it.

Only where this gateway embeds the queries of one of the two; both then stay in memory until the migration is finished,
so that neither a switch nor a rollback makes a search wait for a model.
"""

from __future__ import annotations

import asyncio
import random

import psycopg
import psycopg_pool
from psycopg.rows import dict_row

from pgvec_queue.async_database import AsyncPool
from pgvec_queue.database import one_line, statement
from pgvec_queue.embedders import ModelSpec
from pgvec_queue.log import get_logger
from pgvec_queue.queries import QueryEmbedder
from pgvec_queue.vectorizer import COLUMNS, from_row

log = get_logger("pgvec.gateway")

EVERY_SECONDS = 5.0


async def prepare(pool: AsyncPool, queries: QueryEmbedder) -> None:
    """Runs until it is cancelled."""
    trouble: str | None = None
    while True:
        await asyncio.sleep(EVERY_SECONDS * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
        try:
            pairs = await _pairs(pool)
        except (psycopg.Error, psycopg_pool.PoolTimeout):
            # Whoever asks for anything hears of it.
            continue
        try:
            await queries.keep({spec for pair in pairs if any(map(queries.has, pair)) for spec in pair})
        except Exception as error:  # noqa: BLE001 - it is tried again, and searches go on with the model that there is
            if trouble != str(error):
                trouble = str(error)
                log.warning(
                    "model of a migration cannot be loaded; a switch to it would fail here", error=one_line(error)
                )
        else:
            trouble = None


async def _pairs(pool: AsyncPool) -> list[set[ModelSpec]]:
    """Returns the models of each migration whose new vectorizer is filled."""
    pairs: dict[int, set[ModelSpec]] = {}
    async with pool.connection() as connection, connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement("model_migration", "filled").format(columns=COLUMNS))
        for row in await cursor.fetchall():
            pairs.setdefault(row["pgvec_migration"], set()).add(from_row(row).spec)
    return list(pairs.values())
