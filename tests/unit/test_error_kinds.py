"""Whose fault an error is: every SQLSTATE of PostgreSQL's appendix A, every HTTP status, and errors without either.

The tables are written out by hand. A code without a decision fails a test, so that a new one gets its own.
"""

from __future__ import annotations

from http import HTTPStatus

import psycopg
import pytest
from psycopg import errors

from pgvec_queue.database import Database, is_write_conflict, kind_of, transaction
from pgvec_queue.embedders.openai import kind_of_status
from pgvec_queue.errors import DatabaseError, EmbedderError, Kind, PgvecError

ROW, PASSING, VECTORIZER = Kind.ROW, Kind.PASSING, Kind.VECTORIZER

# The row's: another row may well succeed. Many of these come from a trigger or a function of the user's that met this
# row's values. Passing: the same again, later, may succeed, and nobody has to do anything for it but keep the server
# up. The vectorizer's: every row fails until somebody changes a table, a right or the definition.
CLASSES = {
    "02": VECTORIZER,  # no data: no error of a statement of ours
    "03": VECTORIZER,  # statement not yet complete: a fault of this program's
    "08": PASSING,  # connection exception; 08P01 is how pgbouncer says that a server connection broke
    "09": ROW,  # triggered action exception: a trigger's own reference check (refint) refuses the row
    "0A": VECTORIZER,  # feature not supported: such as writing through a view that cannot be written to
    "0B": VECTORIZER,  # invalid transaction initiation: a fault of the program's, of a trigger's or of this one
    "0F": VECTORIZER,  # locator exception: as 0B
    "0L": VECTORIZER,  # invalid grantor: rights
    "0P": VECTORIZER,  # invalid role specification: rights
    "0Z": VECTORIZER,  # diagnostics exception: a trigger's code is wrong, whatever the row
    "10": ROW,  # XQuery error: an XML function met a value that it cannot take
    "20": ROW,  # case not found: a trigger's CASE has no branch for this row
    "21": ROW,  # cardinality violation: a trigger's subquery finds two rows for this one
    "22": ROW,  # data exception: a value that does not fit, an invalid byte
    "23": ROW,  # integrity constraint violation: a CHECK, a foreign key
    "24": VECTORIZER,  # invalid cursor state: as 0B
    "25": PASSING,  # invalid transaction state: 25001 and 25006 on a standby, 25P03 and 25P04 after a time limit
    "26": PASSING,  # invalid statement name: nothing is prepared here, so a pooler mixed up its sessions
    "27": ROW,  # triggered data change violation: a trigger changes the row that is just being written
    "28": VECTORIZER,  # invalid authorization
    "2B": VECTORIZER,  # dependent objects still exist: DDL
    "2D": VECTORIZER,  # invalid transaction termination: a trigger that commits
    "2F": ROW,  # SQL routine exception: a function that ends without RETURN on this row's branch
    "34": VECTORIZER,  # invalid cursor name: as 0B
    "38": ROW,  # external routine exception: a trigger in PL/Python or PL/Perl raised for this row
    "39": VECTORIZER,  # external routine invocation exception: a trigger function attached to the wrong event
    "3B": VECTORIZER,  # savepoint exception: as 0B
    "3D": VECTORIZER,  # no such database
    "3F": VECTORIZER,  # no such schema
    "40": PASSING,  # transaction rollback: serialization failure, deadlock
    "42": VECTORIZER,  # syntax error or access rule violation: no such table or column, no right to it
    "44": ROW,  # WITH CHECK OPTION violation: the destination is a view that refuses this row
    "53": PASSING,  # insufficient resources: disk full, too many connections
    "54": ROW,  # program limit exceeded: an index row too large
    "55": VECTORIZER,  # not in prerequisite state: a published source without a replica identity
    "57": PASSING,  # operator intervention: cancelled, shutting down, starting up
    "58": PASSING,  # system error: I/O
    "72": PASSING,  # snapshot too old: the next one is younger
    "F0": VECTORIZER,  # configuration file error: a trigger's text search dictionary has no file
    "HV": VECTORIZER,  # foreign data wrapper error: the foreign table's definition
    "P0": ROW,  # PL/pgSQL error: RAISE, ASSERT and STRICT in a trigger of the user's
    "XX": PASSING,  # internal error: most come from DDL at the same moment
}

# Codes that are treated otherwise than their class.
CODES = {
    "39004": ROW,  # null value not allowed: this row's
    "55006": PASSING,  # object in use
    "55P03": PASSING,  # lock not available: lock_timeout
    "HV001": PASSING,  # out of memory at the foreign server
    "HV00N": PASSING,  # no connection to the foreign server
    "XX001": VECTORIZER,  # data corrupted: trying again mends nothing and hides it
    "XX002": VECTORIZER,  # index corrupted: as XX001
}

STATES = {
    error.sqlstate: error
    for error in vars(errors).values()
    if isinstance(error, type) and issubclass(error, psycopg.Error) and error.sqlstate
}


