"""What a measure found: figures and ratios of all rounds, with the machine and the versions that they hold for."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pgvec_queue.bench.database import Arena
from pgvec_queue.bench.machine import machine, server, versions


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity, as often as it was measured. Its name says what it is and in which unit."""

    name: str
    values: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def lowest(self) -> float:
        return min(self.values)

    @property
    def highest(self) -> float:
        return max(self.values)

    def as_json(self) -> dict[str, float | int]:
        return {
            "median": _rounded(self.median),
            "lowest": _rounded(self.lowest),
            "highest": _rounded(self.highest),
            "rounds": len(self.values),
        }


@dataclass(frozen=True, slots=True)
class Report:
    """What one measure found, and on what."""

    measure: str
    parameters: Mapping[str, Any]
    figures: Sequence[Figure]
    ratios: Sequence[Figure] = ()
    notes: Sequence[str] = ()
    machine: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, Any] = field(default_factory=dict)
    server: Mapping[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Returns what ``--json`` prints."""
        return {
            "measure": self.measure,
            "machine": dict(self.machine),
            "versions": dict(self.versions),
            "server": dict(self.server),
            "parameters": dict(self.parameters),
            "medians": {figure.name: figure.as_json() for figure in self.figures},
            "ratios": {ratio.name: ratio.as_json() for ratio in self.ratios},
            "notes": list(self.notes),
        }


def report(
    arena: Arena,
    measure: str,
    parameters: Mapping[str, Any],
    figures: Iterable[Figure],
    ratios: Iterable[Figure] = (),
    notes: Iterable[str] = (),
) -> Report:
    """Returns the report of a measure that ran in ``arena``."""
    return Report(
        measure,
        parameters,
        list(figures),
        list(ratios),
        list(notes),
        machine(),
        versions(arena),
        server(arena),
    )


def ratios(name: str, over: Sequence[float], under: Sequence[float]) -> Figure:
    """Returns the ratio of each round of one side to the same round of the other."""
    return Figure(name, [a / b for a, b in zip(over, under, strict=True)])


def percentile(values: Sequence[float], percent: float) -> float:
    """Returns the smallest value that so many percent of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _rounded(number: float) -> float:
    """Five digits are more than any of this repeats to."""
    return float(f"{number:.5g}")
