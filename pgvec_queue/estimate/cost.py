"""What a backfill of any size takes on any fleet: jobs, bytes, hours and money, by arithmetic alone.

No database is asked. Bytes come from the layout of rows and of the HNSW graph (``storage``, ``hnsw``), as in a dry run;
times from the constants below, each measured by the command that it names, on two cores with the embedded server. All
of them, and every price, can be given instead. A time is that of whatever is slowest, since devices, the write path and
the queue work side by side; the index is built afterwards.

What this does not see: a network between workers and server, a source that is read from disk, checkpoints that write
full pages again, a replica that cannot keep up, and devices that wait for tokenizers. So hours are a lower bound.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pgvec_queue.definition_options import MOST_PARTITIONS
from pgvec_queue.destination_checks import INDEXABLE
from pgvec_queue.errors import DefinitionError
from pgvec_queue.estimate import hnsw, layout, storage
from pgvec_queue.estimate.storage import Attribute

MOST_TABLE_BYTES = 32 * 2**40
"""Of one table, or one partition, with pages of 8 kB: PostgreSQL counts them with 32 bits."""
MOST_TOASTED = 2.0**32
"""Values of one table that are kept out of line: each has an object id of its own there."""
CONNECTIONS, MOST_CONNECTIONS = 4, 300
"""Of a worker; and of all, from where on a server without a pooler spends more on them than they are worth."""
_KEY = Attribute("key0", 8, "d", "p")
_HOUR = 3_600.0
_MONTH_HOURS = 730.0
_GB = 1e9


@dataclass(frozen=True, slots=True)
class Constants:
    """What was measured, and by which command; ``docs/scaling.md`` has the same list."""

    job_bytes: float = 304.0
    """Of ``pgvec.jobs`` and its indexes, per job (`pgvec bench plan --rows 100000000 --rounds 1`)."""
    job_wal_bytes: float = 371.0
    """Of WAL, to plan a job (the same)."""
    plan_rows_per_second: float = 17.3e6
    """A vacuumed table whose index is in memory (the same)."""
    row_fixed_us: float = 8.0
    """Microseconds of a server's core to write a row, whatever its size (a bare COPY in `pgvec bench load`)."""
    row_byte_ns: float = 4.5
    """Nanoseconds of it more for each byte of the row: with the other, 17 µs for 2,000 bytes (`pgvec bench load`)."""
    slice_ms: float = 6.5
    """Milliseconds of a server's core for a slice's reading, its write without its rows, and its share of the claims,
    heartbeats and polls (`pgvec bench scale --simulated`)."""
    slice_seconds: float = 1.0
    """Of a device's work in a slice."""
    slice_rows: float = 2_000.0
    """In a slice at most, however fast the device is."""
    build_vectors_per_second: float = 1_050.0
    """Of one core, inserted into an HNSW graph of ``build_at`` vectors in memory (`python -m benchmarks.building`)."""
    build_at: float = 100_000.0
    build_dimensions: float = 384.0
    build_scaling: float = 0.8
    """How much of another core's work a parallel build makes use of."""


@dataclass(frozen=True, slots=True)
class Prices:
    """In any currency."""

    device_hour: float = 0.0
    server_hour: float = 0.0
    storage_gb_month: float = 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be embedded, and on what."""

    rows: float = 1e6
    chunks_per_row: float = 1.0
    tokens_per_chunk: float = 100.0
    chunk_bytes: float = 400.0
    dimensions: int = 384
    store: str = "vector"
    rows_per_job: float = 1_000.0
    partitions: int = 1
    devices: int = 1
    tokens_per_second: float = 50_000.0
    """Of each device: what `pgvec bench encode` says."""
    server_cores: float = 16.0
    server_memory: float = 64 * 2**30
    """Bytes; half of it may be given to the build of an index."""
    disk_bytes_per_second: float = 1e9
    """That the server's disk takes, WAL and data files together."""
    build_processes: int = 8
    index: bool = True
    prices: Prices = field(default_factory=Prices)
    constants: Constants = field(default_factory=Constants)

    def check(self) -> None:
        """Raises ``DefinitionError`` for what no index can be built over, or is no size at all."""
        if self.store not in INDEXABLE:
            raise DefinitionError(f"there is no type {self.store!r} of vectors; write one of {', '.join(INDEXABLE)}")
        if self.index and self.dimensions > INDEXABLE["halfvec"]:
            raise DefinitionError(
                f"pgvector indexes at most {INDEXABLE['halfvec']:,} dimensions, and these are {self.dimensions:,}; "
                "leave the index out"
            )


