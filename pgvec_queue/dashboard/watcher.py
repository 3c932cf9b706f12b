"""Asks the database, in a thread of its own: reads a snapshot about once a second, and does what keys ask for.

It holds the dashboard's one connection. One that is lost is made anew, after pauses that grow to a few seconds; one
that does not answer at all is given up by ``look_after``, which another thread calls now and then. Reading takes a
tenth of the time: where it is slow, it is done less often.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import psycopg

from pgvec_queue import vectorizer
from pgvec_queue.cli.texts import documents
from pgvec_queue.dashboard.snapshot import Snapshot, read
from pgvec_queue.database import Connection, Database, one_line
from pgvec_queue.errors import PgvecError
from pgvec_queue.route import sever

Action = Literal["pause", "resume", "retry"]

EVERY = 1.0
"""Seconds between two looks."""
_SHARE = 0.1
"""Of the time, at most, that goes into looking."""
_SELDOM = 10.0
"""Seconds between two looks, at most."""
_FIRST_PAUSE = 0.5
_LONGEST_PAUSE = 5.0
SILENCE = 3.0
"""Seconds without an answer after which it is said."""
_GIVEN_UP = {"look": 30.0, "pause": 30.0, "resume": 30.0, "retry": 330.0}
"""Seconds without an answer after which a connection is taken for dead; all of these have timeouts that are shorter."""
_UNDONE = {"pause": "paused", "resume": "resumed", "retry": "retried"}


@dataclass(frozen=True, slots=True)
class Outage:
    """Since when nothing can be read, why, and when it is tried again."""

    since: float
    """By ``time.monotonic()``, as all times here."""
    clock: str
    lost: bool
    """There is no connection; otherwise the database answers, but refuses."""
    reason: str
    again_at: float


@dataclass(frozen=True, slots=True)
class Picture:
    """What was seen last, and what is wrong since."""

    snapshot: Snapshot | None = None
    clock: str = ""
    outage: Outage | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a key, in a line."""

    text: str
    wrong: bool = False


class Watcher:
    """The thread that asks; ``picture``, ``answers`` and ``failed`` are for the thread that shows."""

    def __init__(self, database: Database, connection: Connection, wake: Callable[[], None]) -> None:
        """Takes over ``connection``, which is open. Calls ``wake`` whenever there is something new to show."""
        self.picture = Picture()
        self.answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()
        self.failed: BaseException | None = None
        """What ended the thread, if that was no outage: an error of ours."""
        self._database = database
        self._connection: Connection | None = connection
        self._wake = wake
        self._chosen: str | None = None
        self._asked: queue.SimpleQueue[tuple[Action, str] | None] = queue.SimpleQueue()
        self._waiting: tuple[str, float] | None = None
        """For what the database is being waited for, and since when."""
        self._pause = _FIRST_PAUSE
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pgvec-dashboard", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. One whose call hangs is left behind: its statement has a timeout, and the process ends."""
        self._stop.set()
        self._asked.put(None)
        self._thread.join(0.5)

    def choose(self, name: str | None) -> None:
        """Has the failures of this vectorizer read, at once."""
        self._chosen = name
        # An outage has pauses of its own.
        if self.picture.outage is None:
            self._asked.put(None)

    def ask(self, action: Action, name: str) -> None:
        """Has something done to a vectorizer; an ``Answer`` follows. Without a connection it is not done, nor later."""
        self._asked.put((action, name))

    def silent_for(self) -> float:
        """Returns for how many seconds an answer has been waited for; 0 when none is."""
        waiting = self._waiting
        return 0.0 if waiting is None else time.monotonic() - waiting[1]

    def look_after(self) -> None:
        """Gives up a connection whose other end has gone silent; what waits for it then fails, as on any lost one."""
        connection, waiting = self._connection, self._waiting
        if connection is not None and waiting is not None and self.silent_for() > _GIVEN_UP[waiting[0]]:
            sever(connection)

    def _run(self) -> None:
        try:
            next_at = self._look()
            while not self._stop.is_set():
                if (asked := self._wait(next_at)) is not None:
                    self.answers.put(self._do(*asked))
                if not self._stop.is_set():
                    next_at = self._look()
        except BaseException as error:  # noqa: BLE001 - the thread that shows raises it
            self.failed = error
            self._tell()
        finally:
            if self._connection is not None:
                self._connection.close()

    def _wait(self, until: float) -> tuple[Action, str] | None:
        """Returns what is asked for, as soon as it is; None when it is time to look, or something else was chosen."""
        try:
            asked = self._asked.get(timeout=max(until - time.monotonic(), 0))
            # Several choices are one look.
            while asked is None and not self._stop.is_set():
                asked = self._asked.get_nowait()
        except queue.Empty:
            return None
        return asked

    def _look(self) -> float:
        """Reads a picture; returns when the next one is due."""
        began = time.monotonic()
        self._waiting = ("look", began)
        try:
            if self._connection is None:
                self._connection = self._database.connect("dashboard")
            snapshot = read(self._connection, self._chosen)
        except (psycopg.Error, PgvecError) as error:
            return self._missed(error)
        else:
            self._pause = _FIRST_PAUSE
            self.picture = Picture(snapshot, time.strftime("%H:%M:%S"))
            took = time.monotonic() - began
            return began + max(EVERY, min(took / _SHARE, _SELDOM))
        finally:
            self._waiting = None
            self._tell()

    def _tell(self) -> None:
        # Whoever was told may be gone after a stop.
        if not self._stop.is_set():
            self._wake()

    def _missed(self, error: Exception) -> float:
        """Notes an outage; returns when to try again."""
        now = time.monotonic()
        lost = self._connection is None or self._connection.closed
        if lost and self._connection is not None:
            self._connection.close()
            self._connection = None
        pause, self._pause = self._pause, min(2 * self._pause, _LONGEST_PAUSE)
        before = self.picture.outage
        since, clock = (before.since, before.clock) if before else (now, time.strftime("%H:%M:%S"))
        outage = Outage(since, clock, lost, one_line(error), now + pause)
        self.picture = Picture(self.picture.snapshot, self.picture.clock, outage)
        return now + pause

    def _do(self, action: Action, name: str) -> Answer:
        connection = self._connection
        if connection is None:
            return Answer(f"{name} could not be {_UNDONE[action]}: there is no connection", wrong=True)
        self._waiting = (action, time.monotonic())
        try:
            return Answer(_done(connection, action, name))
        except (psycopg.Error, PgvecError) as error:
            return Answer(f"{name} could not be {_UNDONE[action]}: {one_line(error)}", wrong=True)
        finally:
            self._waiting = None


def _done(connection: Connection, action: Action, name: str) -> str:
    """Does what the command of the same name does; returns what there is to say of it."""
    if action == "retry":
        return f"{name}: {documents(vectorizer.retry(connection, name))} queued again"
    vectorizer.steer(connection, name, action)
    return f"{name} is paused" if action == "pause" else f"{name} goes on"
