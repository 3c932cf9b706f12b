"""The heartbeat: one row per worker, on a connection and a thread of its own; also listens for work, and takes over
jobs.

A worker whose row is not fresh for a lease is declared gone by any other; its jobs go back to the queue, and it may
beat no more: then it gives up what it has and registers afresh. The same happens where it finds itself in another world
(a standby was promoted, a dump restored). With each beat it learns what people want of it: to leave, to begin nothing
more of a vectorizer, or to keep within a limit, whose measures it takes; a notification makes it ask at once. It learns
as well that somebody has upgraded the schema: where that is no longer one for this program, the session ends. Idle
workers ask for jobs the more seldom the larger the fleet is; so whoever finds plenty of them says so with its beat, and
who hears that with its own looks at once: a fleet of any size is at work within two beats, without LISTEN too. A worker
judges others only after its own heartbeat was unbroken for one
lease, so that the first one back after an outage does not declare everybody dead. It beats no more once a call hangs.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

import psycopg

from pgvec_queue import process, queue, schema, vectorizer
from pgvec_queue.database import Connection, Database, kind_of, one_line, statement
from pgvec_queue.errors import DatabaseError, Kind, SchemaOutdatedError
from pgvec_queue.log import get_logger
from pgvec_queue.queue import Membership
from pgvec_queue.route import sever
from pgvec_queue.worker.cache import Cache
from pgvec_queue.worker.link import CALL_SECONDS
from pgvec_queue.worker.models import Models
from pgvec_queue.worker.replication import Replication
from pgvec_queue.worker.state import State

log = get_logger("pgvec.worker")

BEATS_PER_LEASE = 6
_LONGEST_BEAT = 5.0
_LARGE_FLEET, _FEWEST_BEATS = 32, 3
_LOOK = 0.25
_HOUSEKEEPING = 60.0
_OBEY = 1.0
"""Seconds between beats where a limit is to be kept, or where nobody could wake a worker with a job in hand."""
_OBEY_PER_WORKER = 0.01
_GRACE = 0.7
"""Seconds for what the model has of a vectorizer that is stopped; the rest is given up."""
_HELD_FOR = 2.0
"""Seconds that what is in hand waits for a limit to hold again, before it goes back."""
_ASK_AGAIN = 0.5
"""Seconds after a notification: what was being claimed in that moment is in hand by then."""
_STEER = "steer"
_NAME = "heartbeat"


Limits = tuple[int, float | None, float | None, float | None]
"""Of a vectorizer: rows per second, seconds that a standby may be behind, seconds that a small commit may take."""


@dataclass(slots=True)
class Heartbeat:
    """Beats for one worker id until told to stop. Times are in seconds."""

    database: Database
    state: State
    models: Models
    cache: Cache
    member: Membership
    lease: float
    listen: bool
    leave: Callable[[], None]
    """Has the worker leave, as by SIGTERM."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _connection: Connection | None = None
    _beat_at: float = 0.0
    _unbroken_since: float | None = None
    _housekept_at: float = 0.0
    _reclaim_at: float = 0.0
    _told_to_leave: bool = False
    _revision: str = ""
    _replication: Replication = field(default_factory=Replication)
    _commit_seconds: float | None = None
    _lag_seconds: float | None = None
    _limited: bool = False
    _held_since: dict[int, float] = field(default_factory=dict)
    _ask_again_at: float | None = None
    _stopping: dict[int, float] = field(default_factory=dict)
    """Vectorizers that somebody has stopped, and when what is in hand of them is given up."""

    @property
    def period(self) -> float:
        if self._limited or (not self.listen and self.state.watched):
            return min(self._usual_period, max(_OBEY, _OBEY_PER_WORKER * self.state.fleet))
        return self._usual_period

    @property
    def _usual_period(self) -> float:
        if self.state.fleet > _LARGE_FLEET:
            return min(self.lease / _FEWEST_BEATS, 2 * _LONGEST_BEAT)
        return min(self.lease / BEATS_PER_LEASE, _LONGEST_BEAT)

    def run(self) -> None:
        self._beat_at = time.monotonic()
        self._revision = self.state.revision
        try:
            while not self._ended:
                try:
                    self._once()
                except (psycopg.Error, DatabaseError) as error:
                    self._on_error(error)
        finally:
            self._close()

    def stop(self) -> None:
        self._stop.set()

    @property
    def _ended(self) -> bool:
        lost = self.state.lease_lost.is_set() or self.state.outgrown.is_set()
        return self._stop.is_set() or lost or self.state.stalled is not None

    def _once(self) -> None:
        connection = self._open()
        self._told_to_leave = self.state.stopping.is_set()
        began = time.monotonic()
        with self._watched(connection):
            row = connection.execute(statement("queue", "beat"), self._beat()).fetchone()
        taken = time.monotonic() - began
        if row is None:
            log.warning("lease is lost: declared gone, or the database is another; starting afresh")
            self.state.lease_lost.set()
            self.state.aborted.set()
            self.state.wake.set()
            return
        self.state.goes_on(_NAME)
        self.state.fleet, overdue, plenty, leave, stopped, limits, revision = row
        self.state.measures.beat(began)
        if revision != self._revision and not self._fits(connection, revision):
            return
        now = time.monotonic()
        self._keep_limits(connection, now, taken, limits)
        self._obey(connection, now, leave=leave, stopped=stopped)
        self.state.steered.set()
        if plenty and self.state.activity == "idle":
            self.state.told_of_plenty()
        if self._unbroken_since is None or now - self._beat_at > self.lease:
            self._unbroken_since = now
        self._beat_at = now
        self._judge(connection, now, overdue=overdue)
        self._listen(connection, now + self.period)

    def _fits(self, connection: Connection, revision: str | None) -> bool:
        """Whether the program works with the schema that somebody has made meanwhile; ends the session where not."""
        self._revision = revision or ""
        try:
            with self._watched(connection):
                schema.require(connection)
        except SchemaOutdatedError as error:
            log.warning("schema is no longer one for this program; jobs go back", error=str(error))
            self.state.outgrow()
            return False
        log.info("schema was upgraded; this program works with it", revision=revision)
        return True

    def _beat(self) -> dict[str, object]:
        embedder = self.models.latest
        return {
            "worker": self.member.worker,
            "world": self.member.world,
            "state": "stopping" if self._told_to_leave else self._activity,
            "device": embedder.device if embedder else None,
            "dtype": embedder.dtype if embedder else None,
            "runtime": getattr(embedder, "runtime", None),
            "models": self.models.names,
            "memory": process.peak_memory(),
            "waiting_for": "; ".join(sorted(set(self.state.waits.values()))) or None,
            "busy": self.state.busy.share,
            "documents_per_second": self.state.documents_per_second or None,
            "loads": self.models.loads,
            "batch_tokens": getattr(embedder, "batch_tokens", None),
            "padding": getattr(embedder, "padding", None),
            "commit_seconds": self._commit_seconds,
            "lag_seconds": self._lag_seconds,
            "cache_chunks": self.cache.look.chunks,
            "cache_bytes": self.cache.look.bytes,
            "cache_lookups": self.cache.look.lookups,
            "cache_hits": self.cache.look.hits,
            "plenty": self.state.plenty,
            "in_hand": self.state.watched,
        }

    @property
    def _activity(self) -> str:
        return "working" if self.state.index is not None and self.state.activity == "idle" else self.state.activity

    def _obey(self, connection: Connection, now: float, *, leave: bool, stopped: Sequence[int]) -> None:
        if leave and not self.state.stopping.is_set():
            self.leave()
        self._stopping = {one: until for one, until in self._stopping.items() if one in stopped}
        for one in stopped:
            if one not in self._stopping:
                self._stopping[one] = now + _GRACE
                self.state.stop_vectorizer(one)
                # A limit that is crossed ends no build: it would begin anew.
                self.state.stop_index(one)
        for one in self.state.vectorizers:
            if now - self._held_since.get(one, now) >= _HELD_FOR:
                # Others have use of this worker meanwhile.
                self._stopping[one] = now
                self.state.stop_vectorizer(one)
        self._give_up(connection)

    def _give_up(self, connection: Connection) -> None:
        """Gives back the jobs of what was stopped a moment ago; what the model had of them is written by then."""
        for one in [one for one, until in self._stopping.items() if until <= time.monotonic()]:
            del self._stopping[one]
            if one not in self.state.vectorizers:
                continue
            self.state.drop_vectorizer(one)
            with self._watched(connection):
                jobs = queue.release(connection, self.member, vectorizer=one)
            log.info(
                "vectorizer was stopped; its jobs are back in the queue",
                vectorizer=self._name(connection, one),
                jobs=jobs,
            )

    def _keep_limits(self, connection: Connection, now: float, taken: float, limits: Sequence[Limits]) -> None:
        self._limited = bool(limits)
        self._commit_seconds = taken if limits else None
        self._lag_seconds = None
        if any(lag is not None for _, _, lag, _ in limits):
            with self._watched(connection):
                self._lag_seconds = self._replication.look(connection, now)
        held = {}
        for one, _, lag, commit in limits:
            if lag is not None and self._lag_seconds is not None and self._lag_seconds > lag:
                held[one] = f"a standby is {self._lag_seconds:.1f} s behind"
            elif commit is not None and taken > commit:
                held[one] = f"a small commit takes {taken:.2f} s"
        for one in held.keys() - self.state.held.keys():
            log.warning("limit is crossed; vectorizer waits", vectorizer=self._name(connection, one), error=held[one])
        for one in self.state.held.keys() - held.keys():
            log.info("limit is kept again; vectorizer goes on", vectorizer=self._name(connection, one))
        self._held_since = {one: self._held_since.get(one, now) for one in held}
        self.state.held = held
        self.state.rate_limits = {one: rate for one, rate, _, _ in limits if rate is not None}

    def _name(self, connection: Connection, one: int) -> str:
        """What people call the vectorizer."""
        known = self.state.name_of(one)
        if known is None:
            with self._watched(connection):
                found = vectorizer.by_ids(connection, [one])
            known = found[0].name if found else str(one)
        return known

    def _watched(self, connection: Connection) -> AbstractContextManager[None]:
        """Severs all connections when this one has gone silent: well before the lease runs out, so that it is kept."""

        def overdue() -> None:
            sever(connection)
            self.state.watch.sever_all()

        return self.state.watch.call("the heartbeat's connection", max(1.0, self.lease / 2), overdue)

    def _judge(self, connection: Connection, now: float, *, overdue: bool) -> None:
        assert self._unbroken_since is not None
        if now - self._unbroken_since >= self.lease and (overdue or now >= self._reclaim_at):
            # Without anybody overdue as well: whoever declared one gone may have died before it took the jobs back.
            share = self.state.fleet * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
            self._reclaim_at = now + max(self.lease / BEATS_PER_LEASE, share)
            with self._watched(connection):
                workers, jobs = queue.reclaim(connection, self.member.worker)
            if workers or jobs:
                log.warning("jobs of workers that are gone are back in the queue", workers=workers, jobs=jobs)
                self.state.wake.set()
        # One at a time does it: in a large fleet each asks the more seldom.
        if now - self._housekept_at >= _HOUSEKEEPING * max(1.0, self.state.fleet / 10):
            self._housekept_at = now
            with self.state.watch.database("the housekeeping's connection", CALL_SECONDS, connection):
                queue.housekeeping(connection)

    def _listen(self, connection: Connection, until: float) -> None:
        """Waits until the next beat is due, and wakes the reader when somebody has added work."""
        while not self._ended and (left := until - time.monotonic()) > 0:
            if self.state.stopping.is_set() and not self._told_to_leave:
                # Whoever ends the process before it is done shall know that it was leaving.
                return
            self._give_up(connection)
            if not self.listen:
                if self.period < self._usual_period:
                    # Something has come into this worker's hands meanwhile.
                    until = min(until, time.monotonic() + self.period)
                self._stop.wait(min(left, _LOOK))
                continue
            for notice in connection.notifies(timeout=min(left, _LOOK), stop_after=1):
                self.state.woken()
                if notice.payload == _STEER:
                    now = time.monotonic()
                    self._ask_again_at = now + _ASK_AGAIN
                    until = min(until, now + random.uniform(0, min(self.state.fleet * 0.005, 1.0)))  # noqa: S311
            if self._ask_again_at is not None and time.monotonic() >= self._ask_again_at:
                self._ask_again_at = None
                return

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = self.database.connect("heartbeat")
            if self.listen:
                with self._watched(self._connection):
                    self._connection.execute(statement("queue", "listen"))
        return self._connection

    def _on_error(self, error: Exception) -> None:
        self.state.measures.beat_error = one_line(error)
        if kind_of(error) is not Kind.PASSING:
            log.error("heartbeat has failed", error=one_line(error))
            self.state.fail(error)
            self._stop.set()
            return
        self._close()
        seconds = min(1.0, self.period)
        self.state.told(_NAME, one_line(error), seconds)
        self._stop.wait(seconds)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
