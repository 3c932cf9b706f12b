"""Looks at the server's settings, as far as they make the work slow or end it, and at the room for connections."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from pgvec_queue import progress
from pgvec_queue.doctor.finding import Finding, error, listed, note, ok, size, warning
from pgvec_queue.doctor.question import Examined

_MB = 1 << 20
_UNITS = {"8kB": 8192, "kB": 1024, "MB": _MB, "B": 1, "ms": 0.001, "s": 1.0, "min": 60.0}
_TIMEOUTS: Mapping[str, tuple[float, str]] = {
    "idle_in_transaction_session_timeout": (0.0, "our transactions set their own"),
    "transaction_timeout": (60.0, "ends writes and planning that take longer"),
    "idle_session_timeout": (60.0, "ends connections of idle workers, which make them anew each time"),
    "statement_timeout": (3600.0, "ends the building of an index; all other statements set their own"),
}
"""Seconds below which each one hurts, and how."""
_GRAPH_BYTES = 700
"""That an element of an HNSW index takes in memory beside its vector, with m = 16."""
_SHARED_BUFFERS = 256 * _MB
_WAL = 1024 * _MB


def autovacuum(examined: Examined) -> Iterator[Finding]:
    """Whether dead rows of the queue are cleared away."""
    found = _settings(examined, "autovacuum", "track_counts")
    off = [name for name, value in found.items() if not value]
    unvacuumed = [name for (name,) in examined.rows("unvacuumed")]
    if off:
        yield warning(
            "autovacuum",
            f"{off[0]} is off, so the queue's tables fill with dead rows, and claiming gets slower and slower",
            f"ALTER SYSTEM SET {off[0]} = on; SELECT pg_reload_conf()",
        )
    elif unvacuumed:
        yield warning(
            "autovacuum",
            f"it is switched off for {listed(['pgvec.' + name for name in unvacuumed])}",
            f"ALTER TABLE pgvec.{unvacuumed[0]} RESET (autovacuum_enabled)",
        )
    else:
        yield ok("autovacuum", "on")


def connections(examined: Examined) -> Iterator[Finding]:
    """Whether another worker finds its connections, and whether those there are could all have theirs."""
    most, reserved, used, of_role, by_role, of_database, in_database = examined.row("connections")
    per_worker = examined.question.per_worker
    bounds = [("max_connections", most - reserved, used)]
    if of_role >= 0:
        bounds.append(("the role's CONNECTION LIMIT", of_role, by_role))
    if of_database >= 0:
        bounds.append(("the database's CONNECTION LIMIT", of_database, in_database))
    # This one is in use, and ends.
    name, bound, busy = min(bounds, key=lambda one: one[1] - one[2])
    free = bound - busy + 1
    workers = sum(bool(lives) for *_, lives, _ in examined.rows("workers"))
    said = f"{busy - 1} of {bound} in use ({name}); a worker takes up to {per_worker}"
    remedy = "raise it, put a pooler in transaction mode between, or start workers with a smaller --pool-size"
    if examined.pooled:
        yield ok("connections", f"through a pooler; at the server {said}")
    elif free < per_worker:
        yield error("connections", f"{said}: there is no room for another one", remedy)
    elif (workers + 1) * per_worker > bound:
        yield warning("connections", f"{said}: {workers} workers and one more do not all fit", remedy)
    else:
        yield ok("connections", said)


def timeouts(examined: Examined) -> Iterator[Finding]:
    """Timeouts of this role's sessions that would end what takes its time."""
    values = _settings(examined, *_TIMEOUTS)
    origins = {
        name: (role, database) for name, _, role, database in reversed(examined.rows("who_set", names=[*_TIMEOUTS]))
    }
    hurting = [name for name, value in values.items() if 0 < value < _TIMEOUTS[name][0]]
    for name in hurting:
        role, database = origins.get(name, (None, None))
        whose = f"ROLE {role}{f' IN DATABASE {database}' if database else ''}" if role else f"DATABASE {database}"
        where = "in postgresql.conf" if role is None and database is None else f"by ALTER {whose}"
        remedy = (
            f"ALTER {whose} RESET {name}" if role or database else f"ALTER ROLE … SET {name} = 0 for the workers' role"
        )
        yield warning("timeouts", f"{name} is {values[name]:g} s ({where}): it {_TIMEOUTS[name][1]}", remedy)
    if not hurting:
        yield ok("timeouts", "none that would end our work")


