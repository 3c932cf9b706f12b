"""From what a user asks for to a vectorizer that works: kinds of sources, keys and names, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from pgvec_queue.vectorizer import Vectorizer
from tests.oracle import assert_right
from tests.support import Bench


@dataclass(frozen=True)
class Keys:
    """A kind of key: its columns, and values in no order, the last one added later; all as SQL."""

    columns: str
    values: tuple[str, ...]
    before: str = "SELECT"
    key: str = "k"


KEYS = {
    "bigint": Keys("k bigint", ("7", "-3", "0", "9223372036854775807", "12", "-9223372036854775808", "5")),
    "int": Keys("k int", ("7", "-3", "0", "2147483647", "12", "100", "5")),
    "smallint": Keys("k smallint", ("7", "-3", "0", "32767", "12", "100", "5")),
    "numeric": Keys("k numeric", ("7.5", "-0.001", "0", "'NaN'", "12.50", "1e40", "5")),
    "numeric(9,2)": Keys("k numeric(9,2)", ("7.5", "-0.01", "0", "12.50", "12", "1000", "5")),
    "double": Keys("k double precision", ("0.1", "1e-300", "'-infinity'", "'NaN'", "0.30000000000000004", "7", "0.3")),
    "uuid": Keys("k uuid", tuple(f"'{c * 8}-0000-4000-8000-00000000000{c}'" for c in "3f0a7c5")),
    "text": Keys("k text", ("''", "'Ab'", "'a''b'", "'{\"x\",NULL}'", "E'b\\\\\\n'", "'ä%s'", "'NULL'")),
    "text C": Keys('k text COLLATE "C"', ("'b'", "'B'", "'a'", "'Ä'", "'ä'", "'Z'", "'A'")),
    "text icu": Keys('k text COLLATE "en-x-icu"', ("'b'", "'B'", "'a'", "'Ä'", "'ä'", "'Z'", "'A'")),
    "varchar": Keys("k varchar(12)", ("'b'", "'B '", "'a'", "'Ä'", "'ä'", "'Z'", "'A'")),
    "char": Keys("k char(5)", ("'b'", "'B'", "'a  b'", "'ab'", "'ä'", "'12345'", "'A'")),
    "bytea": Keys("k bytea", (r"'\x'", r"'\x00'", r"'\x5c'", r"'\xff00'", r"'\x27'", r"'\x0a'", r"'\x09'")),
    "date": Keys("k date", ("'2024-02-29'", "'1969-12-31'", "'infinity'", "'0044-03-15 BC'", "'12000-01-02'", "'2024-03-01'", "'2024-12-03'")),
    "timestamptz": Keys(
        "k timestamptz",
        ("'2024-03-31 01:30:00+00'", "'2024-10-27 02:30:00+02'", "'2024-10-27 02:30:00+01'", "'-infinity'", "'2024-01-01 00:00:00.000001+14'", "'1900-01-01'", "'2024-03-31 00:30:00Z'"),
    ),
    "interval": Keys("k interval", ("'1 month'", "'-1 day'", "'36:00:00.5'", "'1 year 2 mons'", "'0'", "'5 days'", "'4 days'")),
    "enum": Keys("k ext.mood", ("'sad'", "'a b'", "'ok'", "'it''s'", "'happy'", "'meh'", "'fine'"),
                 "CREATE SCHEMA ext; CREATE TYPE ext.mood AS ENUM ('sad', 'a b', 'ok', 'fine', 'it''s', 'happy', 'meh')"),
    "domain": Keys("k word", ("'b'", "'B'", "'a'", "'Ä'", "'ä'", "'Z'", "'A'"), "CREATE DOMAIN word AS text COLLATE \"C\" CHECK (length(value) = 1)"),
    "int, text": Keys("a int, b text", ("1, 'b'", "1, 'a'", "0, 'z'", "2, ''", "-1, 'ä'", "1, 'B'", "1, 'aa'"), key="a, b"),
    "text, date, smallint": Keys(
        'a text COLLATE "C", b date, c smallint',
        ("'x', '2024-02-01', 1", "'x', '2024-01-02', 2", "'X', '2024-02-01', 1", "'x', '2024-02-01', -1", "'', '-infinity', 0", "'y', '2023-01-01', 3", "'x', '2024-02-01', 0"),
        key="b, a, c",
    ),
}


@pytest.mark.parametrize("keys", KEYS.values(), ids=KEYS)
def test_each_kind_of_key_ends_with_exactly_the_right_destination(bench: Bench, keys: Keys) -> None:
    _unusual_settings(bench)
    bench.sql(keys.before)
    bench.sql(f"CREATE TABLE docs ({keys.columns}, n int, body text, PRIMARY KEY ({keys.key}))")
    for n, value in enumerate(keys.values[:-1]):
        bench.sql(f"INSERT INTO docs VALUES ({value}, {n}, 'document {n}')")
    table = bench.enqueue("docs", "body", rows_per_job=2)
    column = bench.enqueue("docs", "body", name="column", into_column="embedding", store="halfvec", rows_per_job=4)
    bench.drain(listen=False)
    assert_right(bench, table, column)
    before = _embedded(bench, table, column)
    assert before == [6, 6]
    bench.sql("UPDATE docs SET body = 'changed' WHERE n = 1")
    bench.sql("DELETE FROM docs WHERE n = 3")
    bench.sql("UPDATE docs SET body = NULL WHERE n = 4")
    bench.sql(f"INSERT INTO docs VALUES ({keys.values[-1]}, 6, 'added')")
    bench.enqueue("docs", "body")
    bench.enqueue("docs", "body", name="column", into_column="embedding", store="halfvec")
    bench.drain(listen=False)
    assert_right(bench, table, column)
    assert _embedded(bench, table, column) == [8, 8]


def _unusual_settings(bench: Bench) -> None:
    """What a database may have set, and what the text of a key would depend on."""
    name = bench.value("SELECT current_database()")
    for setting in ("TimeZone TO 'Asia/Kolkata'", "DateStyle TO 'German, DMY'", "IntervalStyle TO 'sql_standard'", "bytea_output TO 'escape'", "extra_float_digits TO -5"):
        bench.sql(f"ALTER DATABASE {name} SET {setting}")
        if not setting.startswith("bytea"):
            bench.sql(f"SET {setting}")


def _embedded(bench: Bench, *vectorizers: Vectorizer) -> list[int]:
    return [bench.progress(vectorizer.name).rows_embedded for vectorizer in vectorizers]
