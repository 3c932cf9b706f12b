"""The queue: claim, release, reclaim, and the workers' own rows; thin over ``sql/queue.sql``.

Guarantees: a job has at most one owner whose writes count (its epoch is raised at each claim, and ``writing`` checks
it); a claimed job is finished, released, or returned by ``reclaim`` once its worker's heartbeat is older than its
lease. Does not guarantee that a job runs once: it may run again from its checkpoint, and that changes nothing.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from psycopg.rows import class_row
from psycopg.types.json import Jsonb

from pgvec_queue import __version__, schema
from pgvec_queue.database import Connection, statement, transaction

_HOUSEKEEPING = (
    "fold_counters",
    "prune_workers",
    "sum_up_minutes",
    "prune_samples",
    "fold_minutes",
    "prune_minutes",
    "prune_events",
    "prune_jobs",
)
TURN_SECONDS = 60.0
"""That a worker stays with a model, at least, before it takes up another for something equally urgent."""

Key = tuple[str, ...]
"""A key's columns in canonical text (ISO dates, UTC)."""


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job as its worker last saw it; the fence compares exactly this."""

    id: int
    vectorizer_id: int
    kind: str
    lower_key: list[str] | None
    upper_key: list[str] | None
    keys: list[list[str]] | None
    rows: int
    rows_seen: int
    checkpoint: list[str] | None
    epoch: int
    attempts: int
    """Workers that died on it at this checkpoint."""
    alone: bool
    """It has cost two workers: one document per slice, and nothing beside it."""
    merged: int
    """Lists of keys that became this job; 0 for a sweep that a TRUNCATE asked for."""
    ranges_left: bool
    """For a list of keys: when it was claimed, ranges were still to be counted."""
    batch_size: int | None = None
    """Most chunks of it in one batch of the device; None: what suits the device."""


@dataclass(frozen=True, slots=True)
class Membership:
    """Who a worker is: its id, and the world (cluster, timeline, database) in which that id means anything."""

    worker: int
    world: str


@dataclass(frozen=True, slots=True)
class Turn:
    """A model that jobs of one priority are claimed for, and since when."""

    model: str
    began: float


class Ahead(NamedTuple):
    """What is left to claim."""

    near_end: bool
    """Few ranges, and no more are being planned."""
    plenty: bool
    """Many that are there already, and that no limit holds back."""


@dataclass(slots=True)
class Claimer:
    """Claims jobs for one worker: picks the vectorizer, and remembers where its jobs begin.

    The highest priority goes first. Of those of one priority, those that share a model are served in turn; for another
    model, which may have to be loaded, this one is left after a minimum time, and then for what was served longest ago:
    nothing of the highest priority starves.

    Below a remembered id lie index entries of finished jobs, which stay for as long as anybody's snapshot might need
    them. Jobs that come back, or commit late, lie there as well: so now and then the whole queue is looked at, the more
    seldom the longer that takes.
    """

    member: Membership
    names: Sequence[str] | None
    refused: dict[int, str] = field(default_factory=dict)
    """Vectorizers that this worker cannot serve, and why."""
    clock: Callable[[], float] = time.monotonic
    ranges_run: bool = False
    """Whether anybody was working on a range when nothing could be claimed."""
    _turns: dict[int, Turn] = field(default_factory=dict)
    """By priority, so that what is urgent now and then spoils nobody's turn."""
    _served: dict[int, int] = field(default_factory=dict)
    """When each vectorizer was served last, counted in jobs."""
    _floors: dict[str, int] = field(default_factory=dict)
    _horizon: int = 0
    _full_at: float = 0.0
    _full_took: float = 0.0

    _FULL_SECONDS = 0.25
    _CHEAP_SECONDS = 0.01
    _FULL_SHARE = 0.02
    """Of the time, at most, that goes into looking at the whole queue."""

    def look_again(self) -> None:
        """Has the next claim look at the whole queue, where that is cheap: somebody said that something has changed.

        It may be below the remembered ids, as the jobs of a vectorizer that was paused when these were found.
        """
        if self._full_took < self._CHEAP_SECONDS:
            self._full_at = 0.0

    def claim(
        self, connection: Connection, *, keys: int = 1_000, idle: bool = True, held: Collection[int] = ()
    ) -> Job | None:
        """Claims the next job, live changes before ranges, or returns None when there is nothing to claim.

        Lists of keys are claimed several at a time, as one job of up to ``keys`` keys. A job that has to run alone is
        claimed only by a worker that is ``idle``. Of the vectorizers in ``held`` nothing is claimed.
        """
        with transaction(connection, statement_timeout=30):
            for vectorizer, kind, first, priority, model in self._runnable(connection, held):
                job = self._claim_kind(connection, vectorizer, kind, first, keys, idle=idle)
                if job is not None:
                    self.serves(vectorizer, priority, model)
                    self._floors[f"{vectorizer}{kind}"] = job.id
                    return job
            if idle:
                row = connection.execute(statement("queue", "ranges_run")).fetchone()
                self.ranges_run = bool(row and row[0])
        return None

    def claim_keys(self, connection: Connection, vectorizer: int, *, keys: int) -> Job | None:
        """Claims live changes of one vectorizer only, several lists as one job, by a worker that is not idle."""
        with transaction(connection, statement_timeout=30):
            floor = self._floors.get(f"{vectorizer}keys", self._horizon)
            return self._claim_kind(connection, vectorizer, "keys", floor, keys, idle=False)

    def look_ahead(self, connection: Connection, *, most: int) -> Ahead:
        """Tells ``most`` ranges from fewer that are left to claim; a cheap look from where they were found last."""
        with transaction(connection, statement_timeout=30):
            row = connection.execute(
                statement("queue", "near_end"),
                {
                    "names": None if self.names is None else list(self.names),
                    "floors": Jsonb(self._floors),
                    "floor": self._horizon,
                    "most": most,
                },
            ).fetchone()
        return Ahead(*row) if row else Ahead(False, False)

    def serves(self, vectorizer: int, priority: int, model: str) -> None:
        """Takes down that this worker has got a job of the vectorizer."""
        self._served[vectorizer] = max(self._served.values(), default=0) + 1
        turn = self._turns.get(priority)
        if turn is None or turn.model != model:
            self._turns[priority] = Turn(model, self.clock())

    def has_used(self, model: str) -> bool:
        """Whether it is what this worker has used last, for some priority: then it is likely to be in memory."""
        return any(turn.model == model for turn in self._turns.values())

    def _runnable(self, connection: Connection, held: Collection[int]) -> list[tuple[int, str, int, int, str]]:
        began = time.monotonic()
        full = began >= self._full_at
        if full:
            row = connection.execute(statement("queue", "horizon")).fetchone()
            assert row is not None
            self._horizon = row[0]
            self._floors = {}
        found = connection.execute(
            statement("queue", "runnable"),
            {
                "names": None if self.names is None else list(self.names),
                "turns": Jsonb(
                    {
                        str(priority): turn.model
                        for priority, turn in self._turns.items()
                        if self.clock() - turn.began < TURN_SECONDS
                    }
                ),
                "served": Jsonb(self._served),
                "refused": [*self.refused, *held],
                "floors": Jsonb(self._floors),
                "floor": 0 if full else self._horizon,
            },
        ).fetchall()
        if full:
            now = time.monotonic()
            self._full_took = now - began
            self._full_at = now + max(self._FULL_SECONDS, self._full_took / self._FULL_SHARE)
        self._floors.update({f"{vectorizer}{kind}": first for vectorizer, kind, first, *_ in found})
        return found

    def _claim_kind(
        self, connection: Connection, vectorizer: int, kind: str, floor: int, keys: int, *, idle: bool
    ) -> Job | None:
        with connection.cursor(row_factory=class_row(Job)) as cursor:
            return cursor.execute(
                statement("queue", "claim_keys" if kind == "keys" else "claim"),
                {
                    "vectorizer": vectorizer,
                    "kind": kind,
                    "floor": floor,
                    "range_floor": self._floors.get(f"{vectorizer}range", self._horizon),
                    "worker": self.member.worker,
                    "world": self.member.world,
                    "keys": keys,
                    "idle": idle,
                },
            ).fetchone()


