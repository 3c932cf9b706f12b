"""``pgvec db``: the embedded PostgreSQL server, kept running, opened to other machines, stopped."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from pgvec_queue import embedded
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.types import Text, Whole
from pgvec_queue.errors import DatabaseError

_directory = click.option(
    "--dir",
    "directory",
    type=Text(),
    metavar="DIRECTORY",
    help="Where the server and its data live.  [default: what an embedded:// DSN names, else your data directory]",
)


@click.group("db")
def db() -> None:
    """Run the embedded PostgreSQL server, for those who have none."""


@db.command(short_help="Start the server, and leave it running.")
@_directory
@click.option(
    "--listen",
    type=Text(),
    metavar="ADDRESS",
    help="Open it to a network, such as 192.168.1.10/24 (this machine's address).",
)
@click.option(
    "--port", type=Whole(1, 65535), metavar="N", help="Port for --listen; by default 5433 or the next free one."
)
@command
def start(session: Session, *, directory: str | None, listen: str | None, port: int | None) -> None:
    """Start the server, leave it running until `pgvec db stop`, and print how to reach it.

    A running one is restarted when it has to open or close TCP.
    """
    if port is not None and listen is None:
        raise click.UsageError("--port needs --listen")
    server = _server(session, directory)
    if listen is None:
        server.start()
        click.echo(server.dsn)
    else:
        click.echo(server.listen(listen, port))
        click.echo(
            "This server has no TLS: text and vectors cross the network in the clear; trust that network.", err=True
        )
    click.echo(f"The server in {server.directory} runs until you stop it with: pgvec db stop{_named(server)}", err=True)


@db.command()
@_directory
@command
def stop(session: Session, *, directory: str | None) -> None:
    """Stop the server, also under commands that use it."""
    server = _server(session, directory)
    stopped = server.stop()
    click.echo(f"The server in {server.directory} {'has stopped' if stopped else 'was not running'}.", err=True)


@db.command()
@_directory
@command
def uri(session: Session, *, directory: str | None) -> None:
    """Print the DSN of the running server; starts nothing."""
    server = _server(session, directory)
    if not server.running():
        raise DatabaseError(
            f"the server in {server.directory} is not running; start it with: pgvec db start{_named(server)}"
        )
    click.echo(server.dsn)


def _server(session: Session, directory: str | None) -> embedded.Server:
    if directory is not None:
        return embedded.Server(Path(directory))
    return embedded.Server(session.source.directory or embedded.default_directory())


def _named(server: embedded.Server) -> str:
    """Returns what has to be added to `pgvec db` for it to mean this server."""
    is_default = server.directory == embedded.default_directory().resolve()
    return "" if is_default else f" --dir {shlex.quote(str(server.directory))}"
