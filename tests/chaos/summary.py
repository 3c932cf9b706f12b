"""What a run has shown: collected, judged, printed, and written as JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.chaos.checker import KINDS, Checked
from tests.chaos.observer import Recovery

RESTART_BAR = 5.0
"""Seconds from when the server accepts connections."""
KILL_BAR = 2.0
"""Seconds on top of the lease."""


class Outcome(Protocol):
    """What every scenario ends with."""

    @property
    def right(self) -> bool: ...

    def as_dict(self) -> dict[str, Any]: ...

    def lines(self) -> list[str]: ...


@dataclass
class Recoveries:
    """Recoveries of one kind, in seconds, with the bar that each has to stay under."""

    name: str
    bar: float
    seconds: list[float] = field(default_factory=list)
    excluded: dict[str, int] = field(default_factory=dict)
    """How many do not count, by reason."""
    never: int = 0
    """Those that count and never came to their end."""

    @classmethod
    def of(cls, name: str, bar: float, recoveries: Sequence[Recovery]) -> Recoveries:
        self = cls(name, bar)
        for one in recoveries:
            if one.excluded is not None:
                self.excluded[one.excluded] = self.excluded.get(one.excluded, 0) + 1
            elif one.seconds is None:
                self.never += 1
            else:
                self.seconds.append(one.seconds)
        return self

    @property
    def longest(self) -> float:
        return max(self.seconds, default=0.0)

    @property
    def right(self) -> bool:
        return not self.never and self.longest <= self.bar

    def as_dict(self) -> dict[str, Any]:
        ordered = sorted(self.seconds)
        return {
            "count": len(ordered),
            "median": round(statistics.median(ordered), 2) if ordered else None,
            "p95": round(ordered[math.ceil(0.95 * len(ordered)) - 1], 2) if ordered else None,
            "longest": round(self.longest, 2) if ordered else None,
            "bar": self.bar,
            "never": self.never,
            "not counted": self.excluded,
        }

    def line(self) -> str:
        told = self.as_dict()
        if not told["count"]:
            numbers = "none counted"
        else:
            numbers = (
                f"{told['count']}, median {told['median']:.2f} s, p95 {told['p95']:.2f} s, "
                f"longest {told['longest']:.2f} s (bar {self.bar:.1f} s)"
            )
        apart = ", ".join(f"{count} {why}" for why, count in sorted(self.excluded.items()))
        never = f"; {self.never} NEVER" if self.never else ""
        return f"{self.name}: {numbers}{never}{f'; not counted: {apart}' if apart else ''}"


@dataclass
class Summary:
    """Everything that a run ends with."""

    scenario: str
    seed: int
    minutes: float
    sync: bool
    lease: float
    workers: int
    faults: dict[str, int]
    users: dict[str, int]
    """Operations by kind."""
    changes: int
    counters: dict[str, int]
    checked: Checked
    recoveries: list[Recoveries]
    poisoned: int
    failures: list[str]
    """What else went wrong: processes that ended by themselves, a drain that failed."""
    notes: list[str] = field(default_factory=list)
    measured: dict[str, Any] = field(default_factory=dict)
    """What only this scenario measures."""

    @property
    def right(self) -> bool:
        return self.checked.right and not self.failures and all(one.right for one in self.recoveries)

    def as_dict(self) -> dict[str, Any]:
        return {
            "scenario": self.scenario,
            "right": self.right,
            "seed": self.seed,
            "minutes": round(self.minutes, 2),
            "sync": self.sync,
            "lease": self.lease,
            "workers": self.workers,
            "faults": self.faults,
            "processes killed by poison": self.poisoned,
            "reclaims": self.counters["jobs_reclaimed"],
            "zombie writes refused": self.counters["writes_refused"],
            "counters": dict(sorted(self.counters.items())),
            "users": self.users,
            "source changes": self.changes,
            "rows": self.checked.rows,
            "rows to embed": self.checked.wanted,
            "chunks": self.checked.chunks,
            **{kind: self.checked.problems[kind] for kind in KINDS},
            "poison expected": self.checked.poison,
            "poison found": self.checked.poison - self.checked.problems["poison missed"],
            "jobs unfinished": self.checked.unfinished,
            "recoveries": {one.name: one.as_dict() for one in self.recoveries},
            **self.measured,
            "failures": self.failures,
            "notes": self.notes,
            "problems": self.checked.details,
        }

    def lines(self) -> list[str]:
        checked = self.checked
        counts = checked.problems
        faults = [f"{count} {kind}" for kind, count in self.faults.items() if count]
        lines = [
            f"{self.scenario}: seed {self.seed}, {self.minutes:.1f} minutes, {self.workers} workers, "
            f"lease {self.lease:g} s, live changes {'on' if self.sync else 'off (enqueued again)'}",
            f"faults: {', '.join(faults) or 'none'}",
            f"reclaims {self.counters['jobs_reclaimed']}, zombie writes refused {self.counters['writes_refused']}, "
            f"processes killed by poison {self.poisoned}",
            f"source changes {self.changes}; users: " + ", ".join(f"{n} {kind}" for kind, n in self.users.items()),
            f"rows {checked.rows} ({checked.wanted} to embed), chunks {checked.chunks}",
            ", ".join(f"{kind} {counts[kind]}" for kind in ("lost", "duplicate", "stale", "orphaned")),
            f"poison: {checked.poison} expected, {checked.poison - counts['poison missed']} in quarantine, "
            f"{counts['poison false']} false",
            *(one.line() for one in self.recoveries),
            *self.notes,
        ]
        if checked.unfinished:
            lines.append(f"WRONG: {checked.unfinished} jobs are unfinished")
        lines += [f"WRONG: {line}" for line in checked.details[:20]]
        lines += [f"WRONG: {line}" for line in self.failures]
        lines.append("all of it holds" if self.right else "IT DOES NOT HOLD")
        return lines
