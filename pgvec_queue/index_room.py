"""What the build of an index may take of the server, and whether it fits.

pgvector builds the graph in ``maintenance_work_mem``. What does not fit is inserted vector by vector into the index on
disk, many times slower. SQL does not tell how much memory a machine has, so it is judged by what its administrator has
said: a build may take ``maintenance_work_mem``, or half of ``shared_buffers`` where that is more (usually an eighth of
the machine, since a quarter is what PostgreSQL's manual gives to ``shared_buffers``); on this machine, an eighth of its
memory. ``--memory`` says it instead.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from pgvec_queue import process, route, vector_index
from pgvec_queue.database import Connection, statement
from pgvec_queue.definition_options import MOST_PARTITIONS
from pgvec_queue.estimate import hnsw
from pgvec_queue.vector_index import IndexRefusedError, Wish
from pgvec_queue.vectorizer import Vectorizer

TOO_LARGE = 4.0
"""Times the memory that a graph may need: from there on a build is refused rather than crawling for days."""
_SHARE_OF_BUFFERS, _SHARE_OF_MACHINE = 2, 8
_SPREAD = 1.1
"""By which the graph may be larger than its estimate."""
_LEAST_MEMORY = 64 * 2**20
_PER_WORKER = 32 * 2**20
"""PostgreSQL starts no process of a build for which there is less."""
_MOST_WORKERS = 7
_DISK_SHARE = 0.95
_UNITS = ("kB", "MB", "GB", "TB")


@dataclass(frozen=True, slots=True)
class Room:
    """What a build is given."""

    memory: int
    """Bytes, for ``maintenance_work_mem``."""
    workers: int
    """For ``max_parallel_maintenance_workers``."""
    needed: float
    """Bytes that the whole graph takes."""
    remark: str | None = None
    """What the user should know."""


@dataclass(frozen=True, slots=True)
class Server:
    """What the server has been told of its machine, in bytes and processes."""

    maintenance: int
    buffers: int
    maintenance_workers: int
    parallel_workers: int
    machine: int | None = None
    """Memory of the machine, where that is this one."""
    cores: int | None = None
    free_disk: int | None = None


def server(connection: Connection) -> Server:
    """Asks the server, over a direct connection."""
    row = connection.execute(statement("index", "settings")).fetchone()
    assert row is not None
    told = Server(*row)
    directory = route.data_directory(connection)
    if directory is None:
        return told
    return replace(told, machine=process.machine_memory(), cores=process.cores(), free_disk=route.free_disk(directory))


def room(connection: Connection, vectorizer: Vectorizer, wish: Wish) -> Room:
    """Decides what a build takes. Raises ``IndexRefusedError`` where it cannot fit."""
    return decide(server(connection), vectorizer, wish, vector_index.vectors(connection, vectorizer))


def decide(there: Server, vectorizer: Vectorizer, wish: Wish, vectors: float, *, on_disk: float | None = None) -> Room:
    """Decides what a build over so many vectors takes; ``on_disk`` are those of all builds, where it is one of several.

    Raises ``IndexRefusedError`` where it cannot fit.
    """
    needed = _needed(vectorizer, wish.store, wish.m, vectors)
    may = wish.memory or max(
        there.maintenance,
        there.buffers // _SHARE_OF_BUFFERS,
        (there.machine or 0) // _SHARE_OF_MACHINE,
    )
    _check_disk(there, vectorizer, wish, vectors if on_disk is None else on_disk)
    remark = None
    if needed > may:
        said = f"its graph needs about {size(needed)} of memory to build, and {size(may)} may be used"
        if needed > TOO_LARGE * may and not wish.anyway:
            raise IndexRefusedError(f"{said}; {_remedies(vectorizer, wish, vectors, needed, may)}")
        remark = f"{said}: the rest is built many times slower; `--memory {_flag(needed)}` would give it all"
    memory = min(max(round(needed), _LEAST_MEMORY), may)
    # A parallel build takes all of it at once, and a process needs its part.
    workers = min(_workers(there, wish), max(memory // _PER_WORKER - 1, 0))
    return Room(memory, workers, needed, remark)


def _needed(vectorizer: Vectorizer, store: str, m: int, vectors: float) -> float:
    return vectors * hnsw.memory_bytes(vectorizer.dimensions, store, m) * _SPREAD


def _check_disk(there: Server, vectorizer: Vectorizer, wish: Wish, vectors: float) -> None:
    takes = vectors * hnsw.element_bytes(vectorizer.dimensions, wish.store, wish.m)
    if there.free_disk is not None and takes > _DISK_SHARE * there.free_disk and not wish.anyway:
        raise IndexRefusedError(
            f"the index takes about {size(takes)}, and {size(there.free_disk)} are free where the server keeps its "
            "data; make room there"
        )


def _remedies(vectorizer: Vectorizer, wish: Wish, vectors: float, needed: float, may: float) -> str:
    name = vectorizer.name
    halved = _needed(vectorizer, "halfvec", wish.m, vectors)
    less = f", `--store halfvec` needs {size(halved)}" if wish.store == "vector" else ""
    return (
        f"if the machine has it: `pgvec index {name} --memory {_flag(needed)}`{less}, "
        f"`--anyway` builds in what there is, many times slower{_in_partitions(vectorizer, needed / may)}"
    )


def _in_partitions(vectorizer: Vectorizer, times: float) -> str:
    """What a table of ours could be instead: so many partitions that each fits."""
    count = math.ceil((vectorizer.partitions or 1) * times)
    if vectorizer.into_column or not vectorizer.destination_created or count > MOST_PARTITIONS:
        return ""
    return f", `pgvec migrate-model {vectorizer.name} --partitions {count}` embeds all again, into partitions that fit"


def _workers(there: Server, wish: Wish) -> int:
    if wish.workers is not None:
        return wish.workers
    # What the administrator allows, else half of what may run in parallel at all: others query meanwhile.
    chosen = max(there.maintenance_workers, min(there.parallel_workers // 2, _MOST_WORKERS))
    return min(chosen, max(there.cores - 1, 0)) if there.cores is not None else chosen


def size(count: float) -> str:
    """Returns bytes in powers of 1,024, such as ``1.5 GB``."""
    count /= 1024
    for unit in _UNITS[:-1]:
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:.3g} {_UNITS[-1]}"


def _flag(count: float) -> str:
    """Returns a size as ``--memory`` takes it, rounded up."""
    megabytes = -(-round(count) // 2**20)
    return f"{megabytes}M" if megabytes < 2048 else f"{-(-megabytes // 1024)}G"
