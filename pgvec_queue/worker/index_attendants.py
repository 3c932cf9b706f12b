"""Who attends to a build or a drop for a worker: ends it with the worker, and says how far it is and what it waits for
(``index_statements.Attendant``).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from pgvec_queue.database import Connection, statement
from pgvec_queue.index_room import Room
from pgvec_queue.index_statements import Step
from pgvec_queue.log import get_logger
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker.link import Link
from pgvec_queue.worker.state import State, StoppedError
from pgvec_queue.worker.work import IndexRun

log = get_logger("pgvec.worker")

_TOLD_EVERY = 2.0
_CLEARING = 2.0
"""Seconds that a worker which is done takes to drop what a build has left."""


def is_wanted(connection: Connection, one: Vectorizer) -> bool:
    """Whether it is still wanted, and its vectorizer there."""
    row = connection.execute(statement("index", "state"), {"vectorizer": one.id}).fetchone()
    return row is not None and row[0] != "unwanted"


class Clearing:
    """Attends to the drop of what is left, for as long as the worker is there, and a moment longer in a drain."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._until: float | None = None

    def stopped(self) -> bool:
        if self._state.drained.is_set() and self._until is None:
            self._until = time.monotonic() + _CLEARING
        return (
            self._state.stopping.is_set()
            or self._state.aborted.is_set()
            or (self._until is not None and time.monotonic() >= self._until)
        )

    def waits(self, what: str | None) -> None:
        """Nobody waits for it."""

    def begins(self, index: str, given: Room, step: Step) -> None:
        """Nothing is built."""

    def built(self, step: Step) -> None:
        """Nothing is built."""

    def goes_on(self, backend: int) -> None:
        """Nobody asks how far it is."""


class Watcher:
    """Attends to a build for a worker: ends it with the worker, and tells `status` what it waits for."""

    def __init__(self, link: Link, state: State, run: IndexRun, one: Vectorizer, advanced: Callable[[], None]) -> None:
        self._link = link
        self._state = state
        self._run = run
        self._vectorizer = one.name
        self._one = one
        self._advanced = advanced
        self._look_at = self._wanted_at = 0.0
        self.name = f"the index of {one.name}"

    def stopped(self) -> bool:
        """Whether the worker is to end, or the build: somebody may not want it any more, or nobody has it any more."""
        now = time.monotonic()
        if not self._is_told() and now >= self._wanted_at:
            self._wanted_at = now + _TOLD_EVERY
            try:
                if not self._link.call(lambda connection: is_wanted(connection, self._one)):
                    self._run.stopped = True
            except StoppedError:
                return True
        return self._is_told()

    def _is_told(self) -> bool:
        return self._run.stopped or self._state.stopping.is_set() or self._state.aborted.is_set()

    def waits(self, what: str | None) -> None:
        if what is None:
            self._state.waits.pop(self.name, None)
        else:
            self._state.waits[self.name] = f"{self.name}: waits, since {what}"

    def built(self, step: Step) -> None:
        self._advanced()
        log.info(
            "index of a partition is built",
            vectorizer=self._vectorizer,
            part=f"{step.number} of {step.of}",
            rows=round(step.vectors),
        )

    def begins(self, index: str, given: Room, step: Step) -> None:
        log.info(
            "index is being built",
            vectorizer=self._vectorizer,
            index=index,
            memory=given.memory,
            workers=given.workers,
            part=f"{step.number} of {step.of}" if step.of > 1 else None,
            error=given.remark,
        )

    def goes_on(self, backend: int) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _TOLD_EVERY
        row = self._link.call(
            lambda connection: connection.execute(statement("index", "building"), {"pid": backend}).fetchone()
        )
        pid, who, seconds = row[3:6] if row else (None, None, None)
        self.waits(None if pid is None else f"a transaction of {who} (pid {pid}) has been open for {seconds:.0f} s")
