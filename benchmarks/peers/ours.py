"""Our side of each comparison: one real ``pgvec work`` process, warm before anything is queued for it.

Its jobs are planned beforehand, for a vectorizer that is paused; the worker has done a small one with the same model,
and is idle. Times are the server's: from the moment in which the jobs may be claimed, or from the first commit, to the
last.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import psycopg

from benchmarks import common
from benchmarks.peers import databases, documents
from benchmarks.peers.environments import UnavailableError
from benchmarks.peers.rounds import RATE
from pgvec_queue import definition, progress, queue, schema, vectorizer
from pgvec_queue.database import Connection, Database, versions
from pgvec_queue.embedded import Server
from pgvec_queue.fragments import Fragments
from pgvec_queue.planner import Planned, Planner

IN_ALL = "rows/s in all"
_WARM_ROWS = 64
_TABLE = "docs"


def embed(cluster: Server, texts: Sequence[str], options: definition.Options) -> dict[str, float]:
    """Embeds texts with one warm worker; returns rows per second.

    ``options`` is the definition but for its source and text. ``RATE`` is over the rows of all commits but the
    first, as ``pgai`` measures it; ``IN_ALL`` is over all rows, from the moment in which they may be claimed.
    """
    with databases.fresh(cluster) as dsn, _prepared(dsn, texts, options) as connection:
        began = databases.now(connection)
        _go(connection)
        databases.until(lambda: _state(connection, _TABLE) == "complete", "end of the work")
        made = databases.commits(connection, f"{_TABLE}_vectors")
        return {RATE: made.rate_after_first(len(texts)), IN_ALL: made.rate_since(began)}


def embed_with_a_bad_row(cluster: Server, texts: Sequence[str], options: definition.Options) -> dict[str, float]:
    """Embeds texts of which the endpoint refuses one; returns how many have a vector in the end, and the seconds."""
    with databases.fresh(cluster) as dsn, _prepared(dsn, texts, options) as connection:
        began = time.monotonic()
        _go(connection)
        databases.until(lambda: _state(connection, _TABLE) == "complete", "end of the work")
        seconds = time.monotonic() - began
        [one] = progress.read(connection, _TABLE)
        return {"good rows embedded": one.rows_done, "rows in quarantine": one.rows_failed, "seconds": seconds}


def plan(connection: Connection, table: str) -> Planned:
    """Does what ``pgvec enqueue`` does: defines a vectorizer over ``table`` and plans its jobs."""
    return _define(connection, table, definition.Options(source=table, model="hashing-384", no_chunking=True))


@contextmanager
def _prepared(dsn: str, texts: Sequence[str], options: definition.Options) -> Iterator[Connection]:
    """A database with the jobs of ``texts`` queued but paused, and a warm and idle worker; yields a connection."""
    schema.initialize(Database(dsn))
    with psycopg.connect(dsn, autocommit=True) as connection:
        documents.fill(connection, _TABLE, texts)
        documents.fill(connection, "warm", documents.made(_WARM_ROWS))
        _define(connection, _TABLE, options, paused=True)
        _define(connection, "warm", options)
        worker = common.start(dsn, "work")
        try:
            databases.until(lambda: _is_warm(connection), "warm worker")
            yield connection
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait()


def _define(connection: Connection, table: str, options: definition.Options, *, paused: bool = False) -> Planned:
    found = versions(connection)
    chosen = replace(options, source=table, text=("body",))
    defined = definition.define(connection, chosen, found).vectorizer
    if paused:
        vectorizer.steer(connection, defined.name, "pause")
    return Planner(connection, Fragments(defined, found.vector_schema)).plan()


def _is_warm(connection: Connection) -> bool:
    idle = connection.execute("SELECT count(*) FROM pgvec.workers WHERE state = 'idle' AND NOT gone").fetchone()
    return idle == (1,) and _state(connection, "warm") == "complete"


def _go(connection: Connection) -> None:
    vectorizer.steer(connection, _TABLE, "resume")
    queue.notify(connection)


def _state(connection: Connection, name: str) -> str:
    [one] = progress.read(connection, name)
    if one.state == "blocked":
        raise UnavailableError(f"blocked: {one.reason}")
    return one.state
