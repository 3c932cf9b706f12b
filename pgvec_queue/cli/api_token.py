"""``pgvec api-token``: tokens for the gateway."""

from __future__ import annotations

import json
from datetime import datetime

import click
from rich.table import Table

from pgvec_queue import api_tokens
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.texts import console, plain
from pgvec_queue.cli.types import NewName, Number, Text


@click.group("api-token")
def api_token() -> None:
    """Make, list and revoke the tokens that the gateway (pgvec serve) asks for."""


@api_token.command()
@click.option("--name", required=True, type=NewName(), metavar="NAME", help="Whose or what for it is.")
@click.option("--role", required=True, type=click.Choice(api_tokens.ROLES), help="What it may do.")
@click.option(
    "--expires", type=Number(0.001, 36_500), metavar="DAYS", help="How long it is valid.  [default: for ever]"
)
@command
def create(session: Session, *, name: str, role: api_tokens.Role, expires: float | None) -> None:
    """Make a token and print it, this once: only its digest is kept.

    The role read searches and looks, write adds and deletes texts as well, admin may do everything.
    """
    connection, _ = session.connect_checked("api-token")
    click.echo(api_tokens.create(connection, name, role, days=expires))


@api_token.command("list")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per token and line.")
@command
def list_(session: Session, *, as_json: bool) -> None:
    """List the tokens: names, roles, states, never a token itself.

    When each was last used is known to the minute.
    """
    connection, _ = session.connect_checked("api-token")
    found = api_tokens.listed(connection)
    if as_json:
        for one in found:
            click.echo(
                json.dumps(
                    {
                        "name": one.name,
                        "role": one.role,
                        "state": one.state,
                        "created_at": _iso(one.created_at),
                        "expires_at": _iso(one.expires_at),
                        "revoked_at": _iso(one.revoked_at),
                        "last_used_at": _iso(one.last_used_at),
                    }
                )
            )
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("name", "role", "state", "made", "expires", "last used"):
        table.add_column(heading)
    for one in found:
        times = (one.created_at, one.expires_at, one.last_used_at)
        table.add_row(plain(one.name), one.role, one.state, *map(_local, times))
    if found:
        console().print(table)
    else:
        click.echo("pgvec: there is no token; make one with `pgvec api-token create`", err=True)


@api_token.command()
@click.argument("name", type=Text())
@command
def revoke(session: Session, *, name: str) -> None:
    """End the token NAME; running gateways refuse it within seconds."""
    connection, _ = session.connect_checked("api-token")
    api_tokens.revoke(connection, name)


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment is not None else None


def _local(moment: datetime | None) -> str:
    return moment.astimezone().strftime("%Y-%m-%d %H:%M") if moment is not None else ""
