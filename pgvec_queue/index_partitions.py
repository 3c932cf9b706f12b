"""Builds the index of a partitioned table: an index on each partition, one after the other.

So each needs the memory of the largest partition at most, and a build that ends early loses the one that it was at.
PostgreSQL builds no such index concurrently by itself. First the index of the table is made, which is invalid and has
nothing; then one on each partition, concurrently, which is attached to it; with the last one it is valid. What is built
already is kept: one partition after the other is looked at, and what it lacks is made. Partitions that are partitioned
themselves have such an index as well.

A partition's index that somebody else has made is neither attached nor doubled: the build is refused, and says which.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import psycopg

from pgvec_queue import vector_index
from pgvec_queue.database import Connection, statement
from pgvec_queue.index_room import Room, decide, server
from pgvec_queue.index_statements import Building, BuildStoppedError, Step, attach, create, create_on_only, drop
from pgvec_queue.vector_index import Existing, IndexRefusedError, Partition, Target, Wish

_PASSES = 3
"""Over all partitions, since somebody may add one meanwhile."""
_GONE = ("55000", "42P17", "42P01", "42704", "XX000")
"""What PostgreSQL says of a table that is no partition any more, or is there no more."""


@dataclass(frozen=True, slots=True)
class _Leaf:
    """A partition that lacks its index."""

    target: Target
    index: Existing | None
    """There already, and to be attached."""
    given: Room | None
    """For its build, where there is none."""
    vectors: float


class Tree:
    """A partitioned table with its partitions, and the indexes that they have."""

    def __init__(self, connection: Connection, target: Target) -> None:
        self.target = target
        self.partitions: Sequence[Partition] = vector_index.partitions(connection, target)
        self.indexes = {
            one.oid: vector_index.existing(connection, one)
            for one in (target, *(partition.target for partition in self.partitions))
        }
        self._ours: set[int] = set()
        # Each after what it is a partition of, and so each index after the one that it belongs to.
        for oid, indexes in self.indexes.items():
            for one in indexes:
                # On a partition an index may have been made by hand, and be called much as ours are.
                if one.named or one.parent in self._ours or (oid == target.oid and one.is_ours):
                    self._ours.add(one.oid)

    def is_ours(self, one: Existing) -> bool:
        """Whether pgvec has made that index, or PostgreSQL for one of pgvec's."""
        return one.oid in self._ours

    def has(self, connection: Connection, table: Target) -> bool:
        """Whether a table is a partition still."""
        values = {"oid": self.target.oid, "part": table.oid}
        return connection.execute(statement("index", "partition_exists"), values).fetchone() is not None

    def leftovers(self, wish: Wish | None) -> Iterator[tuple[Target, Existing]]:
        """Yields indexes of ours that serve nobody, but for what a build of ``wish`` would go on with."""
        for table in (self.target, *(partition.target for partition in self.partitions)):
            for one in self.indexes[table.oid]:
                serves = one.valid and table is self.target
                goes_on = wish is not None and one.fits(wish) and (one.valid or table.partitioned)
                if self.is_ours(one) and one.parent is None and not serves and not goes_on:
                    yield table, one

    def check(self) -> None:
        """Raises ``IndexRefusedError`` for what no index of all partitions can be made of."""
        for partition in self.partitions:
            table = partition.target
            if partition.foreign:
                raise IndexRefusedError(f"{table.label} is a foreign table, which can have no index")
            for one in self.indexes[table.oid]:
                if one.valid and not self.is_ours(one):
                    raise IndexRefusedError(
                        f"{one.label} ({one.method}) is there, on a partition of {self.target.label}, and pgvec has "
                        "not made it; drop it, or attach all of yours to one: CREATE INDEX … ON ONLY "
                        f"{self.target.label}"
                    )
                if one.parent is not None and not one.valid and not table.partitioned:
                    raise IndexRefusedError(
                        f"{one.label} is broken; to mend it: REINDEX INDEX CONCURRENTLY {one.label}"
                    )


