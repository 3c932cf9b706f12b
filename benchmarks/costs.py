"""The table of docs/scaling.md, by the cost model: rows from a million to a billion on three fleets.

    python -m benchmarks.costs [--write docs/scaling.md]

``--write`` puts it in the place of the one that is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from pgvec_queue.estimate.cost import Cost, Plan, cost

FLEETS = (("2 Macs", 2, 40_000.0), ("10 GPUs", 10, 1_000_000.0), ("100 GPUs", 100, 1_000_000.0))
"""Name, devices, and tokens per second of each: assumed, for a model of MiniLM-L6's size."""
SIZES = (1e6, 1e7, 1e8, 1e9)
PARTITIONS = 16
HEAD = (
    "| rows | jobs, their bytes | table with its key | HNSW index | memory to build it: one table; one of "
    f"{PARTITIONS} partitions | WAL | {' | '.join(name for name, _, _ in FLEETS)} | building the index |"
)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--write", type=Path)
    chosen = options.parse_args()
    lines = table()
    if chosen.write is None:
        print("\n".join(lines))
    else:
        chosen.write.write_text(replaced(chosen.write.read_text(), lines))
    return 0


def table() -> list[str]:
    """Returns its lines."""
    return [HEAD, "|---|---|---|---|---|---|---|---|---|---|", *_rows()]


def replaced(page: str, lines: list[str]) -> str:
    """Returns a page with the table in the place of the one that it has."""
    before, found, rest = page.partition(HEAD)
    assert found, "the page has no such table"
    after = rest.partition("\n\n")[2]
    return before + "\n".join(lines) + "\n\n" + after


def _rows() -> Iterator[str]:
    for rows in SIZES:
        plan = Plan(rows=rows, partitions=PARTITIONS)
        whole, half = cost(plan), cost(replace(plan, store="halfvec"))
        one = replace(plan, partitions=1)
        one_whole, one_half = cost(one), cost(replace(one, store="halfvec"))
        cells = [
            f"{rows / 1e6:,.0f} million",
            f"{whole['jobs']:,.0f}, {size(whole['queue_bytes'])}",
            _both(whole, half, lambda found: size(found["table_bytes"] + found["key_index_bytes"])),
            _both(whole, half, lambda found: size(found["hnsw_bytes"])),
            f"{_both(one_whole, one_half, lambda found: size(found['hnsw_memory_bytes']))}; "
            f"{_both(whole, half, lambda found: size(found['hnsw_memory_bytes']))}",
            _both(whole, half, lambda found: size(found["wal_bytes"] + found["hnsw_wal_bytes"])),
            *(_embedding(replace(plan, devices=devices, tokens_per_second=rate)) for _, devices, rate in FLEETS),
            _both(whole, half, lambda found: time(found["index_hours"])),
        ]
        yield f"| {' | '.join(cells)} |"


def _embedding(plan: Plan) -> str:
    """How long it takes, and what is full where that is not the devices."""
    return _both(cost(plan), cost(replace(plan, store="halfvec")), _time_and_why)


def _time_and_why(found: Cost) -> str:
    why = "" if found.bottleneck == "devices" else f" ({found.bottleneck.split()[-1]})"
    return time(found["embed_hours"]) + why


def _both(whole: Cost, half: Cost, show: Callable[[Cost], str]) -> str:
    first, second = show(whole), show(half)
    return first if first == second else f"{first} / {second}"


def size(count: float) -> str:
    """Returns bytes as people write them."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1_000 or unit == "TB":
            return f"{count:,.3g} {unit}" if count < 1_000 else f"{count:,.0f} {unit}"
        count /= 1_000
    raise AssertionError


def time(hours: float) -> str:
    """Returns a time as people say it."""
    if hours >= 48:
        return f"{hours / 24:,.1f} days"
    if hours >= 1:
        return f"{hours:,.1f} h"
    return f"{hours * 60:,.1f} min" if hours >= 1 / 60 else f"{hours * 3_600:,.0f} s"


if __name__ == "__main__":
    sys.exit(main())