@dataclass(frozen=True, slots=True)
class Cost:
    """What it takes. Names end in their units; a share is a fraction."""

    figures: Mapping[str, float]
    bottleneck: str
    """What the hours of embedding are those of: ``devices``, ``the server's cores`` or ``the server's disk``."""
    breaks: Sequence[str]
    """What does not hold at this size, and what to do about it."""

    def __getitem__(self, name: str) -> float:
        return self.figures[name]


def cost(plan: Plan) -> Cost:
    """Returns what a plan takes. Raises ``DefinitionError`` as ``Plan.check`` does."""
    plan.check()
    space = _space(plan)
    speed, bottleneck = _speed(plan, space)
    build = _build(plan, space) if plan.index else {}
    figures = {**_queue(plan), **space, **speed, **build}
    hours = figures["embed_hours"] + figures.get("index_hours", 0.0)
    figures["hours"] = figures["plan_hours"] + hours
    stored = figures["table_bytes"] + figures["key_index_bytes"] + figures.get("hnsw_bytes", 0.0)
    figures["stored_bytes"] = stored
    prices = plan.prices
    figures["devices_money"] = plan.devices * figures["embed_hours"] * prices.device_hour
    figures["server_money"] = hours * prices.server_hour
    figures["storage_money_per_month"] = stored / _GB * prices.storage_gb_month
    figures["server_money_per_month"] = _MONTH_HOURS * prices.server_hour
    return Cost(figures, bottleneck, _breaks(plan, figures, bottleneck))


def _queue(plan: Plan) -> dict[str, float]:
    known = plan.constants
    jobs = math.ceil(plan.rows / plan.rows_per_job)
    return {
        "jobs": float(jobs),
        "queue_bytes": jobs * known.job_bytes,
        "plan_wal_bytes": jobs * known.job_wal_bytes,
        "plan_hours": plan.rows / known.plan_rows_per_second / _HOUR,
    }


def _space(plan: Plan) -> dict[str, float]:
    """Bytes of the table, of the index on its key, and of the WAL for both."""
    chunks = plan.rows * plan.chunks_per_row
    table = layout.of_new([_KEY], plan.store, plan.dimensions)
    one = np.ones(1)
    widths = {
        "chunk": one * plan.chunk_bytes,
        "embedding": one * (4 + layout.ELEMENT_BYTES[plan.store] * plan.dimensions),
        "source_hash": one * layout.HASH_BYTES,
    }
    rows = storage.rows(table.attributes, widths, table.target, one)
    entries = [storage.index_row(columns, widths, 1) for columns in table.indexes]
    fill = storage.heap_fill(np.repeat(rows.heap, 512), table.fillfactor)
    toast_fill = storage.heap_fill(np.repeat(rows.toast_pieces, 512))
    parts = max(plan.partitions, 1)
    share = chunks / parts
    heap = storage.heap_bytes(float(rows.heap[0]) * share, fill)
    if rows.toast[0]:
        heap += storage.toast_bytes(float(rows.toast[0]) * share, float(rows.toast_rows[0]) * share, toast_fill)
    wal = float(storage.copied_wal(rows, entries)[0])
    return {
        "chunks": chunks,
        "tokens": chunks * plan.tokens_per_chunk,
        "row_bytes": float(rows.heap[0] + rows.toast[0]),
        "toasted_values": chunks * float(rows.toast_rows[0] > 0),
        "table_bytes": heap * parts,
        "key_index_bytes": sum(storage.index_bytes(float(entry[0]) * share, share) for entry in entries) * parts,
        "wal_bytes": chunks * wal,
    }


