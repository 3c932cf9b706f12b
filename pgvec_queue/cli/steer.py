"""``pgvec pause|resume|cancel|drop|alter|failures|retry``: steering a vectorizer, and what it put into quarantine.

They are the functions that SQL has as well: ``pgvec.pause(name)`` and so on.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any

import click

from pgvec_queue import access, model_migration, quarantine, sync, vectorizer
from pgvec_queue.cli.common import Session, command, confirm, yes_option
from pgvec_queue.cli.texts import documents, plain
from pgvec_queue.cli.types import NewName, Number, Text, Whole
from pgvec_queue.database import Connection
from pgvec_queue.definition_options import MIGRATED
from pgvec_queue.errors import PgvecError
from pgvec_queue.model_migration import Migration

_FLAGS = ("no_chunking", "trust_remote_code")
_ROWS = ("text", "where", "key", "limit", "column")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _elsewhere(function: Callable[..., Any]) -> Callable[..., Any]:
    """Takes the options of a definition, so that whoever gives one is told the command that is for it."""
    for name in (*MIGRATED, *_ROWS):
        function = click.option(_flag(name), is_flag=name in _FLAGS, hidden=True)(function)
    return function


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
    migration = model_migration.find(connection, found)
    confirm(f"Drop the vectorizer {name}? {found.destination} stays as it is.{_ends(migration, found)}", yes=yes)
    granted = access.granted(connection, found.id)
    sync.remove(connection, found.id)
    vectorizer.steer(connection, name, "drop")
    click.echo(f"{name} is dropped; {found.destination} stays as it is.")
    if granted:
        click.echo(f"pgvec: rights stay as well; where nobody needs them: {plain('; '.join(granted))}", err=True)


def _ends(migration: Migration | None, found: vectorizer.Vectorizer) -> str:
    """What it means for a migration to another model that one of the two is dropped."""
    if migration is None:
        return ""
    other = migration.new if found.id == migration.old.id else migration.old
    way = (
        "--finish"
        if migration.switched_at is not None and found.id == migration.old.id
        else ("--abandon" if migration.switched_at is None and found.id == migration.new.id else None)
    )
    hint = f"; `pgvec migrate-model {plain(migration.reads.name)} {way}` drops its vectors as well" if way else ""
    return f" It ends the migration between {plain(migration.old.model)} and {plain(migration.new.model)}, " + (
        f"and {plain(other.name)} stays{hint}."
    )


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
@click.option(
    "--sync/--no-sync",
    "follow",
    default=None,
    help="Follow live changes by triggers on the source, or stop to.",
)
@_elsewhere
@command
def alter(session: Session, *, name: str, follow: bool | None, **changes: Any) -> None:
    """Change what needs no new vectors of NAME; running workers obey within two seconds.

    Another model, other chunks or another type of vectors need new ones: `pgvec migrate-model`.
    """
    _refuse_definition(click.get_current_context(), name)
    wanted = vectorizer.Changes(**{key: changes[key] for key in vectorizer.Changes.__slots__})
    if wanted == vectorizer.Changes() and follow is None:
        raise click.UsageError("nothing to change was named; see `pgvec alter --help`")
    connection, _ = session.connect_checked("alter")
    if follow is not None:
        _follow(connection, vectorizer.get(connection, name), wanted=follow)
    if wanted != vectorizer.Changes():
        vectorizer.alter(connection, name, wanted)
    click.echo(f"{wanted.new_name or name} is altered.")


def _refuse_definition(context: click.Context, name: str) -> None:
    """Raises ``click.UsageError`` for a part of the definition, with the command that changes it."""
    values = context.params
    shown = shlex.quote(plain(name))
    for option in MIGRATED:
        if (value := values[option]) not in (None, False):
            given = "" if value is True else f" {shlex.quote(plain(value))}"
            raise click.UsageError(
                f"{_flag(option)} is a part of the definition, and another one needs new vectors; run: "
                f"pgvec migrate-model {shown} {_flag(option)}{given}"
            )
    for option in _ROWS:
        if values[option]:
            raise click.UsageError(
                f"{_flag(option)} says which rows and texts are embedded; make another vectorizer for others: "
                "pgvec enqueue SOURCE --name NAME --text COLUMN"
            )


def _follow(connection: Connection, found: vectorizer.Vectorizer, *, wanted: bool) -> None:
    """Makes the triggers that live changes need, or takes them away, and says what that means."""
    if not wanted:
        sync.remove(connection, found.id)
        click.echo(f"pgvec: {plain(found.name)} follows live changes no longer", err=True)
    else:
        if vectorizer.is_limited(connection, found.id):
            raise PgvecError(
                f"{found.name} has the rows that --limit selected, and --sync follows every row; first "
                f"`pgvec enqueue {found.source} --name {found.name}` without --limit"
            )
        sync.install(connection, found)
        again = (
            ""
            if found.sync
            else (f"; for what has changed before: pgvec enqueue {plain(found.source)} --name {plain(found.name)}")
        )
        click.echo(f"pgvec: {plain(found.name)} follows every change from now on{again}", err=True)
    other = model_migration.find(connection, found)
    if other is not None:
        both = (other.old, other.new)
        beside = next(one for one in both if one.id != found.id)
        if beside.sync != wanted:
            click.echo(
                f"pgvec: {plain(beside.name)}, beside it, does{'' if beside.sync else ' not'}: "
                f"pgvec alter {plain(beside.name)} {'--sync' if wanted else '--no-sync'}",
                err=True,
            )


@click.command()
@click.argument("name", type=Text())
@click.option("--json", "as_json", is_flag=True, help="One JSON object per document and line.")
@command
def failures(session: Session, *, name: str, as_json: bool) -> None:
    """List the documents of NAME that could not be embedded, and why."""
    connection, _ = session.connect_checked("failures")
    found = quarantine.failures(connection, vectorizer.get(connection, name).id)
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
