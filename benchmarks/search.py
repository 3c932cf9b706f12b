"""How good search is on real text, and what HTTP adds: the demo's corpus, and thirty questions with their answers.

    python -m benchmarks.search [--documents N | --dsn DSN] [--rounds 5] [--markdown]

The questions and the docstrings that answer them (``search_questions.json``) were written down before the first search.
How words weigh was changed after a look at their figures, so that they are blind no more for text and hybrid; thirty
others (``search_questions_held_out.json``) were written down after that, before anybody searched for them, and nothing
was changed since.

Recall@10: of the answers to a question, the share among the first ten hits; found: an answer is among them. Apart from
that, the share of the exact ten nearest that the HNSW index finds, for the questions and for 500 first lines of
docstrings. Bar: over HTTP a search takes at most 10 ms more, at the median, than embedding the question and the
statement take by themselves; a question is never asked twice, so that nothing is remembered.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx2

from benchmarks import common
from pgvec_queue import demo, embedders, vectorizer
from pgvec_queue.database import Connection, Database
from pgvec_queue.embedders import DeviceOptions, Embedder
from pgvec_queue.search import Search, search
from pgvec_queue.vectorizer import Vectorizer

BAR = 10.0


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--documents", type=int, help="of the corpus; without it all, so that every answer is there")
    options.add_argument("--dsn", help="a database in which this has been done already: demo, vectors and index")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--markdown", action="store_true")
    chosen = options.parse_args()
    questions, held_out = (
        json.loads((Path(__file__).parent / f"search_questions{which}.json").read_text("utf-8"))
        for which in ("", "_held_out")
    )
    with _place(chosen.dsn) as dsn, Database(dsn).connect("bench") as connection:
        if chosen.dsn is None:
            _embed(dsn, connection, chosen.documents)
        defined = vectorizer.get(connection, demo.TABLE)
        embedder = embedders.load(defined.spec, DeviceOptions(runtime="torch"))
        for title, some in (("the first questions", questions), ("held out", held_out)):
            print(f"\n{title}:", flush=True)
            _quality(connection, defined, embedder, some, markdown=chosen.markdown)
        asked = [one["question"] for one in questions]
        _index(connection, defined, embedder, asked)
        with _gateway(dsn) as address:
            return _overhead(connection, defined, embedder, address, asked, chosen.rounds)


@contextmanager
def _place(dsn: str | None) -> Iterator[str]:
    """The database: the one named, or a fresh one."""
    if dsn is not None:
        yield dsn
        return
    with common.server() as (fresh, _):
        yield fresh


def _embed(dsn: str, connection: Connection, documents: int | None) -> None:
    held = demo.load(connection, documents)
    flags = ("--text", "docstring", "--template", "$name: $chunk")
    assert common.run(dsn, "enqueue", demo.TABLE, *flags).code == 0
    worked = common.run(dsn, "work", "--drain", "--runtime", "torch")
    assert worked.code == 0
    connection.execute("CREATE INDEX ON pgvec_demo_vectors USING hnsw (embedding vector_cosine_ops)")
    connection.execute("ANALYZE pgvec_demo_vectors")
    chunks = connection.execute("SELECT count(*) FROM pgvec_demo_vectors").fetchone()
    print(f"{held:,} docstrings, {chunks[0] if chunks else 0:,} chunks, embedded in {worked.seconds:.0f} s", flush=True)


def _quality(
    connection: Connection,
    defined: Vectorizer,
    embedder: Embedder,
    questions: Sequence[dict[str, object]],
    *,
    markdown: bool,
) -> None:
    ids = {str(key): name for key, name in connection.execute("SELECT id, name FROM pgvec_demo").fetchall()}
    there = set(ids.values())
    for one in questions:
        missing = set(one["answers"]) - there  # type: ignore[call-overload]
        if missing:
            print(f"not in the corpus: {', '.join(sorted(missing))}")
    print("| ranking | recall@10 | found | median |\n|---|---|---|---|" if markdown else "")
    for mode, exact in (("vector", True), ("vector", False), ("text", False), ("hybrid", False)):
        recalls, found, times = [], 0, []
        for one in questions:
            right = set(one["answers"]) & there  # type: ignore[call-overload]
            request = Search(str(one["question"]), mode=mode, exact=exact)
            began = time.perf_counter()
            hits = search(connection, defined, None if mode == "text" else embedder, request).hits
            times.append(1000 * (time.perf_counter() - began))
            names = {ids[hit.key[0]] for hit in hits}
            recalls.append(len(right & names) / max(1, len(right)))
            found += bool(right & names)
        name = f"{mode}{' exact' if exact else ''}"
        fields = (
            name,
            f"{statistics.mean(recalls):.3f}",
            f"{found} of {len(questions)}",
            f"{statistics.median(times):.1f} ms",
        )
        print(
            "| " + " | ".join(fields) + " |" if markdown else "{:14} recall@10 {}   found {}   {}".format(*fields),
            flush=True,
        )


def _index(connection: Connection, defined: Vectorizer, embedder: Embedder, questions: list[str]) -> None:
    lines = [
        text.splitlines()[0]
        for (text,) in connection.execute("SELECT docstring FROM pgvec_demo ORDER BY md5(name) LIMIT 500")
    ]
    for what, queries in (("the questions", questions), ("500 first lines", [line for line in lines if line.strip()])):
        shares = []
        for query in queries:
            near, best = (
                {
                    (hit.key[0], hit.chunk_index)
                    for hit in search(connection, defined, embedder, Search(query, exact=exact)).hits
                }
                for exact in (False, True)
            )
            shares.append(len(near & best) / len(best))
        print(f"HNSW against exact, {what}: {statistics.mean(shares):.4f} of the ten nearest", flush=True)


def _overhead(
    connection: Connection, defined: Vectorizer, embedder: Embedder, address: str, questions: list[str], rounds: int
) -> int:
    with httpx2.Client(base_url=address, timeout=60) as client:

        def over_http(query: str) -> None:
            answer = client.post("/api/v1/search", json={"query": query, "limit": 10})
            assert len(answer.raise_for_status().json()["hits"]) == 10

        def by_hand(query: str) -> None:
            assert len(search(connection, defined, embedder, Search(query)).hits) == 10

        times: dict[str, list[float]] = {"http": [], "hand": []}
        _timed(over_http, "the first one loads the model")
        for turn in range(rounds):
            # In turns, and neither always first: what the machine does besides hits both.
            for place, question in enumerate(questions):
                ways: list[tuple[str, Callable[[str], None]]] = [("http", over_http), ("hand", by_hand)]
                for name, way in ways[:: 1 if place % 2 else -1]:
                    times[name].append(_timed(way, f"{question} {turn} {name}"))
    medians = {name: statistics.median(found) for name, found in times.items()}
    more = medians["http"] - medians["hand"]
    print(
        f"over HTTP {medians['http']:.1f} ms (p95 {_p95(times['http']):.1f}), by hand {medians['hand']:.1f} ms"
        f" (p95 {_p95(times['hand']):.1f}): {more:.1f} ms more; bar {BAR:.0f} ms: {'kept' if more <= BAR else 'missed'}"
    )
    return 0 if more <= BAR else 1


def _p95(found: list[float]) -> float:
    return sorted(found)[int(len(found) * 0.95)]


def _timed(way: Callable[[str], None], query: str) -> float:
    began = time.perf_counter()
    way(query)
    return 1000 * (time.perf_counter() - began)


@contextmanager
def _gateway(dsn: str) -> Iterator[str]:
    """A gateway in a process of its own; yields its address."""
    command = [sys.executable, "-m", "pgvec_queue", "serve", "--port", "0", "--log-level", "error", "--dsn", dsn]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    sys.exit(main())
