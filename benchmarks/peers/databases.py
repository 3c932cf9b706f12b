"""A database for every run, so that no contender meets another's tables, triggers or dead rows."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg
from psycopg import sql

from benchmarks.peers.environments import UnavailableError
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


@dataclass(frozen=True, slots=True)
class Commits:
    """How a table was filled: its rows, those of all commits but the first, and the times of the first and the last."""

    rows: int = 0
    later_rows: int = 0
    first: float = 0.0
    last: float = 0.0

    def rate_after_first(self, expected: int) -> float:
        """Returns rows per second without those of the first commit; raises ``UnavailableError`` where rows lack."""
        if self.rows != expected:
            raise UnavailableError(f"{self.rows} of {expected} rows have a vector")
        if not self.later_rows:
            raise UnavailableError("all rows came in one commit; give it more rows")
        return self.later_rows / (self.last - self.first)

    def rate_since(self, began: float) -> float:
        """Returns rows per second of all rows since a time of ``now``."""
        return self.rows / (self.last - began)


def commits(connection: Connection, table: str) -> Commits:
    """Returns when the rows of a table were committed."""
    row = connection.execute(sql.SQL(_COMMITS).format(sql.Identifier(table))).fetchone()
    return Commits(*row) if row else Commits()


def now(connection: Connection) -> float:
    """Returns the server's clock, in seconds."""
    row = connection.execute("SELECT extract(epoch FROM clock_timestamp())::float8").fetchone()
    assert row is not None
    return float(row[0])


def until(condition: Callable[[], bool], what: str, seconds: float = 600) -> None:
    """Waits for a condition; raises ``UnavailableError`` saying what did not happen."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise UnavailableError(f"no {what} in {seconds:.0f} s")
        time.sleep(_LOOK_SECONDS)
