"""Rounds in turn (A B A B), so that a machine that is slow for a while is slow for everybody.

A contender that cannot run is left out of the further rounds and says why; the others go on.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from benchmarks.peers.environments import UnavailableError

RATE = "rows/s"
Figures = Mapping[str, float]
"""What one round of one contender gave, by unit."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Somebody's way to do the task; ``measure`` does it once, from an empty database."""

    name: str
    measure: Callable[[], Figures]
    ours: bool = False


@dataclass(slots=True)
class Result:
    """One contender's figures, a list by unit with one figure per round."""

    name: str
    ours: bool
    figures: dict[str, list[float]] = field(default_factory=dict)
    missing: str | None = None
    """Why it could not run."""

    def median(self, unit: str) -> float:
        return statistics.median(self.figures[unit])


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times one contender's figure is another's, in the same rounds."""

    name: str
    values: Sequence[float]
    bar: float | None = None
    """The least that the median has to be."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def kept(self) -> bool:
        return self.bar is None or self.median >= self.bar


def alternate(contenders: Sequence[Contender], rounds: int) -> list[Result]:
    """Measures every contender once per round, one after the other."""
    results = [Result(contender.name, contender.ours) for contender in contenders]
    for number in range(1, rounds + 1):
        for contender, result in zip(contenders, results, strict=True):
            if result.missing is None:
                _measure(contender, result, f"round {number} of {rounds}")
    return results


def _measure(contender: Contender, result: Result, which: str) -> None:
    try:
        figures = contender.measure()
    except (UnavailableError, subprocess.TimeoutExpired) as error:
        result.missing = str(error)
        print(f"{which}: {contender.name}: {error}", file=sys.stderr)
        return
    for unit, figure in figures.items():
        result.figures.setdefault(unit, []).append(figure)
    print(f"{which}: {contender.name}: {', '.join(f'{v:,.4g} {u}' for u, v in figures.items())}", file=sys.stderr)


def best(results: Sequence[Result], unit: str) -> Result | None:
    """Returns the result with the highest median; None where nobody has one."""
    able = [result for result in results if result.missing is None]
    return max(able, key=lambda result: result.median(unit), default=None)


def ratio(one: Result, other: Result | None, unit: str, bar: float | None = None) -> list[Ratio]:
    """Returns how many times ``other`` the figure of ``one`` is, round by round; nothing where either is missing."""
    if other is None or one.missing is not None or other.missing is not None:
        return []
    pairs = zip(one.figures[unit], other.figures[unit], strict=True)
    return [Ratio(f"{one.name} / {other.name}", [mine / theirs for mine, theirs in pairs], bar)]
