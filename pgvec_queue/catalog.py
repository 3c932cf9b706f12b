"""What the catalog knows of a user's table: its columns, their types, and which keys are unique."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from psycopg.rows import class_row

from pgvec_queue.database import Connection, statement
from pgvec_queue.errors import DefinitionError

_PART = re.compile(r'"((?:[^"]|"")+)"|([^".]+)')


@dataclass(frozen=True, slots=True)
class Column:
    attname: str
    type: str
    """As ``format_type`` writes it, with its modifier."""
    base_type: str
    category: str
    """``pg_type.typcategory``: S for strings."""
    typname: str
    type_schema: str
    typmod: int
    not_null: bool
    collation: int
    collation_name: str | None
    """Quoted; None for the type's own collation."""
    has_default: bool


@dataclass(frozen=True, slots=True)
class Relation:
    """A table, partitioned table, view, materialized view or foreign table."""

    oid: int
    schema: str
    name: str
    kind: str
    """``pg_class.relkind``."""
    columns: dict[str, Column]

    @property
    def has_xmin(self) -> bool:
        """Rows carry the transaction that wrote them."""
        return self.kind in ("r", "p", "m")

    @property
    def label(self) -> str:
        return f"{self.schema}.{self.name}"

    def column(self, name: str, purpose: str) -> Column:
        """Returns the column of that name, else of its lower-case form.

        Raises ``DefinitionError`` naming those there are.
        """
        found = self.columns.get(name) or self.columns.get(folded(name))
        if found is None:
            raise DefinitionError(f"{self.label} has no column {name!r} ({purpose}); it has: {', '.join(self.columns)}")
        return found


def folded(name: str) -> str:
    """Returns what SQL makes of a name: its quotes taken off, else in lower case."""
    if len(name) > 2 and name.startswith('"') and name.endswith('"'):
        return name[1:-1].replace('""', '"')
    return name.lower()


def split_name(name: str) -> tuple[str | None, str]:
    """Splits ``table`` or ``schema.table`` (either may be quoted as in SQL) into schema and table, quotes taken off.

    Raises ``DefinitionError`` when it is neither.
    """
    parts = [quoted.replace('""', '"') if quoted else plain for quoted, plain in _PART.findall(name)]
    separators = _PART.sub("", name)
    if (len(parts), separators) == (1, ""):
        return None, parts[0]
    if (len(parts), separators) == (2, "."):
        return parts[0], parts[1]
    raise DefinitionError(f"{name!r} is no table's name; write table or schema.table")


def quoted_name(schema: str, table: str) -> str:
    """Writes a name so that ``split_name`` reads back exactly these."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in (schema, table))


def find_relation(connection: Connection, name: str, *, schema: str | None = None) -> Relation | None:
    """Returns the relation of that name (looked for in ``schema`` when the name has none), or None."""
    given_schema, table = split_name(name)
    wanted = given_schema or schema
    row = connection.execute(
        statement("catalog", "relation"),
        {
            "name": table,
            "folded_name": table.lower(),
            "schema": wanted,
            "folded_schema": wanted.lower() if wanted else None,
        },
    ).fetchone()
    if row is None:
        return None
    oid, found_schema, found_name, kind, _ = row
    return Relation(oid, found_schema, found_name, kind, _columns(connection, oid))


def get_relation(connection: Connection, name: str) -> Relation:
    """Like ``find_relation``; raises ``DefinitionError`` when there is none, naming what the user may have meant."""
    found = find_relation(connection, name)
    if found is not None:
        return found
    similar = [
        row[0] for row in connection.execute(statement("catalog", "similar"), {"name": split_name(name)[1]}).fetchall()
    ]
    hint = f"did you mean {' or '.join(similar)}?" if similar else "name it as schema.table if it is in another schema"
    raise DefinitionError(f"there is no table or view {name!r} in this database; {hint}")


def _columns(connection: Connection, oid: int) -> dict[str, Column]:
    with connection.cursor(row_factory=class_row(Column)) as cursor:
        return {c.attname: c for c in cursor.execute(statement("catalog", "columns"), {"oid": oid})}


def unique_keys(connection: Connection, relation: Relation) -> list[tuple[bool, tuple[str, ...]]]:
    """Returns (is the primary key, columns) of each usable unique index, the primary key first."""
    rows = connection.execute(statement("catalog", "unique_keys"), {"oid": relation.oid}).fetchall()
    return [(primary, tuple(columns)) for primary, columns in rows]


def has_leading_index(connection: Connection, relation: Relation, columns: Sequence[str]) -> bool:
    """True when a B-tree index begins with these columns, so that looking a key up is cheap at any size."""
    row = connection.execute(
        statement("catalog", "leading_index"), {"oid": relation.oid, "columns": list(columns)}
    ).fetchone()
    return bool(row and row[0])
