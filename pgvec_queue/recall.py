"""Recall@10 of an index: which share of the ten nearest vectors a search through it finds.

Some of the vectors, drawn at random, are searched for twice by `pgvec.search`: through the index, as everybody
searches, and exactly, over all of them. The vector itself does not count. Vectors that are as near as the tenth count
as found, whichever of them comes. An exact search reads the whole table, so of a large one there are as many as fit
into the time, ten at least.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgvec_queue import vector_index
from pgvec_queue.database import Connection, kind_of, one_line, statement, transaction
from pgvec_queue.errors import Kind
from pgvec_queue.fragments import identifier
from pgvec_queue.vectorizer import Vectorizer

K = 10
QUERIES, FEWEST = 100, 10
SECONDS = 60.0
"""For all searches together."""
_READ_WHOLE = 20_000
"""Vectors up to which a sample is drawn from all; of more it is drawn from some pages."""
_PAGES_PER_QUERY = 20
_SAME = 1e-6
"""Scores that differ by less are of vectors that are equally near: an index has its own rounding."""


_UNKNOWN = "recall is not known: "


@dataclass(frozen=True, slots=True)
class Recall:
    """What a sample of searches has found."""

    share: float | None
    """0 to 1; None: it could not be measured."""
    queries: int
    reason: str | None = None
    """Why there are fewer queries than were wanted."""


def measure(
    connection: Connection,
    vectorizer: Vectorizer,
    *,
    seconds: float = SECONDS,
    queries: int = QUERIES,
    stopped: Callable[[], bool] = lambda: False,
) -> Recall:
    """Measures in short read-only transactions, until the time is over, in ``seconds``, or somebody stops it."""
    try:
        return _measure(connection, vectorizer, seconds, queries, stopped)
    except psycopg.Error as error:
        if kind_of(error) is Kind.PASSING and not isinstance(error, psycopg.errors.QueryCanceled):
            raise
        # The index is there all the same.
        return Recall(None, 0, f"{_UNKNOWN}{one_line(error)}")


def _measure(
    connection: Connection, vectorizer: Vectorizer, seconds: float, queries: int, stopped: Callable[[], bool]
) -> Recall:
    deadline = time.monotonic() + seconds
    shares: list[float] = []
    late = False
    for query in _sample(connection, vectorizer, queries):
        left = deadline - time.monotonic()
        late = left <= 0
        if late or stopped():
            break
        try:
            share = _share(connection, vectorizer, query, left)
        except psycopg.errors.QueryCanceled:
            late = True
            break
        if share is not None:
            shares.append(share)
    done = len(shares)
    if late and done < FEWEST:
        return Recall(None, done, f"{_UNKNOWN}{done} exact searches fit into {seconds:.0f} s")
    if not done:
        return Recall(None, 0, f"{_UNKNOWN}there are no vectors to search for")
    return Recall(sum(shares) / done, done)


def note(connection: Connection, vectorizer: Vectorizer, measured: Recall) -> None:
    """Takes down what was measured."""
    connection.execute(
        statement("index", "recalled"),
        {
            "vectorizer": vectorizer.id,
            "recall": measured.share,
            "queries": measured.queries,
            "reason": measured.reason,
        },
    )


def _sample(connection: Connection, vectorizer: Vectorizer, count: int) -> list[Sequence[float]]:
    vectors = vector_index.vectors(connection, vectorizer)
    sample: sql.Composable = sql.SQL("")
    if vectors > _READ_WHOLE:
        share = min(100.0, 100 * _PAGES_PER_QUERY * count / vectors)
        sample = sql.SQL("TABLESAMPLE SYSTEM ({})").format(sql.Literal(share))
    query = statement("index", "sample").format(
        embedding=identifier(vectorizer.destination_roles.embedding),
        table=identifier(vectorizer.destination_schema, vectorizer.destination_table),
        sample=sample,
    )
    with transaction(connection, read_only=True):
        rows = connection.execute(query, {"count": count}).fetchall()
    # A vector of zeros has no direction, and is near to nothing.
    return [vector for (vector,) in rows if any(vector)]


def _share(connection: Connection, vectorizer: Vectorizer, query: Sequence[float], seconds: float) -> float | None:
    """Returns the share of the ten nearest others that is found; None where there are no others."""
    with transaction(connection, statement_timeout=max(seconds, 0.01), read_only=True):
        connection.execute(statement("index", "prefer_index"))
        exact = _scores(connection, vectorizer, query, exact=True)
        through = _scores(connection, vectorizer, query, exact=False)
    if len(exact) < 2:
        return None
    return share_found(exact, through)


def _scores(connection: Connection, vectorizer: Vectorizer, query: Sequence[float], *, exact: bool) -> list[float]:
    row = connection.execute(
        statement("index", "through"),
        # The vector itself is the nearest.
        {"vectorizer": vectorizer.id, "query": list(query), "hits": K + 1, "exact": exact},
    ).fetchone()
    return list(row[0] or ()) if row else []


def share_found(exact: Sequence[float], through: Sequence[float]) -> float:
    """Compares two rankings by their scores, best first, whose first is the query itself.

    ``exact`` has two scores or more; ``through`` may have fewer.
    """
    itself = bool(through) and through[0] >= exact[0] - _SAME
    near = sum(score >= exact[-1] - _SAME for score in through) - itself
    wanted = len(exact) - 1
    return min(near, wanted) / wanted
