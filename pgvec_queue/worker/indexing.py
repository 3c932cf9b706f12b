"""The stage that builds indexes: claims an index job once no range of its vectorizer is unfinished, on a thread and a
connection of its own, while the rest of the worker goes on with other jobs.

A worker that has no direct connection, or not the right, leaves the job to others, and says why in ``pgvec.indexes``.
What cannot be built is refused there, with the reason; the vectorizer is neither blocked nor stopped by it. When the
worker is told to leave, its vectorizer is paused, or its lease is lost, the statement is cancelled, and whoever claims
the job next drops what is left and begins anew. When it is killed, the server goes on building, and the next waits for
that (see ``index_building``).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence

import psycopg

from pgvec_queue import index_building, recall, route, vector_index, vectorizer
from pgvec_queue.database import Connection, Database, kind_of, one_line, statement, transaction, versions
from pgvec_queue.errors import DatabaseError, Kind
from pgvec_queue.index_building import BuildStoppedError, Built
from pgvec_queue.index_room import Room
from pgvec_queue.log import get_logger
from pgvec_queue.queue import Membership
from pgvec_queue.vector_index import IndexRefusedError
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker.link import Link
from pgvec_queue.worker.state import State
from pgvec_queue.worker.work import IndexRun

log = get_logger("pgvec.worker")

_BUSY_LOOK = 5.0
"""Seconds between looks of a worker that has something else to do."""
_IDLE_LOOK, _DRAIN_LOOK = 1.0, 0.1
"""Of one that has not, at least; in a large fleet each looks the more seldom."""
_TICK = 0.05
_LOOK_SHARE = 0.02
"""Of the time, at most, that goes into these looks."""
_TOLD_EVERY = 2.0
_TRIES = 3
"""Of a build that fails for something that may pass, such as a full disk."""
_AGAIN, _AGAIN_FACTOR = 30.0, 4.0
_SOON = 2.0
"""Seconds until the next try when a connection was lost."""


class Indexer:
    """Builds what is wanted, one index at a time, until the worker ends."""

    def __init__(
        self,
        link: Link,
        state: State,
        member: Membership,
        direct: Database,
        names: Sequence[str] | None,
        *,
        drain: bool,
    ) -> None:
        self._link = link
        self._state = state
        self._member = member
        self._direct = direct
        self._names = names
        self._drain = drain

    def run(self) -> None:
        wait = 0.0
        while self._rest(wait):
            self._state.rests.clear()
            began = time.monotonic()
            claimable = self._claimable()
            wait = (time.monotonic() - began) / _LOOK_SHARE
            for one in claimable:
                if not self._state.ending:
                    self._serve(one)

    def _rest(self, at_least: float) -> bool:
        """Waits until the worker has nothing else to do, or for a while; at least so many seconds.

        False when the worker ends.
        """
        idle = _DRAIN_LOOK if self._drain else _IDLE_LOOK * self._state.fleet * random.uniform(0.7, 1.3)  # noqa: S311
        began = time.monotonic()
        while not self._state.ending:
            passed = time.monotonic() - began
            if passed >= max(at_least, idle) and (self._state.rests.is_set() or passed >= _BUSY_LOOK):
                return True
            self._state.aborted.wait(_TICK)
        return False

    def _claimable(self) -> list[int]:
        def look(connection: Connection) -> list[int]:
            rows = connection.execute(
                statement("index", "claimable"),
                {
                    "names": None if self._names is None else list(self._names),
                    "left": list(self._state.index_left),
                },
            ).fetchall()
            return [row[0] for row in rows]

        return self._link.call(look)

    def _serve(self, vectorizer_id: int) -> None:
        """Claims and does the index job of a vectorizer, if this worker can."""
        found = self._link.call(lambda connection: vectorizer.by_ids(connection, [vectorizer_id]))
        if not found:
            return
        one = found[0]
        try:
            # Its own: a build sets things for its session.
            with self._direct.connect("index") as connection:
                hindrance = self._hindrance(connection, one)
                if hindrance is not None:
                    self._leave_to_others(one, hindrance)
                    return
                run = self._claim(one)
                if run is not None:
                    self._do(connection, one, run)
        except (psycopg.Error, DatabaseError) as error:
            # An index is worth no worker: it is looked at again.
            self._state.told("indexer", one_line(error), _SOON)

    def _hindrance(self, connection: Connection, one: Vectorizer) -> str | None:
        """Why this worker cannot build; None: it can."""
        if route.finds_pooler(connection):
            return "CREATE INDEX CONCURRENTLY needs a connection without a pooler between: give workers --direct-dsn"
        try:
            return vector_index.target(connection, one).hindrance
        except IndexRefusedError:
            # That is to be told when it is refused.
            return None

    def _leave_to_others(self, one: Vectorizer, hindrance: str) -> None:
        self._state.index_left[one.id] = hindrance
        reason = f"a worker left it to others: {hindrance}; or run: pgvec index {one.name}"
        log.info("index is left to other workers", vectorizer=one.name, error=hindrance)
        self._link.call(
            lambda connection: connection.execute(statement("index", "left"), {"vectorizer": one.id, "reason": reason})
        )

    def _claim(self, one: Vectorizer) -> IndexRun | None:
        def claim(connection: Connection) -> IndexRun | None:
            with transaction(connection, statement_timeout=30):
                row = connection.execute(
                    statement("index", "claim"),
                    {"vectorizer": one.id, "worker": self._member.worker, "world": self._member.world},
                ).fetchone()
                if row is None:
                    return None
                vector_index.note_begun(connection, one)
                return IndexRun(row[0], row[1], row[2])

        return self._link.call(claim)

    def _do(self, connection: Connection, one: Vectorizer, run: IndexRun) -> None:
        self._state.index = run
        attendant = _Watcher(self._link, self._state, run, one.name)
        began = time.monotonic()
        log.debug("job is claimed", vectorizer=one.name, job=run.job, kind="index")
        try:
            self._build(connection, one, run, attendant)
            log.debug(
                "job is done", vectorizer=one.name, job=run.job, rows=0, seconds=round(time.monotonic() - began, 3)
            )
        except BuildStoppedError:
            log.info("build of an index was stopped", vectorizer=one.name, job=run.job)
            self._give_back(one, run)
        except (IndexRefusedError, DatabaseError) as error:
            self._refuse(one, run, str(error))
        except psycopg.Error as error:
            self._fail(one, run, error)
        finally:
            self._state.index = None
            self._state.waits.pop(attendant.name, None)
            self._state.wake.set()

    def _build(self, connection: Connection, one: Vectorizer, run: IndexRun, attendant: _Watcher) -> None:
        wish = vector_index.wish_of(connection, one)
        if wish is None:
            raise BuildStoppedError("its vectorizer was dropped in this moment")
        built = index_building.build(connection, one, wish, versions(connection).vector_schema, attendant)
        self._fenced(run, lambda own: _note_built(own, one, built))
        measured = recall.measure(connection, one, stopped=attendant.stopped)
        if attendant.stopped():
            raise BuildStoppedError("the index is there; its recall is not known yet")
        self._fenced(run, lambda own: recall.note(own, one, measured), done=True)
        label, size = built.index.label, built.index.size_bytes
        share = None if measured.share is None else round(measured.share, 4)
        if built.seconds is None:
            log.info("index is there already", vectorizer=one.name, index=label, bytes=size, recall=share)
        else:
            log.info(
                "index is built",
                vectorizer=one.name,
                index=label,
                seconds=round(built.seconds, 3),
                bytes=size,
                recall=share,
                error=built.remark,
            )

    def _refuse(self, one: Vectorizer, run: IndexRun, reason: str) -> None:
        log.warning("index is refused", vectorizer=one.name, error=reason)
        self._fenced(run, lambda own: vector_index.note_refused(own, one, reason), done=True)

    def _fail(self, one: Vectorizer, run: IndexRun, error: psycopg.Error) -> None:
        """Has it tried again, what may pass: a lost connection without end, a full disk a few times."""
        reason = one_line(error)
        at_last = f"{reason}; when that is mended, run: pgvec index {one.name}"
        if kind_of(error) is not Kind.PASSING:
            self._refuse(one, run, at_last)
            return
        log.warning("build of an index has failed; it is tried again", vectorizer=one.name, error=reason)
        counts = (error.sqlstate or "").startswith("53")

        def note(own: Connection) -> None:
            row = own.execute(
                statement("index", "failed"), {"vectorizer": one.id, "reason": reason, "counts": int(counts)}
            ).fetchone()
            failures = row[0] if row else 0
            if failures >= _TRIES:
                vector_index.note_refused(own, one, at_last)
                own.execute(statement("index", "done"), {"id": run.job})
            else:
                seconds = _AGAIN * _AGAIN_FACTOR ** (failures - 1) if counts else _SOON
                own.execute(statement("index", "give_back"), {"id": run.job, "seconds": seconds})

        self._fenced(run, note)

    def _give_back(self, one: Vectorizer, run: IndexRun) -> None:
        def note(own: Connection) -> None:
            vector_index.note_unfinished(own, one)
            own.execute(statement("index", "give_back"), {"id": run.job, "seconds": 0.0})

        self._fenced(run, note)

    def _fenced(self, run: IndexRun, write: Callable[[Connection], None], *, done: bool = False) -> None:
        """Writes what became of the job, if it is still this worker's; ``done`` ends it."""

        def attempt(connection: Connection) -> None:
            with transaction(connection):
                mine = connection.execute(
                    statement("index", "holds"),
                    {
                        "id": run.job,
                        "epoch": run.epoch,
                        "worker": self._member.worker,
                        "world": self._member.world,
                    },
                ).fetchone()
                if mine is None:
                    return
                write(connection)
                if done:
                    connection.execute(statement("index", "done"), {"id": run.job})

        self._link.call(attempt)


