"""A database of the bench's own, beside the user's: made for one measure, and dropped whatever ends it but a kill."""

from __future__ import annotations

import secrets
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

from pgvec_queue import schema
from pgvec_queue.database import Connection, Database, Versions, one_line, statement, versions
from pgvec_queue.errors import DatabaseError

PREFIX = "pgvec_bench_"


@dataclass(frozen=True, slots=True)
class Place:
    """Where databases can be made."""

    dsn: str
    """Of any database of the server; workers log in as it does."""
    administration: str | None = None
    """The same, for a role that may create databases; None: ``dsn`` itself."""


@dataclass(frozen=True, slots=True)
class Arena:
    """One such database, with our schema."""

    dsn: str
    database: Database
    connection: Connection
    """Plain: what a bench does to a table takes its time, and VACUUM runs in no transaction."""
    versions: Versions

    def registered(self) -> int:
        """Returns how many workers have made themselves known."""
        row = self.connection.execute(statement("bench", "registered")).fetchone()
        return int(row[0]) if row else 0


@contextmanager
def arena(place: Place) -> Generator[Arena]:
    """Makes the database and drops it afterwards, with whoever is still in it.

    Raises ``DatabaseError`` where that is not allowed, or the server has no pgvector.
    """
    name = f"{PREFIX}{secrets.token_hex(4)}"
    dsn = make_conninfo(place.dsn, dbname=name)
    administration = place.administration or place.dsn
    with Database(place.dsn).connect("bench") as connection:
        owner = connection.info.user
    try:
        _administer(administration, "make a database", "CREATE DATABASE {} OWNER {}", name, owner)
        # The owner of a database may not always add the extension to it.
        _administer(
            make_conninfo(administration, dbname=name), "add pgvector to one", "CREATE EXTENSION IF NOT EXISTS vector"
        )
        database = Database(dsn)
        schema.initialize(database)
        with psycopg.connect(database.conninfo("bench"), autocommit=True, prepare_threshold=None) as connection:
            yield Arena(dsn, database, connection, versions(connection))
    finally:
        _administer(administration, "drop its database", "DROP DATABASE IF EXISTS {} WITH (FORCE)", name)


def _administer(dsn: str, what: str, text: LiteralString, *names: str) -> None:
    with Database(dsn).connect("bench") as connection:
        connection.cursor_factory = psycopg.Cursor
        role = connection.info.user
        try:
            connection.execute(sql.SQL(text).format(*map(sql.Identifier, names)))
        except psycopg.errors.InsufficientPrivilege as error:
            raise DatabaseError(
                f"bench measures in a database of its own, and the role {role} may not {what}; "
                "name a role with --dsn that may, or another server"
            ) from error
        except psycopg.Error as error:
            raise DatabaseError(f"bench could not {what}: {one_line(error)}") from error
