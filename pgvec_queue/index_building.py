"""Builds the index of a vectorizer, concurrently, and with care for builds whose client died.

``CREATE INDEX CONCURRENTLY`` lets everybody read and write meanwhile. It runs in no transaction of ours, waits for
every older transaction of the database, and holds vacuum back while it runs: the one exception to the rule that no
transaction is open while something takes long. It needs a connection of its own, without a pooler between.

One builder per table: the session holds an advisory lock, which ends with its server process. A server process whose
client has died goes on building, and keeps the lock; whoever comes next waits for its end with nothing open, and then
finds a valid index, or what is left of one that failed, which is dropped before it begins anew. An index with another
definition is built beside the old one, which is dropped when the new one is valid: at no time is there none. Of a
partitioned table each partition is built by itself (see ``index_partitions``).
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass

import psycopg

from pgvec_queue import index_partitions, vector_index
from pgvec_queue.database import Connection, statement
from pgvec_queue.index_room import room
from pgvec_queue.index_statements import Attendant, Building, Step, create, drop, drop_partitioned, pause
from pgvec_queue.vector_index import Existing, IndexRefusedError, Target, Wish
from pgvec_queue.vectorizer import Vectorizer

_WAIT = 0.5


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
    hindrance = vector_index.hindrance(connection, target)
    if hindrance is not None:
        raise IndexRefusedError(f"{hindrance}; as that, run: pgvec index {vectorizer.name}")
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


@dataclass(frozen=True, slots=True)
class Leftover:
    """An index of ours that is of no use, since its build was cut short."""

    target: Target
    label: str
    """Schema and name, quoted as in SQL."""

    @property
    def removal(self) -> str:
        """The statement that drops it."""
        return f"DROP INDEX {'' if self.target.partitioned else 'CONCURRENTLY '}IF EXISTS {self.label}"


def leftovers(connection: Connection, target: Target, wish: Wish | None = None) -> list[Leftover]:
    """Returns what builds have left on the table and its partitions, but for what one of ``wish`` would go on with."""
    if target.partitioned:
        tree = index_partitions.Tree(connection, target)
        return [Leftover(table, one.label) for table, one in tree.leftovers(wish)]
    rows = connection.execute(
        statement("index", "leftovers"), {"oid": target.oid, "names": list(target.names)}
    ).fetchall()
    return [Leftover(target, label) for (label,) in rows]


def remove(connection: Connection, target: Target, label: str, attendant: Attendant) -> None:
    """Drops an index of the table, with those of its partitions; schema and name are quoted as in SQL."""
    if target.partitioned:
        drop_partitioned(connection, target, label, attendant)
    else:
        drop(connection, label, attendant)


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
            pause(_WAIT, attendant)
    except BaseException:
        if mine:
            with suppress(psycopg.Error):
                connection.execute(statement("index", "unlock"), {"oid": target.oid})
        raise


def _build(
    connection: Connection,
    vectorizer: Vectorizer,
    target: Target,
    wish: Wish,
    vector_schema: str,
    attendant: Attendant,
) -> Built:
    _drop_leftovers(connection, target, attendant, wish)
    building = Building(connection, vectorizer, wish, vector_schema, attendant)
    there = vector_index.existing(connection, target)
    found = vector_index.serving(there, wish)
    old = [one for one in there if one.valid and one.is_ours]
    if found is not None:
        # A build may have ended while it waited to drop what this one has taken the place of.
        for one in old if found.is_ours else ():
            if one is not found:
                remove(connection, target, one.label, attendant)
        return Built(found, None)
    began = time.monotonic()
    if target.partitioned:
        name, remarks = index_partitions.build(building, target)
    else:
        given = room(connection, vectorizer, wish)
        name = next(one for one in target.names if one not in {index.name for index in old})
        step = Step(vectors=vector_index.vectors(connection, vectorizer))
        remarks = create(building, target, name, given, step)
    for one in old:
        remove(connection, target, one.label, attendant)
    made = next(one for one in vector_index.existing(connection, target) if one.valid and one.name == name)
    return Built(made, time.monotonic() - began, "; ".join(remarks) or None)


def _drop_leftovers(connection: Connection, target: Target, attendant: Attendant, wish: Wish | None = None) -> None:
    for one in leftovers(connection, target, wish):
        remove(connection, one.target, one.label, attendant)
