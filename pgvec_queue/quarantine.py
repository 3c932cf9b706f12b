"""The quarantine: documents that failed, of which each waits until somebody has it tried again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.queue import Key


def failures(connection: Connection, vectorizer_id: int) -> list[dict[str, Any]]:
    """Returns the quarantine of a vectorizer, oldest first."""
    # A client reads times in some of the server's date styles only.
    with transaction(connection), connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement("progress", "failures"), {"id": vectorizer_id}).fetchall()


def retry(
    connection: Connection, vectorizer_id: int, error_class: str | None = None, *, keys: Sequence[Key] | None = None
) -> int:
    """Takes documents out of quarantine (all, those of one error class, or those listed) and queues them.

    Returns how many.
    """
    listed = None if keys is None else Jsonb([list(key) for key in keys])
    with transaction(connection, statement_timeout=300):
        row = connection.execute(
            statement("queue", "retry"), {"id": vectorizer_id, "error_class": error_class, "keys": listed}
        ).fetchone()
    return int(row[0]) if row else 0
