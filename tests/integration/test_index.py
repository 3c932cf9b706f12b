"""The index on the vectors: when it is built, by whom, what is respected, and what is refused."""

from __future__ import annotations

from pgvec_queue.worker import Outcome
from tests.support import Bench


def _fill(bench: Bench, rows: int, table: str = "docs") -> None:
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text)")
    bench.sql(f"INSERT INTO {table} SELECT i, 'document ' || i FROM generate_series(1, {rows}) i")


def test_a_backfill_ends_with_an_index_that_searches_go_through(bench: Bench) -> None:
    _fill(bench, 300)
    bench.enqueue("docs", "body", model="hashing-3000", index=True)
    assert bench.drain() is Outcome.COMPLETE
    print(bench.sql("SELECT * FROM pgvec.index_status"))
    print(bench.sql("SELECT * FROM pg_indexes where tablename='docs_vectors'"))
    bench.sql("LOAD 'auto_explain'")
    bench.sql("SET auto_explain.log_min_duration=0")
    bench.sql("SET auto_explain.log_nested_statements=on")
    bench.sql("SET client_min_messages=log")
    bench.connection.add_notice_handler(lambda d: print(d.message_primary))
    with bench.connection.transaction():
        bench.sql("SET LOCAL enable_seqscan=off")
        for p in range(1, 3):
            print(
                bench.sql(
                    "SELECT s.key, s.score FROM docs_vectors d, pgvec.search(1, d.embedding::real[], max_hits=>5) s WHERE d.id=5"
                )
            )
    print(
        bench.sql(
            "SELECT s.key, s.score FROM docs_vectors d, pgvec.search(1, d.embedding::real[], max_hits=>5,exact=>true) s WHERE d.id=5"
        )
    )
    assert 0
