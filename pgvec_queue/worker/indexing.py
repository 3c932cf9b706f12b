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
from contextlib import suppress

import psycopg

from pgvec_queue import index_building, recall, route, vector_index, vectorizer
from pgvec_queue.database import Connection, Database, kind_of, one_line, statement, transaction, versions
from pgvec_queue.errors import DatabaseError, Kind
from pgvec_queue.index_building import Built
from pgvec_queue.index_statements import BuildStoppedError, attended
from pgvec_queue.log import get_logger
from pgvec_queue.queue import Membership
from pgvec_queue.vector_index import IndexRefusedError, Wish
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker.index_attendants import Clearing, Watcher, is_wanted
from pgvec_queue.worker.link import Link
from pgvec_queue.worker.state import State
from pgvec_queue.worker.work import IndexRun

log = get_logger("pgvec.worker")

_BUSY_LOOK = 5.0
"""Seconds between looks of a worker that has something else to do."""
_IDLE_LOOK, _DRAIN_LOOK = 1.0, 0.1
"""Of one that has not, at least. In a large fleet each looks the more seldom, whatever it does."""
_TICK = 0.05
_LOOK_SHARE = 0.02
"""Of the time, at most, that goes into these looks."""
_TRIES = 3
"""Of a build that fails for something that may pass, such as a full disk; and workers that it may cost."""
_AGAIN, _AGAIN_FACTOR = 30.0, 4.0
_SOON, _LATEST = 2.0, 60.0
"""Seconds until the next try to connect; twice as long after each."""
_CONNECTS = 4
"""Tries, until what a draining worker cannot reach is left to others."""
_LEFT_FOR = 300.0
"""Seconds until what was left to others is looked at again: somebody may have mended what was in the way."""
_DIRECT = "the direct connection"
_CANCELLED, _TERMINATED = "57014", "57P01"


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
        self._left_at: dict[int, float] = {}
        self._unreached = 0
        """Tries to connect in a row that have failed."""

    def run(self) -> None:
        wait = 0.0
        while self._rest(wait):
            self._look_again()
            self._state.rests.clear()
            began = time.monotonic()
            try:
                claimable = self._claimable()
            except psycopg.Error as error:
                # What passes was waited for. An index is worth no worker: the rest of it goes on.
                log.warning("this worker builds no indexes", error=one_line(error))
                self._state.index_none = True
                self._state.wake.set()
                return
            wait = (time.monotonic() - began) / _LOOK_SHARE
            for one in claimable:
                if self._state.ending:
                    break
                self._serve(one)
                if self._unreached:
                    wait = max(wait, self._backoff())
                    break

    def _look_again(self) -> None:
        """Forgets what was left to others long ago; not where that is all that a draining worker has left."""
        if self._drain and self._state.rests.is_set():
            return
        for one, at in [*self._left_at.items()]:
            if time.monotonic() - at >= _LEFT_FOR:
                del self._left_at[one]
                self._state.index_left.pop(one, None)

    def _backoff(self) -> float:
        return min(_SOON * 2.0 ** (self._unreached - 1), _LATEST)

    def _rest(self, at_least: float) -> bool:
        """Waits until the worker has nothing else to do, or for a while; at least so many seconds.

        False when the worker ends.
        """
        idle = (_DRAIN_LOOK if self._drain else _IDLE_LOOK) * self._state.fleet * random.uniform(0.7, 1.3)  # noqa: S311
        busy = max(_BUSY_LOOK * self._state.fleet, idle)
        began = time.monotonic()
        while not self._state.ending:
            passed = time.monotonic() - began
            if passed >= max(at_least, idle) and (self._state.rests.is_set() or passed >= busy):
                return True
            self._state.aborted.wait(_TICK)
        return False

    def _claimable(self) -> list[int]:
        def look(connection: Connection) -> list[int]:
            try:
                rows = connection.execute(
                    statement("index", "claimable"),
                    {
                        "names": None if self._names is None else list(self._names),
                        "left": list(self._state.index_left),
                    },
                ).fetchall()
            except (psycopg.errors.QueryCanceled, psycopg.errors.LockNotAvailable):
                # It took its time, which counts: it is not to be tried again at once.
                return []
            if not rows:
                connection.execute(statement("index", "withdrawn"))
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
            opened = self._direct.connect("index")
        except DatabaseError as error:
            self._unreached += 1
            if self._unreached >= _CONNECTS:
                self._leave_to_others(one, one_line(error))
            else:
                self._state.told(_DIRECT, one_line(error), self._backoff())
            return
        self._unreached = 0
        self._state.goes_on(_DIRECT)
        try:
            with opened as connection:
                hindrance = self._hindrance(connection, one)
                if hindrance is not None:
                    self._leave_to_others(one, hindrance)
                    return
                run = self._claim(one)
                if run is not None:
                    self._do(connection, one, run)
        except (psycopg.Error, DatabaseError) as error:
            # An index is worth no worker.
            if kind_of(error) is Kind.PASSING:
                self._state.told("indexer", one_line(error), _SOON)
            else:
                self._note_left(one, one_line(error))

    def _hindrance(self, connection: Connection, one: Vectorizer) -> str | None:
        """Why this worker cannot build; None: it can."""
        if route.finds_pooler(connection):
            return "CREATE INDEX CONCURRENTLY needs a connection without a pooler between: give workers --direct-dsn"
        try:
            return vector_index.hindrance(connection, vector_index.target(connection, one))
        except IndexRefusedError:
            # That is to be told when it is refused.
            return None

    def _leave_to_others(self, one: Vectorizer, hindrance: str) -> None:
        self._note_left(one, hindrance)
        reason = f"a worker left it to others: {hindrance}; or run: pgvec index {one.name}"
        self._link.call(
            lambda connection: connection.execute(statement("index", "left"), {"vectorizer": one.id, "reason": reason})
        )

    def _note_left(self, one: Vectorizer, hindrance: str) -> None:
        known = self._state.index_left.get(one.id)
        self._state.index_left[one.id] = hindrance
        self._left_at[one.id] = time.monotonic()
        if known != hindrance:
            log.info("index is left to other workers", vectorizer=one.name, error=hindrance)

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
                return IndexRun(*row)

        return self._link.call(claim)

    def _do(self, connection: Connection, one: Vectorizer, run: IndexRun) -> None:
        self._state.index = run
        server: object = None
        attendant = Watcher(self._link, self._state, run, one, lambda: self._fenced(run, _note_advanced(run)))
        began = time.monotonic()
        log.debug("job is claimed", vectorizer=one.name, job=run.job, kind="index")
        try:
            server = _server(connection)
            self._build(connection, one, run, attendant)
            log.debug(
                "job is done", vectorizer=one.name, job=run.job, rows=0, seconds=round(time.monotonic() - began, 3)
            )
        except BuildStoppedError:
            log.info("build of an index was stopped", vectorizer=one.name, job=run.job)
            self._give_back(one, run)
            self._clear(connection, one)
        except (IndexRefusedError, DatabaseError) as error:
            self._refuse(one, run, str(error))
        except psycopg.Error as error:
            self._fail(one, run, error, server)
        finally:
            self._state.index = None
            self._state.waits.pop(attendant.name, None)
            self._state.wake.set()

    def _build(self, connection: Connection, one: Vectorizer, run: IndexRun, attendant: Watcher) -> None:
        wish = vector_index.wish_of(connection, one)
        if wish is None:
            raise BuildStoppedError("its vectorizer was dropped in this moment")
        if run.attempts >= _TRIES and not _is_there(connection, one, wish):
            raise IndexRefusedError(
                f"{run.attempts} workers have ended while they built it; look for why in the logs of theirs and of the "
                f"server, then run: pgvec index {one.name}"
            )
        built = index_building.build(connection, one, wish, versions(connection).vector_schema, attendant)
        self._fenced(run, lambda own: _note_built(own, one, built))
        # One that is stopped begins anew: the index is there, and its recall is not known.
        measured = attended(connection, lambda: recall.measure(connection, one, stopped=attendant.stopped), attendant)
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

    def _fail(self, one: Vectorizer, run: IndexRun, error: psycopg.Error, server: object) -> None:
        """Has what may pass tried again, a few times; but what somebody has ended on purpose is not begun anew."""
        reason = one_line(error)
        # A server that is shut down says so in the same words.
        is_ended = error.sqlstate == _CANCELLED or (
            error.sqlstate == _TERMINATED and server is not None and self._link.call(_server) == server
        )
        if is_ended:
            self._refuse(
                one, run, f"somebody has ended its build ({reason}); to begin anew, run: pgvec index {one.name}"
            )
            return
        at_last = f"{reason}; when that is mended, run: pgvec index {one.name}"
        if kind_of(error) is not Kind.PASSING:
            self._refuse(one, run, at_last)
            return
        log.warning("build of an index has failed; it is tried again", vectorizer=one.name, error=reason)

        def note(own: Connection) -> None:
            row = own.execute(statement("index", "failed"), {"vectorizer": one.id, "reason": reason}).fetchone()
            # None: it is not wanted any more, and its job ends.
            failures = row[0] if row else 1
            if failures >= _TRIES:
                vector_index.note_refused(own, one, at_last)
                own.execute(statement("index", "done"), {"id": run.job})
            else:
                seconds = _AGAIN * _AGAIN_FACTOR ** (failures - 1)
                own.execute(statement("index", "give_back"), {"id": run.job, "seconds": seconds})

        self._fenced(run, note)

    def _give_back(self, one: Vectorizer, run: IndexRun) -> None:
        def note(own: Connection) -> None:
            vector_index.note_unfinished(own, one)
            own.execute(statement("index", "give_back"), {"id": run.job, "seconds": 0.0})

        self._fenced(run, note)

    def _clear(self, connection: Connection, one: Vectorizer) -> None:
        """Drops what the build has left where nobody is to begin anew: it would be maintained, and never read."""
        if self._link.call(lambda own: is_wanted(own, one)):
            return
        with suppress(psycopg.Error, IndexRefusedError, BuildStoppedError):
            index_building.clear(connection, one, Clearing(self._state))
        with suppress(psycopg.Error, IndexRefusedError):
            for left in self._link.call(lambda own: index_building.leftovers(own, vector_index.target(own, one))):
                log.warning(
                    "build of an index has left something; drop it",
                    vectorizer=one.name,
                    index=left.label,
                    statement=left.removal,
                )

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


def _note_advanced(run: IndexRun) -> Callable[[Connection], None]:
    def note(connection: Connection) -> None:
        connection.execute(statement("index", "advanced"), {"id": run.job})

    return note


def _server(connection: Connection) -> object:
    """Tells one life of the server from another."""
    row = connection.execute(statement("index", "server")).fetchone()
    return row[0] if row else None


def _is_there(connection: Connection, one: Vectorizer, wish: Wish) -> bool:
    return (
        vector_index.serving(vector_index.existing(connection, vector_index.target(connection, one)), wish) is not None
    )
