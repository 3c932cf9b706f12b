"""``pgvec doctor``: whether database and settings are fit for work, and where each setting came from."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator

import click

from pgvec_queue import schema, sync, vectorizer
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.types import SETTINGS, Number
from pgvec_queue.database import versions
from pgvec_queue.errors import DatabaseError, SettingsError


@click.command()
@click.option("--wait", type=Number(0), default=0, metavar="SECONDS", help="Wait this long for database and schema.")
@command
def doctor(session: Session, *, wait: float) -> int:
    """Check the database and say where each setting came from; exit code 1 where something would fail."""
    origins = list(_origins(session))
    deadline = time.monotonic() + wait
    while True:
        try:
            findings = _check(session)
            break
        except DatabaseError:
            if time.monotonic() >= deadline:
                raise
            time.sleep(min(0.5, max(deadline - time.monotonic(), 0)))
    for line in (*findings, *origins, f"settings: all{' others' if origins else ''} at their defaults"):
        click.echo(line)
    return 1 if any(line.startswith("sync:") for line in findings) else 0


def _check(session: Session) -> list[str]:
    with session.database.connect("doctor") as connection:
        found = versions(connection)
        schema.require(connection)
        major, minor = divmod(found.server, 10000)
        gaps = [
            f"sync:     {name} does not follow what is written straight into {', '.join(tables)}; "
            f"run: pgvec enqueue {vectorizer.get(connection, name).source} --name {name}"
            for name in sync.synced(connection)
            if (tables := sync.uncovered(connection, vectorizer.get(connection, name)))
        ]
        source = session.source
        where = f"embedded server in {source.directory}" if source.directory else session.database.address
        return [
            f"database: {where}, PostgreSQL {major}.{minor} (from {source.origin})",
            f"pgvector: {found.pgvector} in schema {found.vector_schema}",
            f"schema:   pgvec at revision {schema.HEAD}",
            f"python:   {sys.version.split()[0]}",
            *gaps,
        ]


def _origins(session: Session) -> Iterator[str]:
    """Yields a line per setting that is not at its default. Raises ``SettingsError`` for a value of no use."""
    for name, type_ in SETTINGS.items():
        variable = f"PGVEC_{name.upper()}"
        if os.environ.get(variable):
            value, origin = os.environ[variable], variable
        elif name in session.file.values:
            value, origin = session.file.values[name], str(session.file.path)
        else:
            continue
        try:
            type_.convert(value, None, None)
        except click.BadParameter as error:
            raise SettingsError(f"{name} (from {origin}): {error.message}") from error
        yield f"{name} = {_without_password(str(value))} (from {origin})"


def _without_password(value: str) -> str:
    return re.sub(r"(?<=://)[^/\s]*@", "***@", value)
