"""The first step of an estimate: how many rows a source has, and a sample of them by whole pages, sizes of texts only.

A table is sampled by TABLESAMPLE SYSTEM, partitions and children included; its rows are counted as PostgreSQL's planner
counts them, by the last ANALYZE's rows per page and the pages that there are now, and held against what the sample
shows. A small table is read as a whole, and one that was never analyzed is counted. A view is walked along its key as
planning does, which counts it, and sampled by stretches of keys. The texts themselves are not read here.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
from psycopg import sql
from psycopg.rows import class_row

from pgvec_queue.catalog import Relation
from pgvec_queue.database import Connection, statement, transaction
from pgvec_queue.estimate.totals import Population
from pgvec_queue.fragments import Fragments, identifier
from pgvec_queue.queue import Key

SMALL = 100_000
"""Rows of a source that is read as a whole."""
_ROWS_PER_DOCUMENT = 20
"""Rows of the first step for each document of the second."""
_FEWEST_PAGES, _MOST_PAGES = 200, 4_000
_MOST_ROWS = 2_000_000
"""After which no more is read, whatever the filter selects and however unlike pages are."""
_SURE = 0.04
"""Relative error that the size of all texts may have from the choice of pages."""
_LEAST_GROWTH, _MOST_GROWTH = 1.2, 25.0
_STRETCH, _PART = 1_000, 200
"""Rows between two keys of a walk, and of them in one cluster."""
_HOP_SECONDS = 0.2
_STALE = 0.5
"""By how much a row that was changed since the last ANALYZE makes its count wrong, at most, on average."""
_ANALYZED = 0.01
"""Relative error of a fresh ANALYZE's rows per page."""
_BELIEVED = 4.0
"""Standard errors between two counts that may still both be right."""
_TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class Part:
    """A table that holds rows of the source: itself, a partition, or a child."""

    is_foreign: bool
    pages: int
    analyzed_pages: int
    analyzed_rows: float
    changed: int
    """Rows changed since the last ANALYZE."""
    index_bytes: int

    @property
    def is_known(self) -> bool:
        """It was analyzed while it held anything, or it holds nothing."""
        return self.pages == 0 or (self.analyzed_pages > 0 and self.analyzed_rows >= 0)

    @property
    def rows(self) -> float:
        return self.analyzed_rows / self.analyzed_pages * self.pages if self.pages and self.analyzed_pages else 0.0


@dataclass(frozen=True, slots=True)
class Survey:
    """What the first step has found."""

    population: Population
    keys: Sequence[Key]
    """Of the selected rows of the sample, in the population's order."""
    parts: Sequence[Part]


@dataclass(slots=True)
class _Cluster:
    rows: int
    keys: Sequence[Key]
    sizes: Sequence[int]


