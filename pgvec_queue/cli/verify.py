"""``pgvec verify``: compare a vectorizer's source with its destination, and queue what differs."""

from __future__ import annotations

import json
import time

import click
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from pgvec_queue import vectorizer
from pgvec_queue import verify as verifying
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.texts import console, duration, plain
from pgvec_queue.cli.types import Text
from pgvec_queue.fragments import Fragments
from pgvec_queue.planner import estimated_rows
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.verify import Verified

_SHOWN_AFTER = 0.5
"""Seconds that a comparison may take without being shown."""


@click.command()
@click.argument("name", type=Text())
@click.option("--fix", is_flag=True, help="Queue what differs; `pgvec work` then makes it right.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of text.")
@command
def verify(session: Session, *, name: str, fix: bool, as_json: bool) -> int:
    """Compare the source of NAME with its vectors: what is missing, stale or orphaned.

    Reads only, in short transactions, while workers and users go on. Exit code 1 where differences remain.
    """
    connection, versions = session.connect_checked("verify")
    found = vectorizer.get(connection, name)
    fragments = Fragments(found, versions.vector_schema)
    with _Bar(name, estimated_rows(connection, found)) as bar:
        verified = verifying.verify(connection, fragments, fix=fix, progress=bar)
    if as_json:
        click.echo(json.dumps(verified.as_json()))
    else:
        click.echo(_summary(verified))
    _tell_examples(verified)
    _tell_limits(found, verified)
    left = verified.differences - verified.fixed
    if left:
        click.echo(f"pgvec: {_differences(left)} in {name}; `pgvec verify {name} --fix` queues what is wrong", err=True)
        return 1
    if verified.fixed:
        click.echo(f"pgvec: {_differences(verified.fixed)} queued; `pgvec work` makes them right", err=True)
    return 0


def _summary(verified: Verified) -> str:
    stale = "unknown" if verified.stale is None else f"{verified.stale:,}"
    return (
        f"{plain(verified.name)}: {verified.rows:,} rows compared in {verified.seconds:.1f} s: "
        f"{verified.missing:,} missing, {stale} stale, {verified.orphaned:,} orphaned, "
        f"{verified.quarantined:,} in quarantine"
    )


def _tell_examples(verified: Verified) -> None:
    for kind, keys in verified.examples.items():
        if keys:
            count = getattr(verified, kind)
            shown = "; ".join(plain(", ".join(key)) for key in keys)
            more = "; …" if count is not None and count > len(keys) else ""
            click.echo(f"pgvec: {kind}: {shown}{more}", err=True)


def _tell_limits(found: Vectorizer, verified: Verified) -> None:
    """Says what the numbers do not mean."""
    if verified.unfinished_jobs:
        jobs = "1 job is" if verified.unfinished_jobs == 1 else f"{verified.unfinished_jobs:,} jobs are"
        click.echo(f"pgvec: {jobs} unfinished: the figures include what is still queued", err=True)
    if verified.stale is None:
        click.echo(
            f"pgvec: {found.destination} has no column for the hash of a text: whether one has changed is unknown",
            err=True,
        )


def _differences(count: int) -> str:
    return "1 difference" if count == 1 else f"{count:,} differences"


class _Bar:
    """Progress on a terminal; nothing elsewhere, nor for a table that is compared at once."""

    def __init__(self, name: str, rows: int | None) -> None:
        """``rows`` is how many the catalog believes there are; None: it does not know."""
        self._name = name
        self._rows = rows
        self._started = time.monotonic()
        self._console = console(err=True)
        self._display: Progress | None = None
        self._task = TaskID(0)

    def __enter__(self) -> _Bar:
        return self

    def __call__(self, rows: int, looked_up: int) -> None:
        seconds = time.monotonic() - self._started
        if not self._console.is_terminal or seconds < _SHOWN_AFTER:
            return
        if self._display is None:
            name = Column(no_wrap=True, overflow="ellipsis", max_width=max(self._console.width // 4, 16))
            self._display = Progress(
                TextColumn("comparing {task.description}", markup=False, table_column=name),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
                console=self._console,
                expand=True,
                transient=True,
            )
            self._task = self._display.add_task(plain(self._name), total=self._rows, text="")
            self._display.start()
        # Statistics may be old: a table is never said to be compared further than it is.
        total = max(self._rows, rows) if self._rows else None
        if looked_up:
            text = f"{rows:,} rows  {looked_up:,} chunks looked up"
        else:
            left = duration((total - rows) * seconds / rows) if total and rows else ""
            text = f"{rows:,} rows  {rows / seconds:,.0f} rows/s  {left}"
        self._display.update(self._task, completed=rows, total=total, text=text)

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            self._display.stop()
