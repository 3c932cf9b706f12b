"""What `pgvec enqueue --dry-run` tells, against what then happens: three tables of real text.

    python -m benchmarks.dryrun [--scale 1.0] [--only titles|functions|modules] [--markdown]

Each table is estimated three times: as it is, with the sizes of all rows and a sample of documents; as if it were
large, from a sample of its pages; and from as many documents as may be read, which shows the error of the arithmetic.
Then it is enqueued and worked off by one worker, and an HNSW index is built.
"""

from __future__ import annotations

import argparse
import ast
import io
import itertools
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from benchmarks import common
from pgvec_queue import definition, demo
from pgvec_queue.bench import texts
from pgvec_queue.database import Connection, Database, versions
from pgvec_queue.estimate import estimator, survey
from pgvec_queue.estimate.estimator import Estimate, Wish
from pgvec_queue.estimate.totals import Interval

_SKIPPED = {"test", "tests", "site-packages"}
_MEMORY_MB = 8


@dataclass(frozen=True)
class Table:
    """One table of the comparison."""

    name: str
    rows: list[tuple[str | None, str]]
    """Text, and the value to filter by."""
    options: dict[str, Any]
    flags: list[str]
    sample: int


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    options.add_argument("--scale", type=float, default=1.0)
    options.add_argument("--only", choices=["titles", "functions", "modules"])
    options.add_argument("--markdown", action="store_true")
    chosen = options.parse_args()
    # A large table has hundreds of pages for each that is read; these have not, and a few are to do for them.
    survey._FEWEST_PAGES, survey._ROWS_PER_DOCUMENT = 100, 3
    worst = 0.0
    for table in _tables(chosen.scale):
        if chosen.only in (None, table.name):
            with common.server() as (dsn, connection):
                worst = max(worst, _compare(dsn, connection, table, markdown=chosen.markdown))
    print(f"the largest error: {worst:.1%}")
    return 0 if worst <= 0.15 else 1


def _tables(scale: float) -> Iterator[Table]:
    titles = list(dict.fromkeys(_comments()))[: round(40_000 * scale)]
    yield Table("titles", [(text, "x") for text in titles], _hashing(no_chunking=True), ["--no-chunking"], 2_000)
    functions = [*_some(_functions(), round(30_000 * scale)), *dict.fromkeys(_files())]
    functions = list(dict.fromkeys(functions))
    yield Table("functions", [(text, "x") for text in functions], _hashing(), [], 2_000)
    documents = texts.documents()
    long = ["\n\n".join(next(documents) for _ in range(1 + i % 7)) for i in range(round(700 * scale))]
    rows = [(None if i % 20 == 7 else text, "en" if i % 5 else "de") for i, text in enumerate(long)]
    yield Table("modules", rows, {"where": "lang = 'en'"}, ["--where", "lang = 'en'"], 200)


def _some(found: Iterator[str], count: int) -> list[str]:
    """The first ones, each once."""
    once: dict[str, None] = {}
    for text in found:
        once[text] = None
        if len(once) == count:
            break
    return list(once)


def _hashing(**options: Any) -> dict[str, Any]:
    return {"model": "hashing-384", **options}


def _sources(library: str = "stdlib") -> Iterator[str]:
    root = Path(sysconfig.get_path(library))
    for path in sorted(root.rglob("*.py")):
        if not _SKIPPED & set(path.relative_to(root).parts):
            try:
                yield path.read_text("utf-8").replace("\0", "\ufffd")
            except UnicodeDecodeError:
                continue


def _comments() -> Iterator[str]:
    """Lines of a few words: names of what is documented, comments, and first lines of docstrings."""
    for found in demo.docstrings():
        yield f"{found.name}: {found.text.splitlines()[0]}"
    for source in _sources():
        try:
            for token in tokenize.generate_tokens(io.StringIO(source).readline):
                if token.type == tokenize.COMMENT and len(token.string) > 20:
                    yield token.string.strip("# ")
        except (tokenize.TokenError, SyntaxError, IndentationError):
            continue


def _functions() -> Iterator[str]:
    """Functions and classes, of Python's library and then of installed packages: a line long, or a thousand."""
    for source in itertools.chain(_sources(), _sources("purelib")):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(source)
        except (SyntaxError, ValueError):
            continue
        lines = source.splitlines()
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                yield "\n".join(lines[node.lineno - 1 : node.end_lineno])


def _files() -> Iterator[str]:
    """Whole modules, and what the system's packages say of themselves: the long tail."""
    yield from _sources()
    for path in sorted(Path("/usr/share/doc").rglob("*")):
        if path.is_file() and not path.is_symlink() and path.suffix in ("", ".txt", ".md", ".rst"):
            try:
                text = path.read_text("utf-8")
            except (UnicodeDecodeError, OSError):
                continue
            if text.strip() and "\0" not in text:
                yield text


