"""``pgvec dashboard``: vectorizers, workers and failures, live on a terminal."""

from __future__ import annotations

import sys

import click

from pgvec_queue.cli.common import Session, command


@click.command()
@command
def dashboard(session: Session) -> int:
    """Show vectorizers, workers and failures live, and steer them with keys; ? lists the keys, q quits."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        click.echo("pgvec: the dashboard needs a terminal; elsewhere use `pgvec status --watch`", err=True)
        return 2
    from pgvec_queue.dashboard.app import run

    # Before the screen is taken over: that there is no such database is said like anywhere else. Not closed with the
    # command, which would wait for whatever it is asked at that moment.
    connection = session.database.connect("dashboard")
    sys.stdout.flush()
    return run(
        session.database,
        connection,
        source=sys.stdin.fileno(),
        target=sys.stdout.fileno(),
        encoding=sys.stdout.encoding or "ascii",
    )
