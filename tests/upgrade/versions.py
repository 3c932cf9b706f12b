"""Versions of the program to run side by side: the present one, and a next one that is made of it.

The next one has a migration more. A compatible one adds a column to each table that workers write to, which its own
statements use; the other renames a column that every claim and every write of the present program names.
"""

from __future__ import annotations

from pathlib import Path

from pgvec_queue import __version__, schema
from tests.chaos.program import Program

NEXT = f"{int(schema.HEAD) + 1:04}"
NEXT_VERSION = "99.0.0"

INDEX = """
-- name: jobs_claimed_by
CREATE INDEX CONCURRENTLY jobs_claimed_by ON pgvec.jobs (claimed_by) WHERE state = 'done';
"""

_MIGRATION = """
from pgvec_queue.schema import run_migration

revision = "{next}"
down_revision = "{head}"
oldest_program = "{oldest}"


def upgrade() -> None:
    run_migration("{next}_next.sql")
"""
_COMPATIBLE = """
ALTER TABLE pgvec.jobs ADD COLUMN claimed_by text;
ALTER TABLE pgvec.workers ADD COLUMN zone text NOT NULL DEFAULT 'nowhere';
ALTER TABLE pgvec.counters ADD COLUMN rows_admired bigint NOT NULL DEFAULT 0;
ALTER TABLE pgvec.vectorizers ADD COLUMN owned_by text;
CREATE TABLE pgvec.zones (name text PRIMARY KEY);
"""
_INCOMPATIBLE = """
ALTER TABLE pgvec.jobs RENAME COLUMN read_to TO read_up_to;
"""


def present(directory: Path) -> Program:
    """The program as it is."""
    return Program(directory)


def following(directory: Path, *, compatible: bool) -> Program:
    """The program as it might be next, with a migration that the present one works with, or does not."""
    program = Program(directory)
    package = directory / "pgvec_queue"
    oldest = schema.HEAD if compatible else NEXT
    migration = _MIGRATION.format(next=NEXT, head=schema.HEAD, oldest=oldest)
    (package / "alembic" / "versions" / f"{NEXT}_next.py").write_text(migration)
    (package / "alembic" / "versions" / f"{NEXT}_next.sql").write_text(_COMPATIBLE if compatible else _INCOMPATIBLE)
    _change(package / "schema.py", f'HEAD = "{schema.HEAD}"', f'HEAD = "{NEXT}"')
    _change(package / "__init__.py", f'"{__version__}"', f'"{NEXT_VERSION}"')
    sql = package / "sql"
    if compatible:
        _change(sql / "queue.sql", "read_to = NULL\n", "read_to = NULL, claimed_by = 'the next'\n")
        _append(sql / "indexes.sql", INDEX)
        _change(sql / "views.sql", "w.cache_hits\nFROM pgvec.workers w", "w.cache_hits, w.zone\nFROM pgvec.workers w")
    else:
        _change(sql / "queue.sql", "read_to = NULL\n", "read_up_to = NULL\n")
        _change(sql / "writing.sql", "read_to = %(read_to)s", "read_up_to = %(read_to)s")
        _change(sql / "stealing.sql", "j.read_to,", "j.read_up_to AS read_to,")
    return program


def _append(path: Path, text: str) -> None:
    path.write_text(path.read_text("utf-8") + text)


def _change(path: Path, text: str, replacement: str) -> None:
    before = path.read_text("utf-8")
    if text not in before:
        raise LookupError(f"{path.name} has no {text!r} any more")
    path.write_text(before.replace(text, replacement))
