"""``pgvec init``: the schema."""

from __future__ import annotations

import click

from pgvec_queue import access, embedded, roles, schema, vectorizer
from pgvec_queue.cli.common import Session, command


@click.command()
@click.option(
    "--roles",
    "with_roles",
    is_flag=True,
    help="Make the roles pgvec_owner, pgvec_worker and so on, and grant each its rights.",
)
@click.option("--sql", "only_print", is_flag=True, help="Print the DDL (of the roles, with --roles) and run nothing.")
@command
def init(session: Session, *, with_roles: bool, only_print: bool) -> int:
    """Create the schema pgvec, or upgrade it; safe to run again, and by two people at once.

    With --roles, everybody who works with it can have a role with just the rights for that: docs/roles.md.
    """
    if only_print:
        click.echo(roles.script() if with_roles else schema.ddl())
        return 0
    found = schema.initialize(session.database)
    if found == schema.HEAD:
        click.echo(f"The schema pgvec is up to date (revision {schema.HEAD}).")
    elif found:
        click.echo(f"The schema pgvec was upgraded from revision {found} to {schema.HEAD}.")
    else:
        click.echo(f"The schema pgvec was created (revision {schema.HEAD}).")
    return _set_up_roles(session) if with_roles else 0


def _set_up_roles(session: Session) -> int:
    """Says what was done, and prints what is left for somebody with more rights; 1 where a role is missing."""
    done = roles.set_up(session.database)
    administrator = embedded.administrator(session.database.conninfo("init")) if done.missing else None
    if done.made:
        click.echo(f"Made the roles {', '.join(done.made)}.")
    if done.granted:
        click.echo(f"Granted {', '.join(done.granted)} what their commands need.")
    for remark in done.remarks:
        click.echo(f"pgvec: {remark}", err=True)
    if administrator is not None:
        click.echo(
            f"pgvec: {', '.join(done.missing)} could not be made by this login; on this server, which `pgvec db start` "
            f"made, run: pgvec init --roles --dsn '{administrator}'",
            err=True,
        )
        return 1
    for query in done.left:
        click.echo(f"{query.rstrip(';')};")
    if roles.WORKER not in done.missing and (names := _ungranted(session)):
        click.echo(
            f"pgvec: members of {roles.WORKER} lack rights on the tables of {', '.join(names)}; as their owner run: "
            + "; ".join(f"pgvec enqueue {name}" for name in names),
            err=True,
        )
    if done.missing:
        click.echo(
            f"pgvec: {', '.join(done.missing)} could not be made: have a DBA run the statements above, "
            "then run `pgvec init --roles` again",
            err=True,
        )
        return 1
    return 0


def _ungranted(session: Session) -> list[str]:
    with session.database.connect("init") as connection:
        found = [vectorizer.get(connection, name) for name in vectorizer.names(connection)]
        return [one.name for one in found if access.lacking(connection, one)]
