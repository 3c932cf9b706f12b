"""What all commands share: where the database is, logging, and asking before something is lost."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import click

from pgvec_queue import embedded, settings
from pgvec_queue.cli.logs import configure
from pgvec_queue.cli.types import setting
from pgvec_queue.database import Connection, Database, Versions, versions
from pgvec_queue.errors import PgvecError
from pgvec_queue.settings import DsnSource, FileSettings


class Session:
    """One command's settings and its way to the database; everything it opened is closed with the command."""

    def __init__(self, context: click.Context, dsn: str | None) -> None:
        self._context = context
        self._dsn = dsn

    @functools.cached_property
    def file(self) -> FileSettings:
        return settings.read_file()

    @functools.cached_property
    def source(self) -> DsnSource:
        """Where the database is, and who said so."""
        return settings.find_database(self._dsn, self.file, embedded_default=embedded.default_directory())

    @functools.cached_property
    def database(self) -> Database:
        """The database; an embedded server runs for as long as the command does, or until `pgvec db stop`."""
        source = self.source
        if source.directory is None:
            return Database(source.dsn or "")
        if source.origin == "default":
            click.echo(
                f"pgvec: no database is named (--dsn, PGVEC_DSN, PG*); using the embedded server in {source.directory}",
                err=True,
            )
        return Database(self._context.with_resource(embedded.use(source.directory)))

    def connect(self, stage: str) -> Connection:
        """Opens a connection that is closed with the command."""
        return self._context.with_resource(self.database.connect(stage))

    def connect_checked(self, stage: str) -> tuple[Connection, Versions]:
        """Opens a connection to a database that is new enough and has our schema."""
        from pgvec_queue import schema

        connection = self.connect(stage)
        found = versions(connection)
        schema.require(connection)
        return connection, found


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command the options that every command has; it gets a ``Session`` as its first argument."""

    # PGVEC_DSN is read by `settings`, which has to know who named the database.
    @click.option("--dsn", metavar="DSN", help="The database: a libpq URI or conninfo, or embedded:///directory.")
    @setting("--log-level", key="log_level", help="What is logged to stderr.  [default: info]")
    @setting("--log-format", key="log_format", help="How it is logged.  [default: text]")
    @click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    @functools.wraps(function)
    def wrapped(
        *, dsn: str | None, log_level: str | None, log_format: str | None, debug: bool, **arguments: Any
    ) -> Any:
        configure(log_level or "info", log_format or "text", debug=debug)
        return function(Session(click.get_current_context(), dsn), **arguments)

    return wrapped


yes_option = click.option("--yes", is_flag=True, help="Do not ask.")


def confirm(question: str, *, yes: bool) -> None:
    """Asks on a terminal; elsewhere it refuses, so that no script hangs.

    Raises ``click.UsageError`` then, and ``PgvecError`` for a no.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Give --yes to say so, since there is no terminal to ask on.")
    if not click.confirm(question, err=True):
        raise PgvecError("nothing was changed")
