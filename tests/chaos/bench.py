"""What every scenario stands on: a server with filled and enqueued tables, workers, an observer; and their end.

Everything that is started here ends with ``close``, whatever has happened.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import psycopg

from tests.chaos.observer import Observer
from tests.chaos.program import Program
from tests.chaos.proxy import Network
from tests.chaos.server import Server
from tests.chaos.tables import TABLES, Table, faults
from tests.chaos.workers import Fleet

_REFUSED = re.compile(r"is no longer this worker's")
_RECLAIMED = re.compile(r"(\d+) jobs are back in the queue")
_DRAIN_PATIENCE = 900.0


@dataclass(frozen=True)
class Drained:
    """How emptying the queue went."""

    deaths: int
    """Processes that a row has killed."""
    failure: str | None = None


class Bench(contextlib.AbstractContextManager["Bench"]):
    """One server with everything around it."""

    def __init__(
        self, *, seed: int, lease: float, delay: float, tables: Sequence[Table] = TABLES, sync: bool | None = None
    ) -> None:
        """``lease`` is in seconds, ``delay`` in seconds per embedded text; ``sync`` None: where the program can."""
        self.tables = tables
        self._stack = ExitStack()
        try:
            self.directory = Path(tempfile.mkdtemp(prefix="pgvec-chaos-run-"))
            self._stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.program = Program(self.directory)
            self.server = Server()
            self._stack.callback(self.server.close)
            self.server.create()
            self.network = Network()
            self._stack.callback(self.network.close)
            self.fleet = Fleet(self.program, self.server, self.network, self.directory, lease, faults(delay))
            self._stack.callback(self.fleet.close)
            self.observer = Observer(self.server, lease, self.fleet.able)
            self.sync = self._can_sync() if sync is None else sync
            self.program.must("init", dsn=self.server.dsn)
        except BaseException:
            self._stack.close()
            raise
        self._random = Random(f"{seed}/rows")

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def keep_logs(self, where: Path) -> None:
        """Has the logs of workers and server copied to a folder at the end, with the tables of the queue."""
        where.mkdir(parents=True, exist_ok=True)

        def keep() -> None:
            for log in (*self.directory.glob("*.log"), self.server.log):
                shutil.copy(log, where)
            with self.server.connect() as connection:
                for table in ("jobs", "workers", "failures", "counters", "vectorizers"):
                    with (where / f"{table}.csv").open("wb") as file:
                        query = f"COPY (SELECT * FROM pgvec.{table} ORDER BY 1) TO STDOUT (FORMAT csv, HEADER)"
                        with connection.cursor().copy(query.encode()) as copy:
                            file.writelines(bytes(data) for data in copy)

        self._stack.callback(keep)

    def callback(self, act: Any) -> None:
        """Has something done at the end, before what was started earlier is ended."""
        self._stack.callback(act)

    def _can_sync(self) -> bool:
        return "--sync" in self.program.must("enqueue", "--help", dsn=self.server.dsn)

    def fill(self, *, share: float = 1.0, poison: float = 0.0, killers: int = 0) -> None:
        """Makes the tables and fills them with a share of their usual rows; ``killers`` of the first one's kill."""
        with self.server.connect() as connection:
            for table in self.tables:
                connection.execute(table.ddl.encode())
                mine = killers if table is self.tables[0] else 0
                table.fill(connection, self._random, share=share, poison=poison, killers=mine)

    def enqueue(self) -> None:
        for table in self.tables:
            sync = ("--sync",) if self.sync else ()
            self.program.must("enqueue", table.name, *table.enqueue, *sync, dsn=self.server.dsn)

    def start_workers(self, count: int) -> None:
        for _ in range(count):
            self.fleet.start(self.fleet.add())
        self.observer.start()
        self._stack.callback(self.observer.close)

    @property
    def unfinished(self) -> int:
        """Jobs that are queued or running."""
        with self.server.connect() as connection:
            row = connection.execute("SELECT count(*) FROM pgvec.jobs WHERE state IN ('queued', 'running')").fetchone()
        assert row is not None
        return int(row[0])

    def drain(self, count: int = 2) -> str | None:
        """Lets fresh workers empty the queue; returns what went wrong with them, if anything.

        Without live changes, everything is enqueued once more before.
        """
        for worker in self.fleet.workers:
            if worker.process is not None and worker.ending is None:
                worker.tell_to_leave()
        while any(worker.process is not None for worker in self.fleet.workers):
            for ended in self.fleet.ended():
                if ended.why in ("slow", "unexpected"):
                    return f"{ended.worker} ended with {ended.code} ({ended.why}): {ended.tail}"
            time.sleep(0.05)
        if not self.sync:
            self.enqueue()
        return self.drain_supervised(count).failure

    def drain_supervised(self, count: int) -> Drained:
        """Lets ``pgvec work --drain`` empty the queue; one that a row has killed is started anew at once, as a
        supervisor would.
        """
        deadline = time.monotonic() + _DRAIN_PATIENCE
        stderr = self.directory / "drain.log"
        extra = {"PGVEC_HASHING_FAULTS": self.fleet.faults}
        arguments = ("work", "--drain", "--lease", str(self.fleet.lease))
        running = [
            self.program.start(*arguments, dsn=self.server.dsn, stderr=stderr, extra=extra) for _ in range(count)
        ]
        deaths = 0
        try:
            while running:
                for process in list(running):
                    code = process.poll()
                    if code is None:
                        continue
                    running.remove(process)
                    if code == -9:
                        deaths += 1
                        running.append(self.program.start(*arguments, dsn=self.server.dsn, stderr=stderr, extra=extra))
                    elif code not in (0, 3):
                        said = stderr.read_text(errors="replace")[-1500:]
                        return Drained(deaths, f"pgvec work --drain ended with {code}: {said}")
                if time.monotonic() > deadline:
                    said = stderr.read_text(errors="replace")[-1500:]
                    return Drained(deaths, f"the queue does not become empty: {said}")
                time.sleep(0.02)
        finally:
            for process in running:
                process.kill()
                process.wait()
        return Drained(deaths)

    def counters(self) -> dict[str, int]:
        """Returns the sums of ``pgvec.counters`` over all workers; what the schema does not count, from the logs."""
        with self.server.connect() as connection, connection.cursor(row_factory=psycopg.rows.dict_row) as cursor:
            rows = cursor.execute("SELECT * FROM pgvec.counters").fetchall()
        names = {name for row in rows for name in row} - {"vectorizer_id", "worker_id"}
        summed = {name: sum(int(row[name]) for row in rows) for name in names}
        said = self.fleet.said()
        summed.setdefault("writes_refused", len(_REFUSED.findall(said)))
        summed.setdefault("jobs_reclaimed", sum(int(count) for count in _RECLAIMED.findall(said)))
        return summed
