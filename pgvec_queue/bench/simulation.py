"""``scale --simulated``: what hundreds of workers' coordination costs the database, and where it stops scaling.

Workers are those of ``simulated``: the worker's own reader, writer, heartbeat and statements over connections of their
own, and a clock for a device, a few processes for all of them. They go through a pgbouncer in transaction mode that the
bench starts; where there is none on this machine, directly. Rows are short and vectors small: what is measured is
coordination, not the write path (``load`` measures that).

For each number of workers, first the fleet has nothing to do (``idle``), then more than it can do (``busy``), each for
a few windows of time. A slice is about a second of a device's work (8 rows at least) and a job two, so that 1,000
workers ask for 500 claims and 1,000 writes a second; at a rate below 8, and with more rows to a job, they ask for less.
While they are busy, somebody sends a NOTIFY each second; with ``listen``, workers hear it on direct connections, and a
third kind of window (``told``) shows what it makes an idle fleet do.
"""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field

from psycopg import sql

from pgvec_queue import definition, process, vectorizer
from pgvec_queue.bench import Say, knee, part
from pgvec_queue.bench.crowd import Crowd, Window, crowd
from pgvec_queue.bench.database import Arena, Place, arena
from pgvec_queue.bench.knee import Step
from pgvec_queue.bench.part import Part
from pgvec_queue.bench.pooler import Pooler, pooling, program
from pgvec_queue.bench.report import Figure, Report, percentile, report
from pgvec_queue.bench.simulated import DIMENSIONS, Settings
from pgvec_queue.database import statement
from pgvec_queue.errors import PgvecError
from pgvec_queue.worker.options import DEFAULT_LEASE

WORKERS = (1, 10, 30, 100, 300, 1_000)
_TABLE = "crowd"
_JOB_SECONDS = 2.0
_WARM_SECONDS = 10.0
"""Of a device's work: the first slice is larger than the others, since nobody knows the device's rate yet."""
_SPARE = 1.3
_SPARE_JOBS, _SPARE_SLICES, _LEAST_SLICE = 6, 8, 8
"""Per worker, beside what it does: what it reads ahead, and so many jobs that none begins to hold less, or to steal."""
_CONNECTIONS = 3
_OTHERS = 10
_FILES_PER_WORKER = 12
_CALM_SECONDS = 600.0
_MOST = 0.9
"""Of a fleet at work that has a job in any moment."""


@dataclass(frozen=True, slots=True)
class Options:
    """How many workers, how fast, and for how long."""

    workers: Sequence[int] = WORKERS
    seconds: float = 20.0
    """Of each window."""
    rounds: int = 3
    rate: float = 8.0
    """Rows per second of a device."""
    rows_per_job: int | None = None
    """None: two seconds of a device's work."""
    processes: int = 4
    pool_size: int = 40
    """Connections of pgbouncer to the server."""
    pooled: bool = True
    listen: bool = False
    """Heartbeats listen on direct connections, one per worker."""
    lease: float = DEFAULT_LEASE


@dataclass(slots=True)
class _Found:
    """The windows of one size."""

    workers: int
    idle: list[Window] = field(default_factory=list)
    told: list[Window] = field(default_factory=list)
    began: list[float] = field(default_factory=list)
    """Seconds from the first job's being claimable until nearly all have one."""
    busy: list[Window] = field(default_factory=list)


def run(place: Place, options: Options, say: Say) -> Report:
    """Measures in databases of its own. Raises ``PgvecError`` where the server has not connections enough."""
    figures: list[Figure] = []
    steps: list[Step] = []
    notes: list[str] = []
    pooled = options.pooled and program() is not None
    if options.pooled and not pooled:
        notes.append("there is no pgbouncer on this machine: workers connected directly")
    with arena(place) as own:
        _check(own, options, pooled=pooled)
        for count in options.workers:
            with arena(place) as crowded, _files(count):
                found = _measure(crowded, count, options, pooled=pooled, say=say)
            figures += _figures(found, options)
            steps.append(_step(found, options))
        at = knee.find(steps, process.cores())
        sizes = ", ".join(f"{count:,}" for count in options.workers)
        notes.append(at.text if at else f"no knee up to {max(options.workers):,} workers ({sizes} were tried)")
        notes += _notes(steps)
        parameters = {**asdict(options), "simulated": True, "pooled": pooled}
        return report(own, "scale", parameters, figures, [], notes)