def reread(connection: Connection, job: Job, member: Membership) -> Job | None:
    """Returns the job as it stands now, or None when it is no longer this worker's."""
    with connection.cursor(row_factory=class_row(Job)) as cursor:
        return cursor.execute(
            statement("queue", "reread"),
            {
                "id": job.id,
                "epoch": job.epoch,
                "worker": member.worker,
                "world": member.world,
                "ranges_left": job.ranges_left,
            },
        ).fetchone()


def take_in_hand(connection: Connection, job: Job, member: Membership) -> None:
    """Notes that the next document of a job that runs alone is about to be embedded."""
    with transaction(connection):
        connection.execute(
            statement("queue", "take_in_hand"), {"id": job.id, "epoch": job.epoch, "worker": member.worker}
        )


def release(
    connection: Connection, member: Membership, *, vectorizer: int | None = None, job: int | None = None
) -> int:
    """Gives back this worker's running jobs (all, those of one vectorizer, or one), and returns how many."""
    with transaction(connection):
        cursor = connection.execute(
            statement("queue", "release"), {"worker": member.worker, "vectorizer": vectorizer, "job": job}
        )
    return cursor.rowcount


def release_strays(connection: Connection, member: Membership, known: Sequence[int]) -> int:
    """Gives back this worker's running jobs but for those it knows of, and returns how many.

    A claim may be committed though its connection broke before the answer came; nobody else takes such a job from a
    worker that lives.
    """
    with transaction(connection):
        return connection.execute(
            statement("queue", "release_strays"), {"worker": member.worker, "known": list(known)}
        ).rowcount


