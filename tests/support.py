"""What integration tests share: a vectorizer over a table, made, planned and worked off through the real parts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import psycopg

from pgvec_queue import definition, progress, queue, reading, writing
from pgvec_queue.chunking import Chunker
from pgvec_queue.database import Connection, Database, versions
from pgvec_queue.definition import Defined, Options
from pgvec_queue.embedders import DeviceOptions, load
from pgvec_queue.fragments import Fragments
from pgvec_queue.planner import Planned, Planner
from pgvec_queue.slices import Embedded, Slice, Written
from pgvec_queue.vectorizer import Vectorizer
from pgvec_queue.worker import Outcome, Worker, WorkerOptions

WORDS = [
    *("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa"),
    *("lambda", "mu", "nu", "xi", "omicron", "pi", "rho", "sigma", "tau"),
]


@dataclass
class Bench:
    """A database with our schema, and the steps that the command line takes, one by one."""

    dsn: str
    database: Database = field(init=False)
    connection: Connection = field(init=False)
    partitions: int | None = None
    """Of destinations that are made, where nothing else is said."""

    def __post_init__(self) -> None:
        self.database = Database(self.dsn)
        # The test's own statements may be such as run in no transaction, and come from several threads.
        self.connection = psycopg.connect(self.dsn, autocommit=True, prepare_threshold=None)

    def close(self) -> None:
        self.connection.close()

    def sql(self, text: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Runs a statement of the test's own; returns its rows, if it has any."""
        cursor = self.connection.execute(text.encode(), parameters or None)
        return cursor.fetchall() if cursor.description is not None else []

    def value(self, text: str, *parameters: Any) -> Any:
        return self.sql(text, *parameters)[0][0]

    def upgrade_to(self, revision: str, oldest_program: str | None = None) -> None:
        """Has the schema say that it is of another revision, and which programs work with it: only its own if None."""
        self.sql("UPDATE pgvec.alembic_version SET version_num = %s", revision)
        oldest = oldest_program or revision
        self.sql(
            "CREATE OR REPLACE FUNCTION pgvec.oldest_program() RETURNS text LANGUAGE sql STABLE PARALLEL SAFE"
            f" AS $$ SELECT '{oldest}'::text $$"
        )

    def define(self, source: str, *text: str, **options: Any) -> Defined:
        """Defines a vectorizer; the hashing embedder and whole documents where nothing else is said."""
        options.setdefault("model", "hashing-8")
        if "into_column" not in options:
            options.setdefault("partitions", self.partitions)
        options.setdefault("no_chunking", "chunk_size" not in options and "into_column" not in options)
        return definition.define(
            self.connection, Options(source=source, text=text, **options), versions(self.connection)
        )

    def fragments(self, vectorizer: Vectorizer) -> Fragments:
        return Fragments(vectorizer, versions(self.connection).vector_schema)

    def plan(self, vectorizer: Vectorizer, limit: int | None = None) -> Planned:
        return Planner(self.connection, self.fragments(vectorizer)).plan(limit)

    def enqueue(self, source: str, *text: str, limit: int | None = None, **options: Any) -> Vectorizer:
        vectorizer = self.define(source, *text, **options).vectorizer
        self.plan(vectorizer, limit)
        return vectorizer

    def drain(self, **options: Any) -> Outcome:
        return Worker(self.database, WorkerOptions(drain=True, **options)).run()

    def progress(self, name: str) -> progress.Progress:
        return progress.read(self.connection, name)[0]

    def wrong(self, vectorizer: Vectorizer) -> dict[str, int]:
        """Compares source and destination in SQL alone: rows missing, stale or orphaned, and chunks twice."""
        assert not vectorizer.into_column
        assert len(vectorizer.key_columns) == 1
        key = f's."{vectorizer.key_columns[0]}"'
        roles = vectorizer.destination_roles
        document = " || E'\\n\\n' || ".join(f's."{c}"' for c in vectorizer.text_columns)
        source = f'"{vectorizer.source_schema}"."{vectorizer.source_table}" s'
        destination = f'"{vectorizer.destination_schema}"."{vectorizer.destination_table}" d'
        same = f'd."{roles.key[0]}" = {key}::{vectorizer.destination_key_types[0]}'
        selected = f"({vectorizer.filter or 'true'}) AND btrim({document}) <> ''"
        counts = {
            "missing": f"SELECT count(*) FROM {source} WHERE {selected}"
            f" AND NOT EXISTS (SELECT FROM {destination} WHERE {same})"
            f" AND NOT EXISTS (SELECT FROM pgvec.failures f WHERE f.key = ARRAY[{key}::text])",
            "orphaned": f"SELECT count(*) FROM {destination} WHERE NOT EXISTS"
            f" (SELECT FROM {source} WHERE {same} AND {selected})",
        }
        if roles.source_hash:
            counts["stale"] = (
                f"SELECT count(*) FROM {source} JOIN {destination} ON {same}"
                f" WHERE d.\"{roles.source_hash}\" <> substring(sha256(convert_to({document}, 'UTF8')) FOR 16)"
            )
        return {name: self.value(query) for name, query in counts.items()}

    def claim(self, worker: queue.Membership) -> queue.Job:
        """Claims the next job by hand."""
        job = queue.Claimer(worker, None).claim(self.connection)
        assert job is not None
        return job

    def register(self, lease: float = 60.0) -> queue.Membership:
        return queue.register(self.connection, names=None, lease=lease)

    def read(self, vectorizer: Vectorizer, job: queue.Job, rows: int = 1_000) -> Slice:
        return reading.read(self.connection, self.fragments(vectorizer), job, rows=rows, max_bytes=1 << 20)

    def embed(self, vectorizer: Vectorizer, part: Slice) -> list[Embedded]:
        """Chunks and embeds a slice as the stages would."""
        embedder = load(vectorizer.spec, DeviceOptions())
        chunker = Chunker(embedder.tokenizer, vectorizer.chunk_size or 512, vectorizer.chunk_overlap or 0)
        embedded = []
        for document in part.documents:
            assert document.text is not None
            whole = chunker.whole(document.text, None, None)
            chunks = chunker.chunks(document.text) if vectorizer.chunk_size else [whole] if whole else []
            vectors = embedder.embed_documents([c.input for c in chunks], [c.tokens for c in chunks])
            embedded.append(Embedded(document, chunks, vectors))
        return embedded

    def write(
        self,
        vectorizer: Vectorizer,
        part: Slice,
        embedded: Sequence[Embedded],
        worker: queue.Membership,
        connection: Any = None,
    ) -> Written:
        return writing.write(connection or self.connection, self.fragments(vectorizer), part, embedded, worker)


def pgvec(*arguments: str, dsn: str | None = None, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts the command line as a user would; both outputs are pipes."""
    import os

    environment = {**os.environ, **(env or {})}
    if dsn is not None:
        environment["PGVEC_DSN"] = dsn
    return subprocess.Popen(
        [sys.executable, "-m", "pgvec_queue", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env=environment,
    )


@dataclass(frozen=True)
class Ran:
    """What a command line printed and returned."""

    code: int
    out: str
    err: str


def run_pgvec(*arguments: str, dsn: str | None = None, env: dict[str, str] | None = None, timeout: float = 120) -> Ran:
    """Runs the command line to its end."""
    process = pgvec(*arguments, dsn=dsn, env=env)
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    return Ran(process.returncode, out, err)
