"""What the vectors of a backfill take: the destination table, its indexes, an HNSW index and its build, and the WAL.

Each function takes the totals of a sample and returns intervals: the sampling's error, and by how much the arithmetic
itself has been off where every chunk was known (``benchmarks/dryrun.py`` measures that).
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pgvec_queue.catalog import Relation
from pgvec_queue.database import Connection
from pgvec_queue.destination_checks import INDEXABLE
from pgvec_queue.estimate import hnsw, layout, storage
from pgvec_queue.estimate.documents import Drawn
from pgvec_queue.estimate.pace import Pace
from pgvec_queue.estimate.storage import PAGE
from pgvec_queue.estimate.survey import Part
from pgvec_queue.estimate.totals import Floats, Interval, Totals
from pgvec_queue.vectorizer import Vectorizer

_TABLE_SPREAD, _INDEX_SPREAD, _HNSW_SPREAD = 0.04, 0.04, 0.02
_MEMORY_SPREAD, _WAL_SPREAD, _COLUMN_SPREAD = 0.05, 0.08, 0.4

# Bytes of WAL for planning a job and finishing it, and for the checkpoint, counters and commit of a slice.
_JOB_WAL, _SLICE_WAL = 500.0, 1_300.0
_SLICE_SECONDS, _FEWEST_IN_SLICE, _MOST_IN_SLICE, _USUALLY_IN_SLICE = 1.0, 8, 2_000, 50
_RUN_WAL = Interval(400_000, 0, 1_000_000)
"""Whatever a run is long: first touches of catalogs and of our own tables, and autovacuum."""
_SECOND_WAL = 1_500.0
"""Heartbeats, and those pages again after each checkpoint."""
_PARTIAL_LEAVES = Interval(0.7, 0.0, 1.2)
"""Leaves that each job leaves half full, where several are written side by side; 0 where one comes after the other."""
_LEAST_FULL = 0.4
_SPARE_PAGES = Interval(24, 0, 64)
"""By which a heap was extended ahead of its rows."""
_SPARE_SHARE = Interval(0.05, 0.0, 0.1)
_EMPTY_TABLE, _EMPTY_TREE = 4.0 * PAGE, 2.0 * PAGE
"""Of each partition but the first: the maps and pages that are begun anew."""
_FILL_ROWS = 4_096
"""Rows that a heap is filled with to see how full its pages get."""


@dataclass(frozen=True, slots=True)
class Space:
    """What a backfill adds."""

    table_bytes: Interval
    key_index_bytes: Interval
    wal_bytes: Interval
    other_indexes: int = 0
    """Of the destination, of other kinds than B-tree and HNSW, which grow besides."""


@dataclass(frozen=True, slots=True)
class Hnsw:
    """What building an index over the vectors as one type takes."""

    index_bytes: Interval
    memory_bytes: Interval
    wal_bytes: Interval


def of_table(
    connection: Connection,
    vectorizer: Vectorizer,
    existing: Relation | None,
    totals: Totals,
    documents: Sequence[Drawn],
    weights: Floats,
    jobs: Interval,
    todo: Interval,
    seconds: Interval | None,
    pace: Pace | None,
) -> Space:
    """Disk and WAL of a table of chunks. ``weights`` ``(n,)`` is how many documents each of the drawn stands for."""
    found = layout.of_vectorizer(connection, vectorizer, existing)
    widths = layout.widths(found, vectorizer, documents)
    kept = layout.compressed_share(documents)
    stored = storage.rows(found.attributes, widths, found.target, kept)
    entries = [storage.index_row(columns, widths, len(kept)) for columns in found.indexes]
    counts = [len(one.chunks) for one in documents]
    owner = np.repeat(np.arange(len(documents)), counts)

    def total(of_chunks: Floats) -> Interval:
        return totals.total(np.bincount(owner, of_chunks, minlength=len(documents)).astype(np.float64))

    of_chunks = np.repeat(weights, counts)
    heap_fill = storage.heap_fill(_typical(stored.heap, of_chunks), found.fillfactor)
    toast_fill = storage.heap_fill(_typical(stored.toast_pieces, None))

    def table_bytes(heap: float, toast: float, pieces: float) -> float:
        held = storage.heap_bytes(heap, heap_fill)
        return held + storage.toast_bytes(toast, pieces, toast_fill) if held else 0.0

    chunks = total(np.ones(len(kept)))
    table = _each(table_bytes, total(stored.heap), total(stored.toast), total(stored.toast_rows))
    tables = (vectorizer.partitions or 1) if existing is None else 1
    table = table.plus(_at_most(_SPARE_PAGES.times(tables * PAGE), table, _SPARE_SHARE))
    table = table.plus(Interval.exactly((tables - 1) * _EMPTY_TABLE))
    trees = [_each(storage.index_bytes, total(entry), chunks) for entry in entries]
    if jobs.estimate > 1:
        partial = _each(operator.mul, _PARTIAL_LEAVES.times(PAGE), jobs.plus(Interval.exactly(-1)))
        trees = [tree.plus(_at_most(partial, tree, Interval.exactly(_LEAST_FULL))) for tree in trees]
    trees = [tree.plus(Interval.exactly((tables - 1) * _EMPTY_TREE)) for tree in trees]
    slices = todo.times(_SLICE_WAL / _slice_rows(vectorizer, pace))
    wal = total(storage.copied_wal(stored, entries)).plus(slices).plus(jobs.times(_JOB_WAL))
    if chunks.estimate:
        wal = wal.plus(_RUN_WAL).plus((seconds or Interval.exactly(0)).times(_SECOND_WAL))
    return Space(
        table.within(_TABLE_SPREAD),
        functools.reduce(Interval.plus, trees, Interval.exactly(0)).within(_INDEX_SPREAD),
        wal.within(_WAL_SPREAD),
        found.other_indexes,
    )


def of_column(vectorizer: Vectorizer, parts: Sequence[Part], rows: Interval, todo: Interval) -> Space:
    """Disk and WAL of a vector column: an UPDATE of each row, which leaves the old version until vacuum has passed.

    The new version is as long as rows are on average, with the vector. The room of old ones is used again as soon as
    nobody sees them any more and their page is looked at, so the table grows by anything between the vectors alone and
    all of the new versions; and a new version on the page of the old one needs no entries in the indexes.
    """
    vector = {"vector": 4.0, "halfvec": 2.0}[vectorizer.store] * vectorizer.dimensions + 8
    pages = sum(part.pages for part in parts)
    row = pages * PAGE / max(rows.estimate, 1)
    outside = row + vector > storage.TOAST_THRESHOLD
    added = (storage.toasted_value(vector) if outside else vector) + 17
    index = sum(part.index_bytes for part in parts) / max(rows.estimate, 1)
    # Each old page is written whole when it is first touched after a checkpoint, and so are the indexes' pages.
    images = min(1.0, todo.estimate / max(rows.estimate, 1) * max(rows.estimate / max(pages, 1), 1.0)) * pages * PAGE
    wal = todo.times(row + added + index + 120).plus(Interval.exactly(images))
    return Space(
        Interval(todo.estimate * (added + row / 2), todo.low * added, todo.high * (added + row)),
        Interval(todo.estimate * index / 2, 0.0, todo.high * index),
        wal.within(_COLUMN_SPREAD),
    )


def of_hnsw(
    vectorizer: Vectorizer, chunks: Interval, elements: Interval, store: str, largest: float = 1.0
) -> Hnsw | None:
    """What an HNSW index over the vectors as ``store`` takes; None where pgvector indexes no so many dimensions.

    Equal chunks share an element, but a build has memory for each. Of a table in partitions one is built at a time; the
    largest has this share of the chunks.
    """
    if vectorizer.dimensions > INDEXABLE[store]:
        return None
    index = elements.times(hnsw.element_bytes(vectorizer.dimensions, store))
    memory = chunks.times(largest * hnsw.memory_bytes(vectorizer.dimensions, store))
    wal = elements.times(hnsw.wal_bytes(vectorizer.dimensions, store))
    return Hnsw(index.within(_HNSW_SPREAD), memory.within(_MEMORY_SPREAD), wal.within(_WAL_SPREAD))


def _each(function: Callable[..., float], *arguments: Interval) -> Interval:
    """Applies a function that grows with its arguments, which err together."""
    return Interval(
        function(*(one.estimate for one in arguments)),
        function(*(one.low for one in arguments)),
        function(*(one.high for one in arguments)),
    )


def _at_most(value: Interval, whole: Interval, share: Interval) -> Interval:
    """Returns ``value``, but of ``whole`` no more than a share."""
    return _each(min, value, _each(operator.mul, whole, share))


def _typical(sizes: Floats, weights: Floats | None) -> Floats:
    """Returns sizes as often as they would occur, where large documents have been drawn more often than others."""
    if not len(sizes):
        return sizes
    chances = None if weights is None else weights / weights.sum()
    return np.random.default_rng(0).choice(sizes, _FILL_ROWS, p=chances)


def _slice_rows(vectorizer: Vectorizer, pace: Pace | None) -> float:
    """How many documents a worker writes at a time: about a second of its device's work."""
    rate = pace.rows / max(pace.workers, 1) if pace is not None and pace.rows else None
    if rate is None:
        return _MOST_IN_SLICE if vectorizer.embedder == "hashing" else _USUALLY_IN_SLICE
    return min(max(rate * _SLICE_SECONDS, _FEWEST_IN_SLICE), _MOST_IN_SLICE)
