"""The schema ``pgvec`` as a database tells it: views, functions and tables with their comments.

The database is the one that ``PGVEC_DOCS_DSN`` names, else an embedded server that lives as long as this takes.
"""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pgvec_queue import embedded, schema
from pgvec_queue.database import Database
from pgvec_reference.markdown import code, prose, table

_RELATIONS = """
    SELECT c.relname, c.relkind::text, coalesce(obj_description(c.oid), ''),
           array_agg(ARRAY[a.attname::text, format_type(a.atttypid, a.atttypmod),
                           coalesce(col_description(c.oid, a.attnum), '')] ORDER BY a.attnum)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    WHERE c.relnamespace = 'pgvec'::regnamespace AND c.relkind IN ('v', 'r', 'p') AND c.relname <> 'alembic_version'
    GROUP BY c.oid ORDER BY c.relname"""
_FUNCTIONS = """
    SELECT p.proname, pg_get_function_arguments(p.oid), pg_get_function_result(p.oid),
           coalesce(obj_description(p.oid), ''), p.prorettype = 'trigger'::regtype
    FROM pg_proc p WHERE p.pronamespace = 'pgvec'::regnamespace ORDER BY p.proname, p.oid"""


@dataclass(frozen=True, slots=True)
class Relation:
    """A table or a view, with name, type and comment of each column."""

    name: str
    view: bool
    comment: str
    columns: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Function:
    """A function with its arguments, its result and its comment."""

    name: str
    arguments: str
    result: str
    comment: str


@functools.cache
def read() -> tuple[tuple[Relation, ...], tuple[Function, ...]]:
    """Returns what is in the schema."""
    with _database() as dsn, psycopg.connect(dsn) as connection:
        relations = tuple(
            Relation(name, kind == "v", comment, tuple((c[0], c[1], c[2]) for c in columns))
            for name, kind, comment, columns in connection.execute(_RELATIONS)
        )
        functions = tuple(Function(*row[:4]) for row in connection.execute(_FUNCTIONS) if not row[4])
    return relations, functions


def missing() -> list[str]:
    """Returns views, their columns, tables and functions without a comment."""
    relations, functions = read()
    found = [f"pgvec.{one.name}" for one in relations if not one.comment]
    found += [f"pgvec.{one.name}" for one in functions if not one.comment]
    found += [
        f"pgvec.{one.name}.{column[0]}" for one in relations if one.view for column in one.columns if not column[2]
    ]
    return found


def text() -> str:
    relations, functions = read()
    return "\n".join([*_views(relations), *_functions(functions), *_tables(relations)])


def _views(relations: tuple[Relation, ...]) -> Iterator[str]:
    yield "## Views\n"
    for one in relations:
        if one.view:
            yield f"### pgvec.{prose(one.name)}\n"
            yield f"{prose(one.comment)}.\n"
            yield table(
                ("column", "type", "meaning"), ((code(n), code(kind), prose(said)) for n, kind, said in one.columns)
            )


def _functions(functions: tuple[Function, ...]) -> Iterator[str]:
    yield "## Functions\n"
    for one in functions:
        yield f"### pgvec.{prose(one.name)}\n"
        yield f"```sql\npgvec.{one.name}({_arguments(one.arguments)}) RETURNS {_arguments(one.result)}\n```\n"
        yield f"{prose(one.comment)}.\n"


def _arguments(text: str) -> str:
    return text if len(text) < 80 else text.replace(", ", ",\n    ").replace("TABLE(", "TABLE(\n    ")


def _tables(relations: tuple[Relation, ...]) -> Iterator[str]:
    yield "## Tables\n"
    yield (
        "The queue's own. Programs should read the views and call the functions: columns here may change with any "
        "release.\n"
    )
    yield table(
        ("table", "what is in it"),
        ((code(f"pgvec.{one.name}"), prose(one.comment)) for one in relations if not one.view),
    )


@contextmanager
def _database() -> Iterator[str]:
    named = os.environ.get("PGVEC_DOCS_DSN")
    if named:
        yield named
        return
    with tempfile.TemporaryDirectory(prefix="pgvec-docs-") as made:
        # The server's own user has to reach it.
        Path(made).chmod(0o711)
        with embedded.use(Path(made) / "server") as dsn:
            schema.initialize(Database(dsn))
            yield dsn
