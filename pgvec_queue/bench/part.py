"""A part of a measure's work: a table of documents with a vectorizer of its own, queued first and then let loose.

It is timed by the database's clock, from the first job's being claimable to the last checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from psycopg import sql

from pgvec_queue import definition, queue, vectorizer
from pgvec_queue.bench.database import Arena
from pgvec_queue.bench.fleet import Fleet
from pgvec_queue.database import statement
from pgvec_queue.errors import PgvecError
from pgvec_queue.fragments import Fragments
from pgvec_queue.planner import Planned, Planner, Progress
from pgvec_queue.vectorizer import Vectorizer

WORK_SECONDS = 7_200.0


@dataclass(frozen=True, slots=True)
class Done:
    """What workers did of a part, and how long it took them."""

    seconds: float
    rows: int
    chunks: int
    tokens: int


@dataclass(frozen=True, slots=True)
class Part:
    """The work of one round."""

    arena: Arena
    vectorizer: Vectorizer

    @property
    def destination(self) -> sql.Identifier:
        return sql.Identifier(self.vectorizer.destination_schema, self.vectorizer.destination_table)

    def plan(self, progress: Progress | None = None) -> Planned:
        """Queues its jobs; none can be claimed yet."""
        fragments = Fragments(self.vectorizer, self.arena.versions.vector_schema)
        return Planner(self.arena.connection, fragments, progress).plan()

    def work(self, fleet: Fleet, seconds: float = WORK_SECONDS) -> Done:
        """Lets the workers at it, and returns when all is done.

        Raises ``PgvecError`` when a document fails, the vectorizer is blocked or a worker ends: that is no measurement.
        """
        connection = self.arena.connection
        before = self._counted()
        # Planning has told them of jobs that are not for them yet.
        fleet.calm_down()
        with connection.transaction():
            connection.execute(statement("bench", "renumber"), {"id": self.vectorizer.id})
            row = connection.execute(statement("bench", "open"), {"id": self.vectorizer.id}).fetchone()
        assert row is not None
        queue.notify(connection)
        fleet.wait("working off a round", seconds, self._finished)
        taken = connection.execute(
            statement("bench", "seconds"), {"id": self.vectorizer.id, "opened": row[0]}
        ).fetchone()
        assert taken is not None
        rows, chunks, tokens = (after - was for after, was in zip(self._counted(), before, strict=True))
        return Done(taken[0], rows, chunks, tokens)

    def contributors(self) -> int:
        """Returns how many workers have written something of it."""
        row = self.arena.connection.execute(statement("bench", "contributors"), {"id": self.vectorizer.id}).fetchone()
        return int(row[0]) if row else 0

    def refill(self, rows: int) -> None:
        """Makes it new work of so many documents of about 400 characters; nothing of what was before is left."""
        connection = self.arena.connection
        vectorizer.steer(connection, self.vectorizer.name, "pause")
        source = _source(self.vectorizer)
        connection.execute(sql.SQL("TRUNCATE {}, {}").format(source, self.destination))
        connection.execute(statement("bench", "forget_jobs"), {"id": self.vectorizer.id})
        connection.execute(statement("bench", "make_documents").format(table=source), {"first": 1, "last": rows})
        _settle(self.arena, source)
        self.plan()

    def chunks(self) -> list[str]:
        """Returns the chunks' texts in the order of their documents."""
        query = statement("bench", "chunks").format(table=self.destination)
        return [text for (text,) in self.arena.connection.execute(query).fetchall()]

    def drop(self) -> None:
        """Takes its tables and its vectorizer away, so that rounds do not fill the disk."""
        connection = self.arena.connection
        connection.execute(sql.SQL("DROP TABLE {}, {}").format(_source(self.vectorizer), self.destination))
        vectorizer.steer(connection, self.vectorizer.name, "pause")
        connection.execute(statement("bench", "forget_jobs"), {"id": self.vectorizer.id})

    def _counted(self) -> tuple[int, int, int]:
        """Returns rows, chunks and tokens so far."""
        row = self.arena.connection.execute(statement("bench", "counted"), {"id": self.vectorizer.id}).fetchone()
        assert row is not None
        return row[0], row[1], row[2]

    def _finished(self) -> bool:
        row = self.arena.connection.execute(statement("bench", "state"), {"id": self.vectorizer.id}).fetchone()
        assert row is not None
        unfinished, blocked, failure = row
        if blocked or failure:
            raise PgvecError(f"bench cannot go on: {blocked or failure}")
        return not unfinished


def of_table(arena: Arena, table: str, options: definition.Options) -> Part:
    """Defines a paused vectorizer over a table that is there."""
    defined = definition.define(arena.connection, options, arena.versions).vectorizer
    vectorizer.steer(arena.connection, defined.name, "pause")
    _settle(arena, sql.Identifier(table))
    return Part(arena, defined)


def of_texts(arena: Arena, table: str, texts: Iterable[str], **options: Any) -> Part:
    """Makes a table of these texts and queues them under ``definition.Options``."""
    _create(arena, table)
    statement_ = statement("bench", "copy_documents").format(table=sql.Identifier(table))
    with arena.connection.cursor() as cursor, cursor.copy(statement_) as copy:
        for row in enumerate(texts, 1):
            copy.write_row(row)
    return _planned(arena, table, options)


def of_rows(arena: Arena, table: str, rows: int, **options: Any) -> Part:
    """Makes a table of so many documents of about 400 characters and queues them under ``definition.Options``."""
    _create(arena, table)
    arena.connection.execute(
        statement("bench", "make_documents").format(table=sql.Identifier(table)), {"first": 1, "last": rows}
    )
    return _planned(arena, table, options)


def _planned(arena: Arena, table: str, options: dict[str, Any]) -> Part:
    part = of_table(arena, table, definition.Options(source=table, text=("body",), **options))
    part.plan()
    return part


def _create(arena: Arena, table: str) -> None:
    arena.connection.execute(statement("bench", "create_documents").format(table=sql.Identifier(table)))


def _settle(arena: Arena, table: sql.Identifier) -> None:
    """What the server would do with a new table sooner or later is done before anything is timed."""
    arena.connection.execute(sql.SQL("VACUUM (ANALYZE) {}").format(table))


def _source(of: Vectorizer) -> sql.Identifier:
    return sql.Identifier(of.source_schema, of.source_table)
