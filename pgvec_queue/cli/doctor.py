"""``pgvec doctor``: whether database and settings are fit for work, and where each setting came from."""

from __future__ import annotations

import os
import sys
import time

import click

from pgvec_queue import schema, settings
from pgvec_queue.cli.common import Session, command
from pgvec_queue.database import versions
from pgvec_queue.errors import PgvecError


@click.command()
@click.option(
    "--wait", type=click.FloatRange(0), default=0, metavar="SECONDS", help="Wait this long for database and schema."
)
@command
def doctor(session: Session, *, wait: float) -> int:
    """Check the database and say where each setting came from; exit code 1 where something would fail."""
    deadline = time.monotonic() + wait
    while True:
        try:
            findings = _check(session)
            break
        except PgvecError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(min(0.5, max(deadline - time.monotonic(), 0)))
    for line in (*findings, *_origins(session)):
        click.echo(line)
    return 0


def _check(session: Session) -> list[str]:
    with session.database.connect("doctor") as connection:
        found = versions(connection)
        schema.require(connection)
        major, minor = divmod(found.server, 10000)
        return [
            f"database: {session.database.address}, PostgreSQL {major}.{minor} (from {session.source.origin})",
            f"pgvector: {found.pgvector} in schema {found.vector_schema}",
            f"schema:   pgvec at revision {schema.HEAD}",
            f"python:   {sys.version.split()[0]}",
        ]


def _origins(session: Session) -> list[str]:
    lines = []
    for name in settings.KNOWN:
        if name == "dsn":
            continue
        variable = f"PGVEC_{name.upper()}"
        if variable in os.environ:
            lines.append(f"{name} = {os.environ[variable]} (from {variable})")
        elif name in session.file.values:
            lines.append(f"{name} = {session.file.values[name]} (from {session.file.path})")
    return lines or ["settings: all at their defaults"]
