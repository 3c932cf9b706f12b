"""Processes full of simulated workers, and what happens around them while a window of time passes.

The processes have a session of their own, so Ctrl-C in a terminal ends the bench, which then ends them; they leave by
themselves when the bench is gone.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from typing import IO

import psycopg

from pgvec_queue import queue
from pgvec_queue.bench.database import Arena
from pgvec_queue.bench.fleet import reap
from pgvec_queue.bench.pooler import Pooler
from pgvec_queue.bench.processor import ServerClock
from pgvec_queue.bench.simulated import Recorded, Settings
from pgvec_queue.database import statement
from pgvec_queue.errors import PgvecError

START_SECONDS = 300.0
_LOOK = 0.2
_WAITS_PER_SECOND = 5
_NOTIFY_SECONDS = 1.0


@dataclass(slots=True)
class Window:
    """What was seen while some seconds passed. Lists are those of all processes together."""

    seconds: float = 0.0
    recorded: Recorded = field(default_factory=Recorded)
    transactions: float = 0.0
    server_cores: float | None = None
    """Kept busy by the database; None where it is on another machine."""
    pooler_cores: float | None = None
    """The same of pgbouncer; None without one."""
    simulator_cores: float = 0.0
    """The same of the simulated workers' own processes."""
    busiest_core: float = 0.0
    """Of these, the process that was busiest: an interpreter runs on one core."""
    waits: Mapping[str, float] = field(default_factory=dict)
    """Sessions that were at work at each moment, by what they waited for; ``CPU`` where for nothing."""
    notifies: list[float] = field(default_factory=list)
    """Milliseconds of a NOTIFY, its commit included."""
    clients: int = 0
    """Connections of the workers: to pgbouncer, or to the server."""
    waiting: int = 0
    """Clients of pgbouncer that waited for a server connection, at the end."""
    servers: int = 0
    """Sessions of the server that the workers had, at the end."""

    def per_second(self, number: float) -> float:
        return number / self.seconds


@dataclass(frozen=True, slots=True)
class _Process:
    running: subprocess.Popen[str]
    log: IO[str]

    def ask(self) -> Recorded:
        """Returns what was recorded since it was last asked. Raises ``PgvecError`` when its workers cannot go on."""
        assert self.running.stdin is not None
        assert self.running.stdout is not None
        try:
            self.running.stdin.write("\n")
            self.running.stdin.flush()
            line = self.running.stdout.readline()
        except OSError:
            line = ""
        if not line:
            self.log.seek(0)
            said = self.log.read().strip().splitlines()
            raise PgvecError(f"a process of simulated workers has ended: {said[-1] if said else 'it said nothing'}")
        found = Recorded(**json.loads(line))
        if found.failure is not None:
            raise PgvecError(f"a simulated worker cannot go on: {found.failure}")
        return found