def _check(own: Arena, options: Options, *, pooled: bool) -> None:
    row = own.connection.execute(statement("bench", "max_connections")).fetchone()
    assert row is not None
    most = max(options.workers)
    needed = (
        _OTHERS + (options.pool_size if pooled else _CONNECTIONS * most) + (most if pooled and options.listen else 0)
    )
    if needed <= row[0]:
        return
    if options.listen:
        advice = "leave --listen out, or raise max_connections"
    elif pooled:
        advice = "give a smaller --pool-size, or raise max_connections"
    else:
        way = "install pgbouncer" if options.pooled else "leave --no-pooler out"
        advice = f"{way}, measure fewer --workers, or raise max_connections"
    raise PgvecError(f"{most:,} simulated workers need {needed:,} connections, and the server has {row[0]:,}: {advice}")


@contextmanager
def _files(count: int) -> Generator[None]:
    """Lets this process, and those that it starts, have as many sockets as the fleet needs."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(before[0], 1_024 + _FILES_PER_WORKER * count)
    if before[1] != resource.RLIM_INFINITY:
        wanted = min(wanted, before[1])
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def _measure(own: Arena, count: int, options: Options, *, pooled: bool, say: Say) -> _Found:
    seconds = options.rounds * options.seconds
    rows_per_job = options.rows_per_job or max(1, round(options.rate * _JOB_SECONDS))
    ahead = _SPARE_SLICES * max(_LEAST_SLICE, options.rate) + _SPARE_JOBS * rows_per_job
    rows = round(count * (options.rate * (seconds + _WARM_SECONDS) * _SPARE + ahead))
    say(f"making {rows:,} rows for {count:,} workers")
    work = _part(own, rows, rows_per_job)
    found = _Found(count)
    with ExitStack() as stack:
        pooler: Pooler | None = None
        dsn = own.dsn
        if pooled:
            clients = (_CONNECTIONS + 1) * count + _OTHERS
            pooler = stack.enter_context(pooling(own.connection, pool_size=options.pool_size, clients=clients))
            dsn = pooler.dsn(own.connection.info.dbname)
        direct = own.dsn if options.listen else None
        say(f"starting {count:,} simulated workers")
        settings = Settings(dsn, direct, (work.vectorizer.name,), count, options.rate, options.lease)
        fleet = stack.enter_context(crowd(own, settings, options.processes, pooler))
        fleet.wait("settling down", _CALM_SECONDS, lambda: _count(own, "idle_workers") >= count)
        _rounds(found.idle, options, say, f"{count:,} idle workers", lambda: fleet.watch(options.seconds, notify=False))
        if options.listen:
            what = f"{count:,} idle workers that are told each second"
            _rounds(found.told, options, say, what, lambda: fleet.watch(options.seconds, notify=True))
        opened = _open(own, work)
        fleet.wait("starting to work", _CALM_SECONDS, lambda: _count(own, "busy_workers") >= _MOST * count)
        found.began.append(time.monotonic() - opened)
        fleet.watch(min(_WARM_SECONDS, options.seconds), notify=False)
        _rounds(found.busy, options, say, f"{count:,} busy workers", lambda: _busy(own, work, fleet, options))
    return found


def _rounds(into: list[Window], options: Options, say: Say, what: str, watch: Callable[[], Window]) -> None:
    for number in range(1, options.rounds + 1):
        say(f"{what}, {options.seconds:.0f} s, {number} of {options.rounds}")
        into.append(watch())


def _busy(own: Arena, work: Part, fleet: Crowd, options: Options) -> Window:
    window = fleet.watch(options.seconds, notify=True)
    row = own.connection.execute(statement("bench", "many_queued"), {"id": work.vectorizer.id, "least": 0}).fetchone()
    if row is None or not row[0]:
        raise PgvecError("the simulated workers ran out of work, so nothing was measured: take a longer --seconds")
    return window


def _part(own: Arena, rows: int, rows_per_job: int) -> Part:
    table = sql.Identifier(_TABLE)
    own.connection.execute(statement("bench", "create_documents").format(table=table))
    own.connection.execute(statement("bench", "make_short_documents").format(table=table), {"first": 1, "rows": rows})
    options = definition.Options(
        source=_TABLE, text=("body",), model=f"hashing-{DIMENSIONS}", no_chunking=True, rows_per_job=rows_per_job
    )
    made = part.of_table(own, _TABLE, options)
    made.plan()
    return made


def _open(own: Arena, work: Part) -> float:
    """Makes its jobs claimable; returns when, by this process's clock."""
    with own.connection.transaction():
        own.connection.execute(statement("bench", "renumber"), {"id": work.vectorizer.id})
    vectorizer.steer(own.connection, work.vectorizer.name, "resume")
    return time.monotonic()