def build(building: Building, target: Target) -> tuple[str, list[str]]:
    """Builds what the partitions lack; returns the name of the table's index, and what there is to say.

    What is left of other builds has to be dropped before. Raises ``IndexRefusedError``, ``BuildStoppedError``, and what
    the database says.
    """
    connection, vectorizer = building.connection, building.vectorizer
    remarks: list[str] = []
    for _ in range(_PASSES):
        tree = Tree(connection, target)
        tree.check()
        leaves = _lacking(building, tree)
        root = _index_of(building, tree, target)
        tops = {target.oid: root}
        for partition in tree.partitions:
            if partition.target.partitioned:
                tops[partition.target.oid] = _middle(building, tree, partition, tops[partition.parent])
        parents = {partition.target.oid: tops[partition.parent] for partition in tree.partitions}
        unbuilt = sum(leaf.index is None for leaf in leaves)
        number = sum(not partition.target.partitioned for partition in tree.partitions) - unbuilt
        count = number + unbuilt
        before = vector_index.vectors(connection, vectorizer) - sum(leaf.vectors for leaf in leaves if not leaf.index)
        # With what is attached, PostgreSQL looks whether the whole is valid now. So one that is built already waits for
        # the end: the partition that was to be the last one may leave the table meanwhile.
        waiting: list[tuple[_Leaf, Existing]] = []
        for leaf in sorted(leaves, key=lambda one: one.index is None):
            with _unless_gone(building, tree, leaf):
                index, step = leaf.index, None
                if index is None:
                    number += 1
                    step = Step(number, count, before, leaf.vectors)
                    index = _build_leaf(building, leaf, step, remarks)
                if waiting:
                    attach(building, leaf.target, parents[leaf.target.oid].label, index.label)
                else:
                    waiting.append((leaf, index))
                if step is not None:
                    before += leaf.vectors
                    building.attendant.built(step)
        for leaf, index in waiting:
            with _unless_gone(building, tree, leaf):
                attach(building, leaf.target, parents[leaf.target.oid].label, index.label)
        if any(one.valid and one.oid == root.oid for one in vector_index.existing(connection, target)):
            return root.name, list(dict.fromkeys(remarks))
    raise IndexRefusedError(
        f"{root.label} is still invalid, though each partition has its index; drop it (DROP INDEX {root.label}), then "
        f"run: pgvec index {vectorizer.name}"
    )


def _lacking(building: Building, tree: Tree) -> list[_Leaf]:
    """Returns the partitions that are not done, with what the build of each is given.

    Raises ``IndexRefusedError`` where one of them cannot fit, before anything is made.
    """
    connection, vectorizer, wish = building.connection, building.vectorizer, building.wish
    tables = [partition for partition in tree.partitions if not partition.target.partitioned]
    every = vector_index.vectors(connection, vectorizer)
    size = sum(partition.bytes for partition in tables)
    done = _attached(tree, wish)
    there = server(connection)
    lacking = []
    for partition in tables:
        if partition.target.oid in done:
            continue
        vectors = every * partition.bytes / size if size else every / len(tables)
        ready = next(
            (one for one in tree.indexes[partition.target.oid] if one.parent is None and one.valid and one.fits(wish)),
            None,
        )
        lacking.append((partition, ready, vectors))
    unbuilt = sum(vectors for _, ready, vectors in lacking if ready is None)
    return [
        _Leaf(
            partition.target,
            ready,
            None if ready is not None else decide(there, vectorizer, wish, vectors, on_disk=unbuilt),
            vectors,
        )
        for partition, ready, vectors in lacking
    ]


def _attached(tree: Tree, wish: Wish) -> set[int]:
    """Returns the partitions whose index belongs to that of the table which is being built."""
    tops = {one.oid for one in tree.indexes[tree.target.oid] if tree.is_ours(one) and not one.valid and one.fits(wish)}
    done = set()
    for partition in tree.partitions:
        for one in tree.indexes[partition.target.oid]:
            if one.parent in tops:
                tops.add(one.oid)
                done.add(partition.target.oid)
    return done


def _index_of(building: Building, tree: Tree, table: Target) -> Existing:
    """Returns the index of a partitioned table that is not complete, making it where there is none."""
    there = tree.indexes[table.oid]
    for one in there:
        # That of a partition may be complete before it is attached.
        is_part = not one.valid or table is not tree.target
        if tree.is_ours(one) and one.parent is None and one.fits(building.wish) and is_part:
            return one
    name = next(one for one in table.names if one not in {index.name for index in there})
    create_on_only(building, table, name)
    return _named(building.connection, table, name)


def _middle(building: Building, tree: Tree, partition: Partition, parent: Existing) -> Existing:
    """Returns the index of a partition that is partitioned itself, as a part of its parent's."""
    for one in tree.indexes[partition.target.oid]:
        if one.parent == parent.oid:
            return one
    made = _index_of(building, tree, partition.target)
    attach(building, partition.target, parent.label, made.label)
    return made


def _build_leaf(building: Building, leaf: _Leaf, step: Step, remarks: list[str]) -> Existing:
    if building.attendant.stopped():
        raise BuildStoppedError("the build of the index was stopped")
    assert leaf.given is not None
    taken = {one.name for one in vector_index.existing(building.connection, leaf.target)}
    name = next(one for one in leaf.target.names if one not in taken)
    remarks += create(building, leaf.target, name, leaf.given, step)
    return _named(building.connection, leaf.target, name)


@contextmanager
def _unless_gone(building: Building, tree: Tree, leaf: _Leaf) -> Generator[None]:
    """Lets the rest go on where the table is a partition no more; what is ours on it goes."""
    try:
        yield
    except psycopg.Error as error:
        if error.sqlstate not in _GONE or tree.has(building.connection, leaf.target):
            raise
        for one in vector_index.existing(building.connection, leaf.target):
            if one.named and one.parent is None:
                drop(building.connection, one.label, building.attendant)


def _named(connection: Connection, table: Target, name: str) -> Existing:
    for one in vector_index.existing(connection, table):
        if one.name == name:
            return one
    raise psycopg.errors.UndefinedTable(f"{table.label} was dropped while its index was built")