def test_every_sqlstate_has_the_kind_that_was_decided_for_it() -> None:
    assert {state for state in STATES if state not in CODES and state[:2] not in CLASSES} == set(), "decide these"
    decided = {state: CODES.get(state) or CLASSES[state[:2]] for state in STATES}
    assert {state: kind_of(error("x")) for state, error in STATES.items()} == decided


def test_no_decision_is_about_a_state_that_does_not_exist() -> None:
    assert set(CODES) <= set(STATES)
    assert set(CLASSES) == {state[:2] for state in STATES}
    assert [state for state, kind in CODES.items() if CLASSES[state[:2]] is kind] == []


def test_a_class_that_postgresql_does_not_have_is_one_that_a_trigger_chose(database: str) -> None:
    with Database(database).connect("test") as connection, pytest.raises(psycopg.Error) as raised:
        connection.execute("DO $$ BEGIN RAISE EXCEPTION 'not this row' USING ERRCODE = 'MY001'; END $$")
    assert raised.value.sqlstate == "MY001"
    assert kind_of(raised.value) is ROW


@pytest.mark.parametrize(
    ("statement", "kind"),
    [
        ("SELECT '[1,2]'::vector <-> '[1]'::vector", ROW),
        ("SELECT 1 / 0", ROW),
        ("SELECT * FROM nowhere", VECTORIZER),
        ("SELECT pg_sleep(60)", PASSING),
        ("CREATE TABLE t ()", PASSING),
    ],
)
def test_an_error_of_a_real_server_has_its_kind(database: str, statement: str, kind: Kind) -> None:
    with (
        Database(database).connect("test") as connection,
        pytest.raises(psycopg.Error) as raised,
        transaction(connection, statement_timeout=0.05, read_only=True),
    ):
        connection.execute(statement.encode())
    assert kind_of(raised.value) is kind


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (psycopg.OperationalError("the connection is closed"), PASSING),
        # A server that ended the session of a client that was silent for too long, behind a pooler.
        (psycopg.InternalError("received 2 results from command 'COMMIT'"), PASSING),
        (psycopg.errors.ConnectionTimeout("no answer"), PASSING),
        (DatabaseError("cannot connect"), PASSING),
        (ConnectionResetError("reset by peer"), PASSING),
        (TimeoutError("too late"), PASSING),
        (psycopg.DataError("PostgreSQL text fields cannot contain NUL (0x00) bytes"), ROW),
        (EmbedderError("too long", Kind.ROW), ROW),
        (EmbedderError("try again", Kind.PASSING), PASSING),
        (EmbedderError("no such model", Kind.VECTORIZER), VECTORIZER),
        (PgvecError("no"), VECTORIZER),
        (ValueError("a bug"), VECTORIZER),
    ],
)
def test_an_error_without_sqlstate_has_a_kind_too(error: BaseException, kind: Kind) -> None:
    assert kind_of(error) is kind


def test_only_what_two_writers_do_to_each_other_is_a_write_conflict() -> None:
    assert {code for code, error in STATES.items() if is_write_conflict(error("x"))} == {"23505", "40P01", "40001"}
    assert not is_write_conflict(ValueError("x"))


# Every other status from 300 to 499 fails for every text alike: rights, a wrong address, a wrong method, a redirect.
STATUSES = {
    400: ROW,  # bad request: the input is refused
    408: PASSING,  # request timeout
    409: PASSING,  # conflict
    413: ROW,  # the input is too large
    422: ROW,  # the input is refused
    425: PASSING,  # too early
    429: PASSING,  # too many requests
}


def test_every_http_status_has_the_kind_that_was_decided_for_it() -> None:
    decided = {status: STATUSES.get(status) or (PASSING if status >= 500 else VECTORIZER) for status in range(300, 600)}
    assert {status: kind_of_status(status) for status in decided} == decided


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (HTTPStatus.UNAUTHORIZED, VECTORIZER),
        (HTTPStatus.PAYMENT_REQUIRED, VECTORIZER),
        (HTTPStatus.FORBIDDEN, VECTORIZER),
        (HTTPStatus.NOT_FOUND, VECTORIZER),
        (HTTPStatus.GONE, VECTORIZER),
        (HTTPStatus.FAILED_DEPENDENCY, VECTORIZER),  # text-embeddings-inference: this is no embedding model
        (HTTPStatus.INTERNAL_SERVER_ERROR, PASSING),
        (HTTPStatus.BAD_GATEWAY, PASSING),
        (HTTPStatus.SERVICE_UNAVAILABLE, PASSING),
        (HTTPStatus.GATEWAY_TIMEOUT, PASSING),
        (529, PASSING),  # overloaded
    ],
)
def test_a_status_that_endpoints_are_known_for_has_its_kind(status: int, kind: Kind) -> None:
    assert kind_of_status(status) is kind
