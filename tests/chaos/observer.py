"""Looks at the queue some ten times a second, past every proxy, and measures how long recoveries take.

Two kinds. Of a killed worker: from the kill until none of the jobs that it ran is still running under its id. Of a
restarted server: from when it takes connections until the first claim or the first committed slice.

A recovery does not count, but is kept apart, when what it needs was missing meanwhile: the server was down, or no other
worker had an unbroken heartbeat of one lease (a judge). What is a judge is told from the workers' rows as they are seen
here, and from what the harness itself does to the processes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg

from tests.chaos.server import Server

_PERIOD = 0.1

_WORKERS = "SELECT id, pid, gone, extract(epoch FROM clock_timestamp() - beat_at)::float8 FROM pgvec.workers"
_RUNNING = "SELECT worker_id, count(*) FROM pgvec.jobs WHERE state = 'running' GROUP BY worker_id"
_PROGRESS = """
    SELECT (SELECT coalesce(sum(rows_right + rows_embedded + chunks_written + chunks_deleted + jobs_done), 0)
            FROM pgvec.counters),
           (SELECT coalesce(max(epoch), 0) + coalesce(sum(id), 0) FROM pgvec.jobs WHERE state = 'running'),
           EXISTS (SELECT FROM pgvec.jobs WHERE state = 'queued' AND (run_after IS NULL OR run_after <= now()))"""
_BLOCKED = "SELECT name, blocked_reason FROM pgvec.vectorizers WHERE blocked_reason IS NOT NULL"


@dataclass(frozen=True)
class Sample:
    """One look."""

    at: float
    """``time.monotonic()``."""
    workers: dict[int, tuple[int, bool, float]]
    """By id: process id, whether gone, seconds since its last beat."""
    running: dict[int, int]
    """Running jobs by worker id."""
    progress: tuple[int, int]
    """Changes with every committed slice and every claim."""
    waiting: bool
    """A job could be claimed."""

    def ids(self, pid: int) -> set[int]:
        return {id_ for id_, (its_pid, gone, _) in self.workers.items() if its_pid == pid and not gone}

    def jobs(self, ids: set[int]) -> int:
        return sum(self.running.get(id_, 0) for id_ in ids)


@dataclass
class Recovery:
    """One that is measured, or was."""

    since: float
    ids: set[int] = field(default_factory=set)
    """Of the killed worker; empty for a restarted server."""
    excluded: str | None = None
    """Why it does not count."""
    seconds: float | None = None
    """None: still under way, or never over."""
    progress: tuple[int, int] | None = None


class Observer:
    """Runs in a thread of its own between ``start`` and ``close``."""

    def __init__(self, server: Server, lease: float, able: Callable[[], set[int]]) -> None:
        self.kills: list[Recovery] = []
        self.restarts: list[Recovery] = []
        self.jobless_kills = 0
        """Kills of workers that had no jobs: nothing to recover."""
        self.blocked: dict[str, str] = {}
        """Vectorizers that were ever blocked, and why; nothing that the harness does is a reason to block one."""
        self._server = server
        self._lease = lease
        self._able = able
        self._latest: Sample | None = None
        self._unbroken: dict[int, float] = {}
        self._lock = threading.Lock()
        self._open: list[Recovery] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)
        self._connection: psycopg.Connection[tuple[Any, ...]] | None = None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._stop.set()
        self._thread.join(20)
        if self._connection is not None:
            self._connection.close()

    @property
    def latest(self) -> Sample | None:
        """The last look, None while the server is down."""
        return self._latest

    def judges(self) -> set[int]:
        """Process ids of workers that may judge others now."""
        sample = self._latest
        return self._judges(sample) if sample is not None and self._server.up else set()

    def killed(self, pid: int, at: float) -> None:
        """A worker was killed: measures until its jobs are back."""
        sample = self._latest
        if sample is None:
            return
        with self._lock:
            recovery = Recovery(at, sample.ids(pid))
            if not recovery.ids or not self._server.up:
                self.jobless_kills += 1
            else:
                self._open.append(recovery)

    def crashed(self) -> None:
        """The server is about to go down."""
        with self._lock:
            self._latest = None
            for recovery in self._open:
                recovery.excluded = recovery.excluded or "server down"

    def restarted(self, at: float) -> None:
        """The server takes connections again: measures until somebody claims or commits."""
        with self._lock:
            self._open.append(Recovery(at))

    def _run(self) -> None:
        while not self._stop.is_set():
            began = time.monotonic()
            try:
                if self._server.up:
                    self._take(self._look())
            except psycopg.Error:
                self._latest = None
                if self._connection is not None:
                    self._connection.close()
                    self._connection = None
            self._stop.wait(max(0.0, _PERIOD - (time.monotonic() - began)))

    def _look(self) -> Sample:
        if self._connection is None:
            self._connection = self._server.connect(application_name="observer", connect_timeout=5)
        connection = self._connection
        at = time.monotonic()
        workers = {row[0]: (row[1], row[2], row[3]) for row in connection.execute(_WORKERS)}
        running = {row[0]: row[1] for row in connection.execute(_RUNNING)}
        counted, claimed, waiting = connection.execute(_PROGRESS).fetchone() or (0, 0, False)
        self.blocked |= dict(connection.execute(_BLOCKED).fetchall())
        return Sample(at, workers, running, (int(counted), int(claimed)), waiting or bool(running))

    def _take(self, sample: Sample) -> None:
        with self._lock:
            for id_, (_, gone, age) in sample.workers.items():
                if gone or age > self._lease:
                    self._unbroken.pop(id_, None)
                else:
                    self._unbroken.setdefault(id_, sample.at)
            self._latest = sample
            judges = self._judges(sample)
            self._open = [recovery for recovery in self._open if not self._is_over(recovery, sample, judges)]

    def _judges(self, sample: Sample) -> set[int]:
        able = self._able()
        return {
            pid
            for id_, (pid, gone, age) in sample.workers.items()
            if not gone
            and pid in able
            and age < self._lease / 2
            and sample.at - self._unbroken.get(id_, sample.at) >= self._lease
        }

    def _is_over(self, recovery: Recovery, sample: Sample, judges: set[int]) -> bool:
        if not recovery.ids:
            return self._restart_is_over(recovery, sample)
        left = sample.jobs(recovery.ids)
        if recovery.progress is None:
            recovery.progress = sample.progress
            if not left:
                self.jobless_kills += 1
                return True
            self.kills.append(recovery)
        if left:
            if not judges:
                recovery.excluded = recovery.excluded or "no judge"
            return False
        recovery.seconds = sample.at - recovery.since
        return True

    def _restart_is_over(self, recovery: Recovery, sample: Sample) -> bool:
        if recovery.progress is None:
            recovery.progress = sample.progress
            self.restarts.append(recovery)
        if recovery.progress != sample.progress:
            recovery.seconds = sample.at - recovery.since
            return True
        if not sample.waiting:
            recovery.excluded = recovery.excluded or "nothing to do"
        if not self._able():
            recovery.excluded = recovery.excluded or "no worker"
        return False
