"""Runs the statements of an index's build: what may take hours can be ended at any time, what needs a lock that others
wait for has it shortly or not at all.

``CREATE INDEX CONCURRENTLY`` and its ``DROP`` run outside a transaction and for any time. What PostgreSQL does to a
partitioned table's index it does not do concurrently: such a statement gives up when it does not have its locks within
a moment, and tries again, the later and the longer the more often that was in vain. So nobody queues up behind it for
more than a second, nor for more than a twentieth of the time.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import psycopg
from psycopg import sql

from pgvec_queue.catalog import quoted_name
from pgvec_queue.database import Connection, one_line, statement, transaction, untimed
from pgvec_queue.errors import PgvecError
from pgvec_queue.fragments import identifier, literal_sql
from pgvec_queue.index_room import Room
from pgvec_queue.locks import NOT_HAD
from pgvec_queue.route import sever
from pgvec_queue.vector_index import Target, Wish
from pgvec_queue.vectorizer import Vectorizer

T = TypeVar("T")

_LOOK = 0.05
_CANCEL_SECONDS = 4.0
"""That a build which is cancelled has to end: less than a worker has to leave."""
_MOST_MEMORY = 2**31 - 1
"""Kilobytes that ``maintenance_work_mem`` can be."""
_PART_OF_SHARED_MEMORY = "shared memory segment"
_DOES_NOT_FIT = "no longer fits into maintenance_work_mem"
_LOCK_SECONDS = 0.8
"""That others may wait: less than the server's deadlock_timeout, so that nobody else becomes the victim."""
_GENTLE_SECONDS = 2.5
"""For a lock that no reader or writer waits behind: more than deadlock_timeout, when autovacuum gives way."""
_PAUSE, _LONGEST_PAUSE = 1.0, 32.0
_LOCK_SHARE = 0.05
"""Of the time, at most, in which others may have to wait."""
_STATEMENT_SECONDS = 60.0


class BuildStoppedError(PgvecError):
    """The build was ended because its attendant said so; what is left of it is dropped by the next."""


@dataclass(frozen=True, slots=True)
class Step:
    """One index of those that a build consists of: of a partitioned table each partition has its own."""

    number: int = 1
    of: int = 1
    before: float = 0.0
    """Vectors of those that are done."""
    vectors: float = 0.0
    """Its own."""


class Attendant(Protocol):
    """Whoever has an index built: says when to stop, and hears how it goes."""

    def stopped(self) -> bool:
        """Whether the build is to end."""

    def waits(self, what: str | None) -> None:
        """Why the build has not begun; None: it goes on."""

    def begins(self, index: str, given: Room, step: Step) -> None:
        """The build of that index begins."""

    def built(self, step: Step) -> None:
        """One partition of several is done, and will not be built again."""

    def goes_on(self, backend: int) -> None:
        """Called several times a second while that server process builds."""


@dataclass(frozen=True, slots=True)
class Building:
    """One build: of what, as what, over which connection, and for whom."""

    connection: Connection
    vectorizer: Vectorizer
    wish: Wish
    vector_schema: str
    """Where pgvector is."""
    attendant: Attendant


def create(building: Building, target: Target, name: str, given: Room, step: Step) -> list[str]:
    """Builds an index concurrently; returns what there is to say of it."""
    connection, attendant = building.connection, building.attendant
    remarks = [given.remark] if given.remark else []
    notices: list[str] = []

    def heard(diagnostic: psycopg.errors.Diagnostic) -> None:
        notices.append(diagnostic.message_primary or "")

    query = _creation(building, "create", target, name)
    connection.add_notice_handler(heard)
    try:
        try:
            _prepare(connection, given)
            attendant.begins(name, given, step)
            _run(connection, query, attendant)
        except psycopg.errors.DiskFull as error:
            if not given.workers or _PART_OF_SHARED_MEMORY not in one_line(error):
                raise
            # A parallel build has its memory in /dev/shm, of which a container may have 64 MB.
            remarks.append(f"built by one process: {one_line(error)} (give the server a larger /dev/shm)")
            drop(connection, quoted_name(target.schema, name), attendant)
            _prepare(connection, replace(given, workers=0))
            _run(connection, query, attendant)
    finally:
        connection.remove_notice_handler(heard)
    remarks.extend(notice for notice in notices if _DOES_NOT_FIT in notice)
    return remarks


def create_on_only(building: Building, target: Target, name: str) -> None:
    """Makes the index of a partitioned table, to which those of its partitions are to be attached."""
    query = _creation(building, "create_on_only", target, name)
    briefly(building.connection, query, target, building.attendant)


def attach(building: Building, target: Target, parent: str, part: str) -> None:
    """Attaches the index of a partition; both are schema and name, quoted."""
    query = statement("index", "attach").format(index=literal_sql(parent), part=literal_sql(part))
    briefly(building.connection, query, target, building.attendant)


def _creation(building: Building, how: str, target: Target, name: str) -> sql.Composed:
    wish = building.wish
    return statement("index", how).format(
        index=identifier(name),
        table=identifier(target.schema, target.table),
        value=value(building.vectorizer, wish.store, building.vector_schema),
        opclass=identifier(building.vector_schema, f"{wish.store}_cosine_ops"),
        m=sql.Literal(wish.m),
        ef_construction=sql.Literal(wish.ef_construction),
    )


