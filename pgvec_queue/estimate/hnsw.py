"""How large an HNSW index of pgvector gets, how much memory its build wants, and how much WAL it writes.

By pgvector's layout (``hnsw.h``, ``hnswbuild.c``): an element holds its vector and room for ten row pointers, and
has a tuple of neighbours, twice ``m`` on the lowest level and ``m`` on each above; both go to the same page where
they fit one together, and no page is gone back to. So at 384 dimensions four elements fill a page, and at 1,024 one.
Equal vectors share an element (``repeats``).
"""

from __future__ import annotations

import functools
import math
import random

_PAGE = 8192
_ROOM = _PAGE - 24 - 8
_LINE_POINTER = 4
_ELEMENT_HEADER = 72
"""Type, level, flags, ten row pointers and one to the neighbours."""
_NEIGHBOURS_HEADER = 4
_POINTER = 6
_VECTOR_HEADER = 8
_WIDTHS = {"vector": 4, "halfvec": 2}

# In memory: the element's struct, the array of its levels' neighbours, and per level its length and 16 bytes a
# neighbour.
_ELEMENT_STRUCT = 128
_LEVEL_HEADER, _CANDIDATE = 8, 16
_ALLOCATION = 8

M = 16
"""pgvector's default, as is ``ef_construction = 64``, which changes neither size nor memory."""
_SIMULATED = 4_096
_PAGE_RECORD = 40
"""Of the WAL for each page, beside its content without the hole in it."""


def element_bytes(dimensions: int, store: str, m: int = M) -> float:
    """Returns the bytes of index per vector."""
    return _simulated(dimensions, store, m)[0]


def wal_bytes(dimensions: int, store: str, m: int = M) -> float:
    """Returns the bytes of WAL per vector: the build logs each page once it is complete, without the hole in it."""
    return _simulated(dimensions, store, m)[1]


def memory_bytes(dimensions: int, store: str, m: int = M) -> float:
    """Returns the memory that a build holds per vector; what does not fit is inserted one by one, far more slowly."""
    value = _aligned(_VECTOR_HEADER + _WIDTHS[store] * dimensions)
    upper = 1 / (m - 1)
    """Levels above the lowest, on average: a sixteenth of the elements, a sixteenth of these, …"""
    lists = _LEVEL_HEADER + 2 * m * _CANDIDATE + upper * (_LEVEL_HEADER + m * _CANDIDATE) + 8 * (1 + upper)
    return _ELEMENT_STRUCT + value + lists + _ALLOCATION * (4 + upper)


@functools.cache
def _simulated(dimensions: int, store: str, m: int) -> tuple[float, float]:
    """Fills pages as a build does; returns bytes of index and of WAL per element."""
    levels = random.Random(0)  # noqa: S311
    element = _aligned(_ELEMENT_HEADER + _VECTOR_HEADER + _WIDTHS[store] * dimensions)
    pages, left, used = 1, _ROOM, 0
    for _ in range(_SIMULATED):
        level = int(-math.log(1.0 - levels.random()) / math.log(m))
        neighbours = _aligned(_NEIGHBOURS_HEADER + (level + 2) * m * _POINTER)
        both = element + neighbours + _LINE_POINTER
        free = left - _LINE_POINTER
        if free < element or (both <= _ROOM and free < both):
            pages, left = pages + 1, _ROOM
        left -= element + _LINE_POINTER
        if left - _LINE_POINTER < neighbours:
            pages, left = pages + 1, _ROOM
        left -= neighbours + _LINE_POINTER
        used += both + _LINE_POINTER
    return pages * _PAGE / _SIMULATED, (used + pages * (24 + 8 + _PAGE_RECORD)) / _SIMULATED


def _aligned(size: int) -> int:
    return -(-size // 8) * 8
