"""Compares a vectorizer's source and destination in SQL, range by range, and queues what differs.

Each range of keys is compared by one statement, so in one snapshot, in a short read-only transaction. The ranges cover
every key, whether source or destination has it, and hold at most so many rows of either; their size follows the time
that they take. Found are rows without their chunks (missing), with chunks of another text or an incomplete or repeated
set of them (stale), and chunks without a row (orphaned). Nothing is embedded here: with ``fix`` the keys found in a
range become jobs in a transaction of their own, so that an interrupted run has queued whole ranges or nothing of them.

What it cannot see: whether a vector is that of its text, and, without a column for the hash, whether the text has
changed. While jobs are unfinished, a difference may be what they are about to make right.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from psycopg import sql
from psycopg.types.json import Jsonb

from pgvec_queue import queue
from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.errors import PgvecError
from pgvec_queue.fragments import Fragments, identifier
from pgvec_queue.queue import Key

EXAMPLES = 5
"""Keys of each kind that a report names."""
KEYS_PER_JOB = 1_000
FIRST_ROWS = 1_000
MOST_ROWS = 50_000
_FEWEST_ROWS = 100
_RANGE_SECONDS = 0.35

Bound = list[str] | None
Progress = Callable[[int, int], None]
"""Called after each range with the source rows compared so far, and the destination's rows looked up by themselves."""

_AND = sql.SQL(" AND ")
_OR = sql.SQL(" OR ")
_COMMA = sql.SQL(", ")


@dataclass(frozen=True, slots=True)
class Verified:
    """What a comparison found."""

    name: str
    rows: int
    """Selected source rows that were compared, blank ones included."""
    missing: int
    """Rows that have no chunks (or no vector), and are neither blank nor in quarantine."""
    stale: int | None
    """Rows that have other chunks than those of their text; None: the destination has no column for the hash."""
    orphaned: int
    """Chunks (or vectors) whose row is gone, no longer selected, or blank."""
    quarantined: int
    """Rows without chunks that are in quarantine with the text that they have."""
    unfinished_jobs: int
    """Jobs that were queued or running when the comparison began."""
    fixed: int
    """Differences for which a job was queued; chunks without any key were deleted."""
    seconds: float
    examples: dict[str, list[list[str]]]
    """Up to ``EXAMPLES`` keys by kind of difference."""
    keys: dict[str, int]
    """How many different keys there are by kind of difference; people are told, scripts have the counts."""

    @property
    def differences(self) -> int:
        return self.missing + (self.stale or 0) + self.orphaned

    def as_json(self) -> dict[str, Any]:
        told = {name: getattr(self, name) for name in self.__slots__ if name != "keys"}
        return told | {"seconds": round(self.seconds, 3)}


def verify(
    connection: Connection, fragments: Fragments, *, fix: bool = False, progress: Progress | None = None
) -> Verified:
    """Compares everything; with ``fix`` queues what differs.

    Needs a connection in autocommit mode. Raises what psycopg raises, and ``PgvecError`` when the vectorizer is dropped
    meanwhile; what was queued until then stays queued.
    """
    return _Verifier(connection, fragments, fix, progress).run()


@dataclass(slots=True)
class _Found:
    """What one range shows; a key may come once per chunk."""

    rows: int = 0
    quarantined: int = 0
    missing: list[Key] = field(default_factory=list)
    stale: list[Key] = field(default_factory=list)
    orphaned: list[Key] = field(default_factory=list)


class _Size:
    """How many rows the next range has: about as many as take ``_RANGE_SECONDS``."""

    def __init__(self) -> None:
        self.rows = FIRST_ROWS

    @contextmanager
    def timed(self) -> Generator[None]:
        started = time.monotonic()
        yield
        factor = _RANGE_SECONDS / max(time.monotonic() - started, 1e-3)
        self.rows = round(min(max(self.rows * min(factor, 4.0), _FEWEST_ROWS), MOST_ROWS))


