"""SQL injection: every name and option that reaches SQL, with what would end a name, a string or a statement."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgvec_queue import schema, vectorizer
from pgvec_queue.catalog import quoted_name
from pgvec_queue.database import Database
from pgvec_queue.embedders import DeviceOptions, load
from pgvec_queue.errors import DefinitionError, PgvecError
from pgvec_queue.fragments import identifier
from pgvec_queue.search import Search, SearchError, search
from pgvec_queue.vectorizer import Changes
from pgvec_queue.verify import verify
from tests.commandline import CommandLine
from tests.gateway.server import API, serving
from tests.oracle import assert_right, work_off
from tests.support import Bench

HARM = (
    "'; DROP TABLE victim; --",
    '"; DROP TABLE victim; --',
    "'); DELETE FROM victim; SELECT ('",
    "x\\'; DELETE FROM victim; --",
    "$$; DELETE FROM victim; $$",
    "%s %(name)s %% {} {source}",
    "a\nb\r\n;\tDELETE FROM victim",
    "E'\\047'; DELETE FROM victim; --",
    "Robert'||(SELECT count(*) FROM victim)||'",
    "\u02bc\uff07\u2019; DROP TABLE victim",  # letters that some servers take for an apostrophe
    "$chunk $$1 ${id}",
    "\\x27; \\. COMMIT;",
)
"""What people try, and what breaks careless formatting: quotes, percent signs, braces, dollars, backslashes, lines."""

_PIECES = [
    "'",
    '"',
    ";",
    "--",
    "/*",
    "*/",
    "%",
    "%s",
    "%(a)s",
    "{}",
    "{",
    "\\",
    "$$",
    "$1",
    ".",
    ",",
    "(",
    ")",
    " ",
    "\n",
    "\t",
    "é",
    "名",
    "x",
    "A",
    "::",
]


@st.composite
def names(draw: st.DrawFn) -> str:
    """A name as PostgreSQL allows it between quotes: anything but NUL, up to 40 bytes here."""
    parts = draw(
        st.lists(
            st.sampled_from(_PIECES) | st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=6
        )
    )
    name = "".join(parts).encode()[:40].decode(errors="ignore")
    return name or "x"


@pytest.fixture
def victim(bench: Bench) -> Bench:
    """A bench with a table that nobody has a reason to touch."""
    bench.sql("CREATE TABLE victim (id int); INSERT INTO victim VALUES (1)")
    return bench


def _unharmed(bench: Bench) -> bool:
    return bool(bench.value("SELECT count(*) = 1 FROM victim"))


@given(
    names_=st.lists(names(), min_size=9, max_size=9, unique=True),
    sync=st.booleans(),
    into_column=st.booleans(),
)
@settings(
    max_examples=8, phases=(Phase.explicit, Phase.generate), suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_name_is_a_name_and_nothing_else(victim: Bench, names_: list[str], sync: bool, into_column: bool) -> None:
    """From the table to the last search, whatever schema, table, columns, destination and vectorizer are called."""
    of_schema, table, key, text, kind, of_vectors, embedding, hash_, called = names_
    parts = {name: sql.Identifier(value) for name, value in (("key", key), ("text", text), ("kind", kind))}
    source = sql.Identifier(of_schema, table)
    run = victim.connection.execute
    run(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(of_schema)))
    try:
        run(sql.SQL("CREATE TABLE {} ({key} text PRIMARY KEY, {text} text, {kind} text)").format(source, **parts))
        insert = sql.SQL("INSERT INTO {} VALUES (%s, %s, 'a'), ('2', 'two', 'b')")
        run(insert.format(identifier(of_schema, table)), [called, called])
        where = sql.SQL("{} = 'a'").format(sql.Identifier(kind)).as_string(None)
        place: dict[str, Any] = (
            {"into_column": embedding, "columns": {"source_hash": [hash_]}}
            if into_column
            else {
                "into": quoted_name(of_schema, of_vectors),
                "columns": {"embedding": [embedding], "source_hash": [hash_], "key": [key]},
            }
        )
        made = victim.enqueue(quoted_name(of_schema, table), text, name=called, where=where, sync=sync, **place)
        work_off(victim)
        assert_right(victim, made)
        run(sql.SQL("UPDATE {} SET {text} = 'changed', {kind} = 'a'").format(source, **parts))
        victim.enqueue(quoted_name(of_schema, table), name=called)
        work_off(victim)
        assert_right(victim, made)
        assert verify(victim.connection, victim.fragments(made)).differences == 0
        embedder = load(made.spec, DeviceOptions())
        assert len(search(victim.connection, made, embedder, Search(text="changed")).hits) == 2
        for action in ("pause", "resume", "cancel", "drop"):
            vectorizer.steer(victim.connection, called, action)
        assert victim.sql("SELECT FROM pg_trigger WHERE tgname LIKE 'pgvec%%'") == []
    finally:
        run(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(of_schema)))
    assert _unharmed(victim)


@pytest.mark.parametrize("harm", HARM)
def test_values_are_values(victim: Bench, harm: str) -> None:
    """Names of models, prompts, templates, queries, filters of metadata, reasons, new names, hosts."""
    victim.sql("CREATE TABLE docs (id text PRIMARY KEY, body text, metadata jsonb)")
    victim.sql("INSERT INTO docs VALUES (%s, %s, jsonb_build_object(%s::text, %s::text))", harm, harm, harm, harm)
    made = victim.enqueue("docs", "body", name=harm, document_prompt=harm, query_prompt=harm)
    work_off(victim)
    assert victim.sql("SELECT id, chunk FROM docs_vectors") == [(harm, harm)]
    embedder = load(made.spec, DeviceOptions())
    for mode in ("vector", "text", "hybrid"):
        request = Search(text=f"{harm} word", filter={harm: harm}, mode=mode)
        assert len(search(victim.connection, made, embedder, request).hits) <= 1
    with pytest.raises((SearchError, PgvecError, psycopg.Error)):
        search(victim.connection, made, embedder, Search(text="a", mode="text", language=harm))
    vectorizer.block(victim.connection, made.id, harm)
    assert victim.progress(harm).reason == harm
    vectorizer.alter(victim.connection, harm, Changes(new_name=f"{harm}{harm}"))
    assert victim.sql("SELECT pgvec.stop_workers(%s)", harm) == [(0,)]
    assert vectorizer.retry(victim.connection, f"{harm}{harm}", harm) == 0
    vectorizer.steer(victim.connection, f"{harm}{harm}", "drop")
    assert _unharmed(victim)


@pytest.mark.parametrize("harm", HARM)
def test_no_option_of_the_command_line_is_run(
    victim: Bench, cli: CommandLine, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    """Each is refused as what it is, a name that nothing has; in a line or two, without a traceback."""
    monkeypatch.setenv("PGVEC_DSN", victim.dsn)
    victim.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    docs = ("enqueue", "docs", "--text", "body", "--model", "hashing-8", "--no-chunking")
    for arguments in (
        ("enqueue", harm, "--text", "body"),
        ("enqueue", "docs", "--text", harm),
        (*docs, "--key", harm),
        (*docs, "--where", harm),
        (*docs, "--into", f'a"{harm}'),
        (*docs, "--column", f"embedding={harm}", "--into", "victim"),
        (*docs, "--model", f"hashing-{harm}"),
        ("status", harm),
        ("pause", harm),
        ("drop", harm, "--yes"),
        ("retry", harm, "--error", harm),
        ("failures", harm),
        ("verify", harm),
        ("index", harm),
        ("search", harm, harm),
        ("alter", harm, "--name", harm),
        ("migrate-model", harm, "--model", harm),
        ("api-token", "revoke", harm),
    ):
        ran = cli(*arguments)
        assert ran.code in (1, 2), (arguments, ran)
        assert "Traceback" not in ran.err
        assert "unexpected" not in ran.err, (arguments, ran)
    assert _unharmed(victim)


def test_what_no_text_of_the_database_can_hold_is_refused(
    victim: Bench, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_DSN", victim.dsn)
    for arguments in (
        ("pause", "a\0b"),
        ("search", "a", "b\0c"),
        ("enqueue", "docs", "--text", "a\0b"),
        ("enqueue", "a\0b", "--text", "b"),
        ("enqueue", "docs", "--text", "b", "--where", "a = '\0'"),
    ):
        ran = cli(*arguments)
        assert ran.code in (1, 2)
        assert "unexpected" not in ran.err, (arguments, ran)
    assert _unharmed(victim)


ESCAPES = (
    "true) OR (true",
    "id > 5) OR (id IS NOT NULL",
    "true); DROP TABLE victim; SELECT (true",
    "true\n) LIMIT 0; COMMIT; DROP TABLE victim; SELECT (true",
    "true); COMMIT; DELETE FROM victim; BEGIN; SELECT (true",
    "true) /*",
    "(true",
    "true))",
    "true) UNION SELECT FROM victim WHERE (true",
    "id, id",
    "true] AND ARRAY[true",
    "$$",
    "'",
    '"',
    "E'\\'",
    "true --\n) OR (true",
    "1",
    "count(*) > 0",
)


@pytest.mark.parametrize("where", ESCAPES)
def test_a_filter_stays_within_its_parentheses(victim: Bench, where: str) -> None:
    victim.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    for sync in (False, True):
        with pytest.raises(DefinitionError, match="--where"):
            victim.define("docs", "body", where=where, sync=sync)
    assert victim.sql("SELECT FROM pgvec.vectorizers") == []
    assert _unharmed(victim)


@pytest.mark.parametrize(
    "where",
    [
        "id = 1 -- only this",
        "body = ')' OR id = 1",
        "body LIKE '%(a)s%' OR id = 1",
        "/* ( */ id = 1",
        "id = (1)",
        "(id) = 1 OR body = $$)$$",
    ],
)
def test_a_filter_may_hold_whatever_sql_allows(victim: Bench, where: str) -> None:
    victim.sql("CREATE TABLE docs (id int PRIMARY KEY, body text); INSERT INTO docs VALUES (1, 'a'), (2, 'b')")
    made = victim.enqueue("docs", "body", where=where, sync=True)
    work_off(victim)
    assert victim.sql("SELECT id FROM docs_vectors") == [(1,)]
    assert replace(made, filter=where) == made


def test_names_are_quoted_in_what_a_trigger_runs_for_its_owner(victim: Bench) -> None:
    """Its body is a string within a string; users of the table run it with its owner's rights."""
    for harm in HARM:
        source = sql.Identifier("docs" + harm)
        column = sql.Identifier(harm[:60])
        victim.connection.execute(sql.SQL("CREATE TABLE {} (id int PRIMARY KEY, {} text)").format(source, column))
        made = victim.define(
            quoted_name("public", "docs" + harm), harm[:60], name=harm, sync=True, into=f'"into{HARM.index(harm)}"'
        )
        victim.connection.execute(sql.SQL("INSERT INTO {} VALUES (1, 'a')").format(source))
        victim.connection.execute(sql.SQL("UPDATE {} SET {} = 'b'").format(source, column))
        assert victim.value("SELECT count(*) FROM pgvec.jobs WHERE vectorizer_id = %s", made.vectorizer.id) == 2
    assert _unharmed(victim)
    assert json.dumps(schema.HEAD)


