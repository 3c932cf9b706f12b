"""A database for every run, so that no contender meets another's tables, triggers or dead rows."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psycopg
from psycopg import sql

from pgvec_queue.database import Connection
from pgvec_queue.embedded import Server

SETTINGS = {"track_commit_timestamp": "on"}
"""Of the server: when a row's transaction committed is known afterwards, for whoever wrote it."""
_LOOK_SECONDS = 0.05
_COMMITS = """
WITH written AS (SELECT pg_xact_commit_timestamp(xmin) AS at FROM {})
SELECT count(*), count(*) FILTER (WHERE at > first), extract(epoch FROM first)::float8, extract(epoch FROM last)::float8
FROM written, (SELECT min(at) AS first, max(at) AS last FROM written) AS ends
GROUP BY first, last
"""


@contextmanager
def fresh(cluster: Server) -> Iterator[str]:
    """An empty database with pgvector, owned by the role that everybody works as; yields its DSN."""
    name = f"run_{secrets.token_hex(4)}"
    with psycopg.connect(cluster.uri(user="postgres", database="postgres"), autocommit=True) as admin:
        admin.execute(sql.SQL("CREATE DATABASE {} OWNER pgvec").format(sql.Identifier(name)))
        try:
            with psycopg.connect(cluster.uri(user="postgres", database=name), autocommit=True) as inside:
                inside.execute("CREATE EXTENSION vector")
            yield cluster.uri(database=name)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def commits(connection: Connection, table: str) -> tuple[int, int, float, float]:
    """Returns a table's rows, those committed after the first transaction, and when first and last committed."""
    row = connection.execute(sql.SQL(_COMMITS).format(sql.Identifier(table))).fetchone()
    return row or (0, 0, 0.0, 0.0)


def now(connection: Connection) -> float:
    """Returns the server's clock, in seconds."""
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None
    return float(row[0])


def until(condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """Waits for a condition; raises ``TimeoutError`` saying what did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not in {seconds:.0f} s")
        time.sleep(_LOOK_SECONDS)
