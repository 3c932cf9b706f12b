"""Whether an existing table, or column, can take the vectors, and which of its columns plays which role.

Nothing is changed. What does not fit is a ``DefinitionError`` that says what to do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import psycopg

from pgvec_queue.catalog import Column, Relation, unique_keys
from pgvec_queue.database import Connection, one_line, statement, transaction
from pgvec_queue.errors import DefinitionError
from pgvec_queue.fragments import literal_sql
from pgvec_queue.vectorizer import ROLES, Roles

INDEXABLE = {"vector": 2_000, "halfvec": 4_000}
"""Most dimensions that pgvector's HNSW index takes, by type."""

MOST_DIMENSIONS = 16_000
"""That a column of either type takes."""


def check_schema(schema: str | None) -> None:
    """Raises ``DefinitionError`` for our own schema, which goes as a whole one day."""
    if schema == "pgvec":
        raise DefinitionError("the schema pgvec is pgvec's own; name a table in another schema with --into")


def check_length(name: str, what: str, flag: str) -> None:
    """Raises ``DefinitionError`` for a name that PostgreSQL would cut."""
    if len(name.encode()) > 63:
        raise DefinitionError(f"{what} {name!r} is longer than 63 bytes; give a shorter one with {flag}")


def mapped(column_map: Mapping[str, Sequence[str]], role: str, default: str | None) -> str | None:
    """Returns the one column that a role was given, or ``default``."""
    names = column_map.get(role)
    if names is None:
        return default
    if len(names) != 1:
        raise DefinitionError(f"--column {role}=… was given {len(names)} times; only key may have several columns")
    return names[0]


def check_key_count(roles: Roles, key: Sequence[Column]) -> None:
    """Raises ``DefinitionError`` unless there is a column for each of the key."""
    if len(roles.key) != len(key):
        raise DefinitionError(
            f"the key has {len(key)} columns ({', '.join(c.attname for c in key)}), "
            f"but {len(roles.key)} are mapped; give --column key=NAME once per key column, in its order"
        )


def existing_roles(table: Relation, key: Sequence[Column], column_map: Mapping[str, Sequence[str]]) -> Roles:
    """Returns which columns of an existing table play which roles: as said, else by their names."""
    keys = column_map.get("key", [c.attname for c in key])
    said: dict[str, str] = {}
    for role in ROLES[1:]:
        name = mapped(column_map, role, None)
        if name is not None:
            said[role] = table.column(name, f"--column {role}").attname
    taken = {*said.values(), *keys}
    found = {role: said.get(role) or (role if role in {*table.columns} - taken else None) for role in ROLES[1:]}
    missing = [name for name in keys if name not in table.columns]
    if "key" not in column_map and missing:
        raise DefinitionError(
            f"the destination {table.label} exists and has no column {missing[0]!r} for the key; "
            f"say which it is with --column key=NAME (it has: {', '.join(table.columns)})"
        )
    embedding = found.pop("embedding")
    if embedding is None:
        raise DefinitionError(
            f"the destination {table.label} exists and has no column 'embedding'; "
            f"say which it is with --column embedding=NAME (it has: {', '.join(table.columns)})"
        )
    roles = Roles(key=tuple(table.column(name, "--column key").attname for name in keys), embedding=embedding, **found)
    names = _names(roles)
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DefinitionError(f"{table.label}.{twice[0]} was given two roles; give each --column a column of its own")
    return roles


def _names(roles: Roles) -> list[str]:
    return [*roles.key, *(name for role in ROLES[1:] if (name := getattr(roles, role)) is not None)]


def check_vector_column(table: Relation, column: Column, store: str, dimensions: int) -> None:
    """Raises ``DefinitionError`` unless the column is of type ``store`` and takes ``dimensions``."""
    if column.typname != store:
        hint = f"; give --store {column.typname}" if column.typname in INDEXABLE else ""
        raise DefinitionError(f"{table.label}.{column.attname} is {column.type}, not {store}{hint}")
    if column.typmod not in (-1, dimensions):
        raise DefinitionError(
            f"{table.label}.{column.attname} takes {column.typmod} dimensions, the model gives {dimensions}; "
            "choose another model or another destination"
        )


def check_required(table: Relation, roles: Roles) -> None:
    """Raises ``DefinitionError`` for a column that we would leave NULL and that must not be."""
    ours = _names(roles)
    for column in table.columns.values():
        if column.not_null and not column.has_default and column.attname not in ours:
            raise DefinitionError(
                f"{table.label}.{column.attname} must not be NULL and has no default, but plays no role; "
                f"map it with --column ROLE={column.attname} (roles: {', '.join(ROLES)}) or give it a default"
            )
    if roles.created_at is not None and not table.columns[roles.created_at].has_default:
        raise DefinitionError(f"{table.label}.{roles.created_at} has no default; set it to now()")


def check_cast(connection: Connection, mine: Column, table: Relation, theirs: Column) -> None:
    """Raises ``DefinitionError`` unless keys of the source can be told apart as the table keeps them."""
    if mine.collation and theirs.collation and mine.collation != theirs.collation:
        raise DefinitionError(
            f"the key {mine.attname} and {table.label}.{theirs.attname} have different collations, so that no index "
            "could serve to compare them; give both the same"
        )
    if mine.base_type == theirs.base_type:
        return
    try:
        with transaction(connection):
            connection.execute(
                statement("catalog", "check_cast").format(
                    from_type=literal_sql(mine.base_type), to_type=literal_sql(theirs.base_type)
                ),
                {},
            )
            rounds = connection.execute(
                statement("catalog", "cast_rounds"), {"from_type": mine.base_type, "to_type": theirs.base_type}
            ).fetchone()
    except psycopg.Error as error:
        raise DefinitionError(
            f"the key {mine.attname} ({mine.type}) cannot become {table.label}.{theirs.attname} "
            f"({theirs.type}): {one_line(error)}"
        ) from error
    if rounds and rounds[0]:
        raise DefinitionError(
            f"the key {mine.attname} ({mine.type}) is rounded as {table.label}.{theirs.attname} ({theirs.type}), "
            f"and two keys could become one; give it the type {mine.base_type}, or text"
        )


def check_hash(connection: Connection, key: Sequence[Column]) -> None:
    """Raises ``DefinitionError`` for a key that a table cannot be partitioned by the hash of."""
    for column in key:
        try:
            with transaction(connection, read_only=True):
                connection.execute(
                    statement("destination", "check_hash").format(type=literal_sql(column.base_type)), {}
                )
        except psycopg.errors.UndefinedFunction as error:
            raise DefinitionError(
                f"the key {column.attname} ({column.type}) has no hash to partition by ({one_line(error)}); "
                "leave --partitions out, or make a partitioned table yourself and name it with --into"
            ) from error


def check_unique(connection: Connection, table: Relation, roles: Roles, chunked: bool) -> None:
    """Raises ``DefinitionError`` where the table has no room for several chunks of a document."""
    for _, columns in unique_keys(connection, table):
        if chunked and set(columns) <= set(roles.key):
            raise DefinitionError(
                f"{table.label} allows one row per {', '.join(columns)}, but a document may have several chunks; "
                "use --no-chunking or another destination"
            )
