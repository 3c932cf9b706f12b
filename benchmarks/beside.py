"""What a production load feels of a backfill: the latency of pgbench at a third of what the machine can do.

    python -m benchmarks.beside [--seconds 60] [--rounds 5] [--workers 3] [--rate 100] [--limit ROWS_PER_SECOND]

The workers' embedder sleeps as a device would, so that they do not take the cores that the database needs. Rounds with
and without workers alternate. Bar: p95 grows by 20 % at most.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg

from benchmarks import common
from benchmarks.steering import _RUNNING, _WRITTEN, _fill, _value, _wait, _wait_for_rows, _workers
from pgvec_queue import embedded, embedded_programs, schema, vectorizer
from pgvec_queue.database import Database
from pgvec_queue.vectorizer import Changes

BAR = 1.2
_CLIENTS = 4


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--seconds", type=int, default=60)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--workers", type=int, default=3)
    options.add_argument("--rate", type=float, default=100.0, help="rows per second of a worker")
    options.add_argument("--limit", type=float, help="rows per second of all of them together")
    chosen = options.parse_args()
    with common.cluster() as server:
        schema.initialize(Database(server.dsn))
        # Plain: VACUUM runs in no transaction.
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            rows = 1.2 * chosen.workers * chosen.rate * chosen.seconds * (chosen.rounds + 1)
            _fill(connection, server.dsn, round(rows))
            if chosen.limit:
                vectorizer.alter(connection, "docs", Changes(rows_per_second=chosen.limit))
            _bench(server, "-i", "-s", "10")
            capacity = _rate_of(_bench(server, "-T", "20", "-c", str(_CLIENTS)))
            rate = capacity / 3
            print(f"pgbench alone: {capacity:,.0f} transactions/s; measured at {rate:,.0f}/s")
            alone, beside = [], []
            for number in range(1, chosen.rounds + 1):
                alone.append(_p95(server, rate, chosen.seconds))
                with _workers(server.dsn, chosen.workers, chosen.rate):
                    # Starting a process takes more than what it does then.
                    _wait("the workers' beginning", lambda: _value(connection, _RUNNING) == chosen.workers)
                    _wait_for_rows(connection, chosen.workers * chosen.rate * 3)
                    before = _value(connection, _WRITTEN)
                    beside.append(_p95(server, rate, chosen.seconds))
                    written = _value(connection, _WRITTEN) - before
                print(
                    f"round {number}: p95 {alone[-1]:.2f} ms alone, {beside[-1]:.2f} ms beside a backfill of "
                    f"{written / chosen.seconds:,.0f} rows/s"
                )
    ratios = [after / before for before, after in zip(alone, beside, strict=True)]
    ratio = statistics.median(ratios)
    print(
        f"p95 {ratio:.2f} times ({min(ratios):.2f} to {max(ratios):.2f}); bar {BAR}: "
        f"{'kept' if ratio <= BAR else 'missed'}"
    )
    return 0 if ratio <= BAR else 1


def _bench(server: embedded.Server, *arguments: str) -> str:
    account = embedded_programs.server_account()
    program = embedded_programs.find(embedded.DEFAULT_VERSION, account) / "pgbench"
    ran = subprocess.run([program, *arguments, server.dsn], capture_output=True, text=True, check=False)
    if ran.returncode:
        raise RuntimeError(ran.stderr)
    return ran.stdout


def _rate_of(output: str) -> float:
    found = re.search(r"^tps = ([0-9.]+)", output, re.MULTILINE)
    assert found is not None
    return float(found[1])


def _p95(server: embedded.Server, rate: float, seconds: int) -> float:
    """Returns milliseconds, from when a transaction was to begin to its end."""
    with tempfile.TemporaryDirectory() as folder:
        _bench(
            server,
            *("-T", str(seconds), "-c", str(_CLIENTS), "-R", str(round(rate))),
            *("-l", f"--log-prefix={Path(folder) / 'log'}"),
        )
        taken = sorted(int(line.split()[2]) for log in Path(folder).iterdir() for line in log.read_text().splitlines())
    return taken[int(len(taken) * 0.95)] / 1000


if __name__ == "__main__":
    sys.exit(main())
