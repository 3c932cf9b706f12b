"""The index on a vectorizer's vectors: what is wanted, and what is there.

An HNSW index by cosine over the column as it is, or cast to ``halfvec`` where the column has more dimensions than an
index of ``vector`` takes. What is wanted is a row of ``pgvec.indexes``, and a job that becomes claimable when no range
is unfinished; ``index_building`` builds it. An index of somebody's own that a search can go through is respected:
nothing is built beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

from psycopg.rows import class_row

from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.destination_checks import INDEXABLE
from pgvec_queue.errors import DefinitionError
from pgvec_queue.vectorizer import Vectorizer

M, EF_CONSTRUCTION = 16, 64
"""pgvector's own defaults."""
_OURS = re.compile(r"_hnsw_([0-9]+)_[0-9]+b?$")
_FIRST_OID = 16384
"""Of what users make."""


class IndexRefusedError(DefinitionError):
    """The index cannot be built as things are; the message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Wish:
    """The index that is wanted, and what its build may take."""

    m: int
    ef_construction: int
    store: str
    """What is indexed: ``vector`` or ``halfvec``."""
    memory: int | None = None
    """Bytes; None: what suits the server."""
    workers: int | None = None
    """Processes beside the first one; None: as many as suit the server."""
    anyway: bool = False
    """Though the graph does not fit into memory."""


@dataclass(frozen=True, slots=True)
class Target:
    """The column that is indexed."""

    oid: int
    schema: str
    table: str
    partitioned: bool
    attnum: int
    embedding: str
    owner: str
    owned: bool
    """This session's role is the owner, or a member of it."""
    may_create: bool
    """It may make something in the schema."""

    @property
    def label(self) -> str:
        return f"{self.schema}.{self.table}"

    @property
    def names(self) -> tuple[str, str]:
        """What an index of ours is called there; the second is for the one that takes the place of the first."""
        name = f"{self.table.encode()[:32].decode(errors='ignore')}_hnsw_{self.oid}_{self.attnum}"
        return name, f"{name}b"

    @property
    def hindrance(self) -> str | None:
        """Why this session's role may not build an index there; None: it may."""
        if not self.owned:
            return f"only the owner of {self.label} ({self.owner}) may index it"
        return None if self.may_create else f"this role may create nothing in the schema {self.schema}"


@dataclass(frozen=True, slots=True)
class Partition:
    """A partition of the table whose vectors are indexed, or of one of its partitions."""

    target: Target
    parent: int
    """What it is a partition of, the oid."""
    bytes: int
    foreign: bool


@dataclass(frozen=True, slots=True)
class Existing:
    """An index that a search could go through."""

    name: str
    label: str
    """Schema and name, quoted as in SQL."""
    method: str
    valid: bool
    type: str
    casts: bool
    """It is over the column's vectors cast to its type."""
    m: int
    ef_construction: int
    size_bytes: int
    parent: int | None
    """Of the partitioned table's index that it is a part of, the oid."""
    oid: int
    named: bool
    """As an index of ours on that very table is."""

    @property
    def is_ours(self) -> bool:
        """Whether pgvec has made the index of a table; that of a table that was restored names another oid."""
        made = _OURS.search(self.name)
        return self.named or (made is not None and int(made[1]) >= _FIRST_OID)

    def fits(self, wish: Wish) -> bool:
        return (self.method, self.type, self.m, self.ef_construction) == (
            "hnsw",
            wish.store,
            wish.m,
            wish.ef_construction,
        )


def default_store(vectorizer: Vectorizer) -> str:
    """Returns as what the vectors are indexed where nothing is said: as they are, if that can be."""
    return "vector" if vectorizer.store == "vector" and vectorizer.dimensions <= INDEXABLE["vector"] else "halfvec"


def most_dimensions(store: str) -> int:
    """Returns how many dimensions can be indexed of a column of that type."""
    # What is too long for an index of vector is indexed as halfvec.
    return max(INDEXABLE[store], INDEXABLE["halfvec"])


def default_wish(vectorizer: Vectorizer) -> Wish:
    return Wish(M, EF_CONSTRUCTION, default_store(vectorizer))


