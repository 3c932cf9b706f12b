"""What people would pick instead, side by side with ours in one run.

    python -m benchmarks.peers [load] [plan] [plain] [noop] [bad] [--rounds 5] [--json]

Contenders take turns (A B A B), each run in a database of its own; medians and, round by round, ratios. Each peer is
installed on first use, in an environment of its own below ``--scratch``; one that cannot be is named, and the others go
on. Exit code 1 where a bar was missed. See README.md beside this file for what is compared and what is not.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import ExitStack
from pathlib import Path

import platformdirs
import psycopg

from benchmarks import common
from benchmarks.peers import databases, endpoint, report
from benchmarks.peers.comparisons import COMPARISONS, Bench, Sizes


def main() -> int:
    chosen = _options().parse_args()
    sizes = Sizes(
        rounds=chosen.rounds,
        rows=chosen.rows,
        fast_rows=chosen.fast_rows,
        plan_rows=chosen.plan_rows,
        documents=chosen.documents,
        jobs=chosen.jobs,
    )
    with ExitStack() as stack:
        cluster = stack.enter_context(common.cluster(**databases.SETTINGS))
        url = stack.enter_context(endpoint.running())
        with psycopg.connect(cluster.dsn) as connection:
            about = report.machine(connection)
        bench = Bench(cluster, url, chosen.scratch, sizes)
        names = chosen.comparisons or list(COMPARISONS)
        sections = [section for name in names for section in COMPARISONS[name](bench)]
    if chosen.json:
        print(json.dumps(report.as_json(about, sizes.as_json(), sections), indent=2))
    else:
        print("\n".join(report.table(about, sections)))
    return 0 if all(section.kept for section in sections) else 1


def _options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=(__doc__ or "").splitlines()[0])
    options.add_argument(
        "comparisons", nargs="*", type=_comparison, help=f"of {', '.join(COMPARISONS)}  [default: all]"
    )
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--rows", type=int, default=20_000, help="rows that pgai embeds in a round")
    options.add_argument("--fast-rows", type=int, default=100_000, help="rows that ours embeds in a round")
    options.add_argument("--plan-rows", type=int, default=1_000_000, help="rows that are queued in a round")
    options.add_argument("--documents", type=int, default=500, help="docstrings that a real model embeds in a round")
    options.add_argument("--jobs", type=int, default=10_000, help="jobs that do nothing in a round")
    cache = platformdirs.user_cache_path("pgvec-queue", appauthor=False) / "peers"
    options.add_argument(
        "--scratch", type=Path, default=cache, help="where peers are installed  [default: %(default)s]"
    )
    options.add_argument("--json", action="store_true", help="one JSON object, no tables")
    return options


def _comparison(name: str) -> str:
    # argparse's own `choices` refuses to be given none of them.
    if name not in COMPARISONS:
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(COMPARISONS)}")
    return name


if __name__ == "__main__":
    sys.exit(main())
