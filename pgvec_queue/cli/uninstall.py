"""``pgvec uninstall``: remove all that is ours but the destinations."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import click

from pgvec_queue import access, roles, schema
from pgvec_queue import uninstall as removal
from pgvec_queue.cli.common import Session, command, confirm, yes_option
from pgvec_queue.cli.texts import plain
from pgvec_queue.cli.types import Number
from pgvec_queue.database import Connection
from pgvec_queue.errors import PgvecError
from pgvec_queue.uninstall import Installed


@click.command()
@yes_option
@click.option("--dry-run", is_flag=True, help="Say what would go and what would stay; change nothing.")
@click.option(
    "--wait", type=Number(0, 86_400), metavar="SECONDS", default=60, help="For workers to leave.  [default: 60]"
)
@click.option("--anyway", is_flag=True, help="Do not wait for workers that do not leave; their work in hand is lost.")
@click.option("--cascade", is_flag=True, help="Drop views and the like of others that use the schema pgvec, too.")
@command
def uninstall(session: Session, *, yes: bool, dry_run: bool, wait: float, anyway: bool, cascade: bool) -> None:
    """Remove vectorizers, triggers and the schema pgvec; destinations with their vectors stay.

    Workers are told to leave first. What stays is found again: `pgvec init`, then `pgvec enqueue` with --into the same
    table, embed nothing that is there.
    """
    connection = session.connect("uninstall")
    if not schema.revision(connection):
        click.echo("pgvec: there is no schema pgvec; nothing is to be removed", err=True)
        return
    schema.require(connection, exactly=True)
    found = removal.survey(connection)
    removal.refuse(found.foreign)
    _show(found, roles.present(connection))
    if not cascade:
        removal.refuse_dependents(found.dependents)
    if dry_run:
        return
    removal.refuse_strangers(connection)
    confirm(f"Remove pgvec from {session.database.address}?", yes=yes)
    if found.workers:
        _send_away(connection, wait, anyway=anyway)
    granted = access.granted(connection, None)
    removal.remove(connection, cascade=cascade)
    click.echo("pgvec is removed; the destinations stay as they are.")
    if granted:
        click.echo(f"pgvec: rights stay as well; where nobody needs them: {plain('; '.join(granted))}", err=True)


def _show(found: Installed, shared: Collection[str]) -> None:
    """``shared``: the roles, which are the server's and may be used in its other databases."""
    goes = [
        f"the schema pgvec with {_counted(found.vectorizers, 'vectorizer')}",
        *(f"triggers on {table}" for table in found.triggers),
        *(f"what uses it: {dependent}" for dependent in found.dependents),
    ]
    stays = [*found.destinations, *(["texts in the schema pgvec_collections"] if found.texts else []), "pgvector"]
    stays.extend([f"the server's roles {', '.join(sorted(shared))}"] if shared else [])
    for label, lines in (("goes", goes), ("stays", stays), ("is told to leave", found.workers)):
        for line in lines:
            click.echo(f"{label}: {plain(line)}", err=True)


def _counted(names: Sequence[str], what: str) -> str:
    if not names:
        return f"no {what}"
    return f"the {what}{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _send_away(connection: Connection, seconds: float, *, anyway: bool) -> None:
    told = False

    def waiting(left: Sequence[str]) -> None:
        nonlocal told
        if not told:
            told = True
            click.echo(f"pgvec: waits for {plain(', '.join(left))} to leave", err=True)

    left = removal.send_away(connection, 0 if anyway else seconds, waiting)
    if left and not anyway:
        raise PgvecError(
            f"these workers do not leave, or were started again: {', '.join(left)}; stop them where they run, or give "
            "--anyway; nothing was removed"
        )
