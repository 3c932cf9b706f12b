"""``scale``: what the queue and the database leave of many workers' speed.

The workers are real processes whose embedder sleeps as a device would, at a fixed rate, with vectors of 384 dimensions;
so the machine runs more of them than it could run models. The rate is 500 rows/s, or less where 32 such workers would
ask for more than half of what one worker without a sleep reaches (``load``), measured briefly before: beyond that the
disk and the processors of the one machine would be measured.

For each number of workers, one of them alone and all of them take turns, each turn as long as the other at its best.
The time counts from the first job's being claimable to the last checkpoint. Meanwhile a probe, which is a worker as
well, claims a job ten times a second and gives it back: what it waits for a claim is what any worker waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field

from pgvec_queue import queue
from pgvec_queue.bench import DEFAULT_ROUNDS, Say, load, part
from pgvec_queue.bench.database import Arena, Place, arena
from pgvec_queue.bench.fleet import Fleet, fleet
from pgvec_queue.bench.part import Part
from pgvec_queue.bench.processor import ServerClock
from pgvec_queue.bench.report import Figure, Report, percentile, ratios, report
from pgvec_queue.database import Connection, statement
from pgvec_queue.queue import Claimer

MOST_RATE = 500.0
_CROWD = 32
_SHARE = 0.5
_FULL_SPEED_ROWS = 50_000
_WARM_SECONDS = 2
_PROBE_SECONDS = 0.1
_JOB_SECONDS, _JOB_SHARE = 2.0, 0.04
"""Of the device's time: about a thousand rows, as many as a job has by default; less where a turn is short."""


@dataclass(frozen=True, slots=True)
class Options:
    """How many workers, and for how long."""

    workers: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    seconds: float = 50.0
    """Of each turn, at the device's rate: the beginning and the end of one cost about a second."""
    rounds: int = DEFAULT_ROUNDS
    rate: float | None = None
    """Rows per second of a device; None: as the module says."""
    full_speed_rows: int = _FULL_SPEED_ROWS
    """With which the rate is found."""


@dataclass(slots=True)
class _Found:
    """What was measured with one number of workers."""

    alone: list[float] = field(default_factory=list)
    """Rows per second."""
    together: list[float] = field(default_factory=list)
    p50: list[float] = field(default_factory=list)
    """Milliseconds of a claim; empty where a turn is too short for one."""
    p99: list[float] = field(default_factory=list)
    cores: list[float] = field(default_factory=list)
    """Processors that the database kept busy; empty where it cannot be seen."""


def run(place: Place, options: Options, say: Say) -> Report:
    """Measures in databases of its own."""
    figures: list[Figure] = []
    speed_ups: list[Figure] = []
    with arena(place) as own:
        rate, notes = _rate(own, options, say)
        for count in options.workers:
            with arena(place) as crowded:
                found = _measure(crowded, count, rate, options, say)
            figures += _figures(count, found)
            speed_up = ratios(f"speed_up_of_{count}", found.together, found.alone)
            speed_ups += [speed_up, Figure(f"efficiency_of_{count}", [one / count for one in speed_up.values])]
        return report(own, "scale", {**asdict(options), "rate": rate}, figures, speed_ups, notes)


def _rate(own: Arena, options: Options, say: Say) -> tuple[float, list[str]]:
    """Returns the rows per second of a simulated device, and why it is that."""
    if options.rate is not None:
        return options.rate, []
    say("finding out what one worker reaches at full speed")
    with fleet(own, [("--device", "cpu")]) as workers:
        load.warm(own, workers)
        full = load.worker_rate(own, workers, options.full_speed_rows, "full_speed")[1]
    rate = min(MOST_RATE, max(1.0, float(int(full * _SHARE / _CROWD))))
    why = f"one worker reaches {full:,.0f} rows/s at full speed"
    if rate == MOST_RATE:
        return rate, [f"{why}: each simulated device makes {rate:,.0f} rows/s"]
    return rate, [f"{why}: each simulated device makes {rate:,.0f} rows/s, so that {_CROWD} ask for half of that"]