class Surveyor:
    """Surveys the source of one vectorizer over one connection."""

    def __init__(
        self,
        connection: Connection,
        fragments: Fragments,
        documents: int,
        *,
        small: int = SMALL,
        seed: int | None = None,
    ) -> None:
        """``documents`` are what the second step wants; a ``seed`` makes the sample the same again."""
        self._connection = connection
        self._fragments = fragments
        self._documents = documents
        self._small = small
        self._seed = seed
        self._random = np.random.default_rng(seed)

    def survey(self, source: Relation) -> Survey:
        """Counts and samples the source. Raises what psycopg raises, such as for a filter that fails on a row."""
        with self._reading(), self._connection.cursor(row_factory=class_row(Part)) as cursor:
            parts = cursor.execute(statement("estimate", "relations"), {"oid": source.oid}).fetchall()
        walked = self._fragments.vectorizer.source_is_view or any(part.is_foreign for part in parts)
        return self._walk(parts) if walked else self._sample(parts)

    # Tables

    def _sample(self, parts: Sequence[Part]) -> Survey:
        pages = sum(part.pages for part in parts)
        if all(part.is_known for part in parts):
            rows = sum(part.rows for part in parts)
            stale = min(1.0, sum(part.changed for part in parts) / max(rows, 1.0))
            error = rows * (_ANALYZED + _STALE * stale)
        else:
            rows, error = float(self._count()), 0.0
        percent = 100.0 if rows <= self._small else self._percent(rows, pages)
        clusters = self._pages(percent)
        while percent < 100.0 and (factor := self._more(clusters, percent / 100)) > 1.0:
            percent = _whole(percent * factor)
            clusters = self._pages(percent)
        seen = sum(cluster.rows for cluster in clusters)
        if percent >= 100.0:
            rows, error = float(seen), 0.0
        elif error:
            rows, error = _combined(rows, error, clusters, percent / 100)
        return self._survey(parts, clusters, rows, error, complete=percent >= 100.0)

    def _count(self) -> int:
        with self._reading():
            row = self._connection.execute(self._fragments.compose("estimate", "count"), {}).fetchone()
        return int(row[0]) if row else 0

    def _percent(self, rows: float, pages: int) -> float:
        """How much of the table to read: enough rows, and pages for their variance to show."""
        per_page = max(rows / max(pages, 1), 1e-3)
        most = max(_MOST_PAGES, self._documents / per_page)
        wanted = min(max(self._documents * _ROWS_PER_DOCUMENT / per_page, _FEWEST_PAGES), most)
        return _whole(100.0 * wanted / max(pages, 1))

    def _more(self, clusters: Sequence[_Cluster], share: float) -> float:
        """By how much a sample of this ``share`` has to grow; 1 where it need not.

        The filter has to leave enough documents, and the size of all texts must not depend on the choice of pages:
        where the long ones stand side by side, few pages hold most of it.
        """
        rows = sum(cluster.rows for cluster in clusters)
        selected = sum(len(cluster.keys) for cluster in clusters)
        if rows >= _MOST_ROWS:
            return 1.0
        factor = _MOST_GROWTH
        if len(clusters) > 1 and selected:
            factor = (_error_of_sizes(clusters) / _SURE) ** 2
            # What is read already is left out of the error.
            factor /= 1.0 + share * (factor - 1.0)
            factor = max(factor, 1.5 * self._documents / selected if selected < self._documents else 1.0)
        factor = min(factor, _MOST_GROWTH, 1.5 * _MOST_ROWS / max(rows, 1))
        return factor if factor > _LEAST_GROWTH else 1.0

    def _pages(self, percent: float) -> list[_Cluster]:
        repeatable: sql.Composable = sql.SQL("")
        if self._seed is not None:
            repeatable = statement("estimate", "repeatable")
        query = self._fragments.compose(
            "estimate", "sample_pages", size=size_of(self._fragments), repeatable=repeatable
        )
        with self._reading():
            found = self._connection.execute(query, {"percent": percent, "seed": self._seed}).fetchall()
        return [_Cluster(rows, _keys(keys), sizes or ()) for _, _, rows, keys, sizes in found]

    # Views

    def _walk(self, parts: Sequence[Part]) -> Survey:
        ends = self._ends()
        side = self._fragments.side("range")
        last = ends[-1] if ends else None
        scope = self._fragments.bounds("s", lower=last is not None, upper=False)
        with self._reading(walking=True):
            row = self._connection.execute(
                self._fragments.compose("planner", "count_rest", **side, scope=scope), {"lower": last}
            ).fetchone()
        rows = len(ends) * _STRETCH + (int(row[0]) if row else 0)
        order = self._random.permutation(-(-rows // _PART))
        wanted = len(order)
        if rows > self._small:
            wanted = min(max(self._documents * _ROWS_PER_DOCUMENT // _PART, 2), wanted)
        clusters = [self._stretch(ends, int(part)) for part in order[:wanted]]
        while wanted < len(order) and (factor := self._more(clusters, wanted / len(order))) > 1.0:
            clusters += [self._stretch(ends, int(part)) for part in order[wanted : math.ceil(wanted * factor)]]
            wanted = len(clusters)
        complete = wanted == len(order)
        if complete:
            rows = sum(cluster.rows for cluster in clusters)
        return self._survey(parts, clusters, float(rows), 0.0, complete=complete)

    def _ends(self) -> list[list[str]]:
        """Walks the whole source; returns the last key of each full stretch."""
        ends: list[list[str]] = []
        hops = 4
        side = self._fragments.side("range")
        while True:
            last = ends[-1] if ends else None
            query = self._fragments.compose(
                "estimate",
                "walk",
                **side,
                scope=self._fragments.bounds("s", lower=last is not None, upper=False),
                any_key=self._fragments.bounds("s", lower=False, upper=False),
            )
            started = time.monotonic()
            with self._reading(walking=True):
                found = self._connection.execute(query, {"lower": last, "rows": _STRETCH, "hops": hops}).fetchall()
            ends.extend(end for (end,) in found)
            if len(found) < hops:
                return ends
            seconds = max(time.monotonic() - started, 1e-3)
            hops = max(1, min(round(hops * min(_HOP_SECONDS / seconds, 4)), 2_000))

    def _stretch(self, ends: Sequence[list[str]], part: int) -> _Cluster:
        stretch, within = divmod(part * _PART, _STRETCH)
        lower = ends[stretch - 1] if stretch else None
        upper = ends[stretch] if stretch < len(ends) else None
        query = self._fragments.compose(
            "estimate",
            "sample_stretch",
            size=size_of(self._fragments),
            scope=self._fragments.bounds("s", lower=lower is not None, upper=upper is not None),
        )
        with self._reading(walking=True):
            row = self._connection.execute(
                query, {"lower": lower, "upper": upper, "skip": within, "rows": _PART}
            ).fetchone()
        assert row is not None
        rows, keys, sizes = row
        return _Cluster(rows, _keys(keys), sizes or ())

    # Both

    def _survey(
        self, parts: Sequence[Part], clusters: Sequence[_Cluster], rows: float, error: float, *, complete: bool
    ) -> Survey:
        selected = [len(cluster.keys) for cluster in clusters]
        population = Population(
            rows=rows,
            rows_error=error,
            cluster_rows=np.array([cluster.rows for cluster in clusters], np.float64),
            cluster=np.repeat(np.arange(len(clusters)), selected),
            sizes=np.array([size or 0 for cluster in clusters for size in cluster.sizes], np.float64),
            complete=complete,
            filtered=self._fragments.vectorizer.filter is not None,
        )
        return Survey(population, [key for cluster in clusters for key in cluster.keys], parts)

    def _reading(self, *, walking: bool = False) -> AbstractContextManager[None]:
        return reading(self._connection, walking=walking)


@contextmanager
def reading(connection: Connection, *, walking: bool = False) -> Generator[None]:
    """A short READ ONLY transaction; ``walking``: along indexes, as planning does."""
    with transaction(connection, statement_timeout=_TIMEOUT, read_only=True):
        if walking:
            connection.execute(statement("catalog", "prefer_indexes"))
        yield


def size_of(fragments: Fragments) -> sql.Composable:
    """The bytes of a row's text columns, which are told without reading what lies out of line."""
    return sql.SQL(" + ").join(
        sql.SQL("coalesce(octet_length({}::text), 0)").format(identifier("s", name))
        for name in fragments.vectorizer.text_columns
    )


def _keys(found: Sequence[Sequence[str]] | None) -> list[Key]:
    return [tuple(key) for key in found or ()]


def _whole(percent: float) -> float:
    """Most of a table is read as fast as all of it."""
    return 100.0 if percent > 50.0 else percent


def _error_of_sizes(clusters: Sequence[_Cluster]) -> float:
    """Returns the relative error that the bytes per row have from the choice of clusters, had all others been left."""
    rows = np.array([cluster.rows for cluster in clusters], np.float64)
    held = np.array([sum(size or 0 for size in cluster.sizes) for cluster in clusters], np.float64)
    whole = float(held.sum())
    if not whole:
        return 0.0
    unlike = held - whole / rows.sum() * rows
    return math.sqrt(len(rows) / (len(rows) - 1) * float((unlike**2).sum())) / whole


def _combined(rows: float, error: float, clusters: Sequence[_Cluster], share: float) -> tuple[float, float]:
    """Weighs the rows that statistics tell against those that a ``share`` of the pages holds; returns rows and error.

    Where the two cannot both be true, the statistics are old: the sample alone counts.
    """
    counts = np.array([cluster.rows for cluster in clusters], np.float64)
    if not len(counts):
        return rows, error
    seen = float(counts.sum()) / share
    # Each page is in the sample or not by itself.
    spread = math.sqrt((1.0 - share) * float((counts**2).sum())) / share
    if abs(seen - rows) > _BELIEVED * math.hypot(error, spread):
        return seen, spread
    weight = spread**2 / (error**2 + spread**2)
    return weight * rows + (1.0 - weight) * seen, error * spread / math.hypot(error, spread)
