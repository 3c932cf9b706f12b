"""Ends a migration to another model: drops the vectorizer that is not wanted any more, with the vectors that are ours.

One short transaction, in the order of a worker's locks, tried again where a lock could not be had: whoever still
searches there finds neither vectorizer nor vectors, and looks for the name again.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import psycopg
from psycopg import sql

from pgvec_queue import sync, vectorizer
from pgvec_queue.catalog import Relation, find_relation, quoted_name
from pgvec_queue.database import Connection, one_line, statement, transaction
from pgvec_queue.errors import DefinitionError, PgvecError
from pgvec_queue.locks import NOT_HAD, patiently
from pgvec_queue.model_migration import Migration, MigrationStateError
from pgvec_queue.vectorizer import Vectorizer

_LOCK_TRIES = 20
_LOCK_SECONDS = 0.8
"""Less than the server's deadlock_timeout, so that nobody else becomes the victim."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What has become of a vectorizer that was given up, and of its destination."""

    name: str
    destination: str
    statement: str | None
    """What removes the destination, where it is still there, and is the one that the vectorizer had."""
    why: str | None
    """Why something is still there."""


def finish(connection: Connection, migration: Migration, *, keep_destination: bool = False) -> Removed:
    """Drops the old vectorizer and, where we have made it and nothing depends on it, its destination.

    Raises ``MigrationStateError`` before the switch, ``PgvecError`` when a table stays locked.
    """
    return _remove(connection, migration, migration.old, keep_destination=keep_destination)


def abandon(connection: Connection, migration: Migration, *, keep_destination: bool = False) -> Removed:
    """Drops the new vectorizer, before the switch, as ``finish`` drops the old one after it."""
    return _remove(connection, migration, migration.new, keep_destination=keep_destination)


def _remove(connection: Connection, migration: Migration, dropped: Vectorizer, *, keep_destination: bool) -> Removed:
    stays = migration.new if dropped.id == migration.old.id else migration.old
    table = _table(connection, dropped)
    removal = _removal(dropped, table)
    why: str | None = None
    if keep_destination:
        why = "as asked for"
    elif not dropped.destination_created:
        why = "it was there before"
    try:
        for attempt in patiently(_LOCK_TRIES, 0.1, 0.5):
            with attempt:
                name, refused = _remove_once(connection, migration, dropped, stays, None if why else removal)
    except NOT_HAD as error:
        raise PgvecError(
            f"{dropped.name} cannot be dropped: {dropped.source} or {dropped.destination} stays locked; nothing was "
            "changed, try again when the transactions that use them have ended"
        ) from error
    why = why or refused
    ours = table is None or _stranger(table, dropped) is None
    shown = removal.as_string(connection) if why and ours else None
    return Removed(name, dropped.destination_label, shown, why)


def _remove_once(
    connection: Connection, migration: Migration, dropped: Vectorizer, stays: Vectorizer, removal: sql.Composed | None
) -> tuple[str, str | None]:
    """Does it all in one short transaction; returns the name that was dropped and why the destination is still there.

    The vectorizer and its destination go together: whoever still searches there finds neither, and looks for the name
    again.
    """
    refused = None
    with transaction(connection, statement_timeout=600, lock_timeout=_LOCK_SECONDS):
        row = connection.execute(
            statement("model_migration", "lock"),
            {"old": migration.old.id, "new": migration.new.id, "dropped": dropped.id},
        ).fetchone()
        if row is None:
            raise MigrationStateError("the migration has been ended by somebody else; see `pgvec status`")
        _, _, switched, name = row
        if switched != (dropped.id == migration.old.id):
            raise MigrationStateError(
                f"{name} is what is searched now, and cannot be dropped like this"
                if switched
                else f"nothing was switched, and {name} is what is searched; switch first, or give up with --abandon"
            )
        connection.execute(statement("model_migration", "lock_jobs"), {"id": dropped.id})
        if removal is not None and not dropped.into_column:
            _lock_destination(connection, dropped)
        connection.execute(statement("vectorizer", "drop"), {"name": name})
        if removal is not None:
            refused = _drop_and_renew(connection, dropped, removal)
        connection.execute(
            statement("model_migration", "finished"),
            {
                "kind": "migration finished" if switched else "migration given up",
                "id": stays.id,
                "message": f"{name}, {dropped.model}, is dropped",
            },
        )
    return name, refused


