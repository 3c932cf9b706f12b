"""Real worker processes for a measure: started before anything is timed, ended by their process ids.

They have a session of their own, so Ctrl-C in a terminal ends the bench, which then ends them.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from pgvec_queue.bench.database import Arena
from pgvec_queue.database import statement
from pgvec_queue.errors import PgvecError

START_SECONDS = 600.0
"""Longest that all of them may take to register: 64 on two cores take minutes."""
_END_SECONDS = 30.0
# Seldom: whoever looks takes from what is measured, and the database's clock tells when it ended.
_POLL = 0.2


@dataclass(frozen=True, slots=True)
class Process:
    """One worker process, and where its log goes."""

    running: subprocess.Popen[bytes]
    log: IO[bytes]

    def last_words(self) -> str:
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


class Fleet:
    """Running workers of one arena."""

    def __init__(self, arena: Arena, processes: Sequence[Process]) -> None:
        self._arena = arena
        self._processes = processes

    def check(self) -> None:
        """Raises ``PgvecError`` when one of them has ended: nothing is measured any more then."""
        for process in self._processes:
            code = process.running.poll()
            if code is not None:
                raise PgvecError(f"a worker of the bench ended with exit code {code}: {process.last_words()}")

    def wait(self, what: str, seconds: float, condition: Callable[[], bool]) -> None:
        """Returns once ``condition()`` holds; raises ``PgvecError`` when that takes longer, or a worker ends."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.check()
            if time.monotonic() > deadline:
                raise PgvecError(f"{what} took longer than {seconds:.0f} s")
            time.sleep(_POLL)

    def calm_down(self) -> None:
        """Waits for as long as they go on looking for what a NOTIFY promised them: a large fleet takes its time."""
        time.sleep(0.1 + 0.006 * len(self._processes))

    def rows(self) -> list[dict[str, Any]]:
        """Returns what the workers tell of themselves: the rows of ``pgvec.workers``."""
        return [row for (row,) in self._arena.connection.execute(statement("bench", "workers")).fetchall()]


@contextmanager
def fleet(
    arena: Arena, commands: Sequence[Sequence[str]], *, environment: Mapping[str, str] | None = None
) -> Generator[Fleet]:
    """Starts one `pgvec work` per list of arguments, waits until all are registered, and ends them afterwards."""
    processes: list[Process] = []
    try:
        # One by one: what has been started is ended even where the next one cannot be.
        for arguments in commands:
            processes += [_start(arena, arguments, environment or {})]
        started = Fleet(arena, processes)
        started.wait("starting the workers", START_SECONDS, lambda: arena.registered() >= len(processes))
        yield started
    finally:
        _end(processes)


def _start(arena: Arena, arguments: Sequence[str], environment: Mapping[str, str]) -> Process:
    # Not what the user's own workers are told: whatever is measured stands in the report's parameters.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PGVEC_")}
    log = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
    running = subprocess.Popen(
        [sys.executable, "-m", "pgvec_queue", "work", *arguments],
        env={**inherited, **environment, "PGVEC_DSN": arena.dsn},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=log,
        start_new_session=True,
    )
    return Process(running, log)


def _end(processes: Sequence[Process]) -> None:
    for process in processes:
        if process.running.poll() is None:
            process.running.terminate()
    reap([process.running for process in processes])
    for process in processes:
        process.log.close()


def reap(processes: Sequence[subprocess.Popen[Any]]) -> None:
    """Waits until processes that were told to leave have left, and ends those that take too long."""
    deadline = time.monotonic() + _END_SECONDS
    for process in processes:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
