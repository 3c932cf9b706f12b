"""``python -m tests.chaos``: soaks the queue in faults and says what held; see docs/chaos.md."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from tests.chaos.soak import soak


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--killers", type=int, default=3, help="rows that kill the process that embeds them")
    parser.add_argument("--no-sync", action="store_true", help="enqueue again and again instead of live changes")
    parser.add_argument("--json", type=Path, help="write the summary to this file, too")
    parser.add_argument("--logs", type=Path, help="keep the logs, and the queue's tables, in this folder")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    print(f"seed {given.seed}", file=sys.stderr, flush=True)
    summary = soak(
        seed=given.seed,
        minutes=given.minutes,
        killers=given.killers,
        sync=False if given.no_sync else None,
        logs=given.logs,
    )
    if given.json is not None:
        given.json.write_text(json.dumps(summary.as_dict(), indent=2) + "\n")
    print("\n".join(summary.lines()))
    return 0 if summary.right else 1


def _interrupt(number: int, _: FrameType | None) -> None:
    """Ends like Ctrl-C, so that everything that was started ends as well."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
