"""The texts of a collection: list, get and delete, each in one short statement on an event loop's connection.

Putting texts there is a task: see ``tasks``.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg.rows import dict_row

from pgvec_queue.async_database import AsyncConnection
from pgvec_queue.collections import Collection

MOST_BYTES = 8 * 1024 * 1024
"""Of texts in one page; the first is always in it."""


@dataclass(frozen=True, slots=True)
class Text:
    """One row of a collection."""

    id: str
    text: str
    metadata: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    state: str
    """``done``, ``waiting``, ``failed``, or ``skipped`` for a blank text."""


async def page(
    connection: AsyncConnection, collection: Collection, *, after: str, limit: int
) -> tuple[list[Text], bool]:
    """Returns texts in the order of their ids (by code point), and whether there may be more."""
    parameters = {"after": after, "limit": limit, "bytes": MOST_BYTES, "vectorizer": collection.vectorizer_id}
    rows = await _rows(connection, collection, "list_texts", parameters)
    return [_text(row) for row in rows], bool(rows) and (rows[0]["found"] > len(rows) or len(rows) == limit)


async def get(connection: AsyncConnection, collection: Collection, id_: str) -> Text | None:
    """Returns the text of that id."""
    rows = await _rows(connection, collection, "get_text", {"id": id_, "vectorizer": collection.vectorizer_id})
    return _text(rows[0]) if rows else None


async def delete(connection: AsyncConnection, collection: Collection, id_: str) -> bool:
    """Deletes a text; its vectors go with it as soon as a worker has seen that. Returns whether there was one."""
    cursor = await connection.execute(collection.compose("delete_text"), {"id": id_})
    return cursor.rowcount > 0


async def _rows(
    connection: AsyncConnection, collection: Collection, name: str, parameters: dict[str, Any]
) -> list[dict[str, Any]]:
    query = collection.compose(name, state=collection.compose("state_of_text"))
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query, parameters)
        return await cursor.fetchall()


def _text(row: dict[str, Any]) -> Text:
    return Text(row["id"], row["text"], row["metadata"], row["created_at"], row["updated_at"], row["state"])
