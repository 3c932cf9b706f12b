"""``pgvec status``: how far each vectorizer is, and why nothing moves."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import Any

import click
from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table

from pgvec_queue import model_migration, progress, vectorizer
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.texts import console, duration, plain, rate, size, time_left
from pgvec_queue.cli.types import Text
from pgvec_queue.database import Connection

_WIDE = 120
"""Columns of a terminal that has room for everything; a narrower one shows the rest with --json."""


@click.command()
@click.argument("name", required=False, type=Text())
@click.option("--json", "as_json", is_flag=True, help="One JSON object per vectorizer and line.")
@click.option("--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
@command
def status(session: Session, *, name: str | None, as_json: bool, watch: bool) -> None:
    """Show the vectorizers (or the one called NAME): rows, rate, time left, and why nothing moves."""
    connection, _ = session.connect_checked("status")
    if name is not None:
        vectorizer.get(connection, name)
    try:
        if as_json:
            _print_json(connection, name, again=watch)
        elif watch and sys.stdout.isatty():
            _watch(connection, name)
        else:
            _print_text(connection, name, again=watch)
    except KeyboardInterrupt:
        # That is how watching ends.
        if not watch:
            raise


def _print_json(connection: Connection, name: str | None, *, again: bool) -> None:
    while True:
        open_ = model_migration.overview(connection)
        for one in progress.read(connection, name):
            click.echo(
                json.dumps(
                    one.as_json() | {"migration": open_[one.name].as_json(one.name) if one.name in open_ else None}
                )
            )
        if not again:
            return
        time.sleep(1)


def _watch(connection: Connection, name: str | None) -> None:
    out = console()
    with Live(_read(connection, name, out.width), console=out, auto_refresh=False) as live:
        while True:
            time.sleep(1)
            live.update(_read(connection, name, out.width), refresh=True)


def _print_text(connection: Connection, name: str | None, *, again: bool) -> None:
    out = console()
    while True:
        rows = progress.read(connection, name)
        if rows:
            out.print(_shown(rows, out.width, model_migration.overview(connection)))
        else:
            click.echo("pgvec: there is no vectorizer yet; make one with `pgvec enqueue`", err=True)
        if not again:
            return
        time.sleep(1)


def _read(connection: Connection, name: str | None, width: int) -> RenderableType:
    return _shown(progress.read(connection, name), width, model_migration.overview(connection))


def _shown(rows: list[progress.Progress], width: int, open_: Mapping[str, model_migration.Open]) -> RenderableType:
    """Returns the table, and below it, in a line each, why something does not move, what becomes another's, and what
    was not done twice.
    """
    reasons = [f"{plain(one.name)}: {plain(one.reason)}" for one in rows if one.reason]
    moves = [
        f"{plain(one.name)}: {'switched' if found.switched else 'on its way'} to {plain(found.model)}, "
        f"beside {plain(found.waits)}: pgvec migrate-model {plain(one.name)}"
        for one in rows
        if (found := open_.get(one.name)) is not None and found.reads == one.name
    ]
    spared = [f"{plain(one.name)}: not embedded again: {saved}" for one in rows if (saved := _saved(one))]
    indexes = [f"{plain(one.name)}: {line}" for one in rows if one.index and (line := _index(one.index))]
    return Group(_table(rows, wide=width >= _WIDE), *reasons, *moves, *indexes, *spared)


def _saved(one: progress.Progress) -> str:
    """What the model was not given, since its vectors were known: since the vectorizer was made."""
    counts = (
        (one.rows_unchanged, "row{s} unchanged"),
        (one.chunks_kept, "chunk{s} of changed rows"),
        (one.chunks_reused, "chunk{s} twice in one call"),
        (one.chunks_cached, "chunk{s} from a worker's cache"),
    )
    return ", ".join(f"{count:,} {what.format(s='' if count == 1 else 's')}" for count, what in counts if count)


def _index(index: dict[str, Any]) -> str:
    """Returns what there is to say of an index; nothing where none is wanted."""
    reason = f": {plain(index['reason'])}" if index["reason"] else ""
    match index["state"]:
        case "built":
            known = f", recall@10 {index['recall']:.3f}" if index["recall"] is not None else ""
            return f"index {plain(index['name'])}, {size(index['size_bytes'] or 0)}{known}{reason}"
        case "building":
            waits = f", waits for {plain(index['waiting_for'])}" if index["waiting_for"] else ""
            share = f" {100 * index['share']:.0f} %" if index["share"] is not None else ""
            parts = f"{index['partitions_built']} of {index['partitions']} partitions; " if index["partitions"] else ""
            return f"index is being built{share} ({parts}{plain(index['phase'] or 'begins')}){waits}"
        case "wanted":
            done = f" ({index['partitions_built']} of {index['partitions']} partitions are)"
            built = done if index["partitions_built"] else ""
            return f"index is built when no range is unfinished{built}{reason}"
        case "refused" | "missing":
            return f"no index{reason}"
    return ""


def _table(rows: list[progress.Progress], *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("name", overflow="fold")
    table.add_column("state", no_wrap=True)
    synced = any(one.sync for one in rows)
    titles = ("rows", "done", "failed", *(("chunks", "jobs left") if wide else ()), "rate", "left")
    for title in (*titles, *(("lag",) if synced else ())):
        table.add_column(title, justify="right", no_wrap=True)
    for one in rows:
        share = 100 * (one.rows_done + one.rows_failed) / one.rows_total if one.rows_total else 100.0
        # A share of 99.96 % is not yet 100.
        shown = "100 %" if share >= 100 else f"{min(share, 99.9):.1f} %"
        moving = one.state == "active"
        table.add_row(
            plain(one.name),
            one.state,
            f"{one.rows_total:,}",
            f"{one.rows_done:,} ({shown})" if wide else shown,
            f"{one.rows_failed:,}",
            *((f"{one.chunks:,}", f"{one.jobs['queued'] + one.jobs['running']:,}") if wide else ()),
            rate(one.rows_per_second, one.chunks_per_second if wide else None) if moving else "",
            time_left(one.eta_seconds, one.eta_low_seconds, one.eta_high_seconds, wide=wide) if moving else "",
            *((_lag(one),) if synced else ()),
        )
    return table


def _lag(one: progress.Progress) -> str:
    """How long the oldest live change has been waiting."""
    if one.lag_seconds is None:
        return ""
    return f"{one.lag_seconds:.1f} s" if one.lag_seconds < 60 else duration(one.lag_seconds)
