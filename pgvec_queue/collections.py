"""Collections: tables of texts that the gateway keeps for its clients, each with a vectorizer that follows its changes.

A collection is an ordinary table in the schema ``pgvec_collections`` (id, text, metadata, created_at, updated_at), with
its vectors beside it in ``<name>_vectors``. Whoever writes the table, over HTTP or in SQL, has the jobs queued in the
same transaction by the vectorizer's triggers. It is made in one transaction: after a crash there is all of it, or
nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row, dict_row

from pgvec_queue import definition, embedders, vectorizer
from pgvec_queue.async_database import AsyncConnection
from pgvec_queue.catalog import quoted_name
from pgvec_queue.database import Connection, statement, transaction, versions
from pgvec_queue.definition import Options
from pgvec_queue.errors import DefinitionError
from pgvec_queue.locks import patiently

SCHEMA = "pgvec_collections"
DEFAULT = "default"
"""The name of the first collection for texts without one; those of further models have the model in their name."""
NAME = "[a-z_][a-z0-9_]{0,54}"
"""What a collection may be called: an SQL name that needs no quotes, with room for ``_vectors``."""
_DROP_TRIES = 5


class CollectionExistsError(DefinitionError):
    """There is one of that name, or something else that has its name."""


class UnknownCollectionError(DefinitionError):
    """There is none of that name."""


@dataclass(frozen=True, slots=True)
class Collection:
    """One collection, as far as its texts are concerned."""

    name: str
    default_of: str | None
    """The model whose texts without a collection go here."""
    vectorizer_id: int
    vectorizer: str
    model: str
    dimensions: int
    store: str
    chunk_size: int | None
    chunk_overlap: int | None
    source_schema: str
    source_table: str
    destination_schema: str
    destination_table: str
    created_at: datetime

    def compose(self, name: str, **parts: sql.Composable) -> sql.Composed:
        """The statement ``sql/gateway.sql`` has under ``name``, over the collection's two tables."""
        return statement("gateway", name).format(
            source=sql.Identifier(self.source_schema, self.source_table),
            destination=sql.Identifier(self.destination_schema, self.destination_table),
            **parts,
        )


@dataclass(frozen=True, slots=True)
class NewCollection:
    """What a collection is to be; None: the default of `pgvec enqueue`."""

    name: str | None
    """None: the default collection of the model."""
    model: str
    chunk_size: int | None = None
    chunk_overlap: int | None = None
    no_chunking: bool = False
    store: str | None = None
    endpoint: str | None = None
    tokenizer: str | None = None
    dimensions: int | None = None


def check_name(name: str) -> None:
    """Raises ``DefinitionError`` for what no collection may be called."""
    if not re.fullmatch(NAME, name) or name.endswith("_vectors"):
        raise DefinitionError(
            f"a collection cannot be called {name!r}: take small letters, digits and underscores, a letter first, "
            "55 at most, not ending in _vectors"
        )


def create(connection: Connection, wanted: NewCollection) -> str:
    """Makes a collection with its vectorizer and returns its name; the default one of a model is made once.

    Raises ``CollectionExistsError``, ``DefinitionError`` for what cannot be, and ``EmbedderError`` for a model that
    cannot be had.
    """
    if wanted.name is not None:
        check_name(wanted.name)
    # Whatever has to be fetched or asked for is here now, before anything is locked.
    embedders.describe(_options(wanted, "", "").spec)
    with transaction(connection, statement_timeout=60):
        connection.execute(statement("gateway", "creating"))
        connection.execute(statement("gateway", "forget_collections"))
        if wanted.name is None:
            found = _by_default(connection, wanted.model)
            if found is not None:
                return found
        name = wanted.name or _default_name(connection, wanted.model)
        if _exists(connection, name):
            raise CollectionExistsError(f"there is a collection {name!r} already")
        _make_source(connection, name)
        options = _options(wanted, name, _vectorizer_name(connection, name))
        made = definition.define(connection, options, versions(connection)).vectorizer
        connection.execute(statement("gateway", "planned"), {"id": made.id})
        connection.execute(
            statement("gateway", "insert_collection"),
            {"name": name, "vectorizer": made.id, "default_of": wanted.model if wanted.name is None else None},
        )
    return name


def drop(connection: Connection, name: str) -> None:
    """Removes a collection: its vectorizer, its jobs, its tasks, its texts and their vectors.

    Raises ``UnknownCollectionError``, and ``psycopg.errors.LockNotAvailable`` where somebody keeps its tables locked.
    """
    # A worker that writes just now holds one of the locks and waits for another.
    for attempt in patiently(_DROP_TRIES, 0.05, 0.3):
        with attempt, transaction(connection, statement_timeout=600, lock_timeout=2):
            row = connection.execute(statement("gateway", "lock_collection"), {"name": name}).fetchone()
            if row is None:
                raise unknown(name)
            vectorizer_id, vectorizer_name, *tables = row
            _drop_partner(connection, vectorizer_id)
            connection.execute(statement("vectorizer", "drop"), {"name": vectorizer_name})
            connection.execute(statement("gateway", "forget_collections"))
            connection.execute(statement("gateway", "delete_tasks_of"), {"vectorizer": vectorizer_id})
            connection.execute(
                statement("gateway", "drop_tables").format(
                    source=sql.Identifier(*tables[:2]), destination=sql.Identifier(*tables[2:])
                )
            )


