"""Jobs that do nothing through procrastinate, in one worker; runs in procrastinate's environment.

    python procrastinate_jobs.py DSN JOBS CONCURRENCY

The jobs are deferred first, and are not timed. Prints the seconds from the worker's start to its end: it ends when it
has caught up with the queue.
"""

from __future__ import annotations

import asyncio
import sys
import time

import procrastinate  # type: ignore[import-not-found]

_BATCH = 1_000


async def nothing() -> None:
    """A job without work."""


async def main(dsn: str, jobs: int, concurrency: int) -> None:
    # A connection for each running job, one to listen, one to fetch; four is the least that its pool takes by itself.
    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, max_size=max(4, concurrency + 2)))
    task = app.task(nothing, name="nothing")
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        for start in range(0, jobs, _BATCH):
            await task.batch_defer_async(*[{}] * min(_BATCH, jobs - start))
        began = time.perf_counter()
        await app.run_worker_async(wait=False, concurrency=concurrency, install_signal_handlers=False)
        print(time.perf_counter() - began)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
