from __future__ import annotations
import pytest
from pgvec_queue.catalog import quoted_name
from tests.oracle import assert_right
from tests.support import Bench

NAMES = ['my "own".schema', "100%", "%s", "%(lower)s", "Größe ✓", "a.b", "Upper", "select", " lead", "it's", "{source}", "$1", "back\\slash", "%%"]

@pytest.mark.parametrize("name", NAMES)
def test_names(bench: Bench, name: str) -> None:
    q = '"' + name.replace('"', '""') + '"'
    bench.sql(f"CREATE SCHEMA {q}")
    bench.sql(f"CREATE TABLE {q}.{q} ({q} int PRIMARY KEY, {q}2 int)".replace(f"{q}2", '"' + name.replace('"','""') + '2"'))
    bench.sql(f"ALTER TABLE {q}.{q} ADD body{''} text")
    t = '"' + name.replace('"', '""') + ' t"'
    bench.sql(f"ALTER TABLE {q}.{q} ADD {t} text")
    bench.sql(f"INSERT INTO {q}.{q} SELECT i, i, 'body ' || i, 'text ' || i FROM generate_series(1, 5) i")
    source = quoted_name(name, name)
    table = bench.enqueue(source, name + " t", name="table", where=f"{q} < 5", rows_per_job=2)
    col = bench.enqueue(source, name + " t", name="column", into_column=name + " v", where=f"{q} < 5", rows_per_job=2)
    m = name + " m"
    mq = '"' + m.replace('"', '""') + '"'
    bench.sql(f"CREATE TABLE {q}.{mq} ({q} text, {t} vector)")
    mapped = bench.enqueue(source, name + " t", name="mapped", into=quoted_name(name, m), columns={"key": [name], "embedding": [name + " t"]}, rows_per_job=2, limit=4)
    bench.drain(listen=False)
    assert_right(bench, table, col)
    bench.sql(f"DELETE FROM {q}.{q} WHERE {q} = 2")
    bench.sql(f"UPDATE {q}.{q} SET {t} = 'x' WHERE {q} = 3")
    bench.enqueue(source, name + " t", name="table", where=f"{q} < 5")
    bench.enqueue(source, name + " t", name="column", into_column=name + " v", where=f"{q} < 5", rows_per_job=2)
    bench.enqueue(source, name="mapped")
    bench.drain(listen=False)
    assert_right(bench, table, col)
    from tests.oracle import found
    print(found(bench, mapped))
    assert bench.sql("SELECT name, blocked_reason from pgvec.vectorizers where blocked_reason is not null") == []
    print(bench.sql("SELECT kind, lower_key, upper_key, state FROM pgvec.jobs where vectorizer_id=%s", mapped.id))
    assert [k for k, *_ in found(bench, mapped)] == ['1', '3', '4', '5']