def check(vectorizer: Vectorizer, wish: Wish) -> None:
    """Raises ``IndexRefusedError`` for what pgvector cannot index, whatever the server has."""
    if wish.store == "vector" and vectorizer.store == "halfvec":
        raise IndexRefusedError(f"the vectors of {vectorizer.name} are halfvec; an index of vector would gain nothing")
    if vectorizer.dimensions > INDEXABLE[wish.store]:
        other = "; --store halfvec takes up to 4000" if wish.store == "vector" and vectorizer.dimensions <= 4000 else ""
        raise IndexRefusedError(
            f"{vectorizer.dimensions} dimensions cannot be indexed: HNSW takes {INDEXABLE[wish.store]} of "
            f"{wish.store}{other}"
        )
    if wish.ef_construction < 2 * wish.m:
        raise IndexRefusedError(f"ef_construction {wish.ef_construction} is less than twice m ({wish.m})")


def target(connection: Connection, vectorizer: Vectorizer) -> Target:
    """Finds the column. Raises ``IndexRefusedError`` when the table or the column is gone."""
    embedding = vectorizer.destination_roles.embedding
    row = connection.execute(
        statement("index", "table"),
        {"schema": vectorizer.destination_schema, "table": vectorizer.destination_table, "embedding": embedding},
    ).fetchone()
    if row is None:
        raise IndexRefusedError(f"{vectorizer.destination} has no column {embedding}, or is gone")
    oid, schema, table, kind, attnum, owner, owned, may_create = row
    return Target(oid, schema, table, kind == "p", attnum, embedding, owner, owned, may_create)


def partitions(connection: Connection, found: Target) -> list[Partition]:
    """Returns the partitions of a table, each after what it is a partition of; none where it is not partitioned."""
    if not found.partitioned:
        return []
    rows = connection.execute(statement("index", "tree"), {"oid": found.oid, "embedding": found.embedding}).fetchall()
    return [
        Partition(
            Target(oid, schema, table, kind == "p", attnum, found.embedding, owner, owned, may_create),
            parent,
            size,
            kind == "f",
        )
        for oid, schema, table, kind, attnum, owner, owned, may_create, parent, size in rows
    ]


def hindrance(connection: Connection, found: Target) -> str | None:
    """Why this session's role may not build an index on the table and all of its partitions; None: it may."""
    tables = (found, *(partition.target for partition in partitions(connection, found)))
    return next((one.hindrance for one in tables if one.hindrance is not None), None)


def existing(connection: Connection, found: Target) -> list[Existing]:
    """Returns the indexes by cosine on the column, the valid ones first."""
    with connection.cursor(row_factory=class_row(Existing)) as cursor:
        return cursor.execute(
            statement("index", "existing"),
            {
                "oid": found.oid,
                "attnum": found.attnum,
                "embedding": found.embedding,
                "names": list(found.names),
            },
        ).fetchall()


def vectors(connection: Connection, vectorizer: Vectorizer) -> float:
    """Returns about how many vectors there are to index."""
    row = connection.execute(
        statement("index", "vectors"),
        {"vectorizer": vectorizer.id, "oid": target(connection, vectorizer).oid},
    ).fetchone()
    return float(row[0]) if row else 0.0


def serving(indexes: list[Existing], wish: Wish) -> Existing | None:
    """Returns the valid one that makes a build needless: ours as it is wanted, or anybody else's."""
    return next((one for one in indexes if one.valid and (not one.is_ours or one.fits(wish))), None)


def wish_of(connection: Connection, vectorizer: Vectorizer) -> Wish | None:
    """Returns what is wanted; None where nothing was ever said."""
    with connection.cursor(row_factory=class_row(Wish)) as cursor:
        return cursor.execute(statement("index", "wish"), {"vectorizer": vectorizer.id}).fetchone()


def is_wanted(connection: Connection, vectorizer: Vectorizer) -> bool:
    """Tells whether an index is wanted, or serves searches, somebody's own included."""
    row = connection.execute(statement("index", "state"), {"vectorizer": vectorizer.id}).fetchone()
    if row is not None and row[0] != "unwanted":
        return True
    try:
        return any(one.valid for one in existing(connection, target(connection, vectorizer)))
    except IndexRefusedError:
        return False


def want_alike(connection: Connection, vectorizer: Vectorizer, other: Vectorizer) -> None:
    """Has the index that is wanted for one be as that of another, as far as its vectors allow."""
    mine, theirs = wish_of(connection, vectorizer), wish_of(connection, other)
    if mine is None or theirs is None:
        return
    alike = replace(mine, m=theirs.m, ef_construction=theirs.ef_construction)
    if theirs.store == "halfvec" and other.store == "vector":
        alike = replace(alike, store="halfvec")
    if alike != mine:
        want(connection, vectorizer, alike)


