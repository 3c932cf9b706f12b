"""Jobs that do nothing: Python's job queues on PostgreSQL, and our claim + finish.

Every queue is filled first, and a single process works it off. A job of ours stands for a thousand source rows; here
there are none: claiming it and writing its empty slice is all, which is what the queue itself costs.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import LiteralString

import psycopg

from benchmarks.peers import databases
from benchmarks.peers.environments import Environment, UnavailableError, last_line
from pgvec_queue import definition, queue, schema, writing
from pgvec_queue.database import Connection, Database, versions
from pgvec_queue.embedded import Server
from pgvec_queue.fragments import Fragments
from pgvec_queue.queue import Claimer
from pgvec_queue.slices import Slice

PGQUEUER_LEFT = "SELECT count(*) FROM pgqueuer"
PROCRASTINATE_LEFT = "SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'"
_SCRIPTS = Path(__file__).parent / "scripts"
_SECONDS = 1_200


@dataclass(frozen=True, slots=True)
class JobQueue:
    """A peer's program that works off a number of jobs, and how to see that none is left."""

    cluster: Server
    environment: Environment
    script: str
    left: LiteralString

    def work(self, jobs: int, *options: str) -> dict[str, float]:
        """Works off so many jobs in one process; returns jobs per second."""
        with databases.fresh(self.cluster) as dsn:
            seconds = self._run([dsn, str(jobs), *options])
            with psycopg.connect(dsn) as connection:
                if connection.execute(self.left).fetchone() != (0,):
                    raise UnavailableError("it left jobs undone")
            return {"jobs/s": jobs / seconds}

    def _run(self, arguments: Sequence[str]) -> float:
        command = [self.environment.python, str(_SCRIPTS / self.script), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
        if done.returncode:
            raise UnavailableError(f"its worker failed: {last_line(done.stderr)}")
        return float(done.stdout)


def claim_and_finish(cluster: Server, jobs: int) -> dict[str, float]:
    """Claims and finishes so many of our jobs, one after the other on one connection; returns jobs per second."""
    with databases.fresh(cluster) as dsn:
        schema.initialize(Database(dsn))
        with Database(dsn).connect("bench") as connection:
            fragments = _define(connection)
            _insert(connection, fragments, jobs)
            began = time.perf_counter()
            done = _work_off(connection, fragments)
            seconds = time.perf_counter() - began
    assert done == jobs, f"{done} of {jobs} jobs"
    return {"jobs/s": jobs / seconds}


def _define(connection: Connection) -> Fragments:
    connection.execute("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    found = versions(connection)
    options = definition.Options(source="docs", text=("body",), model="hashing-8", no_chunking=True)
    return Fragments(definition.define(connection, options, found).vectorizer, found.vector_schema)


def _insert(connection: Connection, fragments: Fragments, jobs: int) -> None:
    connection.execute(
        "INSERT INTO pgvec.jobs (vectorizer_id, kind, lower_key, upper_key, rows)"
        " SELECT %s, 'range', ARRAY[(i * 1000)::text], ARRAY[((i + 1) * 1000)::text], 0 FROM generate_series(1, %s) i",
        [fragments.vectorizer.id, jobs],
    )


def _work_off(connection: Connection, fragments: Fragments) -> int:
    member = queue.register(connection, names=None, lease=3_600)
    claimer = Claimer(member, None)
    done = 0
    while (job := claimer.claim(connection)) is not None:
        nothing = Slice(job, checkpoint=job.upper_key, last=True, documents=[], horizon="0")
        writing.write(connection, fragments, nothing, [], member)
        done += 1
    queue.leave(connection, member)
    return done
