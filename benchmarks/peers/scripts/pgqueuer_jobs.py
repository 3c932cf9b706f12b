"""Jobs that do nothing through PgQueuer, in one process; runs in PgQueuer's environment.

    python pgqueuer_jobs.py DSN JOBS

As its own ``tools/benchmark.py --strategy drain`` does it: five consumers with a connection each, batches of ten,
asyncpg and uvloop. The jobs are queued first, and are not timed. Prints the seconds until the queue is empty.
"""

from __future__ import annotations

import asyncio
import sys
import time

import asyncpg  # type: ignore[import-not-found]
import uvloop  # type: ignore[import-not-found]
from pgqueuer import AsyncpgDriver, PgQueuer, Queries  # type: ignore[import-not-found]
from pgqueuer.types import QueueExecutionMode  # type: ignore[import-not-found]

_CONSUMERS = 5
_BATCH = 10


async def nothing(job: object) -> None:
    """A job without work."""


async def _consume(dsn: str) -> None:
    consumer = PgQueuer(AsyncpgDriver(await asyncpg.connect(dsn)))
    consumer.entrypoint("nothing")(nothing)
    await consumer.run(batch_size=_BATCH, mode=QueueExecutionMode.drain)


async def main(dsn: str, jobs: int) -> None:
    queries = Queries(AsyncpgDriver(await asyncpg.connect(dsn)))
    await queries.install()
    await queries.enqueue(["nothing"] * jobs, [None] * jobs, [0] * jobs)
    began = time.perf_counter()
    await asyncio.gather(*[_consume(dsn) for _ in range(_CONSUMERS)])
    print(time.perf_counter() - began)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2])))
