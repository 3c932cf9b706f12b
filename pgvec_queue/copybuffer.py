"""Vectors and rows in PostgreSQL's binary formats.

Formats: binary COPY after PostgreSQL's manual ("COPY, binary format"); ``vector`` and ``halfvec`` as pgvector's
``vector_send`` and ``halfvec_send`` write them: int16 dimensions, int16 zero, then big-endian elements.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg.adapt import Dumper
from psycopg.pq import Format

_HEADER = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)
_ELEMENTS: dict[str, np.dtype[np.float32] | np.dtype[np.float16]] = {
    "vector": np.dtype(">f4"),
    "halfvec": np.dtype(">f2"),
}
_LENGTH = struct.Struct(">i")
_INT4 = struct.Struct(">ii")
BLOCK_BYTES = 1 << 17
"""About what of a stream is made at a time."""


def field(data: bytes) -> bytes:
    """One field of a row: its length and its value."""
    return _LENGTH.pack(len(data)) + data


def text_field(text: str) -> bytes:
    return field(text.encode())


def int4_field(number: int) -> bytes:
    return _INT4.pack(4, number)


def vector_fields(vectors: NDArray[np.float32], store: str) -> list[bytes]:
    """Returns one field per row of ``vectors`` ``(n, d) float32`` for a column of type ``store``."""
    elements = _ELEMENTS[store]
    count, dimensions = vectors.shape
    head = struct.pack(">ihh", 4 + dimensions * elements.itemsize, dimensions, 0)
    fields = np.empty(count, [("head", np.void, len(head)), ("elements", elements, (dimensions,))])
    fields["head"] = np.void(head)
    with np.errstate(over="ignore"):
        # What halfvec cannot hold becomes infinite, which the server refuses.
        fields["elements"] = vectors
    body = fields.tobytes()
    size = fields.itemsize
    return [body[start : start + size] for start in range(0, len(body), size)]


def vector_size(dimensions: int, store: str) -> int:
    """Returns the bytes of a vector in a column of type ``store``, as it is sent."""
    return 4 + dimensions * _ELEMENTS[store].itemsize


def vectors_of(values: Sequence[bytes], store: str) -> NDArray[np.float32]:
    """Returns ``(n, d) float32`` of vectors as a column of type ``store`` sends them, all of the same dimensions."""
    elements = _ELEMENTS[store]
    dimensions = (len(values[0]) - 4) // elements.itemsize
    read = np.frombuffer(b"".join(values), [("head", np.void, 4), ("elements", elements, (dimensions,))])
    vectors: NDArray[np.float32] = read["elements"].astype(np.float32)
    return vectors


def rows(fields_per_row: int, lines: Iterable[Sequence[bytes]]) -> Iterator[bytes]:
    """Yields a whole binary COPY stream; each line holds the fields of one row, one or several per element.

    ``fields_per_row`` is the number of columns: an element may carry several fields (a composite key). What is yielded
    at a time is small enough for a processor's cache, so that the server reads it while the next is made.
    """
    count = struct.pack(">h", fields_per_row)
    parts = [_HEADER]
    size = 0
    for line in lines:
        parts.append(count)
        parts.extend(line)
        size += sum(map(len, line))
        if size > BLOCK_BYTES:
            yield b"".join(parts)
            parts.clear()
            size = 0
    parts.append(_TRAILER)
    yield b"".join(parts)


def array(fields: Sequence[bytes], element_oid: int) -> bytes:
    """Returns a one-dimensional array of these fields in PostgreSQL's binary format."""
    return struct.pack(">iiIii", 1, 0, element_oid, len(fields), 1) + b"".join(fields)


@dataclass(frozen=True, slots=True)
class Raw:
    """A query parameter that already is in PostgreSQL's binary format; its type comes from a cast in the query."""

    data: bytes


class _RawDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Raw) -> bytes:
        return obj.data


psycopg.adapters.register_dumper(Raw, _RawDumper)
