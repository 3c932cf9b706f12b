"""Many writers at once: for a minute they change every source as fast as they may, while workers follow and are killed
now and then. At the end the destination is the source, and nothing was embedded that did not change.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from tests.chaos.bench import Bench
from tests.chaos.checker import check
from tests.chaos.driver import Draw, Driver
from tests.chaos.history import History, record, recorded
from tests.chaos.summary import KILL_BAR, Recoveries, Summary
from tests.chaos.tables import TABLES
from tests.chaos.users import OPERATIONS, Users

LEASE = 3.0
WORKERS = 3
WRITERS = 8
DELAY = 0.002
"""Seconds per embedded text."""
SECONDS_PER_KILL = 6.0
PER_SECOND = 5.0
"""Operations of each writer."""
WASTE_BAR = 0.02
_ROWS = 3_000
_TABLES = tuple(replace(table, rows=_ROWS, truncated=table.name in ("cards", "tags")) for table in TABLES)
# They change rows at random. Who aims at what a worker has in hand belongs to the faults.
_OPERATIONS = {name: operation for name, operation in OPERATIONS.items() if name != "aim"}


def writers(
    *, seed: int, seconds: float, kills: bool, filling: bool, share: float = 1.0, per_second: float = PER_SECOND
) -> Summary:
    """Lets the writers write for so long. They begin when the tables that are there at first have been embedded, or
    with ``filling`` at once. ``share`` is that of the usual rows, ``per_second`` counts a writer's operations.
    """
    with Bench(seed=seed, lease=LEASE, delay=DELAY, tables=_TABLES, sync=True) as bench:
        bench.fill(share=share)
        bench.enqueue()
        if not filling:
            failed = bench.drain_supervised(1).failure
            if failed is not None:
                raise RuntimeError(failed)
        record(bench.server, bench.tables)
        bench.start_workers(WORKERS)
        users = Users(
            bench.server,
            seed,
            count=WRITERS,
            per_second=per_second,
            poison=0.0,
            tables=bench.tables,
            operations=_OPERATIONS,
        )
        bench.callback(users.close)
        driver = Driver(bench.fleet, bench.server, bench.observer, users, seed)
        while not filling and len(bench.observer.judges()) < WORKERS:
            driver.tend()
            time.sleep(0.05)
        began = time.monotonic()
        users.start()
        driver.run(_kills(seed, seconds) if kills else [], seconds)
        users.stop()
        stopped = time.monotonic()
        print("emptying the queue, then checking", file=sys.stderr, flush=True)
        failures = [f"{e.worker} ended with {e.code} ({e.why}) by itself: {e.tail}" for e in driver.ended]
        failures += [f"{name} was blocked: {reason}" for name, reason in bench.observer.blocked.items()]
        failed = bench.drain()
        emptied = time.monotonic() - stopped
        if failed is not None:
            failures.append(failed)
        effort = Effort.of(recorded(bench.server), bench.counters())
        return Summary(
            "writers",
            seed,
            (stopped - began) / 60,
            bench.sync,
            LEASE,
            WORKERS,
            dict(sorted(driver.faults.items())),
            dict(users.done.most_common()),
            users.changes,
            bench.counters(),
            check(bench.server),
            [Recoveries.of("recovery of a killed worker's jobs", LEASE + KILL_BAR, bench.observer.kills)],
            driver.poisoned,
            [*failures, *effort.failures(kills=kills, filling=filling)],
            [*effort.lines(), f"the queue was empty {emptied:.1f} s after the last change"],
            {**effort.as_dict(), "seconds until empty": round(emptied, 2)},
        )


@dataclass(frozen=True)
class Effort:
    """What was embedded for what has changed."""

    history: History
    counted: int
    """Documents embedded, as the program counts them."""
    thrown_away: int

    @classmethod
    def of(cls, history: History, counters: Mapping[str, int]) -> Effort:
        return cls(history, counters["rows_embedded"], counters["rows_wasted"])

    @property
    def embedded(self) -> int:
        """For changes: without the documents that were there at first."""
        return self.history.embedded - self.history.initial

    @property
    def share_thrown_away(self) -> float:
        """Of what was embedded for changes."""
        return self.thrown_away / max(1, self.embedded + self.thrown_away)

    @property
    def share_twice(self) -> float:
        """Of what was embedded for changes: with the text that the row had a vector of."""
        return self.history.twice / max(1, self.embedded + self.thrown_away)

    def failures(self, *, kills: bool, filling: bool) -> list[str]:
        found: list[str] = []
        if not filling:
            # Beside the first filling, a new row may be met by a range and by its own list at once.
            found += [f"embedded though it did not change: {line}" for line in self.history.needless[:20]]
        if not filling and not kills and self.share_thrown_away > WASTE_BAR:
            found.append(f"{self.share_thrown_away:.1%} of what was embedded was thrown away (bar {WASTE_BAR:.0%})")
        if self.counted != self.history.embedded:
            found.append(
                f"{self.counted} documents are counted as embedded, the destinations saw {self.history.embedded}"
            )
        return found

    def lines(self) -> list[str]:
        history = self.history
        return [
            f"documents: {history.initial} at first, {history.changed} changed (inserted, text, key, shown again); "
            f"embedded for it {self.embedded}; {len(history.needless)} rows more often than they changed",
            f"embedded and thrown away: {self.thrown_away}, {self.share_thrown_away:.2%} (bar without kills "
            f"{WASTE_BAR:.0%}); embedded again with the text that they had: {history.twice}, {self.share_twice:.2%}",
        ]

    def as_dict(self) -> dict[str, Any]:
        return {
            "documents at first": self.history.initial,
            "documents changed": self.history.changed,
            "documents embedded for it": self.embedded,
            "rows embedded more often than changed": self.history.needless,
            "documents thrown away": self.thrown_away,
            "share thrown away": round(self.share_thrown_away, 5),
            "embedded again with the same text": self.history.twice,
        }


def _kills(seed: int, seconds: float) -> list[Draw]:
    """A kill every few seconds, the first one when the workers have come up."""
    random = Random(f"{seed}/kills")
    drawn: list[Draw] = []
    at = random.uniform(1.0, SECONDS_PER_KILL)
    while at < seconds:
        drawn.append(Draw(at, "kill", random.getrandbits(32)))
        at += random.uniform(0.5, 1.5) * SECONDS_PER_KILL
    return drawn
