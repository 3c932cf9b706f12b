"""Builds the index of a vectorizer, concurrently, and with care for builds whose client died.

``CREATE INDEX CONCURRENTLY`` lets everybody read and write meanwhile. It runs in no transaction of ours, waits for
every older transaction of the database, and holds vacuum back while it runs: the one exception to the rule that no
transaction is open while something takes long. It needs a connection of its own, without a pooler between.

One builder per table: the session holds an advisory lock, which ends with its server process. A server process whose
client has died goes on building, and keeps the lock; whoever comes next waits for its end with nothing open, and then
finds a valid index, or what is left of one that failed, which is dropped before it begins anew. An index with another
definition is built beside the old one, which is dropped when the new one is valid: at no time is there none.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

import psycopg
from psycopg import sql

from pgvec_queue import vector_index
from pgvec_queue.database import Connection, one_line, statement, untimed
from pgvec_queue.errors import PgvecError
from pgvec_queue.fragments import identifier, literal_sql
from pgvec_queue.index_room import Room, room
from pgvec_queue.route import sever
from pgvec_queue.vector_index import Existing, IndexRefusedError, Target, Wish
from pgvec_queue.vectorizer import Vectorizer

T = TypeVar("T")

_LOOK = 0.05
_CANCEL_SECONDS = 4.0
"""That a build which is cancelled has to end: less than a worker has to leave."""
_WAIT = 0.5
_MOST_MEMORY = 2**31 - 1
"""Kilobytes that ``maintenance_work_mem`` can be."""
_PART_OF_SHARED_MEMORY = "shared memory segment"
_DOES_NOT_FIT = "no longer fits into maintenance_work_mem"


class BuildStoppedError(PgvecError):
    """The build was ended because its attendant said so; what is left of it is dropped by the next."""


class Attendant(Protocol):
    """Whoever has an index built: says when to stop, and hears how it goes."""

    def stopped(self) -> bool:
        """Whether the build is to end."""

    def waits(self, what: str | None) -> None:
        """Why the build has not begun; None: it goes on."""

    def begins(self, index: str, given: Room) -> None:
        """The build of that index begins."""

    def goes_on(self, backend: int) -> None:
        """Called several times a second while that server process builds."""


@dataclass(frozen=True, slots=True)
class Built:
    """The index that searches can go through now."""

    index: Existing
    seconds: float | None
    """None: it was there."""
    remark: str | None = None


def build(
    connection: Connection, vectorizer: Vectorizer, wish: Wish, vector_schema: str, attendant: Attendant
) -> Built:
    """Builds the index that is wanted, unless there is one.

    Needs a direct connection in autocommit mode, with nothing else to do. Raises ``IndexRefusedError``,
    ``BuildStoppedError``, and what the database says.
    """
    vector_index.check(vectorizer, wish)
    target = vector_index.target(connection, vectorizer)
    if target.hindrance is not None:
        raise IndexRefusedError(f"{target.hindrance}; as that, run: pgvec index {vectorizer.name}")
    _take_turn(connection, target, attendant)
    try:
        return _build(connection, vectorizer, target, wish, vector_schema, attendant)
    finally:
        # Without a connection there is no lock of ours either, but for that of a build that goes on.
        with suppress(psycopg.Error):
            connection.execute(statement("index", "unlock"), {"oid": target.oid})


def clear(connection: Connection, vectorizer: Vectorizer, attendant: Attendant) -> None:
    """Drops what a build has left that nobody is to begin anew, over a direct connection."""
    target = vector_index.target(connection, vectorizer)
    _take_turn(connection, target, attendant)
    try:
        _drop_leftovers(connection, target, attendant)
    finally:
        with suppress(psycopg.Error):
            connection.execute(statement("index", "unlock"), {"oid": target.oid})


def leftovers(connection: Connection, target: Target) -> list[str]:
    """Returns the invalid indexes of ours on the table: schema and name of each, quoted as in SQL."""
    rows = connection.execute(
        statement("index", "leftovers"), {"oid": target.oid, "names": list(target.names)}
    ).fetchall()
    return [label for (label,) in rows]


def drop(connection: Connection, label: str, attendant: Attendant) -> None:
    """Drops an index of that name (schema and name, quoted), concurrently, over a direct connection."""
    _run(connection, statement("index", "drop").format(index=literal_sql(label)), attendant)


def _take_turn(connection: Connection, target: Target, attendant: Attendant) -> None:
    """Waits, with nothing open, until nobody else builds an index on the table, and keeps it so."""
    mine = False
    try:
        while True:
            if not mine:
                row = connection.execute(statement("index", "lock"), {"oid": target.oid}).fetchone()
                mine = bool(row and row[0])
            other = connection.execute(statement("index", "others"), {"oid": target.oid}).fetchone()
            pid, who, seconds, builds = other or (None, "", None, False)
            if mine and not builds:
                attendant.waits(None)
                return
            if pid is not None:
                took = f" for {seconds:.0f} s" if seconds is not None else ""
                attendant.waits(f"{who} (pid {pid}) has been building an index on {target.label}{took}")
            _pause(_WAIT, attendant)
    except BaseException:
        if mine:
            with suppress(psycopg.Error):
                connection.execute(statement("index", "unlock"), {"oid": target.oid})
        raise


def _pause(seconds: float, attendant: Attendant) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if attendant.stopped():
            raise BuildStoppedError("the build of the index was stopped")
        time.sleep(_LOOK)


def _build(
    connection: Connection,
    vectorizer: Vectorizer,
    target: Target,
    wish: Wish,
    vector_schema: str,
    attendant: Attendant,
) -> Built:
    _drop_leftovers(connection, target, attendant)
    there = vector_index.existing(connection, target)
    found = vector_index.serving(there, wish)
    if found is not None:
        return Built(found, None)
    if target.partitioned:
        raise IndexRefusedError(
            f"{target.label} is partitioned, and PostgreSQL indexes such a table concurrently only partition by "
            f"partition; make an index on each, and one ON ONLY {target.label} to attach them to"
        )
    given = room(connection, vectorizer, wish)
    old = [one for one in there if one.valid and one.is_ours]
    name = next(one for one in target.names if one not in {index.name for index in old})
    began = time.monotonic()
    remarks = _create(connection, vectorizer, target, name, wish, given, vector_schema, attendant)
    for one in old:
        drop(connection, one.label, attendant)
    made = next(one for one in vector_index.existing(connection, target) if one.valid and one.name == name)
    return Built(made, time.monotonic() - began, "; ".join(remarks) or None)


def _drop_leftovers(connection: Connection, target: Target, attendant: Attendant) -> None:
    for label in leftovers(connection, target):
        drop(connection, label, attendant)


def _create(
    connection: Connection,
    vectorizer: Vectorizer,
    target: Target,
    name: str,
    wish: Wish,
    given: Room,
    vector_schema: str,
    attendant: Attendant,
) -> list[str]:
    """Runs the statement; returns what there is to say of it."""
    remarks = [given.remark] if given.remark else []
    notices: list[str] = []

    def heard(diagnostic: psycopg.errors.Diagnostic) -> None:
        notices.append(diagnostic.message_primary or "")

    query = statement("index", "create").format(
        index=identifier(name),
        table=identifier(target.schema, target.table),
        value=value(vectorizer, wish.store, vector_schema),
        opclass=identifier(vector_schema, f"{wish.store}_cosine_ops"),
        m=sql.Literal(wish.m),
        ef_construction=sql.Literal(wish.ef_construction),
    )
    connection.add_notice_handler(heard)
    try:
        try:
            _prepare(connection, given)
            attendant.begins(name, given)
            _run(connection, query, attendant)
        except psycopg.errors.DiskFull as error:
            if not given.workers or _PART_OF_SHARED_MEMORY not in one_line(error):
                raise
            # A parallel build has its memory in /dev/shm, of which a container may have 64 MB.
            remarks.append(f"built by one process: {one_line(error)} (give the server a larger /dev/shm)")
            _drop_leftovers(connection, target, attendant)
            _prepare(connection, replace(given, workers=0))
            _run(connection, query, attendant)
    finally:
        connection.remove_notice_handler(heard)
    remarks.extend(notice for notice in notices if _DOES_NOT_FIT in notice)
    return remarks


def value(vectorizer: Vectorizer, store: str, vector_schema: str) -> sql.Composed:
    """Returns what is indexed: the column, or the column cast to ``store``, as searches write it."""
    column = identifier(vectorizer.destination_roles.embedding)
    if vectorizer.store == store:
        return sql.SQL("{}").format(column)
    return sql.SQL("({}::{}({}))").format(column, identifier(vector_schema, store), sql.Literal(vectorizer.dimensions))


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