class _Verifier:
    """One run over one connection."""

    def __init__(self, connection: Connection, fragments: Fragments, fix: bool, progress: Progress | None) -> None:
        self._connection = connection
        self._fragments = fragments
        self._vectorizer = fragments.vectorizer
        self._fix = fix
        self._progress = progress
        self._parts = _parts(fragments)
        self._ordered_table = self._vectorizer.destination_ordered and not self._vectorizer.into_column
        self._rows = 0
        self._looked_up = 0
        self._quarantined = 0
        self._fixed = 0
        self._counts = {"missing": 0, "stale": 0, "orphaned": 0}
        self._keys = dict.fromkeys(self._counts, 0)
        self._examples: dict[str, dict[Key, None]] = {kind: {} for kind in self._counts}

    def run(self) -> Verified:
        started = time.monotonic()
        with transaction(self._connection, read_only=True):
            row = self._connection.execute(statement("verify", "begin"), {"id": self._vectorizer.id}).fetchone()
        if row is None:
            raise self._dropped()
        limited_to, unfinished = row
        self._walk(None, limited_to, planned=True)
        if limited_to is not None:
            # `enqueue --limit` has left the rows beyond for later: they are not missing.
            self._walk(limited_to, None, planned=False)
        if not self._vectorizer.into_column:
            if not self._vectorizer.destination_ordered:
                self._walk_destination()
            self._look_for_rows_without_key()
        return Verified(
            name=self._vectorizer.name,
            rows=self._rows,
            missing=self._counts["missing"],
            stale=self._counts["stale"] if self._vectorizer.destination_roles.source_hash else None,
            orphaned=self._counts["orphaned"],
            quarantined=self._quarantined,
            unfinished_jobs=unfinished,
            fixed=self._fixed,
            seconds=time.monotonic() - started,
            examples={kind: [list(key) for key in keys] for kind, keys in self._examples.items()},
            keys=self._keys,
        )

    def _walk(self, lower: Bound, upper: Bound, *, planned: bool) -> None:
        """Compares the rows in (``lower``, ``upper``], and the destination's where keys are ordered alike."""
        size = _Size()
        while True:
            with size.timed(), self._reading():
                if not planned and self._ordered_table and not self._destination_has_rows(lower, upper):
                    return
                end = self._window(lower, upper, size.rows) or upper
                found = self._compare(lower, end, planned)
            self._rows += found.rows
            self._quarantined += found.quarantined
            self._note(found)
            if self._fix:
                self._queue([*found.missing, *found.stale, *found.orphaned])
            self._tell()
            if end == upper:
                return
            lower = end

    def _walk_destination(self) -> None:
        """Looks the destination's own keys up in the source; those that cannot be listed are swept where they lie."""
        size = _Size()
        lower: Bound = None
        while True:
            with size.timed(), self._reading():
                parameters = {"lower": lower, "upper": None, "rows": size.rows}
                end: Bound = self._value("window_destination", parameters)
                orphans = self._value("orphans", {"lower": lower, "upper": end})
            found = _Found(orphaned=_keys(orphans))
            self._looked_up += size.rows if end is not None else len(found.orphaned)
            self._note(found)
            if self._fix and found.orphaned:
                self._queue_sweep(lower, end, len(found.orphaned))
            self._tell()
            if end is None:
                return
            lower = end

    def _look_for_rows_without_key(self) -> None:
        """A NULL key belongs to no range and no job, so that these are the only rows that are deleted here."""
        with self._reading():
            count = self._value("without_key", {})
        self._counts["orphaned"] += count
        while self._fix and count > 0:
            with transaction(self._connection, statement_timeout=120):
                deleted = self._value("delete_without_key", {"id": self._vectorizer.id, "rows": MOST_ROWS})
            self._fixed += min(deleted, count)
            count -= deleted
            if not deleted:
                return

    def _window(self, lower: Bound, upper: Bound, rows: int) -> Bound:
        name = "window_both" if self._ordered_table else "window_source"
        end: Bound = self._value(name, {"lower": lower, "upper": upper, "rows": rows})
        return end

    def _destination_has_rows(self, lower: Bound, upper: Bound) -> bool:
        return bool(self._value("destination_has_rows", {"lower": lower, "upper": upper}))

    def _compare(self, lower: Bound, upper: Bound, planned: bool) -> _Found:
        if self._vectorizer.into_column:
            name = "compare_column"
        else:
            name = "compare_ordered" if self._vectorizer.destination_ordered else "compare_unordered"
        row = self._row(name, {"lower": lower, "upper": upper, "planned": planned})
        assert row is not None
        rows, quarantined, missing, stale, orphaned = row
        found = _Found(rows, quarantined, _keys(missing), list(dict.fromkeys(_keys(stale))), _keys(orphaned))
        if not self._vectorizer.destination_roles.source_hash:
            # Without a hash only a gap or a repetition shows: of such rows something is missing, whatever their text.
            found.missing += found.stale
            found.stale = []
        return found

    def _note(self, found: _Found) -> None:
        for kind, keys in (("missing", found.missing), ("stale", found.stale), ("orphaned", found.orphaned)):
            different = dict.fromkeys(keys)
            self._counts[kind] += len(keys)
            # No key lies in two ranges.
            self._keys[kind] += len(different)
            examples = self._examples[kind]
            examples.update(dict.fromkeys(list(different)[: EXAMPLES - len(examples)]))

    def _queue(self, keys: Sequence[Key]) -> None:
        if not keys:
            return
        listed = [list(key) for key in dict.fromkeys(keys)]
        with transaction(self._connection):
            for start in range(0, len(listed), KEYS_PER_JOB):
                some = listed[start : start + KEYS_PER_JOB]
                self._add("add_keys", {"keys": Jsonb(some), "key_count": len(some)})
        self._queued(len(keys))

    def _queue_sweep(self, lower: Bound, upper: Bound, differences: int) -> None:
        with transaction(self._connection):
            self._add("add_sweep", {"lower": lower, "upper": upper})
        self._queued(differences)

    def _add(self, name: str, parameters: dict[str, Any]) -> None:
        row = self._connection.execute(statement("verify", name), {"id": self._vectorizer.id, **parameters}).fetchone()
        if row is None:
            raise self._dropped()

    def _queued(self, differences: int) -> None:
        self._fixed += differences
        queue.notify(self._connection)

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._rows, self._looked_up)

    def _value(self, name: str, parameters: dict[str, Any]) -> Any:
        row = self._row(name, parameters)
        return row[0] if row else None

    def _row(self, name: str, parameters: dict[str, Any]) -> tuple[Any, ...] | None:
        lower, upper = parameters.get("lower") is not None, parameters.get("upper") is not None
        query = self._fragments.compose(
            "verify",
            name,
            **self._parts,
            scope=self._fragments.bounds("s", lower=lower, upper=upper),
            destination_scope=self._fragments.bounds("d", lower=lower, upper=upper),
        )
        return self._connection.execute(query, parameters).fetchone()

    @contextmanager
    def _reading(self) -> Generator[None]:
        joins = "on" if self._vectorizer.destination_ordered else "off"
        with transaction(self._connection, statement_timeout=300, read_only=True):
            self._connection.execute(statement("reading", "local_settings"), {"joins": joins})
            if not self._vectorizer.source_is_view:
                # What a view joins is its owner's business.
                self._connection.execute(statement("verify", "local_settings"))
            self._fragments.refuse_to_miss_rows(self._connection)
            yield

    def _dropped(self) -> PgvecError:
        return PgvecError(f"the vectorizer {self._vectorizer.name!r} was dropped meanwhile")


