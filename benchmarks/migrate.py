"""Another model for a table that is searched and changed all the time: does any search fail, or mix two models?

    python -m benchmarks.migrate [--rows 100000] [--searchers 2] [--hold 15]

A fresh database, ``pgvec serve``, one ``pgvec work``, and a table of short texts that is followed (``--sync``) and
embedded with ``--model`` (MiniLM). Then, under searches over HTTP and single-row updates that go on throughout: migrate
to ``--to`` (by default the same model cut to 3 layers, made here), wait until it is complete, switch, roll back,
switch, finish. What is searched for are texts that no update touches, so that the best score is 1. Where it is less, it
is either that of the query's and the row's vectors of one of the two models, and the index has missed the text itself;
or it is not, and two models were mixed.

Reported: the seconds of each step, searches answered in each, failed ones, mixed ones, how they took, and what `pgvec
verify` says at the end. Bars: no failed and no mixed search, and nothing wrong at the end.
``--hashing`` takes two hashing models instead, of the same dimensions, to try the benchmark itself.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from benchmarks import common
from pgvec_queue import embedders, vectorizer
from pgvec_queue.database import Connection
from pgvec_queue.embedders import DeviceOptions

PROBES = 200
"""Texts that are searched for, and never changed."""
SAME = 0.99
_NEAR = 0.002
"""Of two ways to compute one cosine."""
_PAUSE = 0.02
_UPDATE_EVERY = 0.05
_TEXT = (
    "lamp harbour winter engine letter garden river market window doctor piano storm village camera mountain "
    "bridge coffee teacher island signal forest copper ticket blue broken quiet sudden narrow bright heavy "
    "distant early frozen golden hollow opens carries forgets repairs follows answers measures crosses remembers "
    "paints "
)
_WORDS = _TEXT.split()


@dataclass
class Seen:
    """What the searches of one step have met."""

    seconds: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)
    low: list[tuple[str, str, float]] = field(default_factory=list)
    """Query, key of the best hit, and its score, where that is no 1."""


@dataclass
class Load:
    """Searchers and one who updates, until it is stopped."""

    port: int
    dsn: str
    texts: list[str]
    rows: int
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)
    seen: Seen = field(default_factory=Seen)
    updates: int = 0
    threads: list[threading.Thread] = field(default_factory=list)

    def begin(self, searchers: int) -> None:
        self.threads = [threading.Thread(target=self._search, args=(number,)) for number in range(searchers)]
        self.threads.append(threading.Thread(target=self._update))
        for thread in self.threads:
            thread.start()

    def end(self) -> None:
        self.stop.set()
        for thread in self.threads:
            thread.join(120)

    def taken(self) -> Seen:
        """Returns what was seen since the last time."""
        with self.lock:
            seen, self.seen = self.seen, Seen()
        return seen

    def _search(self, number: int) -> None:
        draw = random.Random(number)
        while not self.stop.wait(_PAUSE):
            query = draw.choice(self.texts)
            began = time.monotonic()
            problem, key, score = _ask(self.port, query)
            took = time.monotonic() - began
            with self.lock:
                if problem is not None:
                    self.seen.failed[problem] += 1
                    continue
                self.seen.seconds.append(took)
                if score < SAME:
                    self.seen.low.append((query, key, score))

    def _update(self) -> None:
        draw = random.Random("updates")
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            while not self.stop.wait(_UPDATE_EVERY):
                key = draw.randint(PROBES + 1, self.rows)
                connection.execute("UPDATE docs SET body = %s WHERE id = %s", [_text(draw, key), key])
                self.updates += 1


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    options.add_argument("--to", help="the new model; by default the first 3 layers of the old one")
    options.add_argument("--embedder", help="what runs the new model; by default what suits its name")
    options.add_argument("--layers", type=int, default=3)
    options.add_argument("--searchers", type=int, default=2)
    options.add_argument("--hold", type=float, default=15.0, help="seconds of searches after each step")
    options.add_argument("--hashing", action="store_true")
    chosen = options.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with common.server() as (dsn, connection), ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pgvec-bench-model-")))
        target = _target(chosen, folder)
        return _migrate(dsn, connection, chosen, target, stack)


def _target(chosen: argparse.Namespace, folder: Path) -> list[str]:
    """Returns the options that say what to migrate to."""
    if chosen.hashing:
        chosen.model = "hashing-384"
        return ["--document-prompt", "other: ", "--query-prompt", "other: "]
    if chosen.to is None:
        from tests.models import cut

        return ["--model", cut(folder, model=chosen.model, layers=chosen.layers)]
    return ["--model", chosen.to, *(["--embedder", chosen.embedder] if chosen.embedder else [])]


def _migrate(dsn: str, connection: Connection, chosen: argparse.Namespace, target: list[str], stack: ExitStack) -> int:
    texts = _fill(connection, chosen.rows)
    _run(dsn, "enqueue", "docs", "--text", "body", "--model", chosen.model, "--no-chunking", "--sync")
    began = time.monotonic()
    stack.callback(_leave, common.start(dsn, "work"))
    _until_complete(connection, "docs")
    print(f"{chosen.rows:,} rows embedded with {chosen.model} in {time.monotonic() - began:.0f} s")
    port = _serve(dsn, stack, texts[0])
    load = Load(port, dsn, texts, chosen.rows)
    stack.callback(load.end)
    load.begin(chosen.searchers)
    whole = Seen()
    sides: list[Side] = []
    mixed: list[str] = []

    def step(label: str, *arguments: str, until_complete: bool = False) -> None:
        load.taken()
        started = time.monotonic()
        _run(dsn, "migrate-model", "docs", *arguments)
        took = time.monotonic() - started
        if until_complete:
            _until_complete(connection, "docs@other")
        else:
            time.sleep(chosen.hold)
        seen = load.taken()
        whole.seconds += seen.seconds
        whole.failed += seen.failed
        whole.low += seen.low
        if not sides:
            sides.extend(_sides(connection, texts[:PROBES]))
        strange = [one for one in seen.low if not _is_of_one(sides, *one)]
        mixed.extend(f"{score:.3f} for {query!r}" for query, _, score in strange)
        p50, p95 = (statistics.quantiles(seen.seconds, n=20)[at] for at in (9, 18)) if len(seen.seconds) > 1 else (0, 0)
        print(
            f"{label:20} command {took:5.1f} s, {time.monotonic() - started:6.1f} s in all: {len(seen.seconds):6,} "
            f"searches, p50 {p50 * 1000:5.0f} ms, p95 {p95 * 1000:5.0f} ms, {sum(seen.failed.values())} failed, "
            f"{len(strange)} mixed, {len(seen.low) - len(strange)} missed by the index"
        )

    step("migrated and filled", *target, until_complete=True)
    _tell_report(_run(dsn, "migrate-model", "docs", "--sample", "20", "--json"))
    step("switched", "--switch", "--yes")
    step("rolled back", "--rollback", "--yes")
    step("switched again", "--switch", "--yes")
    step("finished", "--finish", "--yes")
    load.end()
    _until_complete(connection, "docs", lists=0)
    verified = json.loads(_run(dsn, "verify", "docs", "--json"))
    wrong = {name: count for name, count in verified.items() if isinstance(count, int) and name in _WRONG and count}
    print(
        f"in all {len(whole.seconds):,} searches, {sum(whole.failed.values())} failed, {len(mixed)} mixed, "
        f"{len(whole.low) - len(mixed)} missed by the index, beside {load.updates:,} updates; "
        f"verify: {wrong or 'nothing wrong'}"
    )
    for problem, count in whole.failed.most_common(5):
        print(f"  failed {count} times: {problem}")
    for one in mixed[:5]:
        print(f"  mixed: {one}")
    good = not whole.failed and not mixed and not wrong and whole.seconds
    print(f"bars: no failed and no mixed search, nothing wrong: {'kept' if good else 'missed'}")
    return 0 if good else 1


_WRONG = ("missing", "stale", "orphaned")


@dataclass
class Side:
    """One of the two vectorizers: the vectors of its rows, as they were, and of the queries."""

    rows: dict[str, NDArray[np.float32]]
    queries: dict[str, NDArray[np.float32]]


def _sides(connection: Connection, queries: list[str]) -> list[Side]:
    """Reads all vectors of both, since one of the tables will be gone, and embeds the queries with both models."""
    ids = [id_ for (id_,) in connection.execute("SELECT id FROM pgvec.vectorizers ORDER BY id")]
    made = []
    for one in vectorizer.by_ids(connection, ids):
        embedder = embedders.load(one.spec, DeviceOptions(runtime="torch"))
        vectors = embedder.embed_queries(queries)
        embedder.close()
        found = connection.execute(f"SELECT id::text, embedding::real[] FROM {one.destination}".encode()).fetchall()
        rows = {key: np.asarray(vector, np.float32) for key, vector in found}
        made.append(Side(rows, dict(zip(queries, vectors, strict=True))))
    return made


def _is_of_one(sides: list[Side], query: str, key: str, score: float) -> bool:
    """Whether a score is that of the query's and the row's vectors of the same model."""
    for side in sides:
        one, other = side.queries[query], side.rows.get(key)
        if other is not None:
            cosine = float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))
            if abs(cosine - score) < _NEAR:
                return True
    return False


def _tell_report(shown: str) -> None:
    report: dict[str, Any] = json.loads(shown)
    old, new = report["old"], report["new"]
    print(
        f"report: coverage {old['coverage']:.4f} and {new['coverage']:.4f}, {new['changes_waiting']} changes waiting, "
        f"agreement of the ten nearest {report['agreement']} ({report['queries']} queries from "
        f"{report['queries_from']}), vectors {old['table_bytes'] / 2**20:.0f} and {new['table_bytes'] / 2**20:.0f} MB, "
        f"{'; '.join(report['obstacles']) or 'ready'}"
    )


def _fill(connection: Connection, rows: int) -> list[str]:
    """Makes the table; returns the texts that are searched for."""
    draw = random.Random(1)
    connection.execute("CREATE TABLE docs (id bigint PRIMARY KEY, body text NOT NULL)")
    texts = [_text(draw, number) for number in range(1, rows + 1)]
    with connection.cursor() as cursor, cursor.copy("COPY docs FROM STDIN") as copy:
        for number, text in enumerate(texts, 1):
            copy.write_row((number, text))
    connection.execute("VACUUM ANALYZE docs")
    return texts[:PROBES]


def _text(draw: random.Random, number: int) -> str:
    return f"{' '.join(draw.choices(_WORDS, k=8))} {number}"


def _serve(dsn: str, stack: ExitStack, query: str) -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    stack.callback(_leave, common.start(dsn, "serve", "--port", str(port), "--per-minute", "100000000"))
    deadline = time.monotonic() + 120
    while _ask(port, query)[0] is not None:
        assert time.monotonic() < deadline, "the gateway does not answer a search"
        time.sleep(0.2)
    return port


def _ask(port: int, query: str) -> tuple[str | None, str, float]:
    """Searches; returns what went wrong, or the key of the best hit and its score."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        body = json.dumps({"query": query, "limit": 1, "vectorizer": "docs"})
        connection.request("POST", "/api/v1/search", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        found = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}", "", 0.0
    finally:
        connection.close()
    if answer.status != 200:
        return f"{answer.status} {found.decode(errors='replace')[:200]}", "", 0.0
    hits = json.loads(found)["hits"]
    return (None, hits[0]["key"][0], hits[0]["score"]) if hits else ("no hits", "", 0.0)


def _run(dsn: str, *arguments: str) -> str:
    """Runs a command to its end, which has to be a good one; returns what it printed."""
    ran = subprocess.run(
        [sys.executable, "-m", "pgvec_queue", *arguments],
        env={**os.environ, "PGVEC_DSN": dsn},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, f"pgvec {' '.join(arguments)}: {ran.stderr.strip()}"
    return ran.stdout


def _until_complete(connection: Connection, name: str, *, lists: int = 20) -> None:
    """Waits until the backfill is done, and no more than so many lists of changes wait, which keep coming."""
    while True:
        row = connection.execute(
            "SELECT v.plan_complete AND (SELECT count(*) FILTER (WHERE j.kind <> 'keys') = 0 AND count(*) <= %s"
            " FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.state IN ('queued', 'running'))"
            " FROM pgvec.vectorizers v WHERE v.name = %s",
            [lists, name],
        ).fetchone()
        if row == (True,):
            return
        time.sleep(0.2)


def _leave(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    process.wait(60)


if __name__ == "__main__":
    sys.exit(main())