def _compare(dsn: str, connection: psycopg.Connection[Any], table: Table, *, markdown: bool) -> float:
    connection.execute(f"CREATE TABLE {table.name} (id bigint PRIMARY KEY, body text, lang text)".encode())
    with connection.cursor() as cursor, cursor.copy(f"COPY {table.name} (id, body, lang) FROM STDIN".encode()) as copy:
        for i, (text, lang) in enumerate(table.rows):
            copy.write_row((i, text, lang))
    connection.execute(f"VACUUM ANALYZE {table.name}".encode())
    told = {
        "sample of documents": _estimate(dsn, table, Wish(table.sample, seed=1)),
        "sample of pages": _estimate(dsn, table, Wish(table.sample, small=0, seed=1)),
        "as many documents as may be": _estimate(dsn, table, Wish(10**6, seed=1)),
    }
    happened = _work(dsn, connection, table)
    worst = 0.0
    for way, found in told.items():
        size = f"{len(table.rows):,} rows, {way}: {found.sampled_rows:,} rows, {found.sampled_documents:,} documents"
        print(f"\n{table.name}: {size}")
        if markdown:
            print("| | estimate | interval | then | error |\n|---|---|---|---|---|")
        for name, truth in happened.items():
            value: Interval | None = getattr(found, name)
            assert value is not None, name
            error = (value.estimate - truth) / truth if truth else 0.0
            worst = max(worst, abs(error))
            inside = "" if value.low * (1 - 1e-9) <= truth <= value.high * (1 + 1e-9) else " OUTSIDE"
            between = "exact" if value.is_exact else f"{value.low:,.0f} to {value.high:,.0f}"
            if markdown:
                print(f"| {name} | {value.estimate:,.0f} | {between} | {truth:,.0f}{inside} | {error:+.1%} |")
            else:
                print(f"  {name:26} {value.estimate:>16,.0f}  {between:>34}  {truth:>16,.0f}  {error:+7.1%}{inside}")
    return worst


def _estimate(dsn: str, table: Table, wish: Wish) -> Estimate:
    connection: Connection
    with Database(dsn).connect("bench") as connection:
        connection.read_only = True
        found = versions(connection)
        options = definition.Options(source=table.name, text=("body",), **table.options)
        return estimator.estimate(connection, definition.propose(connection, options, found), found, wish)


def _work(dsn: str, connection: psycopg.Connection[Any], table: Table) -> dict[str, float]:
    """Does it, and measures all that was told."""

    def value(query: str) -> float:
        row = connection.execute(query.encode()).fetchone()
        assert row is not None
        return float(row[0])

    model = ["--model", table.options["model"]] if "model" in table.options else []
    began = value("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
    assert common.run(dsn, "enqueue", table.name, "--text", "body", *model, *table.flags).code == 0
    assert common.run(dsn, "work", "--drain").code == 0
    worked = value("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
    vectors = f"{table.name}_vectors"
    connection.execute("SET maintenance_work_mem = '2GB'")
    connection.execute(f"CREATE INDEX hnsw ON {vectors} USING hnsw (embedding vector_cosine_ops)".encode())
    indexed = value("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")
    unique = f"(SELECT indexrelid FROM pg_index WHERE indrelid = '{vectors}'::regclass AND indisunique)"
    chunks = value(f"SELECT count(*) FROM {vectors}")
    happened = {
        "rows_in_source": value(f"SELECT count(*) FROM {table.name}"),
        "rows_selected": value("SELECT rows_total FROM pgvec.progress"),
        "rows_new": value("SELECT rows_embedded FROM pgvec.progress"),
        "chunks": chunks,
        "tokens": value("SELECT tokens FROM pgvec.progress"),
        "jobs": value("SELECT count(*) FROM pgvec.jobs"),
        "table_bytes": value(f"SELECT pg_table_size('{vectors}')"),
        "key_index_bytes": value(f"SELECT pg_relation_size({unique})"),
        "wal_bytes": worked - began,
        "hnsw_vector_bytes": value("SELECT pg_relation_size('hnsw')"),
        "hnsw_wal_bytes": indexed - worked,
    }
    if fitted := _fitted(connection, vectors):
        happened["hnsw_vector_memory_bytes"] = _MEMORY_MB * 2**20 / fitted * chunks
    return happened


def _fitted(connection: psycopg.Connection[Any], vectors: str) -> int | None:
    """Returns how many vectors a build holds in so much memory, as pgvector says when there is no more room."""
    notices: list[str] = []
    connection.add_notice_handler(lambda notice: notices.append(notice.message_primary or ""))
    connection.execute(f"CREATE TABLE part AS SELECT embedding FROM {vectors} LIMIT {_MEMORY_MB * 600}".encode())
    connection.execute(f"SET maintenance_work_mem = '{_MEMORY_MB}MB'".encode())
    connection.execute("SET max_parallel_maintenance_workers = 0")
    connection.execute("CREATE INDEX ON part USING hnsw (embedding vector_cosine_ops)")
    told = [notice for notice in notices if "no longer fits" in notice]
    return int(told[0].split()[-2]) if told else None


if __name__ == "__main__":
    sys.exit(main())