def _keys(found: Sequence[Sequence[str]] | None) -> list[Key]:
    return [tuple(key) for key in found or ()]


def _parts(fragments: Fragments) -> dict[str, sql.Composable]:
    """The parts of a comparison: keys under names of our own, and when a chunk is none of its row's text."""
    vectorizer = fragments.vectorizer
    names = [f"pgvec_key{i}" for i in range(len(vectorizer.key_columns))]
    row_key = [identifier("s", name) for name in names]
    chunk_key = [identifier("d", name) for name in names]
    end_key = [identifier("e", name) for name in vectorizer.key_columns]
    row_key_text = fragments.text_array(row_key)
    return {
        "row_key": _aliased(fragments.source_key, names),
        "row_key_text": row_key_text,
        "chunk_key": _aliased(fragments.destination_key, names),
        "chunk_key_text": fragments.text_array(chunk_key),
        "same_key": _AND.join(
            sql.SQL("{} = {}").format(chunk, row)
            if vectorizer.destination_ordered
            else sql.SQL("{} = {}::{}").format(held, row, cast_to)
            for chunk, row, held, cast_to in zip(
                chunk_key, row_key, fragments.destination_key, fragments.destination_casts, strict=True
            )
        ),
        "end_key": _COMMA.join(end_key),
        "end_key_text": fragments.text_array(end_key),
        "without_key": _OR.join(sql.SQL("{} IS NULL").format(key) for key in fragments.destination_key),
        "key_from_destination": fragments.source_key_from_destination(),
        "quarantined": statement("verify", "quarantined").format(
            id=sql.Literal(vectorizer.id), row_key_text=row_key_text
        ),
        **_kind_parts(fragments),
    }


def _kind_parts(fragments: Fragments) -> dict[str, sql.Composable]:
    if not fragments.vectorizer.into_column:
        return {
            "chunk": fragments.chunk,
            "chunk_order": fragments.chunk_order,
            "wrong": fragments.wrong_chunk(sql.SQL("s.hash")),
        }
    hash_column = fragments.vectorizer.destination_roles.source_hash
    if hash_column is None:
        return {"held_hash": sql.NULL, "wrong": sql.SQL("false")}
    return {"held_hash": identifier("s", hash_column), "wrong": sql.SQL("s.held_hash IS DISTINCT FROM s.hash")}


def _aliased(columns: Sequence[sql.Composable], names: Sequence[str]) -> sql.Composed:
    return _COMMA.join(
        sql.SQL("{} AS {}").format(column, identifier(name)) for column, name in zip(columns, names, strict=True)
    )
