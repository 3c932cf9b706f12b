"""What ``pgvec enqueue --dry-run`` prints: an estimate as a table on a terminal, as lines elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import click
from rich.table import Table

from pgvec_queue.cli.texts import console, duration, plain, size

if TYPE_CHECKING:
    from pgvec_queue.estimate.estimator import Estimate
    from pgvec_queue.estimate.totals import Interval

_Unit = Callable[[float], str]
_LABEL = 26


def show(found: Estimate) -> None:
    """Prints the numbers, each with the interval that it lies in, then what is to be said of them."""
    out = console()
    if out.is_terminal:
        table = Table(box=None, pad_edge=False)
        table.add_column("")
        for title in ("estimate", "from", "to"):
            table.add_column(title, justify="right", no_wrap=True)
        table.add_column("", overflow="fold")
        for label, value, unit, remark in _lines(found):
            bounds = ("", "") if value.is_exact else (unit(value.low), unit(value.high))
            table.add_row(label, _number(value, unit), *bounds, remark)
        out.print(table)
    else:
        for label, value, unit, remark in _lines(found):
            between = "" if value.is_exact else f" ({unit(value.low)} to {unit(value.high)})"
            click.echo(f"{label + ':':{_LABEL}}{_number(value, unit)}{between}{', ' + remark if remark else ''}")
    for note in _notes(found):
        click.echo(f"note: {plain(note)}")


def _lines(found: Estimate) -> Iterator[tuple[str, Interval, _Unit, str]]:
    """Yields label, value, how to write it, and what belongs to it."""
    for label, value, unit, remark in _every(found):
        if value is not None:
            yield label, value, unit, remark


def _every(found: Estimate) -> Iterator[tuple[str, Interval | None, _Unit, str]]:
    yield "rows in the source", found.rows_in_source, _count, ""
    yield "rows selected", found.rows_selected, _count, ""
    yield "rows blank", found.rows_blank, _count, ""
    if found.destination_exists:
        yield "rows new", found.rows_new, _count, ""
        yield "rows changed", found.rows_changed, _count, ""
        yield "rows unchanged", found.rows_unchanged, _count, ""
    else:
        yield "rows to embed", found.rows_new, _count, ""
    for label, value in (
        ("rows in quarantine", found.rows_in_quarantine),
        ("too long, quarantined", found.too_long_quarantined),
        ("too long, cut", found.too_long_truncated),
    ):
        # What cannot be is no news.
        yield label, value if value is not None and value.high > 0 else None, _count, ""
    yield "chunks", found.chunks, _count, ""
    yield "tokens", found.tokens, _count, ""
    yield "jobs", found.jobs, _count, ""
    yield "table", found.table_bytes, size, "besides what is there" if found.destination_exists else ""
    yield "its key index", found.key_index_bytes, size, ""
    yield "HNSW index of vector", found.hnsw_vector_bytes, size, ""
    yield "memory to build it", found.hnsw_vector_memory_bytes, size, _memory(found.hnsw_vector_memory_bytes, found)
    yield "HNSW index of halfvec", found.hnsw_halfvec_bytes, size, ""
    yield "memory to build it", found.hnsw_halfvec_memory_bytes, size, _memory(found.hnsw_halfvec_memory_bytes, found)
    yield "WAL of the backfill", found.wal_bytes, size, ""
    yield "WAL of the HNSW index", found.hnsw_wal_bytes, size, ""
    workers = f"as {found.workers} worker{'s' if found.workers != 1 else ''} did it lately"
    yield "time", found.seconds, duration, workers
    yield "cost", found.cost, _money, ""


def _memory(wanted: Interval | None, found: Estimate) -> str:
    """Of what it is, and what the session has for it, where that is less."""
    said = [f"for each of {found.partitions} partitions"] if found.partitions else []
    if wanted is not None and wanted.high > found.maintenance_work_mem:
        said.append(f"maintenance_work_mem is {size(found.maintenance_work_mem)}")
    return "; ".join(said)


def _notes(found: Estimate) -> Iterator[str]:
    cut = f"; {found.sampled_documents:,} documents were cut" if found.chunks is not None else ""
    yield f"the sizes of {found.sampled_rows:,} rows were looked at{cut}. Nothing was written"
    if found.seconds is None and found.tokens is not None:
        yield (
            "the time is not known, since no worker has run this model within a day; `pgvec bench encode` tells how "
            "many tokens a second a machine makes of it"
        )
    yield from found.notes


def _number(value: Interval, unit: _Unit) -> str:
    """What was counted is written in full."""
    return f"{value.estimate:,.0f}" if value.is_exact and unit is _count else unit(value.estimate)


def _count(number: float) -> str:
    """Returns a whole number; a large one to three places."""
    return f"{_rounded(number):,.0f}"


def _money(number: float) -> str:
    return f"{_rounded(number):,.2f}" if number < 1000 else f"{_rounded(number):,.0f}"


def _rounded(number: float) -> float:
    if number < 10_000 or not math.isfinite(number):
        return number
    return round(number, 2 - math.floor(math.log10(number)))
