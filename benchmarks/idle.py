"""What idle workers cost the database: CPU of the server's processes, transactions and connections.

    python -m benchmarks.idle [--workers 100] [--seconds 60] [--processes 4]

The workers are threads of a few processes, each a whole ``Worker`` with its own heartbeat, pool and id, as
``pgvec work`` runs one. There is one vectorizer, followed live and complete. The server's CPU is that of the
postmaster, of its children, and of those that have ended meanwhile, from ``/proc``, so this runs on Linux only. The
bar is 2 % of a core; what the server uses without any worker is printed beside it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.synchronize import Event
from pathlib import Path

from benchmarks import common
from pgvec_queue import embedded, schema
from pgvec_queue.database import Connection, Database
from pgvec_queue.worker import Worker, WorkerOptions

BAR_PERCENT = 2.0
_TICKS = os.sysconf("SC_CLK_TCK")
_STATISTICS = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
_CONNECTIONS = """
SELECT split_part(application_name, ' @', 1), count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() GROUP BY 1 ORDER BY 1
"""


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--workers", type=int, default=100)
    options.add_argument("--seconds", type=float, default=60)
    options.add_argument("--processes", type=int, default=4)
    options.add_argument("--warmup", type=float, default=45, help="seconds until all judge others")
    options.add_argument("--no-listen", dest="listen", action="store_false")
    chosen = options.parse_args()
    with _server(connections=5 * chosen.workers + 50) as (server, connection):
        _prepare(server.dsn, connection)
        alone, _ = _measure(server, connection, min(chosen.seconds, 20))
        print(f"no worker: {alone:.2f} % of a core")
        with _workers(server.dsn, chosen.workers, chosen.processes, listen=chosen.listen):
            _wait_for(connection, chosen.workers)
            time.sleep(chosen.warmup)
            used, transactions = _measure(server, connection, chosen.seconds)
            held = connection.execute(_CONNECTIONS).fetchall()
        print(
            f"{chosen.workers} idle workers in {chosen.processes} processes, {chosen.seconds:.0f} s: "
            f"{used:.2f} % of a core, {transactions:.1f} transactions/s, "
            f"{sum(count for _, count in held)} connections ({', '.join(f'{count} {name}' for name, count in held)})"
        )
        print(f"bar: {BAR_PERCENT} % of a core: {'kept' if used <= BAR_PERCENT else 'missed'}")
    return 0 if used <= BAR_PERCENT else 1


@contextmanager
def _server(*, connections: int) -> Iterator[tuple[embedded.Server, Connection]]:
    with tempfile.TemporaryDirectory(prefix="pgvec-bench-") as folder:
        Path(folder).chmod(0o711)
        server = embedded.Server(Path(folder) / "postgres", settings={"max_connections": str(connections)})
        with server.used():
            database = Database(server.dsn)
            schema.initialize(database)
            with database.connect("bench") as connection:
                yield server, connection


def _prepare(dsn: str, connection: Connection) -> None:
    """Makes a vectorizer with live changes, and works it off."""
    connection.execute("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    connection.execute("INSERT INTO docs SELECT i, 'row ' || i FROM generate_series(1, 10000) i")
    assert common.run(dsn, "enqueue", "docs", "--text", "body", "--model", "hashing-8", "--sync").code == 0
    assert common.run(dsn, "work", "--drain").code == 0


@contextmanager
def _workers(dsn: str, count: int, processes: int, *, listen: bool) -> Iterator[None]:
    context = multiprocessing.get_context("spawn")
    leave = context.Event()
    share, rest = divmod(count, processes)
    running = [
        context.Process(target=work, args=(dsn, share + (number < rest), leave, listen)) for number in range(processes)
    ]
    for process in running:
        process.start()
    try:
        yield
    finally:
        leave.set()
        for process in running:
            process.join(60)


def work(dsn: str, count: int, leave: Event, listen: bool) -> None:
    """Runs workers in threads until told to leave."""
    workers = [Worker(Database(dsn), WorkerOptions(listen=listen)) for _ in range(count)]
    threads = [threading.Thread(target=worker.run) for worker in workers]
    for thread in threads:
        thread.start()
    leave.wait()
    for worker in workers:
        worker.stop()
    for thread in threads:
        thread.join()


def _wait_for(connection: Connection, workers: int) -> None:
    idle = "SELECT count(*) FROM pgvec.workers WHERE state = 'idle' AND NOT gone"
    deadline = time.monotonic() + 120
    while (row := connection.execute(idle).fetchone()) is None or row[0] < workers:
        assert time.monotonic() < deadline, f"{row} of {workers} workers are idle"
        time.sleep(0.5)


def _measure(server: embedded.Server, connection: Connection, seconds: float) -> tuple[float, float]:
    """Returns the server's CPU in per cent of a core, and transactions per second, over a time."""
    postmaster = int((server.directory / "data" / "postmaster.pid").read_text().splitlines()[0])
    transactions = _transactions(connection)
    cpu, started = _cpu(postmaster), time.monotonic()
    time.sleep(seconds)
    used, took = _cpu(postmaster) - cpu, time.monotonic() - started
    return 100 * used / took, (_transactions(connection) - transactions) / took


def _transactions(connection: Connection) -> int:
    connection.execute("SELECT pg_stat_clear_snapshot()")
    row = connection.execute(_STATISTICS).fetchone()
    assert row is not None
    return int(row[0])


def _cpu(postmaster: int) -> float:
    """Seconds of CPU that a postmaster and its children, ended ones included, have used."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            # The name, in parentheses, may hold anything; the fields after it: state, parent, ..., utime, stime,
            # and cutime, cstime of children that were waited for.
            fields = stat.rpartition(")")[2].split()
            if int(entry.name) == postmaster:
                ticks += sum(map(int, fields[11:15]))
            elif int(fields[1]) == postmaster:
                ticks += sum(map(int, fields[11:13]))
    return ticks / _TICKS


if __name__ == "__main__":
    sys.exit(main())
