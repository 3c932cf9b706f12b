"""``pgvec status`` and ``pgvec workers``: how far it is, and who works."""

from __future__ import annotations

import json
import sys
import time

import click
from psycopg.rows import dict_row
from rich.console import Console
from rich.live import Live
from rich.table import Table

from pgvec_queue import progress, vectorizer
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.texts import duration, rate
from pgvec_queue.database import Connection, statement


@click.command()
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object per vectorizer and line.")
@click.option("--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
@command
def status(session: Session, *, name: str | None, as_json: bool, watch: bool) -> None:
    """Show the vectorizers (or the one called NAME): rows, rate, time left, and why nothing moves."""
    connection, _ = session.connect_checked("status")
    if name is not None:
        vectorizer.get(connection, name)
    if as_json:
        _print_json(connection, name, again=watch)
    elif watch and sys.stdout.isatty():
        with Live(_table(progress.read(connection, name)), console=Console(), auto_refresh=False) as live:
            while True:
                time.sleep(1)
                live.update(_table(progress.read(connection, name)), refresh=True)
    else:
        _print_text(connection, name, again=watch)


def _print_json(connection: Connection, name: str | None, *, again: bool) -> None:
    while True:
        for one in progress.read(connection, name):
            click.echo(json.dumps(one.as_json(), ensure_ascii=False))
        if not again:
            return
        time.sleep(1)


def _print_text(connection: Connection, name: str | None, *, again: bool) -> None:
    console = Console(width=None if sys.stdout.isatty() else 160)
    while True:
        rows = progress.read(connection, name)
        if rows:
            console.print(_table(rows))
        else:
            click.echo("pgvec: there is no vectorizer yet; make one with `pgvec enqueue`", err=True)
        if not again:
            return
        time.sleep(1)


def _table(rows: list[progress.Progress]) -> Table:
    table = Table(box=None, pad_edge=False)
    for title, right in (
        ("name", False),
        ("state", False),
        ("rows", True),
        ("done", True),
        ("failed", True),
        ("chunks", True),
        ("jobs left", True),
        ("rate", True),
        ("", False),
    ):
        table.add_column(title, justify="right" if right else "left", overflow="fold")
    for one in rows:
        share = 100 * (one.rows_done + one.rows_failed) / one.rows_total if one.rows_total else 100.0
        # A share of 99.96 % is not yet 100.
        shown = "100" if share >= 100 else f"{min(share, 99.9):.1f}"
        table.add_row(
            one.name,
            one.state,
            f"{one.rows_total:,}",
            f"{one.rows_done:,} ({shown} %)",
            f"{one.rows_failed:,}",
            f"{one.chunks:,}",
            f"{one.jobs['queued'] + one.jobs['running']:,}",
            rate(one.rows_per_second, one.chunks_per_second),
            one.reason or ("" if one.state == "complete" else duration(one.eta_seconds)),
        )
    return table


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object per worker and line.")
@command
def workers(session: Session, *, as_json: bool) -> None:
    """List the workers: where they run, on what device, and when they were last heard of."""
    connection, _ = session.connect_checked("status")
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(statement("progress", "workers")).fetchall()
    if as_json:
        for row in rows:
            click.echo(json.dumps(row, default=str))
        return
    if not rows:
        click.echo("pgvec: no worker is running; start one with `pgvec work`", err=True)
        return
    table = Table(box=None, pad_edge=False)
    for title in ("worker", "host", "pid", "state", "device", "models", "jobs", "last beat"):
        table.add_column(title)
    for row in rows:
        table.add_row(
            str(row["worker_id"]),
            row["host"],
            str(row["pid"]),
            row["state"],
            row["device"] or "",
            ", ".join(row["models"]),
            str(row["jobs"]),
            f"{row['since_beat'].total_seconds():.0f} s ago",
        )
    Console(width=None if sys.stdout.isatty() else 160).print(table)
