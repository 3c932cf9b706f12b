"""Live progress on a terminal: a bar per vectorizer with rate and time left, redrawn a few times a second."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import psycopg
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Column

from pgvec_queue import progress
from pgvec_queue.cli.texts import console, duration, plain, rate
from pgvec_queue.database import Connection, Database
from pgvec_queue.errors import DatabaseError

_EVERY = 0.5


@contextmanager
def relayed() -> Iterator[int | None]:
    """Yields a file descriptor for what other processes say, so that it stands above a display and not in it.

    None where stderr is no terminal, and can be shared as it is.
    """
    if not sys.stderr.isatty():
        yield None
        return
    ours, theirs = os.pipe()

    def relay() -> None:
        # The terminal may be closed; whoever writes finds the pipe closed then, and goes on.
        with suppress(OSError), open(ours, encoding="utf-8", errors="replace") as lines:
            for line in lines:
                sys.stderr.write(line)

    thread = threading.Thread(target=relay, name="pgvec-relay", daemon=True)
    thread.start()
    try:
        yield theirs
    finally:
        os.close(theirs)
        # Not for ever: what those processes have started may still hold the other end.
        thread.join(1)


class Live:
    """Shows the progress of vectorizers while inside, where stderr is a terminal; has a connection of its own."""

    def __init__(self, database: Database, names: Sequence[str] | None) -> None:
        self._database = database
        self._names = names
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pgvec-live", daemon=True)
        self._tasks: dict[str, TaskID] = {}
        out = console(err=True)
        self._terminal = out.is_terminal
        name = Column(no_wrap=True, overflow="ellipsis", max_width=max(out.width // 4, 8))
        self._display = Progress(
            TextColumn("{task.description}", markup=False, table_column=name),
            BarColumn(bar_width=None, table_column=Column(ratio=1)),
            *(
                TextColumn(
                    f"{{task.fields[{field}]}}", markup=False, justify="right", table_column=Column(no_wrap=True)
                )
                for field in ("rows", "rate", "left")
            ),
            console=out,
            expand=True,
        )

    def __enter__(self) -> Live:
        if self._terminal:
            self._display.start()
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._terminal:
            self._stop.set()
            self._thread.join()
            # The terminal may be closed by now.
            with suppress(OSError):
                self._display.stop()

    def _watch(self) -> None:
        connection: Connection | None = None
        while True:
            last = self._stop.wait(_EVERY)
            try:
                if connection is None or connection.closed:
                    connection = self._database.connect("progress")
                self._draw(progress.read(connection))
            except (psycopg.Error, DatabaseError):
                # The worker itself says what is wrong with the database; the bar waits for it to come back.
                connection = None
            if last:
                if connection is not None:
                    connection.close()
                return

    def _draw(self, rows: Sequence[progress.Progress]) -> None:
        for one in rows:
            if self._names and one.name not in self._names:
                continue
            if one.name not in self._tasks:
                if one.state in ("complete", "paused", "cancelled"):
                    continue
                self._tasks[one.name] = self._display.add_task(plain(one.name), total=0, rows="", rate="", left="")
            done = one.rows_done + one.rows_failed
            left = duration(one.eta_seconds)
            self._display.update(
                self._tasks[one.name],
                total=one.rows_total,
                completed=done,
                rows=f"{done:,} of {one.rows_total:,} rows",
                rate=rate(one.rows_per_second) if one.state == "active" else "",
                left=f"{left} left" if one.state == "active" and left else _building(one) or one.state,
            )


def _building(one: progress.Progress) -> str | None:
    """What is still done when all rows are."""
    if one.state != "complete" or not one.index or one.index["state"] != "building":
        return None
    share = one.index["share"]
    return "index is built" if share is None else f"index {100 * share:.0f} %"
