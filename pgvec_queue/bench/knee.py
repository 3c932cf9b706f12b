"""Where a fleet stops scaling, and why: judged by the figures of each size alone.

A size is beyond the knee where one of the bars below is missed. Why is told by what is full at that size, in this
order: the processors of the machine, pgbouncer's one thread, the simulated workers' own processes (their interpreters,
or the time that they get), the pool's connections to the server, and else what sessions of the server waited for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

LEAST_SHARE = 0.95
MOST_CLAIM_MS = 100.0
MOST_LATE_SHARE = 0.01
LATE_SECONDS = 1.0
"""A heartbeat that begins so much later than it was due is late; with the usual lease, a third of what it may be."""
CLIENT = "the client"
"""Among what sessions wait for: a client that has a transaction open and says nothing."""
_FULL = 0.9
_FULL_INTERPRETER = 0.85
_LATE_CLOCK_MS = 100.0


@dataclass(frozen=True, slots=True)
class Step:
    """One size of a fleet at work, as far as it is judged."""

    workers: int
    share: float
    """Of what the devices could do, how much was done."""
    claim_p99_ms: float
    late_share: float
    """Of the heartbeats."""
    lost: int
    """Leases."""
    server_cores: float | None = None
    pooler_cores: float | None = None
    simulator_cores: float = 0.0
    busiest_core: float = 0.0
    lag_p99_ms: float = 0.0
    waiting: int = 0
    """Clients that waited for one of the pool's connections."""
    waits: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Knee:
    """The first size that misses a bar."""

    workers: int
    missed: Sequence[str]
    why: str

    @property
    def text(self) -> str:
        return f"the knee is at {self.workers:,} workers: {', '.join(self.missed)}; {self.why}"


def find(steps: Sequence[Step], cores: int) -> Knee | None:
    """Returns the smallest size that misses a bar, on a machine of so many cores; None where all keep them."""
    for step in sorted(steps, key=lambda one: one.workers):
        missed = _missed(step)
        if missed:
            return Knee(step.workers, missed, _why(step, cores))
    return None


def workers_per_core(steps: Sequence[Step]) -> tuple[float, Step] | None:
    """Returns how many such workers keep one core of the server busy, and by which fleet's figures.

    Those of the largest that keeps every bar: beyond the knee less is done, so that each seems to cost less. None where
    there is no such fleet, or what the server takes was not seen.
    """
    kept = max((one for one in steps if not _missed(one)), key=lambda one: one.workers, default=None)
    return (kept.workers / kept.server_cores, kept) if kept is not None and kept.server_cores else None


def _missed(step: Step) -> list[str]:
    missed = []
    if step.share < LEAST_SHARE:
        missed.append(f"{step.share:.0%} of what the devices could do")
    if step.claim_p99_ms > MOST_CLAIM_MS:
        missed.append(f"a claim takes {step.claim_p99_ms:,.0f} ms (p99)")
    if step.late_share > MOST_LATE_SHARE:
        missed.append(f"{step.late_share:.1%} of the heartbeats begin more than {LATE_SECONDS:.0f} s late")
    if step.lost:
        missed.append(f"{step.lost} leases were lost")
    return missed


def _why(step: Step, cores: int) -> str:
    used = (step.server_cores or 0.0) + (step.pooler_cores or 0.0) + step.simulator_cores
    if used >= _FULL * cores:
        parts = [f"the database {step.server_cores:.2f}"] if step.server_cores is not None else []
        parts += [f"pgbouncer {step.pooler_cores:.2f}"] if step.pooler_cores is not None else []
        parts.append(f"the simulated workers {step.simulator_cores:.2f}")
        return f"this machine's {cores} cores are full: {', '.join(parts)}"
    if (step.pooler_cores or 0.0) >= _FULL:
        return "pgbouncer's one thread is full: run several (so_reuseport), or let fewer workers share one"
    if step.busiest_core >= _FULL_INTERPRETER or step.lag_p99_ms > _LATE_CLOCK_MS:
        return f"the simulated workers themselves are late, by {step.lag_p99_ms:,.0f} ms (p99): use more --processes"
    if step.waits.get(CLIENT, 0.0) > sum(step.waits.values()) / 2:
        return (
            "most transactions wait for the simulated workers' next statement: their processes get too little of this "
            f"machine's {cores} cores, of which they have {step.simulator_cores:.2f}"
        )
    if step.waiting:
        return f"{step.waiting:,} clients of pgbouncer wait for one of its connections: a larger --pool-size"
    waits = [f"{name} {count:.1f}" for name, count in step.waits.items() if name != "CPU"]
    return f"sessions of the server wait for {', '.join(waits[:3])}" if waits else "nothing that was looked at is full"
