"""What poison costs: the same rows with and without poisonous ones, run by turns; and a row that kills its workers.

The time of a run is from the claim of its first job to the end of its last one, so starting a process is no part of it.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from tests.chaos.bench import Bench
from tests.chaos.tables import HARMLESS, MODEL, POISON, Table, faults, sentence

ROWS = 1_000
POISONED = 10
DELAY = 0.006
"""Seconds per embedded text."""
BAR = 1.2
"""Times what a run takes without poison."""
KINDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "not finite": ("nan", "inf"),
    "refused": ("refuse",),
    "mixed": HARMLESS,
}
"""The faults of each kind of run."""
_LEASE = 30.0
_KILL_DELAY = 0.002

_TEXTS = Table(
    "texts",
    "CREATE TABLE texts (id bigint PRIMARY KEY, body text)",
    ("id",),
    ("bigint",),
    lambda random: (random.randrange(1, 10**9),),
    ("--text", "body", "--no-chunking", "--embedder", "hashing", "--model", MODEL),
    rows=0,
)
_NOW = "SELECT clock_timestamp()"
_RUN = """
    SELECT extract(epoch FROM max(finished_at) - min(claimed_at))::float8 FROM pgvec.jobs WHERE claimed_at >= %s"""
_QUARANTINED = "SELECT extract(epoch FROM max(last_at) - %s)::float8 FROM pgvec.failures"
_DONE = "SELECT extract(epoch FROM max(finished_at) - %s)::float8 FROM pgvec.jobs"
_UNFINISHED = "SELECT count(*) FROM pgvec.jobs WHERE state IN ('queued', 'running')"
# Embedded are those with a vector of their present text.
_EMBEDDED = """
    SELECT array_agg(t.id ORDER BY t.id) FROM texts t JOIN texts_vectors v USING (id)
    WHERE v.source_hash = substring(sha256(convert_to(t.body, 'UTF8')) FOR 16)"""
_LISTED = "SELECT coalesce(array_agg(key[1]::bigint ORDER BY key[1]::bigint), '{}') FROM pgvec.failures"


@dataclass(frozen=True)
class Killed:
    """How a row that kills the process was dealt with."""

    workers: int
    lease: float
    deaths: int
    quarantined: float | None
    """Seconds from the start of the first worker; None: it was not."""
    done: float
    """Seconds until all else was done."""


@dataclass
class Cost:
    """What all runs have shown."""

    seed: int
    rows: int
    poisoned: int
    seconds: dict[str, list[float]]
    """Of each run, by kind."""
    killed: list[Killed] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    bar: float = BAR

    def ratio(self, kind: str) -> float:
        return statistics.median(self.seconds[kind]) / statistics.median(self.seconds["none"])

    @property
    def _too_slow(self) -> list[str]:
        return [kind for kind in self.seconds if self.ratio(kind) > self.bar]

    @property
    def right(self) -> bool:
        return not self.failures and not self._too_slow

    def as_dict(self) -> dict[str, Any]:
        return {
            "scenario": "poison",
            "right": self.right,
            "seed": self.seed,
            "rows": self.rows,
            "poison": self.poisoned,
            "seconds": {kind: [round(one, 2) for one in times] for kind, times in self.seconds.items()},
            "ratios": {kind: round(self.ratio(kind), 3) for kind in self.seconds if kind != "none"},
            "bar": self.bar,
            "killers": [vars(one) for one in self.killed],
            "failures": self.failures,
        }

    def lines(self) -> list[str]:
        lines = [f"poison: seed {self.seed}, {self.rows} rows, {self.poisoned} of them poisonous"]
        for kind, times in self.seconds.items():
            ratio = f", {self.ratio(kind):.2f} times (bar {self.bar})" if kind != "none" else ""
            each = " ".join(f"{one:.2f}" for one in times)
            lines.append(f"poison {kind}: median {statistics.median(times):.2f} s{ratio}; {each}")
        for one in self.killed:
            found = "never" if one.quarantined is None else f"after {one.quarantined:.1f} s"
            lines.append(
                f"a row that kills, lease {one.lease:g} s, {one.workers} supervised: {one.deaths} deaths, "
                f"in quarantine {found}, all else done after {one.done:.1f} s"
            )
        lines += [f"WRONG: with poison {kind}, it takes too long" for kind in self._too_slow]
        lines += [f"WRONG: {line}" for line in self.failures]
        lines.append("all of it holds" if self.right else "IT DOES NOT HOLD")
        return lines


def poison(
    *,
    seed: int,
    runs: int,
    lease: float,
    rows: int = ROWS,
    poisoned: int = POISONED,
    delay: float = DELAY,
    kinds: Sequence[str] = tuple(KINDS),
    workers: Sequence[int] = (1, 2),
) -> Cost:
    """Runs each kind so often, by turns; then a row that kills once for each number of ``workers`` with ``lease``."""
    cost = Cost(seed, rows, poisoned, {kind: [] for kind in kinds})
    random = Random(f"{seed}/poison")
    with Bench(seed=seed, lease=_LEASE, delay=delay, tables=(_TEXTS,), sync=False) as bench:
        bench.fill()
        for turn in range(runs):
            # Whatever slows the machine down for a while meets all of them.
            first = turn % len(kinds)
            for kind in (*kinds[first:], *kinds[:first]):
                words = [POISON[name] for name in KINDS[kind]]
                bad = _fill(bench, random, rows, poisoned if words else 0, words)
                began = _value(bench, _NOW)
                failure = bench.drain_supervised(1).failure
                _check(bench, cost, kind, failure, rows, bad)
                cost.seconds[kind].append(float(_value(bench, _RUN, began)))
                _tell(f"poison {kind}: {cost.seconds[kind][-1]:.2f} s")
        bench.fleet.lease, bench.fleet.faults = lease, faults(min(delay, _KILL_DELAY))
        for count in workers:
            bad = _fill(bench, random, rows, 1, [POISON["kill"]])
            began = _value(bench, _NOW)
            drained = bench.drain_supervised(count)
            _check(bench, cost, "kill", drained.failure, rows, bad)
            killed = Killed(
                count, lease, drained.deaths, _value(bench, _QUARANTINED, began), float(_value(bench, _DONE, began))
            )
            cost.killed.append(killed)
            _tell(f"a row that kills, {count} supervised: {killed.done:.1f} s")
    return cost


def _fill(bench: Bench, random: Random, rows: int, poisoned: int, words: Sequence[str]) -> list[int]:
    """Begins anew with other rows, and enqueues them; returns the keys of the poisonous ones."""
    bad = sorted(random.sample(range(1, rows + 1), poisoned))
    with bench.server.connect() as connection:
        connection.execute("TRUNCATE texts")
        if _value(bench, "SELECT to_regclass('texts_vectors')") is not None:
            connection.execute("TRUNCATE texts_vectors, pgvec.failures")
        with connection.cursor().copy("COPY texts FROM STDIN") as copy:
            for key in range(1, rows + 1):
                word = f" {words[bad.index(key) % len(words)]}." if key in bad else ""
                copy.write_row((key, sentence(random) + word))
        connection.execute("ANALYZE texts")
    bench.enqueue()
    return bad


def _check(bench: Bench, cost: Cost, kind: str, failure: str | None, rows: int, bad: Sequence[int]) -> None:
    """Exactly the poisonous rows are in quarantine, and exactly the others have vectors."""
    if failure is not None:
        cost.failures.append(f"with poison {kind}: {failure}")
    if unfinished := _value(bench, _UNFINISHED):
        cost.failures.append(f"with poison {kind}: {unfinished} jobs are unfinished")
    embedded, listed = _value(bench, _EMBEDDED) or [], _value(bench, _LISTED)
    if embedded != [key for key in range(1, rows + 1) if key not in bad]:
        cost.failures.append(f"with poison {kind}: {len(embedded)} of {rows} rows are embedded, not all but {bad}")
    if listed != list(bad):
        cost.failures.append(f"with poison {kind}: in quarantine are {listed}, not {bad}")


def _value(bench: Bench, query: str, *parameters: object) -> Any:
    with bench.server.connect() as connection:
        row = connection.execute(query.encode(), parameters or None).fetchone()
    return row[0] if row else None


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
