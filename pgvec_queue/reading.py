"""Reads a slice: the part of a job that is embedded and committed together.

One short read-only transaction, always on the primary. Left out, in SQL: rows that are current by their hash, blank
ones, and those in quarantine unchanged. With documents that have been embedded before come the vectors that they have
(see ``keeping``). What is read is bounded by rows and bytes; a document over the vectorizer's
limit is not fetched at all. Each row's xmin and the oldest transaction then running are kept, so that the write can
tell what moved.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from psycopg import sql
from psycopg.abc import AdaptContext, Buffer
from psycopg.adapt import Loader
from psycopg.pq import Format

from pgvec_queue import keeping
from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.fragments import Fragments
from pgvec_queue.queue import Job
from pgvec_queue.slices import Document, Old, Slice, position

_POSITION = operator.itemgetter(7)
WINDOW_ROWS = 5_000
"""Source rows that one read looks through at most, settled ones included."""


class _RawLoader(Loader):
    """Leaves a value as PostgreSQL sent it."""

    format = Format.BINARY

    def __init__(self, oid: int, context: AdaptContext | None = None) -> None:
        super().__init__(oid, context)

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


def read(connection: Connection, fragments: Fragments, job: Job, *, rows: int, max_bytes: int) -> Slice:
    """Reads the next slice of ``job``: at most ``rows`` documents and about ``max_bytes`` of their text."""
    joins = "on" if fragments.vectorizer.destination_ordered else "off"
    with transaction(connection, statement_timeout=60, read_only=True):
        connection.execute(statement("reading", "local_settings"), {"joins": joins})
        if job.kind == "keys":
            return _read_keys(connection, fragments, job, rows, max_bytes)
        if job.kind == "sweep":
            return _read_sweep(connection, fragments, job)
        return _read_range(connection, fragments, job, rows, max_bytes)


def _read_range(connection: Connection, fragments: Fragments, job: Job, rows: int, max_bytes: int) -> Slice:
    lower = job.checkpoint if job.checkpoint is not None else job.lower_key
    has_lower = lower is not None
    window = connection.execute(
        fragments.of_range(connection, "reading", "window", lower=has_lower, upper=job.upper_key is not None),
        {"lower": lower, "upper": job.upper_key, "window": WINDOW_ROWS},
    ).fetchone()
    assert window is not None
    horizon, end, has_old = window
    upper = job.upper_key if end is None else end
    documents, selected = _documents(
        connection,
        fragments.of_range(connection, "reading", "read_range", lower=has_lower, upper=upper is not None),
        # Where the slice will surely end before the range does, nobody would look at the count.
        {"lower": lower, "upper": upper, "rows": rows, "bytes": max_bytes, "count": rows >= job.rows - job.rows_seen},
        fragments,
    )
    # A short read means that the rest of the window is settled; a full one that the slice ends at its last row.
    if _is_full(documents, rows, max_bytes, fragments):
        upper, selected = list(documents[-1].key), None
    last = upper == job.upper_key
    old = keeping.read(connection, fragments, documents) if has_old and documents else Old()
    return Slice(job, upper, last, documents, horizon, selected, old)


def _read_keys(connection: Connection, fragments: Fragments, job: Job, rows: int, max_bytes: int) -> Slice:
    assert job.keys is not None
    start = position(job.checkpoint)
    keys = job.keys[start : start + WINDOW_ROWS]
    horizon = connection.execute(statement("reading", "horizon")).fetchone()
    assert horizon is not None
    documents, _ = _documents(
        connection,
        fragments.compose("reading", "read_keys", listed=fragments.listed(), listed_is_source=fragments.listed_is("s")),
        {**fragments.key_lists(keys), "rows": rows, "bytes": max_bytes},
        fragments,
    )
    end = start + len(keys)
    if _is_full(documents, rows, max_bytes, fragments):
        end = start + documents[-1].position
    old = keeping.read(connection, fragments, documents) if fragments.keeps_vectors and documents else Old()
    return Slice(job, [str(end)], end == len(job.keys), documents, horizon[0], old=old)


def _read_sweep(connection: Connection, fragments: Fragments, job: Job) -> Slice:
    if fragments.vectorizer.into_column:
        # The vectors went with their rows; only the quarantine is left to sweep.
        return Slice(job, job.upper_key, True, [], "")
    lower = job.checkpoint if job.checkpoint is not None else job.lower_key
    window = connection.execute(
        fragments.compose(
            "reading",
            "sweep_window",
            scope=fragments.bounds("d", lower=lower is not None, upper=job.upper_key is not None),
        ),
        {"lower": lower, "upper": job.upper_key, "window": WINDOW_ROWS},
    ).fetchone()
    upper = job.upper_key if window is None else window[0]
    return Slice(job, upper, window is None or upper == job.upper_key, [], "")


def _is_full(documents: Sequence[Document], rows: int, max_bytes: int, fragments: Fragments) -> bool:
    limit = fragments.vectorizer.max_document_bytes
    return bool(documents) and (
        len(documents) >= rows or sum(min(document.size, limit) for document in documents) > max_bytes
    )


def _documents(
    connection: Connection, query: sql.Composed | bytes, parameters: dict[str, Any], fragments: Fragments
) -> tuple[list[Document], int | None]:
    """Returns the documents in order, and what else the query has counted."""
    parameters = {**parameters, "max_bytes": fragments.vectorizer.max_document_bytes}
    with connection.cursor(binary=True) as cursor:
        cursor.adapters.register_loader("record", _RawLoader)
        rows = cursor.execute(query, parameters).fetchall()
    # They come in this order, but no statement says so.
    rows.sort(key=_POSITION)
    documents = [
        Document(tuple(key), _without_oids(record), text, hash_, xmin, size, tuple(columns), position)
        for key, record, text, hash_, xmin, size, columns, position, *_ in rows
    ]
    return documents, rows[0][8] if rows and len(rows[0]) > 8 else None


def _without_oids(record: bytes) -> bytes:
    """Turns a record in binary format (count, then type, length, value per column) into the fields of a COPY row."""
    if int.from_bytes(record[:4], "big") == 1:
        return record[8:]
    fields = []
    at = 4
    while at < len(record):
        length = int.from_bytes(record[at + 4 : at + 8], "big", signed=True)
        end = at + 8 + max(length, 0)
        fields.append(record[at + 4 : end])
        at = end
    return b"".join(fields)
