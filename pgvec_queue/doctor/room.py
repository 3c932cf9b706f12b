"""Looks at whether the destinations will fit on the server's disk, where that can be known from here."""

from __future__ import annotations

from collections.abc import Iterator

from pgvec_queue import progress, route
from pgvec_queue.doctor.finding import Finding, error, note, ok, size, warning
from pgvec_queue.doctor.question import Examined
from pgvec_queue.vectorizer import Vectorizer

_ROW_BYTES = 150
"""Of a chunk's row beside its text and its vector: header, key, hash, time, and its entry in the unique index."""
_BYTES_PER_TOKEN = 4
_TEXT_BYTES = 500
"""Of a document whose length nobody knows."""
_MEASURED = 1_000
"""Chunks from which on the present size tells what one takes."""
_TIGHT = 0.8
_REMEDY = "make room, or give the destination a tablespace of its own"


def room(examined: Examined) -> Iterator[Finding]:
    """Compares what all vectorizers will still write with what is free."""
    rows = {one.name: one for one in progress.read(examined.connection)}
    need = sum(max(_left(examined, one, rows[one.name]), 0.0) for one in examined.vectorizers)
    if not examined.vectorizers:
        return
    if not need:
        yield ok("room", "nothing is known to be left to write")
        return
    said = f"about {size(need)} are still to be written, and as much again for a vector index"
    free = _free(examined)
    if free is None:
        yield note("room", f"{said}; what is free where the server keeps its data is not known here")
    elif need > free:
        yield error("room", f"{said}; {size(free)} are free", _REMEDY)
    elif need > _TIGHT * free:
        yield warning("room", f"{said}; {size(free)} are free", _REMEDY)
    else:
        yield ok("room", f"{said}; {size(free)} are free")


def _left(examined: Examined, one: Vectorizer, done: progress.Progress) -> float:
    """Bytes that a vectorizer will still write: its rows to come, by what a row takes."""
    to_come = max(done.rows_total - done.rows_done - done.rows_failed, 0)
    if not to_come:
        return 0.0
    if not one.into_column and done.chunks >= _MEASURED and done.rows_done:
        (present,) = examined.row("size", schema=one.destination_schema, table=one.destination_table)
        return to_come * float(present) / done.rows_done
    (width,) = examined.row(
        "text_width", schema=one.source_schema, table=one.source_table, columns=list(one.text_columns)
    )
    text = width or _TEXT_BYTES
    piece = one.chunk_size * _BYTES_PER_TOKEN if one.chunk_size else text
    chunks = max(1.0, text / piece)
    vector = one.dimensions * (2 if one.store == "halfvec" else 4) + 8
    # A row of the source is written anew with its vector.
    return to_come * (text + vector + _ROW_BYTES if one.into_column else chunks * (vector + _ROW_BYTES) + text)


def _free(examined: Examined) -> float | None:
    """Bytes that are free where the server keeps its data; None where that is somewhere else, or not to be known."""
    directory = examined.question.directory
    if directory is None and not examined.pooled:
        directory = route.data_directory(examined.connection)
    return route.free_disk(directory)
