"""What was measured, as a table for a person or one JSON object for a program."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.peers import environments
from benchmarks.peers.rounds import Ratio, Result
from pgvec_queue import __version__
from pgvec_queue.database import Connection, versions

_PEERS = ("pgai", "procrastinate", "pgqueuer")
_PACKAGES = ("psycopg", "torch", "sentence-transformers")


@dataclass(frozen=True, slots=True)
class Section:
    """One comparison: its contenders' figures and the ratios between them."""

    name: str
    title: str
    results: Sequence[Result]
    ratios: Sequence[Ratio] = field(default=())

    @property
    def kept(self) -> bool:
        """No bar was missed, and nothing of ours failed."""
        failed = any(result.ours and result.missing is not None for result in self.results)
        return not failed and all(ratio.kept for ratio in self.ratios)


def machine(connection: Connection) -> dict[str, Any]:
    """Returns what the figures depend on: the machine, how busy it was at the start, and all versions."""
    found = versions(connection)
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(pages / 2**30, 1),
        "system": platform.platform(terse=True),
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {
            "pgvec-queue": __version__,
            "python": platform.python_version(),
            "postgresql": f"{found.server // 10_000}.{found.server % 10_000}",
            "pgvector": found.pgvector,
            **{name: importlib.metadata.version(name) for name in _PACKAGES},
            **{name: environments.version(name) for name in _PEERS},
        },
    }


def as_json(about: dict[str, Any], parameters: dict[str, Any], sections: Sequence[Section]) -> dict[str, Any]:
    """Returns the whole run as one object."""
    return {"machine": about, "parameters": parameters, "comparisons": [_section_as_json(one) for one in sections]}


def table(about: dict[str, Any], sections: Sequence[Section]) -> Iterator[str]:
    """Yields the lines of all tables."""
    yield f"{about['cpu']}, {about['cores']} cores, {about['memory_gb']} GB, load {about['load_average']}"
    yield ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    for section in sections:
        yield ""
        yield section.title
        names = [*(result.name for result in section.results), *(ratio.name for ratio in section.ratios)]
        width = max(map(len, names))
        yield f"  {'':{width}} {'median':>11} {'lowest':>11} {'highest':>11}"
        for result in section.results:
            if result.missing is not None:
                yield f"  {result.name:{width}} not measured: {result.missing}"
                continue
            for unit, values in result.figures.items():
                yield f"  {result.name:{width}} {_numbers(result.median(unit), values)}  {unit}"
        for ratio in section.ratios:
            yield f"  {ratio.name:{width}} {_numbers(ratio.median, ratio.values)}  times{_verdict(ratio)}"


def _section_as_json(section: Section) -> dict[str, Any]:
    return {
        "name": section.name,
        "title": section.title,
        "contenders": [
            {
                "name": result.name,
                "not_measured": result.missing,
                "figures": {
                    unit: {"median": result.median(unit), "rounds": values} for unit, values in result.figures.items()
                },
            }
            for result in section.results
        ],
        "ratios": [
            {
                "name": ratio.name,
                "median": ratio.median,
                "rounds": list(ratio.values),
                "bar": ratio.bar,
                "kept": None if ratio.bar is None else ratio.kept,
            }
            for ratio in section.ratios
        ],
    }


def _verdict(ratio: Ratio) -> str:
    return "" if ratio.bar is None else f"; bar: {ratio.bar:g}, {'kept' if ratio.kept else 'missed'}"


def _numbers(median: float, values: Sequence[float]) -> str:
    return " ".join(f"{_rounded(value):>11}" for value in (median, min(values), max(values)))


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _cpu() -> str:
    """Returns the processor's name where Linux tells it, else its architecture."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
