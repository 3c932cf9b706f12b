"""How many bytes rows take in PostgreSQL: in the heap, out of line (TOAST), in B-tree indexes, and in the WAL.

The arithmetic of PostgreSQL's own sources, for pages of 8 kB: ``heap_compute_data_size`` and ``heap_fill_tuple`` for
a row, ``heap_toast_insert_or_update`` for what leaves it, ``RelationGetBufferForTuple`` for the page it lands on,
``nbtsplitloc.c`` for how full an index's pages are left. Rows are vectorized: an argument of bytes holds one value per
row, ``(n,)``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.float64]

PAGE = 8192
_HEAP_ROOM = PAGE - 24
_LINE_POINTER = 4
_ROW_HEADER = 24
_SHORT = 126
"""Longest value with a header of one byte, which needs no alignment."""
TOAST_THRESHOLD = 2032
"""Rows up to this are left alone whatever the table's ``toast_tuple_target``."""
_TOAST_POINTER = 18
_TOAST_PIECE = 1996
_TOAST_ROW_HEADER = _ROW_HEADER + 4 + 4 + 4
_TOAST_INDEX_ROW = 16 + _LINE_POINTER
_LEAST_TOASTED = 24
"""A value of this size or less stays in its row."""
_WORTH_COMPRESSING = 0.75
_INDEX_ROOM = PAGE - 24 - 16
_LEAF_FILL, _INNER_FILL = 0.9, 0.7
_INDEX_HEADER = 8
_FREE_SPACE_STEP = 32
_FREE_SPACE_PAGES = 4_000
"""Heap pages that one page of the free space map tells of, about."""

# Of the WAL: a record's header and its reference to a page; what COPY writes before each row; and the rest of a B-tree
# insertion, with its share of the splits.
_RECORD = 24 + 20
_COPIED_ROW = 8
_PER_HEAP_PAGE = _RECORD + 16
_PER_INDEX_ROW = _RECORD + 4 + 6


@dataclass(frozen=True, slots=True)
class Attribute:
    """A column as the catalog describes it."""

    role: str
    length: int
    """Bytes; -1 where it varies."""
    alignment: str
    """``pg_type.typalign``: c, s, i or d."""
    storage: str
    """``pg_attribute.attstorage``: x may be compressed and moved out of the row, e moved only, p stays."""


_ALIGN = {"c": 1, "s": 2, "i": 4, "d": 8}


@dataclass(frozen=True, slots=True)
class Rows:
    """What rows of a table take."""

    heap: Bytes
    """Of each row with its line pointer, ``(n,)``."""
    toast: Bytes
    """Of each row's values out of line, as rows of the TOAST table, ``(n,)``."""
    toast_rows: Bytes
    """How many rows of the TOAST table these are, ``(n,)``."""
    toast_pieces: Bytes
    """The sizes of these rows, one by one."""


def rows(attributes: Sequence[Attribute], widths: Mapping[str, Bytes], target: int, kept: Bytes) -> Rows:
    """Returns what the rows take.

    ``widths`` holds the bytes of each value of varying length by role, without header; ``target`` is the table's
    ``toast_tuple_target``, 0 for the usual one; ``kept`` the share of a text that compression leaves, ``(n,)``.
    """
    count = len(kept)
    values = [widths[a.role] if a.length < 0 else np.full(count, float(a.length)) for a in attributes]
    data = _data(attributes, values)
    toast, toast_rows, every = np.zeros(count), np.zeros(count), []
    room = float((target or TOAST_THRESHOLD) - _ROW_HEADER)
    for row in np.flatnonzero((_ROW_HEADER + data > TOAST_THRESHOLD) & (data > room)):
        own, moved = _toasted(attributes, [float(value[row]) for value in values], room, float(kept[row]))
        data[row] = _data_of(attributes, own)
        pieces = [piece for size in moved for piece in _pieces(size)]
        toast[row], toast_rows[row] = sum(pieces), len(pieces)
        every.extend(pieces)
    return Rows(_row(_ROW_HEADER + data), toast, toast_rows, np.array(every, np.float64))


def _pieces(size: float) -> list[float]:
    """Returns the rows of the TOAST table that hold a value, as bytes with their line pointers."""
    whole, rest = divmod(size, _TOAST_PIECE)
    held = [_TOAST_PIECE] * int(whole) + ([rest] if rest else [])
    return [float(_row(_TOAST_ROW_HEADER + piece)) for piece in held]


def toasted_value(size: float) -> float:
    """Returns what a value takes that lies out of line, its place in the index included."""
    pieces = _pieces(size)
    return sum(pieces) + len(pieces) * _TOAST_INDEX_ROW + _TOAST_POINTER


def _row(size: float | Bytes) -> Bytes:
    return np.ceil(np.asarray(size) / 8) * 8 + _LINE_POINTER


def _data(attributes: Sequence[Attribute], values: Sequence[Bytes]) -> Bytes:
    """Returns the bytes of the values side by side, each aligned as its type wants it."""
    end = np.zeros(len(values[0]) if values else 0)
    for attribute, value in zip(attributes, values, strict=True):
        step = _ALIGN[attribute.alignment]
        aligned = np.ceil(end / step) * step
        if attribute.length >= 0:
            end = aligned + value
        else:
            short = (value <= _SHORT) & (attribute.storage != "p")
            end = np.where(short, end + 1 + value, aligned + 4 + value)
    return end