def test_a_gateway_takes_nothing_for_sql(victim: Bench) -> None:
    """Ids, texts, metadata, filters, queries, names of collections and vectorizers, in bodies, paths and parameters."""
    with serving(victim.dsn) as client:
        posted = client.post(
            f"{API}/vectorize",
            json={"texts": list(HARM), "ids": list(HARM), "metadata": {harm: harm for harm in HARM}},
        )
        assert posted.status_code == 202, posted.text
        work_off(victim, 100)
        ids = {
            one["id"] for one in client.get(f"{API}/collections/default/texts", params={"limit": 100}).json()["texts"]
        }
        assert ids == set(HARM)
        for harm in HARM:
            there = quote(harm, safe="")
            answers = [
                client.post(f"{API}/collections", json={"name": harm}),
                client.get(f"{API}/collections/{there}"),
                client.get(f"{API}/vectorizers/{there}"),
                client.post(f"{API}/vectorizers/{there}/pause"),
                client.get(f"{API}/tasks", params={"collection": harm, "cursor": harm, "state": harm}),
                client.get(f"{API}/tasks/{there}/status"),
                client.post(f"{API}/search", json={"query": harm, "collection": harm}),
                client.post(f"{API}/search", json={"query": harm, "filter": {harm: harm}, "mode": "hybrid"}),
                client.post(f"{API}/search", json={"query": harm, "language": harm, "mode": "text"}),
                client.delete(f"{API}/collections/default/texts/{there}"),
            ]
            assert [answer.status_code for answer in answers if answer.status_code >= 500] == [], harm
            assert answers[-1].status_code == 204
    assert victim.value('SELECT count(*) FROM pgvec_collections."default"') == 0
    assert _unharmed(victim)


@pytest.mark.parametrize("harm", [harm.replace("\n", " ").replace("\r", " ") for harm in HARM])
def test_no_part_of_a_connection_string_is_another_part(harm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host's own name stands in each connection string, and so does what a user gives."""
    monkeypatch.setattr("socket.gethostname", lambda: harm)
    given = make_conninfo(host="db", dbname=harm, user=harm, password=harm)
    found = conninfo_to_dict(Database(given).conninfo("work' host=elsewhere"))
    assert (found["host"], found["dbname"], found["user"], found["password"]) == ("db", harm, harm, harm)
    assert "hostaddr" not in found