def _lock_destination(connection: Connection, dropped: Vectorizer) -> None:
    """Waits for whoever reads the old vectors before the triggers are dropped: with the source locked for that, all who
    read or write the source would wait as well.
    """
    destination = sql.Identifier(dropped.destination_schema, dropped.destination_table)
    try:
        with connection.transaction():
            connection.execute(statement("model_migration", "lock_table").format(destination=destination))
    except (
        psycopg.errors.UndefinedTable,
        psycopg.errors.InvalidSchemaName,
        psycopg.errors.WrongObjectType,
        psycopg.errors.InsufficientPrivilege,
    ):
        # Then it is not dropped either, and said why.
        return


def _drop_and_renew(connection: Connection, dropped: Vectorizer, removal: sql.Composed) -> str | None:
    """Drops it; where it is columns, the functions of all triggers there are made anew with it: they may compare whole
    rows, and name the columns that are gone. Returns the reason where it cannot be.
    """
    table = quoted_name(dropped.destination_schema, dropped.destination_table)
    try:
        with connection.transaction():
            refused = _drop_destination(connection, dropped, removal)
            if dropped.into_column and refused is None:
                following = connection.execute(statement("model_migration", "synced_over"), {"table": table}).fetchall()
                for one in vectorizer.by_ids(connection, [id_ for (id_,) in following]):
                    sync.renew(connection, one)
    except DefinitionError as error:
        return str(error)
    except psycopg.errors.InsufficientPrivilege as error:
        return one_line(error)
    return refused


def _drop_destination(connection: Connection, dropped: Vectorizer, removal: sql.Composed) -> str | None:
    """Drops it, unless something depends on it or it is somebody else's; returns the reason then."""
    table = _table(connection, dropped)
    if table is None:
        return None
    stranger = _stranger(table, dropped)
    if stranger is not None:
        return stranger
    try:
        with connection.transaction():
            connection.execute(removal)
    except psycopg.errors.DependentObjectsStillExist as error:
        users = [line.strip() for line in (error.diag.message_detail or "").splitlines() if line.strip()]
        return users[0] if users else "something depends on it"
    except psycopg.errors.InsufficientPrivilege as error:
        return one_line(error)
    return None


def _removal(dropped: Vectorizer, table: Relation | None) -> sql.Composed:
    destination = sql.Identifier(dropped.destination_schema, dropped.destination_table)
    if not dropped.into_column:
        return statement("model_migration", "drop_table").format(destination=destination)
    return statement("model_migration", "drop_columns").format(
        destination=destination,
        columns=sql.SQL(", ").join(
            statement("model_migration", "drop_column").format(column=sql.Identifier(name))
            for name in _columns(dropped, table)
        ),
    )


def _columns(dropped: Vectorizer, table: Relation | None) -> list[str]:
    """Returns the columns of the source that we have added.

    Both are added by one transaction that has the table to itself, the vectors first: a column for the hash that stands
    anywhere but behind them was there before, or is somebody else's.
    """
    embedding, hash_ = dropped.destination_roles.embedding, dropped.destination_roles.source_hash
    names = list(table.columns) if table is not None else []
    if hash_ is None or (embedding, hash_) not in itertools.pairwise(names):
        return [embedding]
    return [embedding, hash_]


def _table(connection: Connection, dropped: Vectorizer) -> Relation | None:
    """Returns what has the destination's name now."""
    schema, name = dropped.destination_schema, dropped.destination_table
    found = find_relation(connection, quoted_name(schema, name))
    return found if found is not None and (found.schema, found.name) == (schema, name) else None


def _stranger(table: Relation, dropped: Vectorizer) -> str | None:
    """Returns why it cannot be what we have made, where somebody has put another in its place; None: it can."""
    roles = dropped.destination_roles
    if table.kind not in ("r", "p"):
        return "it is no table any more"
    others = (
        [] if dropped.into_column else [*roles.key, roles.chunk_id, roles.chunk_index, roles.chunk, roles.source_hash]
    )
    missing = [name for name in others if name is not None and name not in table.columns]
    embedding = table.columns.get(roles.embedding)
    if embedding is None and dropped.into_column:
        return None
    if embedding is None or missing:
        return f"it is not the one that was made: it has no column {(missing or [roles.embedding])[0]}"
    if (embedding.typname, embedding.typmod) != (dropped.store, dropped.dimensions):
        return (
            f"it is not the one that was made: {roles.embedding} is {embedding.type}, not "
            f"{dropped.store}({dropped.dimensions})"
        )
    return None
