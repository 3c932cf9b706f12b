"""Where vectors go: makes a destination, or checks that an existing one fits, and says which column plays which role.

Two kinds: a table with one row per chunk, and a vector column of the source itself. Nothing existing is ever changed
beyond what a message announces: a missing index on the key, or a missing column of the source.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from psycopg import sql

from pgvec_queue.catalog import (
    Column,
    Relation,
    find_relation,
    folded,
    has_leading_index,
    quoted_name,
    split_name,
)
from pgvec_queue.database import Connection, statement
from pgvec_queue.destination_checks import (
    check_cast,
    check_hash,
    check_key_count,
    check_length,
    check_required,
    check_schema,
    check_unique,
    check_vector_column,
    existing_roles,
    mapped,
)
from pgvec_queue.errors import DefinitionError
from pgvec_queue.fragments import identifier, literal_sql
from pgvec_queue.vectorizer import Roles, Vectorizer

TOAST_TARGET = 8_160
"""``toast_tuple_target`` of a table whose vectors are kept in its rows, as ``set_toast_target`` sets it."""
_PAGE_ROOM = 8_160
_CHUNK_BYTES = 640


@dataclass(frozen=True, slots=True)
class Destination:
    """A destination that fits, and what still has to be done for it."""

    kind: str
    schema: str
    table: str
    roles: Roles
    key_types: tuple[str, ...]
    ordered: bool
    created: bool
    """It does not exist yet: ``statements`` make it."""
    statements: tuple[sql.Composed, ...] = ()
    remarks: tuple[str, ...] = ()
    """What the user should know, a line each."""
    partitioned: bool = False
    """It is made with partitions."""


def resolve_table(
    connection: Connection,
    source: Relation,
    key: Sequence[Column],
    *,
    into: str | None,
    column_map: Mapping[str, Sequence[str]],
    store: str,
    dimensions: int,
    vector_schema: str,
    chunked: bool,
    adopt: bool = False,
    partitions: int | None = None,
) -> Destination:
    """Finds or designs the table of chunks; with ``adopt`` it is to be there, and gets a column for the hash.

    Raises ``DefinitionError`` when an existing one does not fit.
    """
    name = into if into is not None else quoted_name(source.schema, f"{source.name}_vectors")
    existing = _find_table(connection, source, name)
    check_schema(existing.schema if existing is not None else split_name(name)[0])
    if existing is not None:
        if existing.oid == source.oid:
            raise DefinitionError(f"{existing.label} is the source itself; name another table with --into")
        if partitions is not None:
            raise DefinitionError(
                f"{existing.label} exists, and stays as it is; leave --partitions out, or name a new table with --into"
            )
        return _check_table(connection, existing, key, column_map, store, dimensions, chunked, adopt)
    if adopt:
        raise _nothing_there(named_table(connection, source, name), "--into TABLE")
    schema = split_name(name)[0]
    if schema is not None and not _schema_exists(connection, schema):
        raise DefinitionError(
            f"there is no schema {schema!r} for the destination; make it, or name another with --into"
        )
    count = partitions or 1
    if count > 1:
        check_hash(connection, key)
    return _design_table(source, key, name, column_map, store, dimensions, vector_schema, count)


def find(connection: Connection, vectorizer: Vectorizer) -> Relation | None:
    """Returns the table that holds or gets the vectors, where it is there with all of its columns."""
    found = find_relation(connection, quoted_name(vectorizer.destination_schema, vectorizer.destination_table))
    roles = vectorizer.destination_roles
    names = [roles.embedding, *([roles.source_hash] if roles.source_hash else [])]
    return found if found is not None and all(name in found.columns for name in names) else None


def named_table(connection: Connection, source: Relation, into: str) -> str:
    """Returns schema and name of the table that ``--into`` means for this source, whether it exists or not."""
    existing = _find_table(connection, source, into)
    schema, table = split_name(into)
    return existing.label if existing is not None else f"{schema or source.schema}.{table}"


def _find_table(connection: Connection, source: Relation, name: str) -> Relation | None:
    """Looks beside the source first, then along the search path."""
    return find_relation(connection, name, schema=source.schema) or find_relation(connection, name)


def _schema_exists(connection: Connection, schema: str) -> bool:
    row = connection.execute(statement("catalog", "schema_exists"), {"name": schema}).fetchone()
    return bool(row and row[0])


def _design_table(
    source: Relation,
    key: Sequence[Column],
    name: str,
    column_map: Mapping[str, Sequence[str]],
    store: str,
    dimensions: int,
    vector_schema: str,
    partitions: int,
) -> Destination:
    schema, table = split_name(name)
    check_length(table, "the destination's name", "--into")
    parts = partition_names(table, partitions) if partitions > 1 else []
    if parts:
        check_length(parts[-1], "a partition's name", "--into")
    roles = Roles(
        key=tuple(column_map.get("key", [c.attname for c in key])),
        chunk_id=mapped(column_map, "chunk_id", None),
        chunk_index=mapped(column_map, "chunk_index", "chunk_index"),
        chunk=mapped(column_map, "chunk", "chunk"),
        embedding=mapped(column_map, "embedding", "embedding") or "embedding",
        source_hash=mapped(column_map, "source_hash", "source_hash"),
        created_at=mapped(column_map, "created_at", "created_at"),
    )
    check_key_count(roles, key)
    vector = sql.SQL("{}({})").format(identifier(vector_schema, store), sql.Literal(dimensions))
    columns: list[tuple[str, sql.Composable]] = [
        (name_, _key_definition(c)) for name_, c in zip(roles.key, key, strict=True)
    ]
    for role, definition in (
        ("chunk_id", sql.SQL("text NOT NULL" if parts else "text NOT NULL UNIQUE")),
        ("chunk_index", sql.SQL("int NOT NULL")),
        ("chunk", sql.SQL("text NOT NULL")),
        ("embedding", sql.SQL("{} NOT NULL").format(vector)),
        ("source_hash", sql.SQL("bytea NOT NULL")),
        ("created_at", sql.SQL("timestamptz NOT NULL DEFAULT now()")),
    ):
        column = getattr(roles, role)
        if column is not None:
            columns.append((column, definition))
    names = [name_ for name_, _ in columns]
    for name_ in names:
        check_length(name_, "the column's name", "--column ROLE=NAME")
    twice = {name_ for name_ in names if names.count(name_) > 1}
    if twice:
        raise DefinitionError(
            f"the destination would have two columns {', '.join(sorted(twice))}; "
            "give the chunk's another name, such as --column chunk=chunk_text"
        )
    destination = identifier(schema or source.schema, table)
    create = statement("destination", "create_partitioned" if parts else "create_table").format(
        destination=destination,
        columns=sql.SQL(", ").join(
            sql.SQL("{} {}").format(identifier(name_), definition) for name_, definition in columns
        ),
        unique=sql.SQL(", ").join(identifier(name_) for name_ in (*roles.key, roles.chunk_index or "chunk_index")),
        key=sql.SQL(", ").join(map(identifier, roles.key)),
    )
    statements = [create]
    if parts and roles.chunk_id is not None:
        statements.append(
            statement("destination", "create_chunk_id_index").format(
                destination=destination, chunk_id=identifier(roles.chunk_id)
            )
        )
    stored = [identifier(schema or source.schema, part) for part in parts]
    for number, part in enumerate(stored):
        statements.append(
            statement("destination", "create_partition").format(
                partition=part,
                destination=destination,
                count=sql.Literal(partitions),
                number=sql.Literal(number),
            )
        )
    if keeps_vectors_in_rows(store, dimensions):
        statements.extend(
            statement("destination", "set_toast_target").format(destination=one) for one in stored or [destination]
        )
    return Destination(
        "table",
        schema or source.schema,
        table,
        roles,
        tuple(c.base_type for c in key),
        ordered=True,
        created=True,
        statements=tuple(statements),
        partitioned=bool(parts),
    )


def partition_names(table: str, count: int) -> list[str]:
    """Returns what the partitions of a table that is made are called, in the order of their remainders."""
    digits = max(len(str(count - 1)), 2)
    return [f"{table}_p{number:0{digits}}" for number in range(count)]


def keeps_vectors_in_rows(store: str, dimensions: int) -> bool:
    """True where a table that is made gets ``TOAST_TARGET``: three rows with their vectors fit a page."""
    width = {"vector": 4, "halfvec": 2}[store] * dimensions + _CHUNK_BYTES
    return 3 * width <= _PAGE_ROOM


def _key_definition(column: Column) -> sql.Composable:
    # The same collation, so that a range of keys is the same range in both tables.
    collate = f" COLLATE {column.collation_name}" if column.collation_name else ""
    return literal_sql(f"{column.type}{collate} NOT NULL")


def _check_table(
    connection: Connection,
    table: Relation,
    key: Sequence[Column],
    column_map: Mapping[str, Sequence[str]],
    store: str,
    dimensions: int,
    chunked: bool,
    adopt: bool,
) -> Destination:
    if table.kind not in ("r", "p"):
        raise DefinitionError(f"the destination {table.label} is no table; name a table with --into")
    statements = []
    remarks = []
    hash_column = mapped(column_map, "source_hash", None) or "source_hash"
    if adopt and not {hash_column, folded(hash_column)} & set(table.columns):
        check_length(hash_column, "the column's name", "--column source_hash=NAME")
        statements.append(
            statement("destination", "add_column").format(
                destination=identifier(table.schema, table.name),
                column=identifier(hash_column),
                type=sql.SQL("bytea"),
            )
        )
        remarks.append(f"adds the column {hash_column} to {table.label}")
        column_map = {role: names for role, names in column_map.items() if role != "source_hash"}
    roles = existing_roles(table, key, column_map)
    check_key_count(roles, key)
    embedding = table.columns[roles.embedding]
    check_vector_column(table, embedding, store, dimensions)
    for role, types in (
        ("chunk_id", ("text", "character varying")),
        ("chunk_index", ("integer",)),
        ("chunk", ("text", "character varying")),
        ("source_hash", ("bytea",)),
    ):
        name = getattr(roles, role)
        if name is not None and table.columns[name].base_type not in types:
            raise DefinitionError(
                f"{table.label}.{name} is {table.columns[name].type}; as {role} it has to be {types[0]}"
            )
    check_required(table, roles)
    for mine, theirs in zip(key, roles.key, strict=True):
        check_cast(connection, mine, table, table.columns[theirs])
    check_unique(connection, table, roles, chunked)
    if statements:
        roles = replace(roles, source_hash=hash_column)
    elif roles.source_hash is None:
        remarks.append(
            f"{table.label} has no column for the source's hash: new and deleted rows will be told, changed ones not "
            "(add a bytea column and give --column source_hash=NAME)"
        )
    missing_index = not has_leading_index(connection, table, roles.key)
    if missing_index and table.kind == "p":
        raise DefinitionError(
            f"{table.label} has no index on {', '.join(roles.key)}; make one (it is partitioned, so not concurrently)"
        )
    if missing_index:
        remarks.append(f"builds an index on {', '.join(roles.key)} of {table.label}, which has none")
    return Destination(
        "table",
        table.schema,
        table.name,
        roles,
        tuple(table.columns[name].base_type for name in roles.key),
        ordered=all(
            c.base_type == table.columns[name].base_type and c.collation == table.columns[name].collation
            for c, name in zip(key, roles.key, strict=True)
        ),
        created=False,
        statements=tuple(statements),
        remarks=tuple(remarks),
    )


def _nothing_there(what: str, flag: str) -> DefinitionError:
    return DefinitionError(
        f"{what} does not exist, so there are no vectors to take over; name what has them with {flag}, "
        "or leave --adopt out"
    )


def resolve_column(
    source: Relation,
    key: Sequence[Column],
    *,
    column: str,
    column_map: Mapping[str, Sequence[str]],
    store: str,
    dimensions: int,
    vector_schema: str,
    adopt: bool = False,
) -> Destination:
    """Finds or designs the vector column of the source; with ``adopt`` it is to be there.

    Raises ``DefinitionError`` when it does not fit.
    """
    if source.kind not in ("r", "p"):
        raise DefinitionError(f"{source.label} is no table, so it can get no vector column; use --into TABLE")
    other = sorted(set(column_map) - {"source_hash"})
    if other:
        raise DefinitionError(f"with --into-column only --column source_hash=NAME has a meaning, not {other[0]}")
    hash_column = mapped(column_map, "source_hash", None) or f"{column}_hash"
    if adopt and column not in source.columns:
        raise _nothing_there(f"the column {column} of {source.label}", "--into-column COLUMN")
    destination = identifier(source.schema, source.name)
    vector = sql.SQL("{}({})").format(identifier(vector_schema, store), sql.Literal(dimensions))
    statements = []
    remarks = []
    for name, definition in ((column, vector), (hash_column, sql.SQL("bytea"))):
        if name in source.columns:
            continue
        check_length(name, "the column's name", "--into-column" if name == column else "--column source_hash=NAME")
        statements.append(
            statement("destination", "add_column").format(
                destination=destination, column=identifier(name), type=definition
            )
        )
        remarks.append(f"adds the column {name} to {source.label}")
    if column in source.columns:
        check_vector_column(source, source.columns[column], store, dimensions)
    if hash_column in source.columns and source.columns[hash_column].base_type != "bytea":
        raise DefinitionError(f"{source.label}.{hash_column} is {source.columns[hash_column].type}; it has to be bytea")
    names = tuple(c.attname for c in key)
    return Destination(
        "column",
        source.schema,
        source.name,
        Roles(key=names, embedding=column, source_hash=hash_column),
        tuple(c.base_type for c in key),
        ordered=True,
        created=column not in source.columns,
        statements=tuple(statements),
        remarks=tuple(remarks),
    )


def make(connection: Connection, destination: Destination) -> None:
    """Runs what makes the destination, inside the caller's transaction."""
    for query in destination.statements:
        connection.execute(query, {})
