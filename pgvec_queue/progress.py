"""How far each vectorizer is: the rows of ``pgvec.progress`` as the command line and scripts see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from psycopg.rows import dict_row

from pgvec_queue.database import Connection, statement

_ROUNDED = (
    *("rows_per_second", "rows_per_second_15m", "chunks_per_second", "tokens_per_second"),
    *("eta_seconds", "eta_low_seconds", "eta_high_seconds", "lag_seconds"),
)


@dataclass(frozen=True, slots=True)
class Progress:
    """One vectorizer's row of the view; field names are those of ``status --json``."""

    name: str
    state: str
    reason: str | None
    rows_total: int
    rows_done: int
    rows_failed: int
    chunks: int
    tokens: int
    jobs: dict[str, int]
    rows_per_second: float
    chunks_per_second: float
    eta_seconds: float | None
    plan_complete: bool
    rows_embedded: int
    rows_truncated: int
    sync: bool
    lag_seconds: float | None
    """Age of the oldest live change that is not in the destination yet; None without sync."""
    rows_wasted: int
    """Rows embedded whose vectors were thrown away."""
    chunks_reused: int
    """Chunks that took the vector of an identical one beside them."""
    eta_low_seconds: float | None
    eta_high_seconds: float | None
    """Between these it ends, if the rate stays as minutes have differed."""
    tokens_per_second: float
    rows_per_second_15m: float
    bytes_written: int
    jobs_reclaimed: int
    priority: int
    rows_per_second_limit: float | None
    source: str
    destination: str
    model: str
    rows_unchanged: int
    """Rows found as they were when they were embedded, and blank ones."""
    chunks_kept: int
    """Chunks of changed documents that kept the vector that they had."""
    chunks_cached: int
    """Chunks whose vector a worker remembered."""
    rows_adopted: int
    """Rows whose vectors were there before, and were taken over."""
    index: dict[str, Any] | None
    """What `pgvec.index_status` says of the index on its vectors; None: nothing was ever said of one."""

    def as_json(self) -> dict[str, Any]:
        values: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name in _ROUNDED:
            values[name] = None if values[name] is None else round(values[name], 1)
        return values


def read(connection: Connection, name: str | None = None) -> list[Progress]:
    """Returns all vectorizers, by name, or the one of that name (an empty list when there is none)."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return from_rows(cursor.execute(statement("progress", "progress"), {"name": name}).fetchall())


def from_rows(rows: Sequence[dict[str, Any]]) -> list[Progress]:
    """Returns what rows of the view say, whoever has read them."""
    return [
        Progress(
            jobs={state: row[f"jobs_{state}"] for state in ("queued", "running", "done", "cancelled")},
            **{field: row[field] for field in Progress.__slots__ if field != "jobs"},
        )
        for row in rows
    ]