def _speed(plan: Plan, space: Mapping[str, float]) -> tuple[dict[str, float], str]:
    """Hours of embedding: those of the slowest of devices, the server's cores, and its disk."""
    known = plan.constants
    chunks = space["chunks"]
    device_seconds = space["tokens"] / (plan.devices * plan.tokens_per_second)
    rows_per_device = plan.tokens_per_second / plan.tokens_per_chunk / max(plan.chunks_per_row, 1e-9)
    slices = plan.rows / max(min(rows_per_device * known.slice_seconds, known.slice_rows), 1.0)
    row_core_seconds = chunks * (known.row_fixed_us * 1e-6 + known.row_byte_ns * 1e-9 * space["row_bytes"])
    slice_core_seconds = slices * known.slice_ms * 1e-3
    core_seconds = (row_core_seconds + slice_core_seconds) / plan.server_cores
    written = space["table_bytes"] + space["key_index_bytes"] + space["wal_bytes"]
    disk_seconds = written / plan.disk_bytes_per_second
    times = {"devices": device_seconds, "the server's cores": core_seconds, "the server's disk": disk_seconds}
    bottleneck = max(times, key=lambda name: times[name])
    seconds = times[bottleneck]
    return {
        "connections": float(plan.devices * CONNECTIONS),
        "slices": slices,
        "device_hours": device_seconds / _HOUR,
        "write_hours": core_seconds / _HOUR,
        "disk_hours": disk_seconds / _HOUR,
        "embed_hours": seconds / _HOUR,
        "chunks_per_second": chunks / seconds if seconds else 0.0,
        "devices_busy_share": device_seconds / seconds if seconds else 0.0,
        "coordination_cores": slice_core_seconds / seconds if seconds else 0.0,
        "write_cores": row_core_seconds / seconds if seconds else 0.0,
        "devices_that_fill_the_server": plan.devices * device_seconds / max(core_seconds, disk_seconds, 1e-9),
        "wal_bytes_per_second": space["wal_bytes"] / seconds if seconds else 0.0,
    }, bottleneck


def _build(plan: Plan, space: Mapping[str, float]) -> dict[str, float]:
    """The HNSW index, one partition after the other: its bytes, the memory that one build wants, and its hours."""
    known = plan.constants
    store = "halfvec" if plan.dimensions > INDEXABLE[plan.store] else plan.store
    chunks = space["chunks"]
    share = chunks / max(plan.partitions, 1)
    processes = min(plan.build_processes, plan.server_cores)
    cores = 1 + (processes - 1) * known.build_scaling
    # Inserting visits about log n vertices, and compares vectors of so many dimensions at each.
    slower = math.log(max(share, 2)) / math.log(known.build_at) * max(plan.dimensions / known.build_dimensions, 0.25)
    per_second = known.build_vectors_per_second / slower * cores
    element = hnsw.element_bytes(plan.dimensions, store)
    return {
        "hnsw_bytes": chunks * element,
        "hnsw_wal_bytes": chunks * hnsw.wal_bytes(plan.dimensions, store),
        "hnsw_memory_bytes": share * hnsw.memory_bytes(plan.dimensions, store),
        "index_hours": chunks / per_second / _HOUR,
    }


def _into(parts: float) -> str:
    needed = 2 ** math.ceil(math.log2(parts))
    if needed > MOST_PARTITIONS:
        return f"more than the {MOST_PARTITIONS} partitions that a destination may have: several destinations"
    return f"{needed} partitions of the destination"


def _breaks(plan: Plan, figures: Mapping[str, float], bottleneck: str) -> list[str]:
    parts = max(plan.partitions, 1)
    found: list[str] = []
    if figures["table_bytes"] / parts > MOST_TABLE_BYTES:
        found.append(f"a table holds 32 TiB at most: {_into(figures['table_bytes'] / MOST_TABLE_BYTES)}")
    if figures["toasted_values"] / parts > MOST_TOASTED:
        found.append(
            f"a table holds 2^32 values that are stored out of line: {_into(figures['toasted_values'] / MOST_TOASTED)}"
        )
    if figures.get("hnsw_bytes", 0.0) / parts > MOST_TABLE_BYTES:
        found.append("an index holds 32 TiB at most: more partitions, or halfvec")
    memory = figures.get("hnsw_memory_bytes", 0.0)
    if memory > plan.server_memory / 2:
        times = memory / (plan.server_memory / 2)
        found.append(
            f"the graph of {'a partition' if parts > 1 else 'the index'} is {times:.1f} times half of the server's "
            "memory, and a build that does not fit into memory takes many times as long: more partitions, halfvec, "
            "fewer dimensions, or a larger server for the build"
        )
    if bottleneck != "devices":
        found.append(
            f"{bottleneck} {'is' if bottleneck.endswith('disk') else 'are'} full: "
            f"{figures['devices_that_fill_the_server']:,.1f} such devices are all that it serves; halfvec, a larger "
            "server, or several"
        )
    if figures["connections"] > MOST_CONNECTIONS:
        found.append(
            f"workers hold {figures['connections']:,.0f} connections: a pgbouncer in transaction mode before the server"
        )
    if figures["coordination_cores"] > 1:
        found.append(
            f"slices, claims and heartbeats take {figures['coordination_cores']:.1f} cores of the server: "
            "devices that are that fast for this model want longer slices"
        )
    return found
