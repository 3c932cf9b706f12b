"""Cuts a source into key ranges: one job per ``rows_per_job`` rows, found by hopping along the key's index.

Short transactions that commit as they go: workers start on the first ranges while the last are still being cut, and a
plan that was stopped leaves valid jobs. Ranges never overlap: what unfinished jobs cover is passed over, so another
`enqueue` goes on where a stopped one ended, and plans again only what is finished. Two at once: the later takes over,
the earlier says so and ends. The filter is not applied while hopping (one filtered hop can read millions of rows); a
worker does that.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from psycopg import sql

from pgvec_queue import queue
from pgvec_queue.catalog import find_relation, quoted_name
from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.errors import PgvecError
from pgvec_queue.fragments import Fragments, literal_sql
from pgvec_queue.vectorizer import Vectorizer

FIRST_HOPS = 4
"""Jobs in the first transaction: few, so that work starts at once."""
_HOP_SECONDS = 0.2

Bound = list[str] | None
Progress = Callable[[int, int], None]
"""Called with the jobs and rows planned so far."""


class PlanTakenOverError(PgvecError):
    """Another `enqueue` of the same vectorizer has begun to plan; it covers all that this one would have."""


@dataclass(slots=True)
class Planned:
    """What a plan added."""

    jobs: int = 0
    rows: int = 0


class Planner:
    """Plans one vectorizer over one connection."""

    def __init__(self, connection: Connection, fragments: Fragments, progress: Progress | None = None) -> None:
        self._connection = connection
        self._fragments = fragments
        self._vectorizer = fragments.vectorizer
        self._progress = progress
        self._planned = Planned()
        self._epoch = 0
        self._notified_at = 0.0

    def plan(self, limit: int | None = None) -> Planned:
        """Adds the jobs that make the destination right for every row, or for the next ``limit`` selected ones.

        Raises ``PlanTakenOverError`` when somebody else plans the same vectorizer meanwhile.
        """
        limited_to = self._begin(extend=limit is not None)
        if limit is not None:
            self._plan_limited(limited_to, limit)
        else:
            for lower, upper in self._gaps("range"):
                self._plan_gap("range", lower, upper)
            if self._needs_sweep():
                for lower, upper in self._gaps("sweep"):
                    self._plan_gap("sweep", lower, upper)
        with transaction(self._connection):
            self._check(
                self._connection.execute(
                    statement("planner", "complete"),
                    {"id": self._vectorizer.id, "epoch": self._epoch},
                ).fetchone()
            )
        queue.notify(self._connection)
        return self._planned

    def _begin(self, *, extend: bool) -> Bound:
        with transaction(self._connection, statement_timeout=300):
            row = self._connection.execute(
                statement("planner", "begin"), {"id": self._vectorizer.id, "extend": extend}
            ).fetchone()
            if row is None:
                raise PgvecError(f"the vectorizer {self._vectorizer.name!r} was dropped meanwhile")
            self._epoch, limited_to = row
            if extend and limited_to is None:
                unfinished = self._connection.execute(
                    statement("planner", "has_unfinished"), {"id": self._vectorizer.id}
                ).fetchone()
                if unfinished and unfinished[0]:
                    raise PgvecError(
                        f"all rows of {self._vectorizer.name!r} are planned already; --limit can add none until "
                        "they are done (see `pgvec status`)"
                    )
            if not extend:
                self._connection.execute(statement("planner", "open_tail"), {"id": self._vectorizer.id})
            self._connection.execute(
                self._fragments.compose(
                    "planner", "absolve_gone", key_is_failures=self._fragments.failures_key_is_source()
                ),
                {"id": self._vectorizer.id},
            )
        return limited_to  # type: ignore[no-any-return]

    def _needs_sweep(self) -> bool:
        """Whether deleted source rows can only be found from the destination's side."""
        if self._vectorizer.destination_ordered or self._vectorizer.into_column:
            return False
        row = self._connection.execute(self._fragments.compose("planner", "destination_has_rows"), {}).fetchone()
        return bool(row and row[0])

    def _gaps(self, kind: str) -> list[tuple[Bound, Bound]]:
        """What no unfinished job covers, as (lower, upper] in key order."""
        casts = self._fragments.key_casts if kind == "range" else self._fragments.destination_casts
        order = sql.SQL(", ").join(
            sql.SQL("(coalesce(j.checkpoint, j.lower_key))[{}]::{}{} NULLS FIRST").format(
                sql.Literal(i), cast_to, collation
            )
            for i, (cast_to, collation) in enumerate(zip(casts, self._collations(kind), strict=True), 1)
        )
        with transaction(self._connection, statement_timeout=600):
            covered = self._connection.execute(
                statement("planner", "unfinished").format(order=order), {"id": self._vectorizer.id, "kind": kind}
            ).fetchall()
        return list(_between(covered))

    def _collations(self, kind: str) -> list[sql.Composable]:
        """How keys kept as text have to be collated to sort as they do in their table; empty for most."""
        vectorizer = self._vectorizer
        schema, table, names = (
            (vectorizer.source_schema, vectorizer.source_table, vectorizer.key_columns)
            if kind == "range"
            else (vectorizer.destination_schema, vectorizer.destination_table, vectorizer.destination_roles.key)
        )
        relation = find_relation(self._connection, quoted_name(schema, table))
        if relation is None:
            raise PgvecError(f"{schema}.{table} is gone")
        columns = [relation.columns[name].collation_name for name in names]
        return [sql.SQL(" COLLATE {}").format(literal_sql(name)) if name else sql.SQL("") for name in columns]

    def _plan_gap(self, kind: str, lower: Bound, upper: Bound) -> None:
        hops = FIRST_HOPS
        while True:
            started = time.monotonic()
            lower, found = self._hop(kind, lower, upper, hops)
            if found < hops:
                break
            seconds = max(time.monotonic() - started, 1e-3)
            hops = max(1, min(round(hops * min(_HOP_SECONDS / seconds, 4)), 2_000))
        if lower is None or lower != upper:
            self._add_rest(kind, lower, upper)

    def _hop(self, kind: str, lower: Bound, upper: Bound, hops: int) -> tuple[Bound, int]:
        """Adds up to ``hops`` full jobs after ``lower`` in one transaction; returns the last end and how many."""
        rows = self._vectorizer.rows_per_job
        side = self._fragments.side(kind)
        with self._short_transaction():
            last = self._connection.execute(
                self._fragments.compose(
                    "planner",
                    "hops",
                    **side,
                    scope=self._fragments.bounds(self._alias(kind), lower=lower is not None, upper=upper is not None),
                    upper_scope=self._fragments.bounds(self._alias(kind), lower=False, upper=upper is not None),
                ),
                {
                    "id": self._vectorizer.id,
                    "kind": kind,
                    "lower": lower,
                    "upper": upper,
                    "rows": rows,
                    "hops": hops,
                },
            ).fetchone()
            if last is None:
                return lower, 0
            found, end = last
            self._advance(kind, found, found * rows)
        return end, found

    def _add_rest(self, kind: str, lower: Bound, upper: Bound) -> None:
        with self._short_transaction():
            rest = self._connection.execute(
                self._fragments.compose(
                    "planner",
                    "count_rest",
                    **self._fragments.side(kind),
                    scope=self._fragments.bounds(self._alias(kind), lower=lower is not None, upper=upper is not None),
                ),
                {"lower": lower, "upper": upper},
            ).fetchone()
            rows = int(rest[0]) if rest else 0
            # An empty rest is a job too: it removes what the destination holds beyond the last row.
            self._add(kind, lower, upper, rows)

    def _plan_limited(self, after: Bound, limit: int) -> None:
        left = limit
        lower = after
        while left > 0:
            with self._short_transaction():
                end = self._connection.execute(
                    self._fragments.compose("planner", "hop_first", scope=self._scope(lower, None)),
                    {"lower": lower, "rows": min(self._vectorizer.rows_per_job, max(left, 100))},
                ).fetchone()
                upper: Bound = end[0] if end else None
                selected = self._count("count_selected", lower, upper)
                if selected >= left or upper is None:
                    row = self._connection.execute(
                        self._fragments.compose("planner", "last_limited", scope=self._scope(lower, upper)),
                        {"lower": lower, "upper": upper, "rows": min(left, selected) or 1},
                    ).fetchone()
                    if row is None:
                        return
                    upper = row[0]
                    self._add("range", lower, upper, min(left, selected), limited_to=upper)
                    return
                self._add("range", lower, upper, selected, limited_to=upper)
            left -= selected
            lower = upper

    def _scope(self, lower: Bound, upper: Bound) -> sql.Composable:
        return self._fragments.bounds("s", lower=lower is not None, upper=upper is not None)

    def _count(self, name: str, lower: Bound, upper: Bound) -> int:
        row = self._connection.execute(
            self._fragments.compose("planner", name, scope=self._scope(lower, upper)), {"lower": lower, "upper": upper}
        ).fetchone()
        return int(row[0]) if row else 0

    def _add(self, kind: str, lower: Bound, upper: Bound, rows: int, *, limited_to: Bound = None) -> None:
        self._connection.execute(
            statement("planner", "add_job"),
            {
                "id": self._vectorizer.id,
                "kind": kind,
                "lower": lower,
                "upper": upper,
                "rows": rows if kind == "range" else 0,
            },
        )
        self._advance(kind, 1, rows, limited_to=limited_to)

    def _advance(self, kind: str, jobs: int, rows: int, *, limited_to: Bound = None) -> None:
        rows = rows if kind == "range" else 0
        self._check(
            self._connection.execute(
                statement("planner", "advance"),
                {
                    "id": self._vectorizer.id,
                    "epoch": self._epoch,
                    "jobs": jobs,
                    "rows": rows,
                    "limited_to": limited_to,
                },
            ).fetchone()
        )
        self._planned.jobs += jobs
        self._planned.rows += rows

    def _check(self, row: Sequence[object] | None) -> None:
        if row is None:
            raise PlanTakenOverError(
                f"another enqueue of {self._vectorizer.name!r} has begun and plans the rest; nothing is lost"
            )

    @staticmethod
    def _alias(kind: str) -> str:
        return "s" if kind == "range" else "d"

    @contextmanager
    def _short_transaction(self) -> Generator[None]:
        """One planning step: index scans only, committed on its own, then announced."""
        with transaction(self._connection, statement_timeout=600, lock_timeout=30):
            self._connection.execute(statement("catalog", "prefer_indexes"))
            yield
        self._announce()

    def _announce(self) -> None:
        """Tells who watches, and wakes workers, at most once a second."""
        if self._progress is not None:
            self._progress(self._planned.jobs, self._planned.rows)
        now = time.monotonic()
        if self._planned.jobs and now - self._notified_at >= 1:
            self._notified_at = now
            queue.notify(self._connection)


def estimated_rows(connection: Connection, vectorizer: Vectorizer) -> int | None:
    """Returns how many rows the source has by its statistics; None where there are none (a view, a fresh table)."""
    row = connection.execute(
        statement("planner", "estimated_rows"),
        {"schema": vectorizer.source_schema, "table": vectorizer.source_table},
    ).fetchone()
    return int(row[0]) if row and row[0] and row[0] > 0 else None


def _between(covered: Sequence[tuple[Bound, Bound]]) -> Iterator[tuple[Bound, Bound]]:
    """Yields the gaps between ranges (lower, upper] that are sorted and do not overlap; None is no bound."""
    end: Bound = None
    started = False
    for lower, upper in covered:
        if (lower is not None) if not started else (lower != end):
            yield end, lower
        started = True
        end = upper
        if upper is None:
            return
    yield end, None
