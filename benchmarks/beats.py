"""What a heartbeat costs the server among ever more workers, each of which it counts.

    python -m benchmarks.beats [--workers 0,1000,5000,10000] [--beats 600]

One session beats; the others are rows that live. What is printed per size is the processor time of that session's
server process per beat, where it is on this machine, and the time of the whole call.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from benchmarks import common
from pgvec_queue import queue
from pgvec_queue.database import Connection, statement

_OTHERS = """
INSERT INTO pgvec.workers (host, pid, version, lease)
SELECT 'elsewhere', i, 'x', interval '1 day' FROM generate_series(1, %s) i
"""
_UNKNOWN = (
    "device",
    "dtype",
    "runtime",
    "waiting_for",
    "documents_per_second",
    "batch_tokens",
    "padding",
    "commit_seconds",
    "lag_seconds",
)
_NOTHING = ("memory", "loads", "cache_chunks", "cache_bytes", "cache_lookups", "cache_hits")


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--workers", default="0,1000,5000,10000", help="others, one number after the other")
    options.add_argument("--beats", type=int, default=600)
    chosen = options.parse_args()
    with common.server() as (_, connection):
        member = queue.register(connection, names=None, lease=30)
        beat: dict[str, object] = {
            **dict.fromkeys(_UNKNOWN),
            **dict.fromkeys(_NOTHING, 0),
            "worker": member.worker,
            "world": member.world,
            "state": "working",
            "models": ["model"],
            "busy": 0.5,
            "plenty": False,
            "in_hand": [1],
        }
        print("other workers | ms of a core | ms of the call")
        for others in map(int, chosen.workers.split(",")):
            connection.execute("DELETE FROM pgvec.workers WHERE host = 'elsewhere'")
            connection.execute(_OTHERS, [others])
            connection.execute("VACUUM ANALYZE pgvec.workers")
            _beats(connection, beat, 20)
            before, began = _processor_seconds(connection), time.perf_counter()
            _beats(connection, beat, chosen.beats)
            took, used = time.perf_counter() - began, _processor_seconds(connection) - before
            print(f"{others:13,} | {used / chosen.beats * 1e3:12.2f} | {took / chosen.beats * 1e3:14.2f}")
    return 0


def _beats(connection: Connection, beat: dict[str, object], count: int) -> None:
    for _ in range(count):
        assert connection.execute(statement("queue", "beat"), beat).fetchone()


def _processor_seconds(connection: Connection) -> float:
    """Of the session's server process, by Linux's own count."""
    counted = Path(f"/proc/{connection.info.backend_pid}/stat").read_text().rpartition(")")[2].split()
    return (int(counted[11]) + int(counted[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    sys.exit(main())
