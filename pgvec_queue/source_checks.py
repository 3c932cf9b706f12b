"""Whether a source can be embedded: its text columns, a key that an index orders, a filter that PostgreSQL understands.

Each check raises ``DefinitionError`` with one line that names the thing and says what to do.
"""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
from psycopg import sql

from pgvec_queue import catalog
from pgvec_queue.catalog import Column, Relation
from pgvec_queue.database import Connection, one_line, statement, transaction
from pgvec_queue.errors import DefinitionError
from pgvec_queue.fragments import identifier, literal_sql


def check_schema(source: Relation) -> None:
    """Raises ``DefinitionError`` for what lies in our own schema, which goes as a whole one day."""
    if source.schema == "pgvec":
        raise DefinitionError(
            f"{source.label} cannot be embedded: the schema pgvec is pgvec's own; name a table or view in another "
            "schema"
        )


def text_columns(source: Relation, names: Sequence[str]) -> list[str]:
    """Returns the columns as the catalog spells them; each has to be of a string type."""
    found = []
    for name in names:
        column = source.column(name, "--text")
        if column.category != "S":
            raise DefinitionError(
                f"{source.label}.{column.attname} is {column.type}, not text; "
                "embed a text column, or a view that casts it to text"
            )
        found.append(column.attname)
    return found


def key_columns(connection: Connection, source: Relation, wanted: Sequence[str]) -> list[Column]:
    """Returns the key in its index's order: the named columns, else the primary key; unique, NOT NULL, and walkable."""
    given = [source.column(name, "--key") for name in wanted]
    if source.kind in ("v", "f"):
        if not given:
            raise DefinitionError(f"{source.label} is a view, which has no primary key; name its key with --key COLUMN")
        if not _is_walkable(connection, source, given):
            raise _unordered(source, given)
        return given
    keys = catalog.unique_keys(connection, source)
    if not given:
        if not keys or not keys[0][0]:
            candidates = [", ".join(columns) for _, columns in keys]
            hint = f"it has unique keys: {'; '.join(candidates)}" if candidates else "it has no unique index either"
            raise DefinitionError(f"{source.label} has no primary key; name a unique key with --key COLUMN ({hint})")
        return [source.columns[name] for name in keys[0][1]]
    names = [c.attname for c in given]
    orders = [[source.columns[name] for name in columns] for _, columns in keys if set(columns) == set(names)]
    if not orders:
        raise DefinitionError(
            f"the key {', '.join(names)} of {source.label} is not unique: no unique index is on just these columns; "
            "make one, or choose another key"
        )
    # Keys are walked in the index's order, whatever the order in which they were named.
    ordered = next((order for order in orders if _is_walkable(connection, source, order)), None)
    if ordered is None:
        raise _unordered(source, orders[0])
    nullable = [c.attname for c in ordered if not c.not_null]
    if nullable and source.kind != "m":
        raise DefinitionError(
            f"the key column {nullable[0]} of {source.label} may be NULL, and such rows would be left out; "
            f"run ALTER TABLE … ALTER COLUMN {nullable[0]} SET NOT NULL, or choose another key"
        )
    return ordered


def _is_walkable(connection: Connection, source: Relation, key: Sequence[Column]) -> bool:
    """Planning walks the source in key order, a thousand rows a step: a step must not sort or read it whole."""
    columns = sql.SQL(", ").join(sql.Identifier("s", c.attname) for c in key)
    with transaction(connection):
        connection.execute(statement("catalog", "prefer_indexes"))
        row = connection.execute(
            statement("catalog", "explain_hop").format(
                key=columns, source=sql.Identifier(source.schema, source.name), scope=sql.SQL("true")
            )
        ).fetchone()
    assert row is not None
    return not _plan_sorts(row[0][0]["Plan"])


def _unordered(source: Relation, key: Sequence[Column]) -> DefinitionError:
    return DefinitionError(
        f"{source.label} cannot be walked in the order of {', '.join(c.attname for c in key)} by an index, so each "
        "step would read it whole; choose a key that is indexed in its order, for a view in the table below it"
    )


def _plan_sorts(node: dict[str, object]) -> bool:
    if node.get("Node Type") in ("Sort", "Incremental Sort"):
        return True
    children = node.get("Plans", [])
    assert isinstance(children, list)
    return any(_plan_sorts(child) for child in children)


def check_filter(connection: Connection, source: Relation, where: str | None) -> None:
    """Has PostgreSQL read the filter, over no row."""
    if where is None:
        return
    if not where.strip():
        raise DefinitionError("--where is empty; leave it out to take all rows")
    try:
        with transaction(connection, read_only=True):
            of = identifier(source.schema, source.name)
            selected = sql.SQL("({}\n)").format(literal_sql(where))
            connection.execute(statement("catalog", "check_filter").format(source=of, selected=selected), {"none": 0})
            connection.execute(
                statement("catalog", "check_brackets").format(source=of, filter=literal_sql(where)), {"none": 0}
            )
    except psycopg.Error as error:
        raise DefinitionError(f"--where {where!r} cannot be used on {source.label}: {one_line(error)}") from error