def _count(own: Arena, what: str) -> int:
    row = own.connection.execute(statement("bench", what)).fetchone()
    return int(row[0]) if row else 0


def _figures(found: _Found, options: Options) -> list[Figure]:
    count, busy = found.workers, found.busy
    ideal = count * options.rate
    figures: dict[str, list[float]] = {
        "share_of_ideal": [one.per_second(one.recorded.rows) / ideal for one in busy],
        "seconds_until_all_work": found.began,
        "claims_per_second": [one.per_second(len(one.recorded.claims)) for one in busy],
        "claim_p50_ms": _percentiles(busy, "claims", 50),
        "claim_p99_ms": _percentiles(busy, "claims", 99),
        "writes_per_second": [one.per_second(len(one.recorded.writes)) for one in busy],
        "write_p99_ms": _percentiles(busy, "writes", 99),
        "heartbeats_per_second": [one.per_second(len(one.recorded.beats)) for one in busy],
        "heartbeat_p99_ms": _percentiles(busy, "beats", 99),
        "heartbeats_late_share": [_late_share(one) for one in busy],
        "notify_p99_ms": [percentile(one.notifies, 99) for one in busy if one.notifies],
        "transactions_per_second": [one.per_second(one.transactions) for one in busy],
        "idle_transactions_per_second": [one.per_second(one.transactions) for one in found.idle],
        "told_transactions_per_second": [one.per_second(one.transactions) for one in found.told],
        "told_claims_per_second": [one.per_second(len(one.recorded.looks)) for one in found.told],
        "database_cores": _seen([one.server_cores for one in busy]),
        "idle_database_cores": _seen([one.server_cores for one in found.idle]),
        "told_database_cores": _seen([one.server_cores for one in found.told]),
        "database_percent_per_worker": [100 * one / count for one in _seen([one.server_cores for one in busy])],
        "idle_database_percent_per_worker": [
            100 * one / count for one in _seen([one.server_cores for one in found.idle])
        ],
        "database_ms_per_slice": [
            1000 * (one.server_cores or 0.0) * one.seconds / len(one.recorded.writes)
            for one in busy
            if one.server_cores is not None and one.recorded.writes
        ],
        "pgbouncer_cores": _seen([one.pooler_cores for one in busy]),
        "simulator_cores": [one.simulator_cores for one in busy],
        "simulator_late_p99_ms": _percentiles(busy, "lags", 99),
        "client_connections": [float(one.clients) for one in busy],
        "server_connections": [float(one.servers) for one in busy],
    }
    return [Figure(f"{name}_of_{count}", values) for name, values in figures.items() if values]


def _step(found: _Found, options: Options) -> Step:
    busy = found.busy
    ideal = found.workers * options.rate
    waits = max(busy, key=lambda one: sum(one.waits.values()), default=Window()).waits

    def median(values: Sequence[float]) -> float:
        return statistics.median(values) if values else 0.0

    def seen(values: Sequence[float | None]) -> float | None:
        known = _seen(values)
        return statistics.median(known) if known else None

    return Step(
        found.workers,
        median([one.per_second(one.recorded.rows) / ideal for one in busy]),
        median(_percentiles(busy, "claims", 99)),
        median([_late_share(one) for one in busy]),
        sum(one.recorded.lost for one in (*found.idle, *found.told, *busy)),
        seen([one.server_cores for one in busy]),
        seen([one.pooler_cores for one in busy]),
        median([one.simulator_cores for one in busy]),
        median([one.busiest_core for one in busy]),
        median(_percentiles(busy, "lags", 99)),
        round(median([one.waiting for one in busy])),
        waits,
    )


def _notes(steps: Sequence[Step]) -> list[str]:
    notes = []
    for step in steps:
        waits = ", ".join(f"{name} {count:.1f}" for name, count in list(step.waits.items())[:4])
        if waits:
            notes.append(f"{step.workers:,} workers: sessions at work at each moment, and what they wait for: {waits}")
    carried = knee.workers_per_core(steps)
    if carried is not None:
        number, fleet = carried
        notes.append(f"one core of a server carries {number:,.0f} such workers, by the figures of {fleet.workers:,}")
    return notes


def _percentiles(windows: Sequence[Window], what: str, percent: float) -> list[float]:
    return [percentile(getattr(one.recorded, what), percent) for one in windows if getattr(one.recorded, what)]


def _late_share(window: Window) -> float:
    late = window.recorded.late
    return sum(one > knee.LATE_SECONDS for one in late) / len(late) if late else 0.0


def _seen(values: Sequence[float | None]) -> list[float]:
    return [value for value in values if value is not None]
