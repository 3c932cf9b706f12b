"""Many clients of one gateway at the same time: how long submitting and searching take, and whether what was accepted
is embedded.

    python -m benchmarks.gateway [--clients 200] [--seconds 60] [--workers 1] [--kill]

A fresh database, a gateway and workers with the hashing embedder (``--model`` takes another one). Each client submits
two texts or searches, in turns that a seed decides. Reported: p50, p95 and p99 of each, answers by status, connections
that were refused or broken, and the texts of every 202 that are not in the destination once the queue is empty (bar: no
5xx but 503 with Retry-After, and no text missing). ``--kill`` kills the gateway and a worker with SIGKILL in the
middle and starts them again: broken connections are counted apart, and no accepted text may be missing all the same.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx2

from benchmarks import common
from pgvec_queue.database import Connection

PREFIX = "/api/v1"
_LATE = 300.0
_SHARE_OF_SEARCHES = 0.5


@dataclass
class Tally:
    """What all clients have seen."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)
    tasks: list[str] = field(default_factory=list)


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--clients", type=int, default=200)
    options.add_argument("--seconds", type=float, default=60.0)
    options.add_argument("--workers", type=int, default=1)
    options.add_argument("--model", default="hashing-384")
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--kill", action="store_true")
    chosen = options.parse_args()
    with common.server() as (dsn, connection), ExitStack() as stack:
        fleet = _Fleet(dsn, chosen.model, chosen.workers)
        stack.callback(fleet.end)
        fleet.begin()
        tally = asyncio.run(_load(fleet, chosen))
        return _report(tally, connection)


class _Fleet:
    """The gateway at one port, and the workers."""

    def __init__(self, dsn: str, model: str, workers: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._dsn = dsn
        self._serve = ["serve", "--port", str(self.port), "--model", model, "--per-minute", "100000000"]
        self._workers = workers
        self._running: list[subprocess.Popen[bytes]] = []
        self.url = f"http://127.0.0.1:{self.port}"
        self.model = model

    def begin(self) -> None:
        self._running = [
            self._start(*self._serve),
            *(self._start("work", "--lease", "10") for _ in range(self._workers)),
        ]
        deadline = time.monotonic() + 60
        while not self._ready():
            assert time.monotonic() < deadline, "the gateway does not start"
            time.sleep(0.1)

    def kill(self) -> None:
        """Kills the gateway and a worker, and starts both again."""
        for at, command in ((0, self._serve), (1, ["work", "--lease", "10"])):
            self._running[at].send_signal(signal.SIGKILL)
            self._running[at].wait()
            self._running[at] = self._start(*command)

    def end(self) -> None:
        for process in self._running:
            process.terminate()
        for process in self._running:
            process.wait(60)

    def _start(self, *arguments: str) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "PGVEC_DSN": self._dsn, "HF_HUB_OFFLINE": "1"}
        command = [sys.executable, "-m", "pgvec_queue", *arguments, "--log-level", "error"]
        return subprocess.Popen(command, env=environment)

    def _ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/ready", trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False


async def _load(fleet: _Fleet, chosen: argparse.Namespace) -> Tally:
    tally = Tally()
    # Before anybody searches there has to be a collection.
    async with _client(fleet) as client:
        await _ask(client, tally, "submit", _submission(random.Random(0), fleet.model, "first"))
    ends = time.monotonic() + chosen.seconds
    clients = [
        asyncio.create_task(_one(fleet, tally, number, random.Random(f"{chosen.seed} {number}"), ends))
        for number in range(chosen.clients)
    ]
    if chosen.kill:
        await asyncio.sleep(chosen.seconds / 2)
        await asyncio.to_thread(fleet.kill)
    await asyncio.gather(*clients)
    return tally


def _client(fleet: _Fleet) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(base_url=fleet.url, timeout=60, trust_env=False)


async def _one(fleet: _Fleet, tally: Tally, number: int, chance: random.Random, ends: float) -> None:
    async with _client(fleet) as client:
        turn = 0
        while time.monotonic() < ends:
            turn += 1
            if chance.random() < _SHARE_OF_SEARCHES:
                body = {"query": f"question {chance.randrange(1_000)}", "limit": 10}
                pause = await _ask(client, tally, "search", body)
            else:
                pause = await _ask(client, tally, "submit", _submission(chance, fleet.model, f"{number}-{turn}"))
            await asyncio.sleep(pause)


def _submission(chance: random.Random, model: str, name: str) -> dict[str, Any]:
    texts = [f"text {name} {part} about {chance.randrange(10**6)}" for part in "ab"]
    return {"texts": texts, "model_name": model, "batch_size": 32}


async def _ask(client: httpx2.AsyncClient, tally: Tally, what: str, body: dict[str, Any]) -> float:
    """Asks once; returns the seconds to wait before the next time."""
    path = f"{PREFIX}/search" if what == "search" else f"{PREFIX}/vectorize"
    began = time.monotonic()
    try:
        answer = await client.post(path, json=body)
    except httpx2.TransportError as error:
        tally.broken[type(error).__name__] += 1
        return 0.2
    status = answer.status_code
    tally.statuses[what, status] += 1
    if status in (429, 503) and "retry-after" in answer.headers:
        return float(answer.headers["retry-after"])
    if status >= 500:
        tally.faults.append(f"{what} {status}: {answer.text[:200]}")
    elif status < 400:
        tally.seconds[what].append(time.monotonic() - began)
    if status == 202:
        tally.accepted.update(body["texts"])
        tally.tasks.append(answer.json()["task_id"])
    return 0.0


def _report(tally: Tally, connection: Connection) -> int:
    for what, seconds in sorted(tally.seconds.items()):
        if len(seconds) > 1:
            cuts = statistics.quantiles(seconds, n=100)
            shown = " ".join(f"p{at} {cuts[at - 1] * 1000:.0f} ms" for at in (50, 95, 99))
            print(f"{what}: {len(seconds):,} done, {shown}")
    for (what, status), count in sorted(tally.statuses.items()):
        print(f"{what}: {count:,} answers of {status}")
    print(f"connections refused or broken: {dict(tally.broken) or 'none'}")
    missing = _missing(tally, connection)
    print(f"accepted texts: {len(tally.accepted):,}; not in the destination: {len(missing):,}")
    for line in [*tally.faults[:5], *sorted(missing)[:5]]:
        print(f"  {line}")
    return 1 if tally.faults or missing else 0


def _missing(tally: Tally, connection: Connection) -> set[str]:
    """Waits until the queue is empty and returns the accepted texts without a vector."""
    deadline = time.monotonic() + _LATE
    while True:
        row = connection.execute("SELECT count(*) FROM pgvec.jobs WHERE state IN ('queued', 'running')").fetchone()
        if row is not None and row[0] == 0:
            break
        if time.monotonic() > deadline:
            print(f"the queue is not empty after {_LATE:.0f} s: {row}")
            break
        time.sleep(0.5)
    found: set[str] = set()
    # Each text is one chunk.
    for (table,) in connection.execute(
        "SELECT DISTINCT format('%I.%I', v.destination_schema, v.destination_table)"
        " FROM pgvec.vectorizers v JOIN pgvec.collections c ON c.vectorizer_id = v.id"
    ).fetchall():
        found |= {text for (text,) in connection.execute(f"SELECT chunk FROM {table}".encode())}
    return tally.accepted - found


if __name__ == "__main__":
    sys.exit(main())