def _note_built(connection: Connection, one: Vectorizer, built: Built) -> None:
    vector_index.note_found(connection, one, built.index, seconds=built.seconds, remark=built.remark)


class _Watcher:
    """Attends to a build for a worker: ends it with the worker, and tells `status` what it waits for."""

    def __init__(self, link: Link, state: State, run: IndexRun, vectorizer_name: str) -> None:
        self._link = link
        self._state = state
        self._run = run
        self._vectorizer = vectorizer_name
        self._look_at = 0.0
        self.name = f"the index of {vectorizer_name}"

    def stopped(self) -> bool:
        return self._run.stopped or self._state.stopping.is_set() or self._state.aborted.is_set()

    def waits(self, what: str | None) -> None:
        if what is None:
            self._state.waits.pop(self.name, None)
        else:
            self._state.waits[self.name] = f"{self.name}: waits, since {what}"

    def begins(self, index: str, given: Room) -> None:
        log.info(
            "index is being built",
            vectorizer=self._vectorizer,
            index=index,
            memory=given.memory,
            workers=given.workers,
            error=given.remark,
        )

    def goes_on(self, backend: int) -> None:
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _TOLD_EVERY
        row = self._link.call(
            lambda connection: connection.execute(statement("index", "building"), {"pid": backend}).fetchone()
        )
        pid, who, seconds = row[3:6] if row else (None, None, None)
        self.waits(None if pid is None else f"a transaction of {who} (pid {pid}) has been open for {seconds:.0f} s")
