"""The index on the vectors: when it is built, by whom, what is respected, and what is refused."""

from __future__ import annotations

import pytest

from pgvec_queue.worker import Outcome
from tests.support import Bench


def _fill(bench: Bench, rows: int, table: str = "docs") -> None:
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO {table} SELECT i, 'document ' || i FROM generate_series(1, {rows}) i")


def test_a_backfill_ends_with_an_index_that_searches_go_through(bench: Bench) -> None:
    _fill(bench, 300)
    bench.enqueue("docs", "body", model="hashing-32", index=True)
    assert bench.drain() is Outcome.COMPLETE
    print(bench.sql("SELECT * FROM pgvec.index_status"))
    print(bench.sql("SELECT * FROM pgvec.jobs"))
    print(bench.sql("SELECT * FROM pg_indexes where tablename='docs_vectors'"))
    assert 0