def reclaim(connection: Connection, worker: int = 0) -> tuple[int, int]:
    """Declares workers dead whose lease ran out and returns their jobs to the queue; returns (workers, jobs).

    ``worker`` is whoever does it, for the counters.
    """
    with transaction(connection):
        gone = connection.execute(statement("queue", "mark_gone")).rowcount
    # Apart from the marking, so that a beat that came first is seen.
    with transaction(connection):
        jobs = connection.execute(statement("queue", "reclaim"), {"worker": worker}).fetchone()
    return gone, int(jobs[0]) if jobs else 0


def register(connection: Connection, *, names: Sequence[str] | None, lease: float) -> Membership:
    """Makes this process a worker of a program that is made for ``schema.HEAD``; ``lease`` is in seconds."""
    row = connection.execute(
        statement("queue", "register"),
        {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "version": __version__,
            "revision": schema.HEAD,
            "names": None if names is None else list(names),
            "lease": lease,
        },
    ).fetchone()
    assert row is not None
    return Membership(*row)


def reserve(connection: Connection, vectorizer_id: int, rows: int, *, most: float) -> float | None:
    """Takes down that so many rows of a vectorizer with a limit were read; returns for how many seconds they wait.

    None, and nothing is taken down, where that would be more than ``most`` seconds, or there is no limit any more.
    """
    row = connection.execute(
        statement("queue", "reserve"), {"vectorizer": vectorizer_id, "rows": float(rows), "most": most}
    ).fetchone()
    return max(row[0], 0.0) if row else None


def spent(connection: Connection, vectorizer_id: int) -> float:
    """Returns for how many seconds more a vectorizer's limit is used up by what was read."""
    row = connection.execute(statement("queue", "spent"), {"vectorizer": vectorizer_id}).fetchone()
    return max(row[0], 0.0) if row else 0.0


def stop_workers(connection: Connection, host: str | None) -> int:
    """Tells the workers of a host, or all, to leave as by SIGTERM; returns how many were told."""
    row = connection.execute(statement("vectorizer", "stop_workers"), {"host": host}).fetchone()
    return int(row[0]) if row else 0


def leave(connection: Connection, member: Membership) -> None:
    """Gives back every job and removes the worker's row; what it counted is kept."""
    release(connection, member)
    with transaction(connection):
        connection.execute(statement("queue", "leave"), {"worker": member.worker})
        connection.execute(statement("queue", "fold_counters"))


def housekeeping(connection: Connection) -> None:
    """Prunes finished jobs, old samples and dead workers' rows; one worker at a time does it, others pass by."""
    with transaction(connection):
        turn = connection.execute(statement("queue", "housekeeping_turn")).fetchone()
        if turn is None or not turn[0]:
            return
        for name in _HOUSEKEEPING:
            connection.execute(statement("queue", name))


def notify(connection: Connection, payload: str = "") -> None:
    """Wakes idle workers: a hint in a transaction of its own, since NOTIFY takes a database-wide lock at commit."""
    connection.execute(statement("queue", "notify"), {"payload": payload})


def announce(connection: Connection, vectorizer_id: int) -> None:
    """Tells gateways that something of a vectorizer was written, where a task of it is unfinished."""
    connection.execute(statement("queue", "announce"), {"vectorizer": vectorizer_id})