def _data_of(attributes: Sequence[Attribute], values: Sequence[float]) -> float:
    """Returns the same for a single row, without the price of arrays."""
    end = 0.0
    for attribute, value in zip(attributes, values, strict=True):
        step = _ALIGN[attribute.alignment]
        if attribute.length >= 0:
            end = -(-end // step) * step + value
        elif value <= _SHORT and attribute.storage != "p":
            end += 1 + value
        else:
            end = -(-end // step) * step + 4 + value
    return end


def _toasted(
    attributes: Sequence[Attribute], values: list[float], room: float, kept: float
) -> tuple[list[float], list[float]]:
    """Compresses and moves out the largest values until the row fits; returns what stays and what was moved."""
    moved: list[float] = []
    movable = [i for i, a in enumerate(attributes) if a.length < 0 and a.storage in "xe"]
    tried: set[int] = set()
    outside: set[int] = set()

    def move(i: int) -> None:
        moved.append(values[i])
        values[i] = float(_TOAST_POINTER - 1)
        outside.add(i)

    def largest(among: list[int]) -> int | None:
        found = [i for i in among if values[i] + 4 > _LEAST_TOASTED]
        return max(found, key=lambda i: values[i]) if found else None

    def fits() -> bool:
        return _data_of(attributes, values) <= room

    while not fits() and (i := largest([i for i in movable if i not in tried])) is not None:
        tried.add(i)
        if attributes[i].storage == "x" and kept <= _WORTH_COMPRESSING:
            values[i] *= kept
        if values[i] + 4 > room:
            move(i)
    while not fits() and (i := largest([i for i in movable if i not in outside])) is not None:
        move(i)
    return values, moved


def heap_fill(sizes: Bytes, fillfactor: int = 100) -> float:
    """Returns what share of a heap's pages rows of these sizes fill, line pointers included.

    Each goes to the page in hand, else to any page that the free space map knows to have room, else to a new one.
    """
    if not len(sizes):
        return 1.0
    room = _HEAP_ROOM * fillfactor / 100
    steps = int(PAGE / _FREE_SPACE_STEP)
    free: list[list[float]] = [[] for _ in range(steps + 1)]
    pages, left = 1, room
    for size in sizes.tolist():
        if size > left:
            free[int(left // _FREE_SPACE_STEP)].append(left)
            least = int(-(-size // _FREE_SPACE_STEP))
            step = next((step for step in range(least, steps + 1) if free[step]), None)
            if step is None:
                pages, left = pages + 1, max(room, size)
            else:
                left = free[step].pop()
        left -= size
    # What is left of the last page is still to be filled.
    return min(1.0, float(sizes.sum()) / (pages * _HEAP_ROOM - left))


def heap_bytes(row_bytes: float, fill: float) -> float:
    """Returns the size of a heap with its free space and visibility maps."""
    pages = np.ceil(row_bytes / (fill * _HEAP_ROOM)) if row_bytes else 0.0
    if not pages:
        return 0.0
    return float(pages + 2 + np.ceil(pages / _FREE_SPACE_PAGES) + np.ceil(pages / 32_000)) * PAGE


def toast_bytes(row_bytes: float, pieces: float, fill: float) -> float:
    """Returns the size of a TOAST table and its index; the index has a page in any case."""
    return heap_bytes(row_bytes, fill) + (index_bytes(pieces * _TOAST_INDEX_ROW, pieces) or PAGE)


def index_row(attributes: Sequence[Attribute], widths: Mapping[str, Bytes], count: int) -> Bytes:
    """Returns what an entry of a B-tree over these columns takes, with its line pointer, ``(n,)``."""
    values = [widths[a.role] if a.length < 0 else np.full(count, float(a.length)) for a in attributes]
    return _row(_INDEX_HEADER + np.ceil(_data(attributes, values) / 8) * 8)


def index_bytes(entry_bytes: float, entries: float) -> float:
    """Returns the size of a B-tree that was filled in the order of its keys."""
    if not entries:
        return 0.0
    leaves = np.ceil(entry_bytes / (_LEAF_FILL * _INDEX_ROOM))
    pages, level = 1.0 + leaves, leaves
    width = entry_bytes / entries
    while level > 1:
        level = np.ceil(level * width / (_INNER_FILL * _INDEX_ROOM))
        pages += level
    return float(pages * PAGE)


def copied_wal(stored: Rows, index_rows: Sequence[Bytes]) -> Bytes:
    """Returns the WAL that writing each row takes, ``(n,)``: heap, values out of line, and each index."""
    heap = stored.heap - _LINE_POINTER - 23 + _COPIED_ROW + stored.heap / _HEAP_ROOM * _PER_HEAP_PAGE
    # A value out of line is inserted piece by piece, and each piece into the index of the TOAST table.
    toast = stored.toast + stored.toast_rows * (_RECORD + 16 + _PER_INDEX_ROW + _INDEX_HEADER + 8)
    return heap + toast + sum((entry - _LINE_POINTER + _PER_INDEX_ROW for entry in index_rows), np.zeros(1))
