"""The comparisons: who takes part in each, on which terms, and the bar that ours has to reach."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks.peers import databases, documents, jobqueues, ours, plain, rounds
from benchmarks.peers.endpoint import DIMENSIONS
from benchmarks.peers.environments import Environment, UnavailableError, provide
from benchmarks.peers.pgai import STARTS, Pgai
from benchmarks.peers.report import Section
from benchmarks.peers.rounds import RATE, Contender, Figures
from pgvec_queue import schema
from pgvec_queue.database import Database
from pgvec_queue.definition import Options
from pgvec_queue.embedded import Server
from pgvec_queue.embedders import DEFAULT_MODEL, ModelSpec, model_files

BAR_LOAD = 10.0
BAR_ENDPOINT = 5.0
_BAD_ROWS = 1_000
_WORDS = {
    "version": "1.0",
    "added_tokens": [],
    "pre_tokenizer": {"type": "WhitespaceSplit"},
    "model": {"type": "WordLevel", "vocab": {"?": 0}, "unk_token": "?"},
}
"""A tokenizer.json that makes a token of every word."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is done, and how often."""

    rounds: int
    rows: int
    fast_rows: int
    plan_rows: int
    documents: int
    jobs: int

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bench:
    """What every comparison needs: the server, the endpoint's URL without ``/v1``, and where peers are installed."""

    cluster: Server
    url: str
    scratch: Path
    sizes: Sizes

    def ours(self, name: str, task: Callable[[Server], Figures]) -> Contender:
        return Contender(name, lambda: task(self.cluster), ours=True)

    def with_pgai(self, name: str, task: Callable[[Pgai], Figures]) -> Contender:
        return Contender(name, lambda: task(Pgai(self.cluster, provide(self.scratch, "pgai"), self.url)))

    def with_queue(self, name: str, peer: str, task: Callable[[Environment], Figures]) -> Contender:
        return Contender(name, lambda: task(provide(self.scratch, peer)))

    def endpoint(self, tokenizer: str) -> Options:
        return Options(
            source="",
            embedder="openai",
            model="free",
            endpoint=f"{self.url}/v1",
            tokenizer=tokenizer,
            dimensions=DIMENSIONS,
            no_chunking=True,
        )


def load(bench: Bench) -> Iterator[Section]:
    """Everything but a model: none on either side."""
    few, many = documents.made(bench.sizes.rows), documents.made(bench.sizes.fast_rows)
    hashing = Options(source="", model=f"hashing-{DIMENSIONS}", no_chunking=True)
    minilm = str(model_files.locate(ModelSpec("sentence-transformers", DEFAULT_MODEL)).path)
    with _word_tokenizer() as words:
        results = rounds.alternate(
            [
                bench.with_pgai("pgai, 1 process", lambda pgai: pgai.embed(few, 1)),
                bench.ours("ours, hashing", lambda cluster: ours.embed(cluster, many, hashing)),
                bench.with_pgai("pgai, 4 processes", lambda pgai: pgai.embed(few, 4)),
                bench.ours("ours, endpoint", lambda cluster: ours.embed(cluster, many, bench.endpoint(minilm))),
                bench.ours(
                    "ours, endpoint, counting words", lambda cluster: ours.embed(cluster, many, bench.endpoint(words))
                ),
            ],
            bench.sizes.rounds,
        )
    one, hashed, four, through_endpoint, counting_words = results
    best = rounds.best([one, four], RATE)
    yield Section(
        "load",
        f"load: texts of about {documents.CHARACTERS} characters, not chunked, vectors of {DIMENSIONS} dimensions; "
        f"pgai {bench.sizes.rows:,} rows a round, ours {bench.sizes.fast_rows:,}; start-up excluded",
        results,
        [
            *rounds.ratio(hashed, best, RATE, BAR_LOAD),
            *rounds.ratio(through_endpoint, best, RATE, BAR_ENDPOINT),
            *rounds.ratio(counting_words, best, RATE, BAR_ENDPOINT),
        ],
    )


