"""Removes all that is ours from a database: workers leave, triggers go, then the schema ``pgvec`` with all in it.

What stays: destinations with their vectors and hashes, so that a later `enqueue --into` of the same table embeds
nothing again; columns that were added to a source; the texts of the gateway's collections; the extension ``vector``.
What somebody else has made of ours (a view over ``pgvec.progress``) is never dropped unasked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psycopg

from pgvec_queue import queue, schema, sync
from pgvec_queue.database import Connection, one_line, statement, transaction
from pgvec_queue.errors import PgvecError
from pgvec_queue.locks import NOT_HAD, patiently

_LOOK_SECONDS = 0.2
_LOCK_SECONDS = 5.0
_LOCK_TRIES = 5


@dataclass(frozen=True, slots=True)
class Foreign:
    """Something in the schema ``pgvec`` that is not ours."""

    kind: str
    """In PostgreSQL's words: table, function, extension."""
    identity: str
    """Quoted as in SQL."""

    @property
    def label(self) -> str:
        return f"{self.kind} {self.identity}"

    @property
    def move(self) -> str:
        """The statement that saves it."""
        return f"ALTER {self.kind.upper()} {self.identity} SET SCHEMA public"


@dataclass(frozen=True, slots=True)
class Installed:
    """What there is of ours."""

    vectorizers: Sequence[str]
    triggers: Sequence[str]
    """Tables that have ours, each once."""
    foreign: Sequence[Foreign]
    """What others have made in our schema."""
    destinations: Sequence[str]
    """What stays: tables, and columns of sources."""
    dependents: Sequence[str]
    """What others have made of ours, as PostgreSQL describes it."""
    workers: Sequence[str]
    """Hosts and processes that were heard of lately."""
    texts: bool
    """There are collections of the gateway."""


def survey(connection: Connection) -> Installed:
    """Returns what `remove` would take away and leave."""
    vectorizers = connection.execute(statement("uninstall", "vectorizers")).fetchall()
    triggers = connection.execute(statement("uninstall", "triggers")).fetchall()
    texts = connection.execute(statement("uninstall", "texts")).fetchone()
    return Installed(
        vectorizers=[name for name, *_ in vectorizers],
        triggers=list(dict.fromkeys(f"{schema}.{table}" for schema, table, *_ in triggers)),
        destinations=[
            f"the columns {embedding} and {hash_} of {table}" if in_source else table
            for _, in_source, table, embedding, hash_, stays in vectorizers
            if stays
        ],
        foreign=_foreign(connection),
        dependents=_dependents(connection),
        workers=workers(connection),
        texts=bool(texts and texts[0]),
    )


def refuse_strangers(connection: Connection) -> None:
    """Raises ``PgvecError`` for who could not drop the schema: by then workers and triggers would be gone."""
    row = connection.execute(statement("uninstall", "owner")).fetchone()
    if row is not None and not row[1]:
        raise PgvecError(
            f"you may not drop the schema pgvec: it belongs to {row[0]}, and only its members may (docs/roles.md)"
        )


def refuse(foreign: Sequence[Foreign]) -> None:
    """Raises ``PgvecError`` where something in the schema is not ours; with no flag does it go."""
    for one in foreign:
        if one.kind == "extension":
            raise PgvecError(
                f"the extension {one.identity} lies in the schema pgvec and would go with it, and with it every column "
                f"of its types; move it first: {one.move}"
            )
    if foreign:
        raise PgvecError(
            f"these lie in the schema pgvec, are not pgvec's own, and would go with it: "
            f"{'; '.join(one.label for one in foreign)}; move each to another schema, such as: {foreign[0].move}"
        )


def _foreign(connection: Connection) -> list[Foreign]:
    ours = schema.names()
    return [
        Foreign(kind, identity)
        for kind, identity, name in connection.execute(statement("uninstall", "contents"))
        if (kind, name) not in ours and not (kind == "function" and sync.is_ours(name))
    ]


def workers(connection: Connection) -> list[str]:
    """Returns the workers that were heard of within their lease."""
    return [worker for (worker,) in connection.execute(statement("uninstall", "workers"))]


def send_away(connection: Connection, seconds: float, waiting: Callable[[Sequence[str]], None]) -> list[str]:
    """Tells all workers to leave and waits for them, that long at most; returns those that are still there."""
    deadline = time.monotonic() + seconds
    queue.stop_workers(connection, None)
    while (left := workers(connection)) and time.monotonic() < deadline:
        waiting(left)
        time.sleep(_LOOK_SECONDS)
    return left


def remove(connection: Connection, *, cascade: bool = False) -> None:
    """Takes the triggers off, table by table, then drops the schema; ``cascade`` drops what others made of it too.

    Raises ``PgvecError`` where something of others lies in it or depends on it, or a table stays locked; running it
    again goes on.
    """
    refuse_strangers(connection)
    refuse(_foreign(connection))
    sync.remove_all(connection)
    try:
        for attempt in patiently(_LOCK_TRIES, 0.1, 0.5):
            with attempt:
                _drop(connection, cascade=cascade)
    except NOT_HAD as error:
        raise PgvecError(
            "the schema pgvec is in use by an open transaction (a worker, a gateway, a dashboard, a dump); end it, "
            "then run the same command again"
        ) from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise PgvecError(f"you may not drop the schema pgvec: {one_line(error)}; its owner may") from error


def _drop(connection: Connection, *, cascade: bool) -> None:
    """Takes its locks one by one, so that whoever still uses the schema may hold what it wants, and the reverse."""
    with transaction(connection, statement_timeout=600, lock_timeout=_LOCK_SECONDS):
        refuse(_foreign(connection))
        if not cascade:
            refuse_dependents(_dependents(connection))
        connection.execute(statement("uninstall", "drop_sync_schema"))
        connection.execute(statement("uninstall", "drop_schema"))


def refuse_dependents(dependents: Sequence[str]) -> None:
    """Raises ``PgvecError`` where others use the schema."""
    if dependents:
        raise PgvecError(
            f"these use the schema pgvec and would go with it: {'; '.join(dependents)}; drop them, or give --cascade"
        )


def _dependents(connection: Connection) -> list[str]:
    return [described for (described,) in connection.execute(statement("uninstall", "dependents"))]
