"""What the benchmarks share: an embedded server of their own, and processes whose time and memory are measured."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from pgvec_queue import embedded, schema
from pgvec_queue.database import Connection, Database


@contextmanager
def cluster(**settings: str) -> Iterator[embedded.Server]:
    """A fresh PostgreSQL with these settings, running while inside and removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="pgvec-bench-") as folder:
        Path(folder).chmod(0o711)
        fresh = embedded.Server(Path(folder) / "postgres", settings=settings)
        with fresh.used():
            yield fresh


@contextmanager
def server() -> Iterator[tuple[str, Connection]]:
    """A fresh PostgreSQL with our schema; yields its DSN and a connection, and removes it afterwards."""
    with cluster() as fresh:
        schema.initialize(Database(fresh.dsn))
        # Plain: what a benchmark does to a table takes its time, and VACUUM runs in no transaction.
        with psycopg.connect(fresh.dsn, autocommit=True) as connection:
            yield fresh.dsn, connection


@dataclass(frozen=True)
class Run:
    """One process: its exit code, wall seconds, CPU seconds and peak memory in MB."""

    code: int
    seconds: float
    cpu: float
    peak: float


def start(dsn: str, *arguments: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PGVEC_DSN": dsn, "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "pgvec_queue", *arguments], env=environment, stderr=subprocess.DEVNULL
    )


def finish(process: subprocess.Popen[bytes], started: float) -> Run:
    """Waits for a process and reads what the system counted for it."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    scale = 1 if sys.platform == "darwin" else 1024
    return Run(
        process.returncode,
        time.monotonic() - started,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * scale / 2**20,
    )


def run(dsn: str, *arguments: str) -> Run:
    started = time.monotonic()
    return finish(start(dsn, *arguments), started)