def plan(bench: Bench) -> Iterator[Section]:
    """Queueing the rows that a table already has."""
    rows = bench.sizes.plan_rows
    results = rounds.alternate(
        [
            bench.with_pgai("pgai, create_vectorizer", lambda pgai: pgai.queue(rows)),
            bench.ours("ours, enqueue", lambda cluster: _enqueue(cluster, rows)),
        ],
        bench.sizes.rounds,
    )
    theirs, mine = results
    yield Section("plan", f"plan: queueing the {rows:,} rows of a table", results, rounds.ratio(mine, theirs, RATE))


def with_encode(bench: Bench) -> Iterator[Section]:
    """The script that most people write first, with the real model on this machine."""
    texts = documents.docstrings(bench.sizes.documents)
    whole = Options(source="", no_chunking=True, too_long="truncate")
    results = rounds.alternate(
        [
            Contender("encode(batch_size=32) + executemany", lambda: plain.embed(bench.cluster, texts)),
            bench.ours("ours", lambda cluster: {RATE: ours.embed(cluster, texts, whole)[ours.IN_ALL]}),
        ],
        bench.sizes.rounds,
    )
    script, mine = results
    yield Section(
        "plain",
        f"plain: {len(texts)} docstrings, whole, cut to what the model reads, from table to table",
        results,
        rounds.ratio(mine, script, RATE),
    )


def noop(bench: Bench) -> Iterator[Section]:
    """Jobs that do nothing, in one process."""
    jobs = bench.sizes.jobs

    def procrastinate(environment: Environment, concurrency: int) -> Figures:
        script, left = "procrastinate_jobs.py", jobqueues.PROCRASTINATE_LEFT
        return jobqueues.JobQueue(bench.cluster, environment, script, left).work(jobs, str(concurrency))

    def pgqueuer(environment: Environment) -> Figures:
        script, left = "pgqueuer_jobs.py", jobqueues.PGQUEUER_LEFT
        return jobqueues.JobQueue(bench.cluster, environment, script, left).work(jobs)

    results = rounds.alternate(
        [
            bench.with_queue("procrastinate", "procrastinate", lambda env: procrastinate(env, 1)),
            bench.ours("ours, claim + finish", lambda cluster: jobqueues.claim_and_finish(cluster, jobs)),
            bench.with_queue("procrastinate, 10 at a time", "procrastinate", lambda env: procrastinate(env, 10)),
            bench.with_queue("PgQueuer, 5 x 10 at a time", "pgqueuer", pgqueuer),
        ],
        bench.sizes.rounds,
    )
    yield Section("noop", f"noop: {jobs:,} queued jobs that do nothing, one process", results)


def bad(bench: Bench) -> Iterator[Section]:
    """One row in a thousand that the endpoint refuses; once, since it is no matter of speed."""
    texts = documents.with_one_bad(_BAD_ROWS)
    with _word_tokenizer() as words:
        results = rounds.alternate(
            [
                bench.with_pgai(f"pgai, started {STARTS} times", lambda pgai: pgai.embed_with_a_bad_row(texts)),
                bench.ours("ours", lambda cluster: ours.embed_with_a_bad_row(cluster, texts, bench.endpoint(words))),
            ],
            1,
        )
    yield Section("bad", f"bad: one of {_BAD_ROWS:,} rows is refused by the endpoint", results)


COMPARISONS: Mapping[str, Callable[[Bench], Iterator[Section]]] = {
    "load": load,
    "plan": plan,
    "plain": with_encode,
    "noop": noop,
    "bad": bad,
}


def _enqueue(cluster: Server, rows: int) -> Figures:
    with databases.fresh(cluster) as dsn:
        schema.initialize(Database(dsn))
        with psycopg.connect(dsn, autocommit=True) as connection:
            documents.fill_short(connection, "docs", rows)
            began = databases.now(connection)
            planned = ours.plan(connection, "docs")
            ended = databases.now(connection)
            if planned.rows != rows:
                raise UnavailableError(f"{planned.rows} of {rows} rows were planned")
            size = connection.execute("SELECT pg_total_relation_size('pgvec.jobs')").fetchone()
            return {RATE: rows / (ended - began), "bytes of queue per row": (size or (0,))[0] / rows}


@contextmanager
def _word_tokenizer() -> Iterator[str]:
    """The path of a tokenizer that costs next to nothing."""
    with tempfile.TemporaryDirectory(prefix="pgvec-bench-") as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_text(json.dumps(_WORDS))
        yield str(path)
