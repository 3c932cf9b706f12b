"""``python -m tests.chaos``: soaks the queue in faults, or runs another scenario, and says what held; docs/chaos.md."""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path
from types import FrameType

from tests.chaos.poison import poison
from tests.chaos.soak import soak
from tests.chaos.summary import Outcome
from tests.chaos.writers import writers


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--scenario", choices=("soak", "writers", "poison"), default="soak")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the summary to this file, too")
    soaking = parser.add_argument_group("soak")
    soaking.add_argument("--minutes", type=float, default=30.0)
    soaking.add_argument("--killers", type=int, default=3, help="rows that kill the process that embeds them")
    soaking.add_argument("--logs", type=Path, help="keep the logs, and the queue's tables, in this folder")
    soaking.add_argument("--no-sync", action="store_true", help="enqueue again and again instead of live changes")
    writing = parser.add_argument_group("writers")
    writing.add_argument("--seconds", type=float, default=60.0)
    writing.add_argument("--no-kills", action="store_true", help="kill no worker, and hold it to the bar for waste")
    writing.add_argument("--filling", action="store_true", help="write beside the first filling; no bar for waste")
    poisoning = parser.add_argument_group("poison")
    poisoning.add_argument("--runs", type=int, default=5, help="of each kind")
    poisoning.add_argument("--lease", type=float, default=5.0, help="of workers that a row kills, in seconds")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    print(f"seed {given.seed}", file=sys.stderr, flush=True)
    outcome = _run(given)
    if given.json is not None:
        given.json.write_text(json.dumps(outcome.as_dict(), indent=2) + "\n")
    print("\n".join(outcome.lines()))
    return 0 if outcome.right else 1


def _run(given: argparse.Namespace) -> Outcome:
    if given.scenario == "writers":
        return writers(seed=given.seed, seconds=given.seconds, kills=not given.no_kills, filling=given.filling)
    if given.scenario == "poison":
        return poison(seed=given.seed, runs=given.runs, lease=given.lease)
    sync = False if given.no_sync else None
    return soak(seed=given.seed, minutes=given.minutes, killers=given.killers, sync=sync, logs=given.logs)


def _interrupt(number: int, _: FrameType | None) -> None:
    """Ends like Ctrl-C, so that everything that was started ends as well."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
