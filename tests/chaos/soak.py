"""The soak: users, workers and every fault at once, for as long as asked; then calm, an empty queue, and the check."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.bench import Bench
from tests.chaos.checker import check
from tests.chaos.driver import Driver, draw
from tests.chaos.summary import KILL_BAR, RESTART_BAR, Recoveries, Summary
from tests.chaos.users import Users

LEASE = 3.0
WORKERS = 5
USERS = 6
OPERATIONS_PER_SECOND = 3.0
"""Of each user."""
DELAY = 0.025
"""Seconds per embedded text."""
POISON = 0.002
"""Share of new texts that are poisonous."""


def soak(*, seed: int, minutes: float, killers: int, sync: bool | None, logs: Path | None) -> Summary:
    """Runs one soak; ``killers`` rows kill the process that embeds them, ``logs`` is where what all said is kept."""
    seconds = minutes * 60
    with Bench(seed=seed, lease=LEASE, delay=DELAY, sync=sync) as bench:
        if logs is not None:
            bench.keep_logs(logs)
        bench.fill(poison=POISON, killers=killers)
        bench.enqueue()
        bench.start_workers(WORKERS)
        users = Users(bench.server, seed, count=USERS, per_second=OPERATIONS_PER_SECOND, poison=POISON)
        bench.callback(users.close)
        users.start()
        driver = Driver(bench.fleet, bench.server, bench.observer, users, seed)
        with _enqueueing(bench):
            began = time.monotonic()
            driver.run(draw(seed, seconds), seconds)
            driver.calm()
        users.stop()
        took = time.monotonic() - began
        _tell(f"{took / 60:.1f} minutes are over; emptying the queue")
        failures = [f"{e.worker} ended with {e.code} ({e.why}) by itself: {e.tail}" for e in driver.ended]
        failures += [f"{name} was blocked: {reason}" for name, reason in bench.observer.blocked.items()]
        failed = bench.drain()
        if failed is not None:
            failures.append(failed)
        _tell("checking")
        checked = check(bench.server)
        observer = bench.observer
        notes = [
            f"kills of workers without jobs: {observer.jobless_kills}; starts without a database: {driver.not_started}"
        ]
        if bench.fleet.faketime is None:
            notes.append("clocks were left alone: the package faketime is not installed")
        return Summary(
            "soak",
            seed,
            took / 60,
            bench.sync,
            LEASE,
            WORKERS,
            dict(sorted(driver.faults.items())),
            dict(users.done.most_common()),
            users.changes,
            bench.counters(),
            checked,
            [
                Recoveries.of("recovery of a killed worker's jobs", LEASE + KILL_BAR, observer.kills),
                Recoveries.of("recovery after a server restart", RESTART_BAR, observer.restarts),
            ],
            driver.poisoned,
            failures,
            notes,
        )


@contextlib.contextmanager
def _enqueueing(bench: Bench) -> Iterator[None]:
    """Without live changes: enqueues everything again and again, as a schedule would."""
    stop = threading.Event()

    def again() -> None:
        while not stop.wait(5.0):
            # It meets the same faults as everything else; the next one makes up for it.
            with contextlib.suppress(RuntimeError):
                bench.enqueue()

    thread = threading.Thread(target=again, name="enqueue", daemon=True)
    if not bench.sync:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        if thread.ident is not None:
            thread.join(120)


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