class Crowd:
    """Simulated workers of one arena, at work."""

    def __init__(self, own: Arena, processes: Sequence[_Process], settings: Settings, pooler: Pooler | None) -> None:
        self._own = own
        self._processes = processes
        self._settings = settings
        self._pooler = pooler
        self._database = own.connection.info.dbname

    def wait(self, what: str, seconds: float, condition: Callable[[], bool]) -> None:
        """Returns once ``condition()`` holds; raises ``PgvecError`` when that takes longer, or workers cannot go on."""
        deadline = time.monotonic() + seconds
        while not condition():
            for process in self._processes:
                process.ask()
            self._check()
            if time.monotonic() > deadline:
                raise PgvecError(f"{what} took longer than {seconds:.0f} s")
            time.sleep(_LOOK)

    def watch(self, seconds: float, *, notify: bool) -> Window:
        """Lets so many seconds pass and returns what happened; with ``notify``, somebody sends one each second."""
        window = Window()
        with ExitStack() as stack:
            looking = stack.enter_context(self._own.database.connect("bench"))
            telling = stack.enter_context(self._own.database.connect("bench"))
            before = [process.ask() for process in self._processes]
            transactions = self._transactions(looking)
            pooled = self._pooler.seconds() if self._pooler is not None else None
            began = time.monotonic()
            ended = threading.Event()
            seen: Counter[str] = Counter()
            threads = [threading.Thread(target=_sample, args=(looking, seen, ended))]
            if notify:
                threads.append(threading.Thread(target=_notify, args=(telling, window.notifies, ended)))
            with ServerClock(self._own) as clock:
                for thread in threads:
                    thread.start()
                try:
                    time.sleep(seconds)
                finally:
                    # Ctrl-C as well: they use connections that are closed then.
                    ended.set()
                    for thread in threads:
                        thread.join()
            after = [process.ask() for process in self._processes]
            self._check()
            window.seconds = time.monotonic() - began
            window.recorded = _together(after)
            window.transactions = self._transactions(looking) - transactions
            window.server_cores = clock.cores
            cores = [(b.cpu - a.cpu) / window.seconds for a, b in zip(before, after, strict=True)]
            window.simulator_cores, window.busiest_core = sum(cores), max(cores)
            samples = seen.pop("", 0)
            window.waits = {name: count / samples for name, count in seen.most_common()} if samples else {}
            if self._pooler is not None:
                now = self._pooler.seconds()
                window.pooler_cores = None if now is None or pooled is None else (now - pooled) / window.seconds
            self._count_connections(window, looking)
        return window

    def _check(self) -> None:
        """Raises ``PgvecError`` where the workers have blocked what they are to work on: they would stand idle."""
        row = self._own.connection.execute(statement("bench", "blocked")).fetchone()
        if row is not None:
            raise PgvecError(f"the simulated workers cannot go on: {row[0]}")

    def _count_connections(self, window: Window, connection: psycopg.Connection[tuple[object, ...]]) -> None:
        row = connection.execute(statement("bench", "worker_sessions")).fetchone()
        window.servers = int(str(row[0])) if row else 0
        window.clients = window.servers
        if self._pooler is not None:
            pool = self._pooler.pool(self._database)
            window.waiting = pool["cl_waiting"]
            listeners = self._settings.workers if self._settings.direct else 0
            window.clients = pool["cl_active"] + pool["cl_waiting"] + listeners

    @staticmethod
    def _transactions(connection: psycopg.Connection[tuple[object, ...]]) -> int:
        row = connection.execute(statement("bench", "transactions")).fetchone()
        return int(str(row[0])) if row else 0


@contextmanager
def crowd(own: Arena, settings: Settings, processes: int, pooler: Pooler | None) -> Generator[Crowd]:
    """Starts so many workers in so many processes, waits until all are registered, and ends them afterwards."""
    share, rest = divmod(settings.workers, processes)
    started: list[_Process] = []
    try:
        # One by one: what has been started is ended even where the next one cannot be.
        for number in range(min(processes, settings.workers)):
            started += [_start(replace(settings, workers=share + (number < rest)))]
        found = Crowd(own, started, settings, pooler)
        found.wait("starting the simulated workers", START_SECONDS, lambda: own.registered() >= settings.workers)
        yield found
    finally:
        _end(started)


def _start(settings: Settings) -> _Process:
    log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
    running = subprocess.Popen(
        [sys.executable, "-m", "pgvec_queue.bench.simulated"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        start_new_session=True,
    )
    process = _Process(running, log)
    assert running.stdin is not None
    try:
        running.stdin.write(json.dumps(asdict(settings)) + "\n")
        running.stdin.flush()
    except BaseException:
        _end([process])
        raise
    return process


def _end(processes: Sequence[_Process]) -> None:
    for process in processes:
        assert process.running.stdin is not None
        # It may have ended already.
        with suppress(OSError):
            process.running.stdin.close()
    reap([process.running for process in processes])
    for process in processes:
        assert process.running.stdout is not None
        process.running.stdout.close()
        process.log.close()


def _sample(connection: psycopg.Connection[tuple[object, ...]], seen: Counter[str], ended: threading.Event) -> None:
    """Counts what sessions wait for, several times a second; the number of looks is that of ``""``."""
    while not ended.wait(1 / _WAITS_PER_SECOND):
        seen[""] += 1
        for name, count in connection.execute(statement("bench", "waits")).fetchall():
            seen[str(name)] += int(str(count))


def _notify(connection: psycopg.Connection[tuple[object, ...]], times: list[float], ended: threading.Event) -> None:
    """Tells of new work each second, as whoever plans or writes it does."""
    while not ended.wait(_NOTIFY_SECONDS):
        began = time.perf_counter()
        queue.notify(connection)
        times.append((time.perf_counter() - began) * 1000)


def _together(several: Sequence[Recorded]) -> Recorded:
    total = Recorded()
    for one in several:
        for name in ("claims", "looks", "beats", "late", "writes", "lags"):
            getattr(total, name).extend(getattr(one, name))
        for name in ("rows", "lost", "cpu", "threads"):
            setattr(total, name, getattr(total, name) + getattr(one, name))
    return total
