"""What an error means, what it shows to a person, and what every transaction sets."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import psycopg
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict

from pgvec_queue import resources
from pgvec_queue.database import (
    Database,
    one_line,
    statement,
    transaction,
    versions,
)
from pgvec_queue.errors import DatabaseError

Connect = Callable[..., psycopg.Connection[tuple[Any, ...]]]

SECRET = "s3cret"


# What a person sees


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("one line", "one line"),
        ("\n\n  first \n second\n", "first"),
        ("", "OperationalError"),
        ('connection failed: FATAL:  role "x" does not exist', 'FATAL:  role "x" does not exist'),
        (
            "connection failed: no\nMultiple connection attempts failed. All failures were:\n"
            "- host: 'localhost', port: 1, hostaddr: '::1': connection failed: refused there\n"
            "- host: 'localhost', port: 1, hostaddr: '127.0.0.1': connection failed: refused here",
            "host: 'localhost', port: 1, hostaddr: '127.0.0.1': connection failed: refused here",
        ),
    ],
)
def test_an_error_is_told_in_its_first_telling_line(message: str, line: str) -> None:
    assert one_line(psycopg.OperationalError(message)) == line


def test_a_server_s_error_is_told_without_its_detail_and_in_one_line(connect: Connect) -> None:
    connection = connect()
    with pytest.raises(psycopg.Error) as raised:
        connection.execute("SELECT 1 +")
    assert one_line(raised.value) == "syntax error at end of input"
    with pytest.raises(psycopg.Error) as raised:
        connection.execute("DO $$ BEGIN RAISE EXCEPTION E'\\n  two\\nlines' USING DETAIL = 'x', HINT = 'y'; END $$")
    assert one_line(raised.value) == "two"


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://me:{}@localhost:1/shop",
        "host=/nowhere user=me password={} dbname=shop",
        "host=/nowhere user=me password='{} with a space'",
        "host=/nowhere sslmode=none password={}",
        "host=/nowhere port=port password={}",
        "host=/nowhere connect_timeout=soon password={}",
        "postgresql://me:{}%@localhost/shop",
        "host=localhost pass word={}",
        "host=localhost password={} again",
        "postgresql://me:{}@localhost:1/shop?nothing=here",
    ],
)
def test_no_password_is_in_an_error(dsn: str) -> None:
    with pytest.raises(DatabaseError) as refused:
        Database(dsn.format(SECRET)).connect("test")
    assert "\n" not in str(refused.value)
    assert SECRET not in "".join(traceback.format_exception(refused.value))


def test_an_error_names_the_database_that_cannot_be_reached() -> None:
    with pytest.raises(DatabaseError, match=r"cannot connect to the database shop at /nowhere:77: .*No such file"):
        Database(f"host=/nowhere port=77 dbname=shop password={SECRET}").connect("test")


@given(st.text().filter(lambda dsn: not _is_conninfo(dsn)))
@example(f"password {SECRET}")
def test_a_text_that_libpq_cannot_read_is_refused_unseen(dsn: str) -> None:
    with pytest.raises(DatabaseError) as refused:
        Database(dsn)
    assert str(refused.value).startswith("the connection string cannot be read; write a URI")
    assert refused.value.__cause__ is None


def _is_conninfo(text: str) -> bool:
    try:
        conninfo_to_dict(text)
    except psycopg.ProgrammingError:
        return False
    return True


def test_an_address_is_made_of_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Database("").address == "the local socket"
    assert Database(f"postgresql://me:{SECRET}@one:5433/shop").address == "shop at one:5433"
    monkeypatch.setenv("PGHOST", "two")
    monkeypatch.setenv("PGPORT", "5434")
    monkeypatch.setenv("PGDATABASE", "stock")
    assert Database("").address == "stock at two:5434"
    assert Database("dbname=shop").address == "shop at two:5434"


# What a connection and a transaction set


def test_a_connection_says_what_it_is_for_and_prepares_nothing(database: str) -> None:
    with Database(database).connect("planner") as connection:
        name = connection.execute("SELECT current_setting('application_name')").fetchone()
        assert name is not None
        assert str(name[0]).startswith("pgvec planner @")
        for _ in range(10):
            connection.execute("SELECT %s::int", [1])
        assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
        assert connection.autocommit


PINNED = {
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    "IntervalStyle": "iso_8601",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "statement_timeout": "1500ms",
    "lock_timeout": "250ms",
    "idle_in_transaction_session_timeout": "10s",
    "transaction_read_only": "on",
    "transaction_isolation": "read committed",
}


def _settings(connection: psycopg.Connection[tuple[Any, ...]]) -> dict[str, str]:
    rows = connection.execute(
        "SELECT name, current_setting(name) FROM unnest(%s::text[]) name", [[*PINNED, "application_name"]]
    )
    return dict(rows.fetchall())


def test_a_transaction_pins_what_keys_depend_on_and_leaves_the_session_as_it_was(connect: Connect) -> None:
    connection = connect()
    connection.execute("SET TimeZone TO 'Asia/Kolkata'; SET DateStyle TO German; SET bytea_output TO escape")
    before = _settings(connection)
    with transaction(connection, statement_timeout=1.5, lock_timeout=0.25, read_only=True):
        assert {name: value for name, value in _settings(connection).items() if name in PINNED} == PINNED
        with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
            connection.execute("CREATE TABLE t ()")
    assert _settings(connection) == before


def test_a_transaction_that_fails_leaves_nothing(connect: Connect) -> None:
    connection = connect()
    with pytest.raises(psycopg.errors.DivisionByZero), transaction(connection):
        connection.execute("CREATE TABLE t (); SELECT 1 / 0")
    assert connection.execute("SELECT to_regclass('t')").fetchone() == (None,)


@pytest.mark.parametrize(("version", "fits"), [("0.6.2", False), ("0.7", True), ("0.10.0", True), ("1.0", True)])
def test_pgvector_has_to_be_new_enough(connect: Connect, version: str, fits: bool) -> None:
    connection = connect()
    connection.execute("UPDATE pg_extension SET extversion = %s WHERE extname = 'vector'", [version])
    if fits:
        assert versions(connection).pgvector == version
        return
    with pytest.raises(DatabaseError, match=r"pgvector is 0.6.2; pgvec-queue needs 0.7 or later"):
        versions(connection)


def test_a_database_without_pgvector_is_told_what_to_do(connect: Connect) -> None:
    connection = connect()
    assert versions(connection).vector_schema == "public"
    connection.execute("DROP EXTENSION vector")
    with pytest.raises(DatabaseError, match="no pgvector; run `pgvec init`, or CREATE EXTENSION vector"):
        versions(connection)


def test_a_named_statement_is_that_of_the_file(connect: Connect) -> None:
    assert (
        statement("queue", "listen").as_string(None) == resources.statements("queue")["listen"] == "LISTEN pgvec_jobs"
    )
    with pytest.raises(KeyError):
        statement("queue", "nothing")
