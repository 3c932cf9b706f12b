"""Progress over the rows of a table on a terminal; nothing elsewhere, nor for a table that takes no time."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pgvec_queue.cli.texts import console, duration, plain

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_AFTER = 0.5
"""Seconds that something may take without being shown."""


class RowBar:
    """Called with the rows done after each step of a plan or a comparison."""

    def __init__(self, doing: str, name: str, rows: int | None) -> None:
        """``rows`` is how many the catalog believes there are; None: it does not know."""
        self._doing = doing
        self._name = name
        self._rows = rows
        self._started = time.monotonic()
        self._console = console(err=True)
        self._display: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> RowBar:
        return self

    def __call__(self, rows: int, note: str | None = None) -> None:
        """Shows rate and time left, or ``note`` in their place."""
        seconds = time.monotonic() - self._started
        if not self._console.is_terminal or seconds < _AFTER:
            return
        if self._display is None:
            from rich.progress import BarColumn, Progress, TextColumn
            from rich.table import Column

            name = Column(no_wrap=True, overflow="ellipsis", max_width=max(self._console.width // 4, 16))
            self._display = Progress(
                TextColumn(self._doing + " {task.description}", markup=False, table_column=name),
                BarColumn(bar_width=None, table_column=Column(ratio=1)),
                TextColumn("{task.fields[text]}", markup=False, table_column=Column(no_wrap=True)),
                console=self._console,
                expand=True,
                transient=True,
            )
            self._task = self._display.add_task(plain(self._name), total=self._rows, text="")
            self._display.start()
        # Statistics may be old: a table is never said to be done further than it is.
        total = max(self._rows, rows) if self._rows else None
        left = duration((total - rows) * seconds / rows) if total and rows else ""
        # Jobs are left out: 80 columns have to do for a hundred million rows.
        text = f"{rows:,} rows  {note or f'{rows / seconds:,.0f} rows/s  {left}'}"
        assert self._task is not None
        self._display.update(self._task, completed=rows, total=total, text=text)

    def __exit__(self, *_: object) -> None:
        if self._display is not None:
            self._display.stop()
