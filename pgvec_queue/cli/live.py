"""Live progress on a terminal: a bar per vectorizer with rate and time left, redrawn a few times a second."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import psycopg
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from pgvec_queue import progress
from pgvec_queue.cli.texts import duration, rate
from pgvec_queue.database import Connection, Database
from pgvec_queue.errors import DatabaseError

_EVERY = 0.5


class Live:
    """Shows the progress of vectorizers on stderr while inside; reads the view on a connection of its own."""

    def __init__(self, database: Database, names: Sequence[str] | None) -> None:
        self._database = database
        self._names = names
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="pgvec-live", daemon=True)
        self._tasks: dict[str, TaskID] = {}
        self._display = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed:,.0f} of {task.total:,.0f} rows"),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[left]}"),
            console=Console(stderr=True),
            expand=True,
        )

    def __enter__(self) -> Live:
        self._display.start()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
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
            if (self._names and one.name not in self._names) or one.state in ("paused", "cancelled"):
                continue
            if one.name not in self._tasks:
                if one.state == "complete":
                    continue
                self._tasks[one.name] = self._display.add_task(one.name, total=0, rate="", left="")
            left = "" if one.state == "complete" else one.reason or duration(one.eta_seconds)
            self._display.update(
                self._tasks[one.name],
                total=one.rows_total,
                completed=one.rows_done + one.rows_failed,
                rate=rate(one.rows_per_second, one.chunks_per_second) if one.state == "active" else "",
                left=left,
            )
