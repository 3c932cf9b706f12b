"""``pgvec init``: the schema."""

from __future__ import annotations

import click

from pgvec_queue import schema
from pgvec_queue.cli.common import Session, command


@click.command()
@click.option("--sql", "only_print", is_flag=True, help="Print the DDL instead of running it.")
@command
def init(session: Session, *, only_print: bool) -> None:
    """Create the schema pgvec, or upgrade it; safe to run again, and by two people at once."""
    if only_print:
        click.echo(schema.ddl())
        return
    found = schema.initialize(session.database)
    if found == schema.HEAD:
        click.echo(f"The schema pgvec is up to date (revision {schema.HEAD}).")
    elif found:
        click.echo(f"The schema pgvec was upgraded from revision {found} to {schema.HEAD}.")
    else:
        click.echo(f"The schema pgvec was created (revision {schema.HEAD}).")
