"""``pgvec db``: the embedded PostgreSQL server, kept running, opened to other machines, stopped."""

from __future__ import annotations

from pathlib import Path

import click

from pgvec_queue import embedded
from pgvec_queue.errors import DatabaseError

_directory = click.option(
    "--dir",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=embedded.default_directory,
    help="Where the server and its data live; by default in your data directory.",
)


@click.group("db")
def db() -> None:
    """Run the embedded PostgreSQL server, for those who have none."""


@db.command()
@_directory
@click.option(
    "--listen", metavar="ADDRESS", help="Open it to a network, such as 192.168.1.10/24 (this machine's address)."
)
@click.option("--port", type=click.IntRange(1, 65535), help="Port for --listen; by default 5433 or the next free one.")
def start(directory: Path, listen: str | None, port: int | None) -> None:
    """Start the server, leave it running until `pgvec db stop`, and print how to reach it.

    A running one is restarted when it has to open or close TCP.
    """
    if port is not None and listen is None:
        raise click.UsageError("--port needs --listen")
    server = embedded.Server(directory)
    if listen is None:
        server.start()
        click.echo(server.dsn)
    else:
        click.echo(server.listen(listen, port))
        click.echo(
            "This server has no TLS: text and vectors cross the network in the clear; trust that network.", err=True
        )
    click.echo(f"The server in {server.directory} runs until you stop it with: pgvec db stop", err=True)


@db.command()
@_directory
def stop(directory: Path) -> None:
    """Stop the server, also under commands that use it."""
    server = embedded.Server(directory)
    stopped = server.stop()
    click.echo(f"The server in {server.directory} {'has stopped' if stopped else 'was not running'}.", err=True)


@db.command()
@_directory
def uri(directory: Path) -> None:
    """Print the DSN of the running server; starts nothing."""
    server = embedded.Server(directory)
    if not server.running():
        raise DatabaseError(f"The server in {server.directory} is not running; start it with: pgvec db start")
    click.echo(server.dsn)