def want(connection: Connection, vectorizer: Vectorizer, wish: Wish, *, state: str = "wanted") -> None:
    """Takes down what is wanted, in the place of what was."""
    connection.execute(statement("index", "want"), {"vectorizer": vectorizer.id, **asdict(wish), "state": state})


def queue(connection: Connection, vectorizer: Vectorizer, *, anew: bool = True) -> None:
    """Adds its job, where none is queued; without ``anew`` one that runs will do, since it makes what is wanted."""
    connection.execute(statement("index", "queue"), {"vectorizer": vectorizer.id, "anew": anew})


def unqueue(connection: Connection, vectorizer: Vectorizer) -> None:
    """Takes its queued job away."""
    connection.execute(statement("index", "unqueue"), {"vectorizer": vectorizer.id})


def note_found(
    connection: Connection,
    vectorizer: Vectorizer,
    index: Existing,
    *,
    seconds: float | None = None,
    remark: str | None = None,
) -> None:
    """Takes down that an index is there; ``seconds`` is what its build took, None where it was met as it is."""
    connection.execute(
        statement("index", "found"),
        {
            "vectorizer": vectorizer.id,
            "name": index.label,
            "size": index.size_bytes,
            "seconds": seconds,
            "remark": remark,
        },
    )


def note_met(connection: Connection, vectorizer: Vectorizer, wish: Wish, index: Existing) -> None:
    """Takes down that one is wanted, and there already."""
    row = connection.execute(statement("index", "state"), {"vectorizer": vectorizer.id}).fetchone()
    if row is None or row[0] == "unwanted":
        want(connection, vectorizer, wish)
    note_found(connection, vectorizer, index)


def note_begun(connection: Connection, vectorizer: Vectorizer) -> None:
    """Takes down that its build begins."""
    connection.execute(statement("index", "begun"), {"vectorizer": vectorizer.id})


def note_refused(connection: Connection, vectorizer: Vectorizer, reason: str) -> None:
    """Takes down that it cannot be built, and why."""
    connection.execute(statement("index", "refused"), {"vectorizer": vectorizer.id, "reason": reason})


def note_unfinished(connection: Connection, vectorizer: Vectorizer, reason: str | None = None) -> None:
    """Takes down that its build was cut short; where nobody is to go on with it by himself, with what to do."""
    connection.execute(statement("index", "unfinished"), {"vectorizer": vectorizer.id, "reason": reason})


def _as_there(indexes: list[Existing]) -> Wish | None:
    """Returns the wish that an index of ours fulfils, of a vectorizer that was there before this one."""
    ours = next((one for one in indexes if one.valid and one.is_ours), None)
    return None if ours is None else Wish(ours.m, ours.ef_construction, ours.type)


def follow(connection: Connection, vectorizer: Vectorizer, said: bool | None, *, default: bool) -> Iterator[str]:
    """Does what `enqueue` was told about the index: ``said``, else as it is, and ``default`` for a new vectorizer.

    Yields what the user should know.
    """
    row = connection.execute(statement("index", "state"), {"vectorizer": vectorizer.id}).fetchone()
    wanted = said if said is not None else default if row is None else row[0] != "unwanted"
    if row is None and not wanted and said is None:
        return
    indexes = existing(connection, target(connection, vectorizer))
    known = wish_of(connection, vectorizer) or _as_there(indexes) or default_wish(vectorizer)
    there = serving(indexes, known)
    if not wanted:
        with transaction(connection):
            want(connection, vectorizer, known, state="unwanted")
            unqueue(connection, vectorizer)
        if row is not None and there is not None and there.is_ours:
            yield f"the index {there.label} stays; `pgvec index {vectorizer.name} --drop` removes it"
        return
    if there is not None:
        with transaction(connection):
            note_met(connection, vectorizer, known, there)
        if row is None and not there.is_ours:
            yield f"{there.label} ({there.method}) serves searches; no other index is built"
        return
    with transaction(connection):
        want(connection, vectorizer, known)
        queue(connection, vectorizer, anew=False)
    if row is None and vectorizer.into_column:
        yield (
            f"a worker that may builds an HNSW index on {known.store} of {vectorizer.destination}."
            f"{vectorizer.destination_roles.embedding} when all is embedded, concurrently; --no-index leaves it"
        )
