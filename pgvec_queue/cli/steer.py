"""``pgvec pause|resume|cancel|drop|alter|failures|retry``: steering a vectorizer, and what it put into quarantine.

They are the functions that SQL has as well: ``pgvec.pause(name)`` and so on.
"""

from __future__ import annotations

import json
from typing import Any

import click

from pgvec_queue import queue, sync, vectorizer
from pgvec_queue.cli.common import Session, command, confirm, yes_option
from pgvec_queue.cli.texts import documents, plain
from pgvec_queue.cli.types import NewName, Number, Text, Whole


@click.command()
@click.argument("name", type=Text())
@command
def pause(session: Session, *, name: str) -> None:
    """Work on NAME no more; workers give its jobs back within two seconds, no attempt is counted."""
    connection, _ = session.connect_checked("pause")
    vectorizer.steer(connection, name, "pause")
    click.echo(f"{name} is paused; `pgvec resume {name}` lets it go on.")


@click.command()
@click.argument("name", type=Text())
@command
def resume(session: Session, *, name: str) -> None:
    """Let NAME go on after a pause, a block or a cancellation."""
    connection, _ = session.connect_checked("resume")
    vectorizer.steer(connection, name, "resume")
    click.echo(f"{name} goes on.")


@click.command()
@click.argument("name", type=Text())
@yes_option
@command
def cancel(session: Session, *, name: str, yes: bool) -> None:
    """Give up the unfinished jobs of NAME; what is written stays."""
    connection, _ = session.connect_checked("cancel")
    vectorizer.get(connection, name)
    confirm(f"Cancel {name}?", yes=yes)
    vectorizer.steer(connection, name, "cancel")
    click.echo(f"{name} is cancelled; `pgvec resume {name}` or another enqueue takes it up again.")


@click.command()
@click.argument("name", type=Text())
@yes_option
@command
def drop(session: Session, *, name: str, yes: bool) -> None:
    """Remove the vectorizer NAME with its jobs and triggers; its destination and the vectors in it stay."""
    connection, _ = session.connect_checked("drop")
    found = vectorizer.get(connection, name)
    confirm(f"Drop the vectorizer {name}? {found.destination} stays as it is.", yes=yes)
    sync.remove(connection, found.id)
    vectorizer.steer(connection, name, "drop")
    click.echo(f"{name} is dropped; {found.destination} stays as it is.")


@click.command()
@click.argument("name", type=Text())
@click.option("--name", "new_name", type=NewName(), metavar="NEW", help="Call it so from now on.")
@click.option("--priority", type=Whole(-1_000_000, 1_000_000), metavar="N", help="Higher ones are worked on first.")
@click.option("--rows-per-job", type=Whole(1, 100_000_000), metavar="N", help="Of the jobs of the next enqueue.")
@click.option(
    "--rows-per-second",
    type=Number(0, 1e9),
    metavar="N",
    help="Of its backfill, by all workers together; 0: no limit. Live changes are not held back.",
)
@click.option(
    "--max-replication-lag",
    "replication_lag",
    type=Number(0, 1e6),
    metavar="SECONDS",
    help="Nothing is claimed while a standby is further behind; 0: no limit.",
)
@click.option(
    "--max-commit-time",
    "commit_time",
    type=Number(0, 1e6),
    metavar="SECONDS",
    help="Nothing is claimed while a small commit takes longer; 0: no limit.",
)
@command
def alter(session: Session, *, name: str, **changes: Any) -> None:
    """Change what needs no new vectors of NAME; running workers obey within two seconds."""
    wanted = vectorizer.Changes(**changes)
    if wanted == vectorizer.Changes():
        raise click.UsageError("nothing to change was named; see `pgvec alter --help`")
    connection, _ = session.connect_checked("alter")
    vectorizer.alter(connection, name, wanted)
    click.echo(f"{wanted.new_name or name} is altered.")


@click.command()
@click.argument("name", type=Text())
@click.option("--json", "as_json", is_flag=True, help="One JSON object per document and line.")
@command
def failures(session: Session, *, name: str, as_json: bool) -> None:
    """List the documents of NAME that could not be embedded, and why."""
    connection, _ = session.connect_checked("failures")
    found = queue.failures(connection, vectorizer.get(connection, name).id)
    for row in found:
        if as_json:
            click.echo(json.dumps(row, default=str))
        else:
            click.echo("\t".join(map(plain, (", ".join(row["key"]), row["error_class"], row["message"]))))
    if not found:
        click.echo(f"pgvec: {name} has no document in quarantine", err=True)


@click.command()
@click.argument("name", type=Text())
@click.option("--error", "error_class", type=Text(), metavar="CLASS", help="Only those with this error class.")
@command
def retry(session: Session, *, name: str, error_class: str | None) -> None:
    """Take the documents of NAME out of quarantine, and queue them to be tried again."""
    connection, _ = session.connect_checked("retry")
    count = vectorizer.retry(connection, name, error_class)
    what = f" (of error class {error_class})" if error_class else ""
    click.echo(f"{name}: {documents(count)} queued again{what}.")