def memory(examined: Examined) -> Iterator[Finding]:
    """Whether a vector index could be built in memory, and whether the server has been given any."""
    values = _settings(examined, "maintenance_work_mem", "shared_buffers")
    there = values["maintenance_work_mem"]
    rows = {one.name: one for one in progress.read(examined.connection)} if examined.vectorizers else {}
    largest = {name: share for name, _, share, _ in examined.rows("partitions")}
    wanted = {}
    for vectorizer in examined.vectorizers:
        one = rows[vectorizer.name]
        chunks = max(one.chunks, one.rows_total)
        # Partitions are built one after the other.
        wanted[vectorizer.name] = (largest.get(vectorizer.name, 1.0) * chunks) * (
            vectorizer.dimensions * (2 if vectorizer.store == "halfvec" else 4) + _GRAPH_BYTES
        )
    large = {name: need for name, need in wanted.items() if need > there}
    for name, need in large.items():
        yield note(
            "index memory",
            f"an HNSW index would take about {size(need)} to build; maintenance_work_mem is {size(there)}",
            f"SET maintenance_work_mem = '{-(-need // _MB)}MB' in the session that builds it, if there is as much",
            vectorizer=name,
        )
    if not large:
        yield ok("index memory", f"maintenance_work_mem is {size(there)}")
    buffers = values["shared_buffers"]
    if buffers < _SHARED_BUFFERS:
        yield note(
            "shared_buffers",
            f"{size(buffers)}; searches by an index that does not fit into it are slow",
            "a quarter of the machine's memory is usual",
        )
    else:
        yield ok("shared_buffers", size(buffers))


def locks(examined: Examined) -> Iterator[Finding]:
    """Whether every session could search in all partitions at once, each of which it locks with its indexes."""
    found = examined.rows("partitions")
    if not found:
        return
    room = _settings(examined, "max_locks_per_transaction")["max_locks_per_transaction"]
    many = {name: (count, locked) for name, count, _, locked in found if locked > room}
    for name, (count, locked) in many.items():
        yield note(
            "locks",
            f"a search in its {count} partitions locks {locked} tables and indexes; max_locks_per_transaction is "
            f"{room:.0f}, so with many at once the server may run out of locks",
            f"ALTER SYSTEM SET max_locks_per_transaction = {locked}, then restart the server",
            vectorizer=name,
        )
    if not many:
        yield ok("locks", f"max_locks_per_transaction is {room:.0f}")


def write_ahead_log(examined: Examined) -> Iterator[Finding]:
    """Settings of the write-ahead log that cost speed or safety."""
    values = _settings(examined, "max_wal_size", "checkpoint_timeout", "fsync", "full_page_writes")
    unsafe = [name for name in ("fsync", "full_page_writes") if not values[name]]
    if unsafe:
        yield warning(
            "wal",
            f"{' and '.join(unsafe)} off: a crash of the machine may destroy the database",
            f"ALTER SYSTEM SET {unsafe[0]} = on; SELECT pg_reload_conf()",
        )
    elif values["max_wal_size"] < _WAL or values["checkpoint_timeout"] < 300:
        yield note(
            "wal",
            f"max_wal_size is {size(values['max_wal_size'])}, checkpoint_timeout {values['checkpoint_timeout']:g} s: "
            "bulk writes cause frequent checkpoints",
            "raise max_wal_size to some GB for the backfill",
        )
    else:
        yield ok("wal", f"max_wal_size is {size(values['max_wal_size'])}")


def _settings(examined: Examined, *names: str) -> dict[str, float]:
    """Returns settings in bytes and seconds, switches as 1 and 0; those that this server has."""
    rows = examined.rows("settings", names=list(names))
    return {
        name: float(value) * _UNITS.get(unit or "", 1)
        if value.lstrip("-").replace(".", "", 1).isdigit()
        else float(value == "on")
        for name, value, unit in sorted(rows, key=lambda row: names.index(row[0]))
    }
