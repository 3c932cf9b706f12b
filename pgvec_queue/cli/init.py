"""``pgvec init``: the schema."""

from __future__ import annotations

import click

from pgvec_queue import roles, schema
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
    if done.made:
        click.echo(f"Made the roles {', '.join(done.made)}.")
    if done.granted:
        click.echo(f"Granted {', '.join(done.granted)} what their commands need.")
    for remark in done.remarks:
        click.echo(f"pgvec: {remark}", err=True)
    for query in done.left:
        click.echo(f"{query.rstrip(';')};")
    if done.missing:
        click.echo(
            f"pgvec: {', '.join(done.missing)} could not be made: have a DBA run the statements above, "
            "then run `pgvec init --roles` again",
            err=True,
        )
        return 1
    return 0