def value(vectorizer: Vectorizer, store: str, vector_schema: str) -> sql.Composed:
    """Returns what is indexed: the column, or the column cast to ``store``, as searches write it."""
    column = identifier(vectorizer.destination_roles.embedding)
    if vectorizer.store == store:
        return sql.SQL("{}").format(column)
    return sql.SQL("({}::{}({}))").format(column, identifier(vector_schema, store), sql.Literal(vectorizer.dimensions))


def drop(connection: Connection, label: str, attendant: Attendant) -> None:
    """Drops an index of that name (schema and name, quoted), concurrently, over a direct connection."""
    _run(connection, statement("index", "drop").format(index=literal_sql(label)), attendant)


def drop_partitioned(connection: Connection, target: Target, label: str, attendant: Attendant) -> None:
    """Drops the index of a partitioned table with those of its partitions, as soon as all are free for a moment."""
    query = statement("index", "drop_partitioned").format(index=literal_sql(label))
    briefly(connection, query, target, attendant, wholly=True)


def tries() -> Iterator[tuple[float, float]]:
    """Yields for how long to try for a lock that others may wait behind, and to pause afterwards at least; seconds."""
    pausing = _PAUSE
    while True:
        yield min(_LOCK_SECONDS, pausing * _LOCK_SHARE), pausing
        pausing = min(2 * pausing, _LONGEST_PAUSE)


def briefly(
    connection: Connection, query: sql.Composed, target: Target, attendant: Attendant, *, wholly: bool = False
) -> None:
    """Runs what takes a moment once it has its locks on the table, which it tries for until the attendant ends it.

    ``wholly``: it locks all partitions, one after the other, each of which may be in use; so all are locked before, and
    that for a moment altogether.
    """
    table = identifier(target.schema, target.table)
    for seconds, pausing in tries():
        has_all = False
        try:
            with transaction(connection, statement_timeout=_GENTLE_SECONDS, lock_timeout=_GENTLE_SECONDS):
                if wholly:
                    connection.execute(statement("index", "lock_gently").format(table=table))
                    _be_patient(connection, seconds, seconds)
                    connection.execute(statement("index", "lock_wholly").format(table=table))
                has_all = True
                _be_patient(connection, _STATEMENT_SECONDS, seconds)
                connection.execute(query, {})
        except (*NOT_HAD, psycopg.errors.QueryCanceled) as error:
            if has_all and not isinstance(error, NOT_HAD):
                raise
            attendant.waits(f"{target.label} has been in use for every try to lock it")
            pause(random.uniform(pausing, 1.5 * pausing), attendant)  # noqa: S311
        else:
            attendant.waits(None)
            return


def _be_patient(connection: Connection, statement_seconds: float, lock_seconds: float) -> None:
    connection.execute(
        statement("index", "patience"),
        {"statement": f"{statement_seconds * 1000:.0f}ms", "lock": f"{lock_seconds * 1000:.0f}ms"},
    )


def pause(seconds: float, attendant: Attendant) -> None:
    """Waits so long; raises ``BuildStoppedError`` when the attendant says so."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if attendant.stopped():
            raise BuildStoppedError("the build of the index was stopped")
        time.sleep(_LOOK)


def _prepare(connection: Connection, given: Room) -> None:
    connection.execute(
        statement("index", "session"),
        {"memory": f"{min(max(given.memory // 1024, 1024), _MOST_MEMORY)}kB", "workers": str(given.workers)},
    )


def _run(connection: Connection, query: sql.Composed | sql.SQL, attendant: Attendant) -> None:
    """Runs a statement that may take hours, and ends it when the attendant says so."""

    def execute() -> None:
        with untimed(connection):
            connection.execute(statement("index", "untimed"))
            connection.execute(query, {})

    attended(connection, execute, attendant)


def attended(connection: Connection, work: Callable[[], T], attendant: Attendant) -> T:
    """Runs what keeps the connection busy for long; raises ``BuildStoppedError`` when the attendant ends it."""
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)

    thread = threading.Thread(target=run, name="pgvec-index-build", daemon=True)
    thread.start()
    backend = connection.info.backend_pid
    try:
        while thread.is_alive():
            thread.join(_LOOK)
            if thread.is_alive():
                if attendant.stopped():
                    raise BuildStoppedError("the build of the index was stopped")
                attendant.goes_on(backend)
    except BaseException:
        # Ctrl-C as well.
        _cancel(connection, thread)
        raise
    if failed:
        raise failed[0]
    return done[0]


def _cancel(connection: Connection, thread: threading.Thread) -> None:
    """Has the server end the statement; one that does not hear is left to itself, with its lock."""
    with suppress(psycopg.Error):
        connection.cancel_safe(timeout=_CANCEL_SECONDS / 2)
    thread.join(_CANCEL_SECONDS / 2)
    if thread.is_alive():
        sever(connection)
        thread.join(_CANCEL_SECONDS / 2)
