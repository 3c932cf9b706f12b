"""Examines whether a database, and this machine, are fit for work: each check is a function that yields findings.

Nothing is changed. A check that the role may not run becomes a note that says so; a check that needs what another one
found missing is left out. What is read of models and endpoints is read from here, so it holds for workers of this
machine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import psycopg

from pgvec_queue import route, vectorizer
from pgvec_queue.database import Connection, one_line, versions
from pgvec_queue.doctor import connection as way
from pgvec_queue.doctor import models, rights, room, server, upkeep
from pgvec_queue.doctor.finding import Finding, error, note, ok
from pgvec_queue.doctor.question import Examined, Question
from pgvec_queue.errors import DatabaseError, PgvecError

__all__ = ["Finding", "Question", "examine"]

Check = Callable[[Examined], Iterator[Finding]]

_BASICS: Sequence[tuple[str, Check]] = (
    ("tls", way.encryption),
    ("pooler", way.pooler),
    ("clock", way.clock),
    ("autovacuum", server.autovacuum),
    ("timeouts", server.timeouts),
    ("wal", server.write_ahead_log),
    ("rights", rights.on_our_schema),
    ("transactions", upkeep.transactions),
    ("replication slots", upkeep.slots),
)
_WITH_SCHEMA: Sequence[tuple[str, Check]] = (
    ("connections", server.connections),
    ("index memory", server.memory),
    ("locks", server.locks),
    ("direct_dsn", way.direct),
    ("tables", rights.on_tables),
    ("standbys", rights.on_statistics),
    ("workers", upkeep.workers),
    ("blocked", upkeep.vectorizers),
    ("sync", upkeep.triggers),
    ("model", models.files),
    ("endpoint", models.endpoints),
    ("room", room.room),
)


def examine(question: Question) -> Iterator[Finding]:
    """Yields what is found, the database first. Raises ``PgvecError`` only for what cannot be asked at all."""
    try:
        connection = question.database.connect("doctor")
    except DatabaseError as problem:
        yield way.unreachable(question, problem)
        yield from models.device(question, [])
        return
    with connection:
        try:
            yield from _look(question, connection)
        except psycopg.OperationalError as problem:
            yield error("database", f"the connection broke: {one_line(problem)}", "look again")


def _look(question: Question, connection: Connection) -> Iterator[Finding]:
    examined = Examined(question, connection, [], pooled=route.finds_pooler(connection))
    yield from _run("database", way.server, examined)
    is_new_enough = True
    for finding in _pgvector(examined):
        is_new_enough &= finding.level != "error"
        yield finding
    has_schema = False
    for finding in _run("schema", upkeep.our_schema, examined):
        has_schema = finding.level == "ok"
        yield finding
    for name, check in _BASICS:
        yield from _run(name, check, examined)
    if has_schema and is_new_enough:
        try:
            found = [vectorizer.get(connection, name) for name in vectorizer.names(connection)]
        except psycopg.errors.InsufficientPrivilege:
            # The check of rights has told of it.
            found = []
        examined = Examined(question, connection, found, pooled=examined.pooled)
        for name, check in _WITH_SCHEMA:
            yield from _run(name, check, examined)
    yield from models.device(question, examined.vectorizers)


def _run(name: str, check: Check, examined: Examined) -> Iterator[Finding]:
    """Yields what a check finds; what it may not look at is a note."""
    try:
        yield from check(examined)
    except psycopg.OperationalError:
        if examined.connection.closed:
            raise
        yield note(name, "it took too long to look at")
    except psycopg.Error as problem:
        yield note(name, f"it could not be looked at: {one_line(problem)}")
    except PgvecError as problem:
        yield note(name, f"it could not be looked at: {problem}")


def _pgvector(examined: Examined) -> Iterator[Finding]:
    try:
        found = versions(examined.connection)
    except DatabaseError as problem:
        what, _, remedy = str(problem).partition("; ")
        yield error("pgvector", what, remedy or "see the message")
        return
    yield ok("pgvector", f"{found.pgvector} in schema {found.vector_schema}")
    newest = examined.rows("newest_pgvector")
    if newest and newest[0][0] != found.pgvector:
        remedy = "ALTER EXTENSION vector UPDATE"
        yield note("pgvector", f"the server has {newest[0][0]}, this database {found.pgvector}", remedy)