def _measure(own: Arena, count: int, rate: float, options: Options, say: Say) -> _Found:
    """Measures one number of workers against one of them."""
    rows_per_job = max(1, round(min(_JOB_SECONDS, _JOB_SHARE * options.seconds) * rate))
    alone, together = (
        part.of_rows(own, name, 1, model=load.MODEL, no_chunking=True, rows_per_job=rows_per_job)
        for name in ("alone", "together")
    )
    # All but the first work on what all work on, and are idle while that one is measured.
    commands = [("--device", "cpu", "alone", "together")] + [("--device", "cpu", "together")] * (count - 1)
    found = _Found()
    say(f"starting {count} workers")
    with fleet(own, commands, environment={"PGVEC_HASHING_FAULTS": f"rate={rate}"}) as workers:
        _warm(together, workers, count, rate)
        for number in range(1, options.rounds + 1):
            say(f"round {number} of {options.rounds} with {count} workers")
            rows = max(1, round(rate * options.seconds))
            alone.refill(rows)
            found.alone.append(rows / alone.work(workers).seconds)
            together.refill(count * rows)
            with _probe(own, together, count) as milliseconds, ServerClock(own) as clock:
                found.together.append(count * rows / together.work(workers).seconds)
            if milliseconds:
                found.p50.append(percentile(milliseconds, 50))
                found.p99.append(percentile(milliseconds, 99))
            if clock.cores is not None:
                found.cores.append(clock.cores)
    return found


def _warm(together: Part, workers: Fleet, count: int, rate: float) -> None:
    """Works until every worker has loaded its embedder and has found out how fast it is."""
    while True:
        together.refill(max(1, round(_WARM_SECONDS * rate * count)))
        together.work(workers)
        if together.contributors() >= count:
            return


@contextmanager
def _probe(own: Arena, work: Part, count: int) -> Generator[list[float]]:
    """Claims now and then while inside; yields the milliseconds that each claim took, of those so far."""
    milliseconds: list[float] = []
    ended = threading.Event()
    with ExitStack() as stack:
        connection = stack.enter_context(own.database.connect("bench"))
        member = queue.register(connection, names=None, lease=3_600)
        stack.callback(queue.leave, connection, member)
        claimer = Claimer(member, [work.vectorizer.name])
        # The last jobs are left to those who would not ask again for seconds.
        spared = {"id": work.vectorizer.id, "least": count}

        def probe() -> None:
            while not ended.wait(_PROBE_SECONDS):
                row = connection.execute(statement("bench", "many_queued"), spared).fetchone()
                if row is not None and row[0]:
                    milliseconds.extend(_claim(claimer, connection))

        probing = stack.enter_context(ThreadPoolExecutor(1)).submit(probe)
        stack.callback(ended.set)
        yield milliseconds
        ended.set()
        probing.result()


def _claim(claimer: Claimer, connection: Connection) -> list[float]:
    """Claims a job and gives it back; returns the milliseconds of the claim, or nothing where there was no job."""
    started = time.perf_counter()
    job = claimer.claim(connection)
    taken = time.perf_counter() - started
    if job is None:
        return []
    queue.release(connection, claimer.member, job=job.id)
    return [taken * 1000]


def _figures(count: int, found: _Found) -> list[Figure]:
    figures = [
        Figure(f"rows_per_second_of_{count}", found.together),
        Figure(f"rows_per_second_of_1_beside_{count - 1}", found.alone),
    ]
    if found.p50:
        figures.append(Figure(f"claim_p50_ms_of_{count}", found.p50))
        figures.append(Figure(f"claim_p99_ms_of_{count}", found.p99))
    if found.cores:
        figures.append(Figure(f"database_cores_of_{count}", found.cores))
    return figures
