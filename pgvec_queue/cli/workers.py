"""``pgvec workers``: who works, and telling those of a host to leave."""

from __future__ import annotations

import json
from typing import Any

import click
from psycopg.rows import dict_row
from rich.table import Table

from pgvec_queue import queue
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.texts import console, duration, plain, rate
from pgvec_queue.cli.types import Text
from pgvec_queue.database import Connection, statement

_NUMBERS = ("jobs", "busy", "documents/s", "loads", "cache", "last beat")


@click.command()
@click.argument("action", required=False, type=click.Choice(["stop"]))
@click.argument("host", required=False, type=Text())
@click.option("--all", "everywhere", is_flag=True, help="With stop: the workers of every host.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per worker and line.")
@command
def workers(session: Session, *, action: str | None, host: str | None, everywhere: bool, as_json: bool) -> None:
    """List the workers: where they run, what they do, and when they were last heard of.

    `pgvec workers stop HOST` tells those of a host to leave, as by SIGTERM: they finish the slice in hand and give the
    rest back. Whoever starts them anew (systemd with Restart=always, Kubernetes) is not told.
    """
    if action is None and everywhere:
        raise click.UsageError("--all belongs to `pgvec workers stop`")
    if action == "stop" and (host is None) is not everywhere:
        raise click.UsageError("say whose workers are to leave: pgvec workers stop HOST, or pgvec workers stop --all")
    if action == "stop" and as_json:
        raise click.UsageError("--json belongs to the list of workers")
    connection, _ = session.connect_checked("workers")
    if action == "stop":
        _stop(connection, host)
    else:
        _list(connection, as_json=as_json)


def _stop(connection: Connection, host: str | None) -> None:
    told = queue.stop_workers(connection, host)
    where = f" of {host}" if host else ""
    if told:
        click.echo(f"{told} worker{'s' if told > 1 else ''}{where} {'are' if told > 1 else 'is'} leaving.")
        return
    there = sorted({str(row["host"]) for row in _rows(connection) if row["state"] != "gone"})
    hint = f"there are workers on: {', '.join(there)}" if there else "no worker is running"
    click.echo(f"pgvec: no worker{where} is there to be told; {plain(hint)}", err=True)


def _list(connection: Connection, *, as_json: bool) -> None:
    rows = _rows(connection)
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, default=str))
        return
    if not rows:
        click.echo("pgvec: no worker is running; start one with `pgvec work`", err=True)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("worker", "host", "pid", "state", "device", *_NUMBERS, "rate", "at", "models"):
        table.add_column(title, justify="right" if title in _NUMBERS else "left", overflow="fold")
    for row in rows:
        table.add_row(
            str(row["worker_id"]),
            plain(row["host"]),
            str(row["pid"]),
            row["state"],
            row["device"] or "",
            str(row["jobs"]),
            "" if row["busy"] is None else f"{row['busy']:.0%}",
            "" if row["documents_per_second"] is None else f"{row['documents_per_second']:,.0f}",
            str(row["loads"]),
            _cache(row),
            f"{duration(row['since_beat'].total_seconds())} ago",
            rate(row["rows_per_second"]),
            plain(_at(row)),
            plain(", ".join(row["models"])),
        )
    console().print(table)


def _cache(row: dict[str, Any]) -> str:
    """How many vectors it remembers, and which share of the chunks looked for was there."""
    if row["cache_chunks"] is None:
        return ""
    share = f" ({row['cache_hits'] / row['cache_lookups']:.0%})" if row["cache_lookups"] else ""
    return f"{row['cache_chunks']:,}{share}"


def _at(row: dict[str, Any]) -> str:
    """What a worker has in hand, and how far that is."""
    if row["job_id"] is None:
        return str(row["waiting_for"] or "")
    checkpoint = f" after {row['checkpoint']}" if row["checkpoint"] else ""
    return f"{row['vectorizer']} job {row['job_id']}{checkpoint}"


def _rows(connection: Connection) -> list[dict[str, Any]]:
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(statement("progress", "workers")).fetchall()
