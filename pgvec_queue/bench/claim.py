"""``claim``: what claiming and finishing a job costs, and that it costs the same whatever the queue holds.

Three databases at once, in turns: an empty queue that gets a job just before each claim, one with many jobs queued, and
one with as many queued and as many done beside. The real ``Claimer`` and the real statements are timed, each with its
transaction and its commit; no source is read and no vector written. The jobs that are only there went through the same
three updates as real ones, some at a time, and left as many row versions and index entries.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass

import psycopg

from pgvec_queue import definition, queue
from pgvec_queue.bench import DEFAULT_ROUNDS, Say
from pgvec_queue.bench.database import Arena, Place, arena
from pgvec_queue.bench.report import Figure, Report, percentile, ratios, report
from pgvec_queue.database import Connection, Versions, statement, transaction
from pgvec_queue.queue import Claimer, Job

_SET = 50
_COUNTERS = (
    *("rows_right", "rows_embedded", "rows_adjusted", "rows_wasted", "chunks_written", "chunks_deleted"),
    *("chunks_reused", "tokens", "truncated", "jobs_added", "jobs_done", "bytes_written"),
    *("rows_unchanged", "chunks_kept", "chunks_cached"),
)


@dataclass(frozen=True, slots=True)
class Options:
    """How full the queues are, and how often is measured."""

    jobs: int = 1_000_000
    """Queued, and done beside."""
    samples: int = 200
    """Claims per round and queue."""
    rounds: int = DEFAULT_ROUNDS


@dataclass(slots=True)
class _Queue:
    """One queue under measurement."""

    name: str
    vectorizer: int
    connection: Connection
    claimer: Claimer
    fills: bool
    """It is empty, and gets each job just before its claim."""

    def milliseconds(self, samples: int) -> list[float]:
        """Claims and finishes so many jobs; returns what each took."""
        return [self._once() for _ in range(samples)]

    def _once(self) -> float:
        if self.fills:
            insert_jobs(self.connection, self.vectorizer, 1)
        started = time.perf_counter()
        job = self.claimer.claim(self.connection)
        assert job is not None
        complete(self.connection, self.claimer, job)
        return (time.perf_counter() - started) * 1000


def run(place: Place, options: Options, say: Say) -> Report:
    """Measures in databases of its own."""
    with ExitStack() as stack:
        arenas = [stack.enter_context(arena(place)) for _ in range(3)]
        # As many stay queued as are promised, however many are claimed.
        queued = options.jobs + options.samples * (1 + options.rounds)
        queues = [
            stack.enter_context(one)
            for one in (
                _queue(arenas[0], "empty", 0, 0, say),
                _queue(arenas[1], "queued", queued, 0, say),
                _queue(arenas[2], "done", queued, options.jobs, say),
            )
        ]
        for one in queues:
            one.milliseconds(options.samples)
        medians: dict[str, list[float]] = {one.name: [] for one in queues}
        slow: dict[str, list[float]] = {one.name: [] for one in queues}
        for number in range(1, options.rounds + 1):
            say(f"round {number} of {options.rounds}: {options.samples} claims of each")
            for one in queues:
                times = one.milliseconds(options.samples)
                medians[one.name].append(statistics.median(times))
                slow[one.name].append(percentile(times, 95))
        return report(
            arenas[0],
            "claim",
            asdict(options),
            [
                figure
                for one in queues
                for figure in (
                    Figure(f"{one.name}_ms", medians[one.name]),
                    Figure(f"{one.name}_p95_ms", slow[one.name]),
                )
            ],
            [ratios(f"{one.name}_to_empty", medians[one.name], medians["empty"]) for one in queues[1:]],
        )


@contextmanager
def _queue(own: Arena, name: str, queued: int, done: int, say: Say) -> Generator[_Queue]:
    """Fills a queue and opens it to a worker that has just started."""
    vectorizer = define(own.connection, own.versions, "documents")
    if done:
        say(f"working {done:,} jobs off")
        insert_jobs(own.connection, vectorizer, done)
        pump_in_sets(own.dsn, done)
    if queued:
        say(f"queueing {queued:,} jobs")
        insert_jobs(own.connection, vectorizer, queued)
    own.connection.execute("VACUUM (ANALYZE) pgvec.jobs")
    with own.database.connect("bench") as connection:
        member = queue.register(connection, names=None, lease=3600)
        yield _Queue(name, vectorizer, connection, Claimer(member, None), fills=not queued)


def define(connection: Connection, versions: Versions, name: str) -> int:
    """Makes an empty table and a vectorizer over it, whose jobs nobody reads; returns its id."""
    connection.execute(f"CREATE TABLE {name} (id bigint PRIMARY KEY, body text)".encode())
    options = definition.Options(source=name, text=("body",), model="hashing-8", no_chunking=True)
    return definition.define(connection, options, versions).vectorizer.id


def insert_jobs(connection: Connection, vectorizer: int, jobs: int) -> None:
    """Queues ranges without rows."""
    connection.execute(statement("bench", "insert_jobs"), {"vectorizer": vectorizer, "jobs": jobs})


def pump_in_sets(dsn: str, jobs: int) -> int:
    """Makes the three updates of a job's life for many jobs at a time; returns for how many."""
    done = last = 0
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET synchronous_commit TO off")
        while done < jobs:
            chosen = {"after": last, "jobs": min(_SET, jobs - done)}
            ids = [id_ for (id_,) in connection.execute(statement("bench", "claim_set"), chosen)]
            last = max(ids)
            connection.execute(statement("bench", "checkpoint_set"), {"ids": ids})
            connection.execute(statement("bench", "finish_set"), {"ids": ids})
            done += len(ids)
    return done


def move(connection: Connection, claimer: Claimer, job: Job) -> None:
    """Writes a checkpoint of a claimed job, as after a slice."""
    with transaction(connection):
        _fence(connection, claimer, job, None)
        connection.execute(
            statement("writing", "checkpoint"),
            {"id": job.id, "checkpoint": ["1"], "read_to": ["1"], "rows_seen": 500, "alone": False},
        )


def complete(connection: Connection, claimer: Claimer, job: Job, checkpoint: list[str] | None = None) -> None:
    """Ends a claimed job as the write of its last slice does: fence, end, counters."""
    with transaction(connection):
        _fence(connection, claimer, job, checkpoint)
        connection.execute(
            statement("writing", "finish_list" if job.kind == "keys" else "finish"),
            {"id": job.id, "checkpoint": job.upper_key, "rows_seen": 1000},
        )
        counts = dict.fromkeys(_COUNTERS, 0)
        connection.execute(
            statement("writing", "count"),
            {**counts, "vectorizer": job.vectorizer_id, "worker": claimer.member.worker, "jobs_done": 1},
        )


def _fence(connection: Connection, claimer: Claimer, job: Job, checkpoint: list[str] | None) -> None:
    held = connection.execute(
        statement("writing", "fence"),
        {
            "id": job.id,
            "worker": claimer.member.worker,
            "world": claimer.member.world,
            "epoch": job.epoch,
            "checkpoint": checkpoint,
            "upper_key": job.upper_key,
        },
    ).fetchone()
    assert held is not None, job