def _drop_partner(connection: Connection, vectorizer_id: int) -> None:
    """Drops what is beside it while it is on its way to another model, with the vectors that were made for that."""
    partner = connection.execute(statement("model_migration", "partner"), {"id": vectorizer_id}).fetchone()
    if partner is None:
        return
    name, schema, table, made = partner
    connection.execute(statement("vectorizer", "drop"), {"name": name})
    if made:
        connection.execute(statement("gateway", "drop_table").format(destination=sql.Identifier(schema, table)))


async def find(
    connection: AsyncConnection,
    *,
    name: str | None = None,
    default_of: str | None = None,
    vectorizers: list[int] | None = None,
) -> list[Collection]:
    """Returns the collections of that name, of that default model, or of those vectorizers; in a transaction."""
    async with connection.cursor(row_factory=class_row(Collection)) as cursor:
        await cursor.execute(
            statement("gateway", "collection"),
            {"name": name, "default_of": default_of, "vectorizers": vectorizers or []},
        )
        return await cursor.fetchall()


async def overview(connection: AsyncConnection, name: str | None = None) -> list[dict[str, Any]]:
    """Returns all collections, or one, with counts and state as ``pgvec.progress`` has them; in a transaction."""
    async with connection.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(statement("gateway", "collections"), {"name": name})
        return await cursor.fetchall()


def unknown(name: str) -> UnknownCollectionError:
    return UnknownCollectionError(f"there is no collection {name!r}")


def _options(wanted: NewCollection, name: str, vectorizer_name: str) -> Options:
    options = Options(
        source=quoted_name(SCHEMA, name),
        name=vectorizer_name,
        text=("text",),
        key=("id",),
        model=wanted.model,
        endpoint=wanted.endpoint,
        tokenizer=wanted.tokenizer,
        dimensions=wanted.dimensions,
        store=wanted.store,
        no_chunking=wanted.no_chunking,
        sync=True,
        index_new=True,
    )
    return (
        options
        if wanted.no_chunking
        else replace(options, chunk_size=wanted.chunk_size, chunk_overlap=wanted.chunk_overlap)
    )


def _make_source(connection: Connection, name: str) -> None:
    there = connection.execute(statement("catalog", "schema_exists"), {"name": SCHEMA}).fetchone()
    if not (there and there[0]):
        connection.execute(statement("gateway", "create_schema"))
    source = sql.Identifier(SCHEMA, name)
    in_the_way = [found for (found,) in connection.execute(statement("gateway", "in_the_way"), {"name": name})]
    if in_the_way:
        raise _taken(name, in_the_way)
    try:
        connection.execute(statement("gateway", "create_source").format(source=source))
        connection.execute(statement("gateway", "index_metadata").format(source=source))
    except (psycopg.errors.DuplicateTable, psycopg.errors.DuplicateObject):
        raise _taken(name, [name]) from None
    except psycopg.errors.InsufficientPrivilege:
        raise DefinitionError(
            f"the gateway's role may make no tables in the schema {SCHEMA}; grant it CREATE"
        ) from None


def _taken(name: str, in_the_way: list[str]) -> CollectionExistsError:
    # What is longer than a name may be would be cut off by the server.
    kept = f"{name[:50]}_kept"
    renames = "; ".join(
        f'ALTER TABLE {SCHEMA}."{one}" RENAME TO "{kept}{one.removeprefix(name)}"' for one in in_the_way
    )
    return CollectionExistsError(
        f"{' and '.join(in_the_way)} in the schema {SCHEMA} would be in the way of a collection {name!r}, and "
        "belong to no collection (drop and uninstall leave tables); take another name, or rename what is there: "
        f"{renames}"
    )


def _exists(connection: Connection, name: str) -> bool:
    found = connection.execute(
        statement("gateway", "collection"), {"name": name, "default_of": None, "vectorizers": []}
    ).fetchone()
    return found is not None


def _by_default(connection: Connection, model: str) -> str | None:
    row = connection.execute(
        statement("gateway", "collection"), {"name": None, "default_of": model, "vectorizers": []}
    ).fetchone()
    return row[0] if row else None


def _default_name(connection: Connection, model: str) -> str:
    """``default`` where it is free, else with the model's name after it."""
    short = re.sub("[^a-z0-9]+", "_", model.rpartition("/")[2].lower()).strip("_")[:40] or "model"
    candidates = [DEFAULT, f"{DEFAULT}_{short}", *(f"{DEFAULT}_{short}_{number}" for number in range(2, 100))]
    return next(name for name in candidates if not _exists(connection, name) and not name.endswith("_vectors"))


def _vectorizer_name(connection: Connection, name: str) -> str:
    taken = set(vectorizer.names(connection))
    return next(one for one in (name, *(f"{name}_{number}" for number in range(2, 10_000))) if one not in taken)
