"""``pgvec pause|resume|cancel|drop|failures|retry``: steering a vectorizer, and what it put into quarantine."""

from __future__ import annotations

import json

import click

from pgvec_queue import queue, sync, vectorizer
from pgvec_queue.cli.common import Session, command, confirm, yes_option
from pgvec_queue.cli.texts import documents, plain
from pgvec_queue.cli.types import Text
from pgvec_queue.database import statement, transaction


@click.command()
@click.argument("name", type=Text())
@command
def pause(session: Session, *, name: str) -> None:
    """Claim no more jobs of NAME; workers finish the slices in hand."""
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
    queue.notify(connection)
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
    with transaction(connection, statement_timeout=600):
        connection.execute(statement("vectorizer", "drop"), {"id": found.id})
    click.echo(f"{name} is dropped; {found.destination} stays as it is.")


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
    count = queue.retry(connection, vectorizer.get(connection, name).id, error_class)
    queue.notify(connection)
    what = f" (of error class {error_class})" if error_class else ""
    click.echo(f"{name}: {documents(count)} queued again{what}.")
