"""Several worker processes on one machine: starts them, starts those again that died, has all leave together.

What follows the end of a process is said by its exit code:

- 0, 1, 2, 3: it has ended by itself, and stays so: stopped or drained, an error that another start would not mend,
  documents in quarantine;
- 75 (``EX_TEMPFAIL``): it has given its jobs back and wants a fresh process, and gets it at once;
- anything else, and every signal: it died. It is started again after a pause, which doubles from 1 s to 60 s and begins
  anew after a life of five minutes. What it had in hand is reclaimed like any dead worker's.

A process is told to leave by the end of its standard input (``leave_with_parent``), not by a signal. The end also comes
when this process is killed; it waits for a process that is still starting; and it is never mistaken for the second
signal, where a service manager has sent the first to all. Each process has a session of its own, so that a terminal's
Ctrl-C reaches this process alone. Whoever has not left after 15 s is killed.

Not promised: that a place whose process has ended by itself is filled again while others go on.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from pgvec_queue.log import get_logger

log = get_logger("pgvec.worker")

EXIT_AGAIN = os.EX_TEMPFAIL
"""Exit code of a process that wants to be started again at once."""
EXIT_DIED = os.EX_SOFTWARE
"""Exit code of a process that should be started again after a pause."""
LEAVE_PATIENCE = 15.0
"""Seconds from telling a process to leave to killing it; it needs 8 at most."""
LONG_LIFE = 300.0
LONGEST_PAUSE = 60.0

_WORST_FIRST = (1, 2, 3, 0)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one process after another runs."""

    name: str
    """What a person calls it, such as ``cuda:1``."""
    arguments: Sequence[str]
    """The command line, program included."""
    environment: Mapping[str, str]


class Pauses:
    """How long to wait before a process that died is started again."""

    def __init__(self, first: float = 1.0) -> None:
        self._first = first
        self._next = first

    def after(self, lived: float) -> float:
        """Returns the seconds to wait after a process that lived for ``lived`` seconds."""
        if lived >= LONG_LIFE:
            self._next = self._first
        pause, self._next = self._next, min(self._next * 2, LONGEST_PAUSE)
        return pause


@dataclass(slots=True)
class _Child:
    """A place, and what is there now."""

    place: Place
    pauses: Pauses
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    due: float | None = field(default_factory=time.monotonic)
    """When to start the next process; None: one runs, or none will."""

    @property
    def ended(self) -> bool:
        return self.process is None and self.due is None


class Supervisor:
    """Keeps one process running in each place; ``run`` returns when all have ended."""

    def __init__(self, places: Sequence[Place], *, stderr: int | None = None, first_pause: float = 1.0) -> None:
        """``stderr`` is a file descriptor for what the processes say there; None: this process's own."""
        self._children = [_Child(place, Pauses(first_pause)) for place in places]
        self._stderr = stderr
        self._events: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._codes: set[int] = set()
        self._patience_ends: float | None = None
        self.stopped = False
        """It was told to leave."""

    def stop(self) -> None:
        """Has all processes leave in order; safe to call from a signal handler and from any thread."""
        self.stopped = True
        self._events.put(None)

    def kill(self) -> None:
        """Ends all processes at once; safe to call from a signal handler."""
        for child in self._children:
            if child.process is not None:
                child.process.kill()

    def run(self) -> int:
        """Starts and watches the processes until all have ended; returns their worst exit code: 1, then 2, 3, 0.

        Only in the main thread, where the end of a process makes itself heard.
        """
        before = signal.signal(signal.SIGCHLD, lambda *_: self._events.put(None))
        try:
            while not all(child.ended for child in self._children):
                self._wait()
                for child in self._children:
                    self._attend(child)
                self._lose_patience()
        finally:
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)
        return next((code for code in _WORST_FIRST if code in self._codes), 0)

    def _attend(self, child: _Child) -> None:
        """Does what is due for one place."""
        if child.process is not None and (code := child.process.poll()) is not None:
            self._bury(child, child.process, code)
        if self.stopped:
            self._tell_to_leave(child)
        elif child.due is not None and time.monotonic() >= child.due:
            self._start(child)

    def _start(self, child: _Child) -> None:
        child.started = time.monotonic()
        try:
            child.process = subprocess.Popen(
                child.place.arguments,
                env=child.place.environment,
                stdin=subprocess.PIPE,
                stderr=self._stderr,
                start_new_session=True,
            )
        except OSError as error:
            self._start_later(child, f"could not be started: {error.strerror}")
        else:
            child.due = None

    def _bury(self, child: _Child, process: subprocess.Popen[bytes], code: int) -> None:
        """Takes note of the end of a process, and of when the next one begins."""
        child.process = None
        assert process.stdin is not None
        process.stdin.close()
        if code in _WORST_FIRST:
            self._codes.add(code)
            log.log(_level(code), "process has ended", process=child.place.name, code=code)
        elif self.stopped:
            log.debug("process died while it left", process=child.place.name, error=_how(code))
        elif code == EXIT_AGAIN:
            log.info("process begins afresh", process=child.place.name)
            child.due = time.monotonic()
        else:
            self._start_later(child, _how(code))

    def _start_later(self, child: _Child, why: str) -> None:
        now = time.monotonic()
        pause = child.pauses.after(now - child.started)
        child.due = now + pause
        log.warning("process is to be started again", process=child.place.name, seconds=pause, error=why)

    def _tell_to_leave(self, child: _Child) -> None:
        child.due = None
        if child.process is None:
            return
        assert child.process.stdin is not None
        if not child.process.stdin.closed:
            child.process.stdin.close()
            self._patience_ends = time.monotonic() + LEAVE_PATIENCE

    def _lose_patience(self) -> None:
        if self._patience_ends is not None and time.monotonic() >= self._patience_ends:
            self._patience_ends = None
            self.kill()

    def _wait(self) -> None:
        """Waits until a process has ended, until told to leave, or until something is due."""
        times = [moment for moment in (*(c.due for c in self._children), self._patience_ends) if moment is not None]
        with suppress(queue.Empty):
            self._events.get(timeout=max(min(times) - time.monotonic(), 0) if times else None)


def leave_with_parent(leave: Callable[[], None]) -> None:
    """Calls ``leave`` from a thread of its own once standard input has ended: the supervisor says so, or is gone."""

    def watch() -> None:
        with suppress(OSError):
            while os.read(0, 1):
                pass
        leave()

    threading.Thread(target=watch, name="pgvec-parent", daemon=True).start()


def _level(code: int) -> int:
    return logging.ERROR if code in (1, 2) else logging.DEBUG


def _how(code: int) -> str:
    """Says how a process died."""
    if code >= 0:
        return f"died with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
