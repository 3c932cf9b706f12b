"""How long the end of a set of jobs takes when one worker is much slower than the others.

    python -m benchmarks.tail [--fast 3] [--rate 300] [--slower 20] [--seconds 200] [--rounds 3]

Workers are real processes whose embedder sleeps as a device would. From the moment at which 5 % of the rows are left,
the ideal is what remains divided by the sum of the rates; printed is how many times that it took. The bar is 1.1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

from benchmarks import common
from pgvec_queue.bench import part
from pgvec_queue.bench.database import Arena, Place, arena
from pgvec_queue.bench.fleet import fleet
from pgvec_queue.bench.part import Part
from pgvec_queue.database import Connection, statement

BAR = 1.1
_LAST = 0.05
_LOOK = 0.02
_START_SECONDS = 60.0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--fast", type=int, default=3, help="workers at full rate")
    options.add_argument("--rate", type=float, default=300.0, help="rows per second of a fast one")
    options.add_argument("--slower", type=float, default=20.0, help="times that the slow one is slower")
    options.add_argument("--seconds", type=float, default=200.0, help="about how long a round takes")
    options.add_argument("--rounds", type=int, default=3)
    chosen = options.parse_args()
    rates = [chosen.rate] * chosen.fast + [chosen.rate / chosen.slower]
    print(f"rates {', '.join(f'{rate:.0f}' for rate in rates)} rows/s, {sum(rates):.0f} together")
    with ExitStack() as stack:
        server = stack.enter_context(common.cluster())
        own = stack.enter_context(arena(Place(server.dsn, server.uri(user="postgres", database="postgres"))))
        work = part.of_rows(own, "tail", 1, model="hashing-384", no_chunking=True)
        fleets = [
            stack.enter_context(fleet(own, [("--device", "cpu")], environment={"PGVEC_HASHING_FAULTS": f"rate={rate}"}))
            for rate in rates
        ]
        fleets[0].wait("starting the workers", _START_SECONDS, lambda: len(fleets[0].rows()) == len(rates))
        times = []
        for number in range(1, chosen.rounds + 1):
            work.refill(round(sum(rates) * chosen.seconds))
            with _watching(own, work, round(sum(rates) * chosen.seconds)) as seen:
                work.work(fleets[0])
            left, seconds = seen
            times.append(seconds * sum(rates) / left)
            print(f"round {number}: the last {left:.0f} rows in {seconds:.2f} s, {times[-1]:.3f} times the ideal")
    median = statistics.median(times)
    print(f"median {median:.3f} times the ideal; bar {BAR}: {'kept' if median <= BAR else 'missed'}")
    return 0 if median <= BAR else 1


@contextmanager
def _watching(own: Arena, work: Part, rows: int) -> Generator[list[float]]:
    """Looks on from outside; afterwards the list holds the rows that were left when the end began, and its seconds."""
    seen: list[float] = []
    ended = threading.Event()
    with own.database.connect("bench") as connection, ThreadPoolExecutor(1) as pool:
        before = _done(connection, work)

        def watch() -> None:
            began = None
            while not ended.wait(_LOOK):
                done, now = _done(connection, work) - before, time.monotonic()
                if began is None and done >= (1 - _LAST) * rows:
                    began = now
                    seen.append(rows - done)
                if began is not None and done >= rows:
                    seen.append(now - began)
                    return

        watching = pool.submit(watch)
        try:
            yield seen
            watching.result(10)
        finally:
            ended.set()


def _done(connection: Connection, work: Part) -> int:
    row = connection.execute(statement("bench", "counted"), {"id": work.vectorizer.id}).fetchone()
    return int(row[0]) if row else 0


if __name__ == "__main__":
    sys.exit(main())
