"""Keeps a log of every version of every row and of every embedding, and compares the two: what did not change must not
have been embedded. ``history.sql`` does the work, apart from the program's own counting.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from psycopg import sql

from tests.chaos.server import Server
from tests.chaos.tables import Table

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


@dataclass(frozen=True)
class History:
    """What the log says at the end."""

    initial: int
    """Documents that were there at the beginning."""
    changed: int
    """Versions of documents that came after: inserted, with another text or key, or selected again."""
    embedded: int
    untouched: int
    """Rows that never changed since they were there; embedded once, by the check and since nothing is needless."""
    twice: int
    """Embeddings of a text with which the row had been embedded already."""
    needless: list[str]
    """One line per row that was embedded more often than it changed."""


def record(server: Server, tables: Sequence[Table]) -> None:
    """Begins the log, with what is in the sources and destinations by then. Nobody may be at work."""
    statements = _statements()
    with server.connect() as connection:
        connection.execute(statements["tables"].encode())
        connection.execute(statements["functions"].encode())
        for table in tables:
            into_column = "--into-column" in table.enqueue
            destination = table.name if into_column else f"{table.name}_vectors"
            parts = {
                "name": sql.Literal(table.name),
                "source": sql.Identifier(table.name),
                "destination": sql.Identifier(destination),
                "columns": sql.Literal(list(table.key_columns)),
                "arguments": sql.SQL(", ").join(map(sql.Literal, table.key_columns)),
            }
            kind = "column" if into_column else "table"
            for name in ("source", f"held_{kind}", f"destination_{kind}"):
                # No parameters, so that several statements may go at once.
                connection.execute(sql.SQL(statements[name]).format(**parts).as_string(connection).encode())


def recorded(server: Server) -> History:
    statements = _statements()
    with server.connect() as connection:
        totals = connection.execute(statements["totals"].encode()).fetchone()
        needless = connection.execute(statements["needless"].encode()).fetchall()
        twice = connection.execute(statements["twice"].encode()).fetchone()
    assert totals is not None
    assert twice is not None
    lines = [
        f"{source} {key}: {came} times there or changed ({changed}), {times} times embedded ({embedded})"
        for source, key, came, times, changed, embedded in needless
    ]
    initial, changed, embedded, untouched = totals
    return History(initial, changed, embedded, untouched, twice[0], lines)


def _statements() -> dict[str, str]:
    parts = _NAME.split((Path(__file__).parent / "history.sql").read_text())
    return dict(zip(parts[1::2], parts[2::2], strict=True))
