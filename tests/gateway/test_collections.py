"""Collections and their texts over HTTP and in SQL: ordinary tables, followed by triggers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import httpx2
import psycopg
import pytest

from pgvec_queue import schema, uninstall
from pgvec_queue.database import Database
from tests.gateway.server import API, MODEL, accepted, ended, post, serving, status, working
from tests.support import Bench, run_pgvec
from tests.waiting import wait_until

MADE = {"name": "manuals", "chunk_size": 16, "store": "halfvec"}


@pytest.fixture
def client(bench: Bench) -> Iterator[httpx2.Client]:
    with serving(bench.dsn) as client:
        yield client


def _make(client: httpx2.Client, **body: Any) -> httpx2.Response:
    return client.post(f"{API}/collections", json=body)


def test_a_collection_is_made_shown_listed_and_deleted(bench: Bench, client: httpx2.Client) -> None:
    made = _make(client, **MADE)
    assert made.status_code == 201, made.text
    assert made.headers["location"] == f"{API}/collections/manuals"
    shown = client.get(made.headers["location"]).json()
    assert shown == made.json()
    assert (shown["table"], shown["vectors_table"]) == (
        "pgvec_collections.manuals",
        "pgvec_collections.manuals_vectors",
    )
    assert (shown["state"], shown["texts"], shown["chunk_size"], shown["store"], shown["default"]) == (
        "complete",
        0,
        16,
        "halfvec",
        False,
    )
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind <> 'index'") == 0
    task = accepted(client, ["some text", "another"], collection="manuals")
    with working(bench.dsn):
        ended(client, task["task_id"])
    accepted(client, ["elsewhere"])
    listed = client.get(f"{API}/collections").json()["collections"]
    assert [(one["name"], one["texts"], one["done"], one["default"]) for one in listed] == [
        ("default", 0, 0, True),
        ("manuals", 2, 2, False),
    ]
    assert client.delete(f"{API}/collections/manuals").status_code == 204
    assert client.get(f"{API}/collections/manuals").status_code == 404
    assert client.delete(f"{API}/collections/manuals").status_code == 404
    assert client.get(f"{API}/tasks/{task['task_id']}/status").status_code == 404
    left = "SELECT count(*) FROM pg_class WHERE relname LIKE 'manuals%' AND relkind = 'r'"
    assert bench.value(left) == 0
    assert bench.sql("SELECT name FROM pgvec.vectorizers") == [("default",)]
    assert bench.value("SELECT count(*) FROM pg_proc WHERE proname LIKE 'sync_%'") == 1
    assert _make(client, **MADE).status_code == 201


WRONG_NAMES = ["", "1a", "Manuals", "a-b", "a b", "a.b", "ä", "a" * 56, "x_vectors", 'a"b', "a;drop", "a\x00", "ａ"]


@pytest.mark.parametrize("name", WRONG_NAMES)
def test_a_name_that_needs_quotes_is_refused(bench: Bench, client: httpx2.Client, name: str) -> None:
    answer = _make(client, name=name)
    assert answer.status_code == 422
    assert answer.json()["detail"]
    assert client.get(f"{API}/collections/{quote(name, safe='')}/texts/x").status_code in (404, 422)
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 0


@pytest.mark.parametrize("name", ["a", "_", "select", "a" * 55, "user", "a_pkey"])
def test_names_that_are_words_of_sql_are_taken(bench: Bench, client: httpx2.Client, name: str) -> None:
    assert _make(client, name=name).status_code == 201
    task = accepted(client, ["text"], collection=name)
    with working(bench.dsn):
        assert ended(client, task["task_id"])["state"] == "done"


def test_a_name_that_is_taken_is_refused(bench: Bench, client: httpx2.Client) -> None:
    assert _make(client, name="a").status_code == 201
    assert _make(client, name="a").status_code == 409
    bench.sql("CREATE TABLE pgvec_collections.b (id int)")
    answer = _make(client, name="b")
    assert (answer.status_code, "no collection" in answer.json()["detail"]) == (409, True)
    assert _make(client, name="a_pkey").status_code == 409
    # All or nothing.
    assert bench.sql("SELECT name FROM pgvec.collections") == [("a",)]
    assert bench.sql("SELECT name FROM pgvec.vectorizers") == [("a",)]


def test_tables_that_were_left_are_named_with_what_moves_them_and_their_vectors_are_found_again(
    bench: Bench, client: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    task = accepted(client, ["one", "two"])
    with working(bench.dsn):
        ended(client, task["task_id"])
    uninstall.remove(bench.connection)
    schema.initialize(Database(bench.dsn))
    answer = post(client, ["three"])
    detail = answer.json()["detail"]
    assert answer.status_code == 409
    assert "retry-after" not in answer.headers
    assert detail.startswith(f"the default collection of {MODEL} cannot be made: default and default_vectors in the")
    (said,) = [line for line in caplog.records if line.message.startswith("default collection cannot")]
    assert said.levelname == "WARNING"
    for statement in detail.partition("what is there: ")[2].split("; "):
        bench.sql(statement)
    accepted(client, [" "])
    bench.sql(
        "INSERT INTO pgvec_collections.default_vectors SELECT * FROM pgvec_collections.default_kept_vectors;"
        'INSERT INTO pgvec_collections."default" SELECT * FROM pgvec_collections.default_kept'
    )
    bench.drain()
    assert run_pgvec("enqueue", "pgvec_collections.default", "--name", "default", dsn=bench.dsn).code == 0
    bench.drain()
    progress = bench.progress("default")
    assert (progress.rows_done, progress.rows_embedded) == (3, 0)
    assert bench.value("SELECT count(*) FROM pgvec_collections.default_vectors") == 2


def test_vectors_whose_texts_have_gone_are_not_taken_for_those_of_a_new_collection(
    bench: Bench, client: httpx2.Client
) -> None:
    bench.sql("CREATE TABLE pgvec_collections.a_vectors (id text)")
    answer = _make(client, name="a")
    assert answer.status_code == 409
    assert 'ALTER TABLE pgvec_collections."a_vectors" RENAME TO "a_kept_vectors"' in answer.json()["detail"]


def test_a_vectorizer_of_that_name_is_not_in_the_way(bench: Bench, client: httpx2.Client) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.enqueue("docs", "body")
    assert _make(client, name="docs").json()["vectorizer"] == "docs_2"


WRONG_BODIES: dict[str, dict[str, Any]] = {
    "a model that is not allowed": {"name": "a", "model": "other"},
    "chunks larger than none": {"name": "a", "chunk_size": 0},
    "an overlap of more than half": {"name": "a", "chunk_size": 10, "chunk_overlap": 9},
    "chunks of whole texts": {"name": "a", "whole_texts": True, "chunk_size": 10},
    "another store": {"name": "a", "store": "bit"},
    "an unknown field": {"name": "a", "table": "users"},
    "no name": {},
}


@pytest.mark.parametrize("body", WRONG_BODIES.values(), ids=WRONG_BODIES)
def test_what_cannot_be_is_refused(bench: Bench, client: httpx2.Client, body: dict[str, Any]) -> None:
    assert _make(client, **body).status_code == 422
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 0
    assert bench.value("SELECT count(*) FROM pg_class WHERE relnamespace = 'pgvec_collections'::regnamespace") == 0


def test_whole_texts_are_one_chunk(bench: Bench, client: httpx2.Client) -> None:
    assert _make(client, name="whole", whole_texts=True).json()["chunk_size"] is None
    task = accepted(client, ["word " * 500], collection="whole")
    with working(bench.dsn):
        ended(client, task["task_id"])
    assert bench.value("SELECT count(*) FROM pgvec_collections.whole_vectors") == 1


def test_texts_go_to_a_named_collection_with_its_own_model(bench: Bench, client: httpx2.Client) -> None:
    _make(client, name="own")
    for body in ({}, {"model_name": "hashing-8"}):
        assert accepted(client, ["text"], collection="own", **body)["collection"] == "own"
    wrong = client.post(f"{API}/vectorize", json={"texts": ["a"], "collection": "own", "model_name": "hashing-16"})
    assert wrong.status_code == 422
    missing = client.post(f"{API}/vectorize", json={"texts": ["a"], "collection": "none"})
    assert missing.status_code == 404


def test_what_anybody_does_in_sql_is_followed(bench: Bench, client: httpx2.Client) -> None:
    _make(client, name="notes")
    bench.sql("INSERT INTO pgvec_collections.notes (id, text) VALUES ('a', 'one'), ('b', 'two')")
    with working(bench.dsn):
        wait_until(lambda: client.get(f"{API}/collections/notes/texts/a").json()["state"] == "done", 20)
        bench.sql("UPDATE pgvec_collections.notes SET text = 'changed' WHERE id = 'a'")
        bench.sql("DELETE FROM pgvec_collections.notes WHERE id = 'b'")
        chunks = "SELECT id, chunk FROM pgvec_collections.notes_vectors ORDER BY id"
        wait_until(lambda: bench.sql(chunks) == [("a", "changed")], 20)


def test_metadata_has_an_index_for_filters(bench: Bench, client: httpx2.Client) -> None:
    _make(client, name="notes")
    bench.sql("SET enable_seqscan TO off")
    plan = bench.sql("EXPLAIN SELECT FROM pgvec_collections.notes WHERE metadata @> '{\"a\": 1}'")
    assert any("notes_metadata" in line for (line,) in plan)


def test_texts_are_paged_in_the_order_of_their_ids(client: httpx2.Client) -> None:
    ids = [*(f"id {number:02}" for number in range(25)), "Zebra", "ähnlich", "apple", "😀", "%", "a/b"]
    accepted(client, [f"text of {one}" for one in ids], ids=ids, metadata={"k": "v"})
    for limit in (1, 10, 31, 100):
        found: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            parameters = {"limit": str(limit), **({"cursor": cursor} if cursor else {})}
            page = client.get(f"{API}/collections/default/texts", params=parameters).json()
            found += page["texts"]
            cursor = page["next"]
            if cursor is None:
                break
        assert [one["id"] for one in found] == sorted(ids)
    assert found[0]["metadata"] == {"k": "v"}
    assert client.get(f"{API}/collections/default/texts", params={"limit": "0"}).status_code == 422


def test_a_page_of_long_texts_is_short(bench: Bench, client: httpx2.Client) -> None:
    for start in (0, 10):
        numbers = range(start, start + 10)
        accepted(client, ["x" * 1_000_000] * 10, ids=[f"{number:02}" for number in numbers])
    page = client.get(f"{API}/collections/default/texts").json()
    assert len(page["texts"]) == 9
    rest = client.get(f"{API}/collections/default/texts", params={"cursor": page["next"], "limit": "11"}).json()
    assert page["texts"][-1]["id"] == "08"
    assert rest["texts"][0]["id"] == "09"


ODD_IDS = ["a/b", "/a", "a//b/", "%2F", "a?b=c#d", "ä ö", "😀", "a+b", "'; DROP TABLE x; --", "\x01", "a\nb", "..a"]


@pytest.mark.parametrize("id_", ODD_IDS)
def test_an_id_may_hold_any_characters(bench: Bench, client: httpx2.Client, id_: str) -> None:
    task = accepted(client, ["text", "other"], ids=[id_, "other"])
    path = f"{API}/collections/default/texts/{quote(id_, safe='')}"
    found = client.get(path)
    assert found.status_code == 200, found.text
    assert (found.json()["id"], found.json()["text"], found.json()["state"]) == (id_, "text", "waiting")
    assert client.delete(path).status_code == 204
    assert client.delete(path).status_code == 404
    assert client.get(path).status_code == 404
    with working(bench.dsn):
        assert ended(client, task["task_id"])["counts"]["superseded"] == 1
    assert bench.sql("SELECT id FROM pgvec_collections.default_vectors") == [("other",)]


@pytest.mark.parametrize("path", ["%00", "%ED%A0%80", "%FF", "", "x" * 5_000])
def test_an_id_that_cannot_be_is_not_found(client: httpx2.Client, path: str) -> None:
    accepted(client, ["text"])
    assert client.delete(f"{API}/collections/default/texts/{path}").status_code in (404, 405)
    assert client.get(f"{API}/collections/none/texts/{path or 'x'}").status_code == 404


def test_a_collection_is_deleted_under_a_worker_and_clients(bench: Bench, client: httpx2.Client) -> None:
    _make(client, name="busy")
    with working(bench.dsn):
        for number in range(10):
            accepted(client, [f"text {number} {one}" for one in range(100)], collection="busy")
        assert client.delete(f"{API}/collections/busy").status_code == 204
        assert client.post(f"{API}/vectorize", json={"texts": ["a"], "collection": "busy"}).status_code == 404
        task = accepted(client, ["text"])
        assert ended(client, task["task_id"])["state"] == "done"
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind <> 'index'") == 0


def test_a_collection_that_something_depends_on_stays(bench: Bench, client: httpx2.Client) -> None:
    _make(client, name="used")
    bench.sql("CREATE VIEW v AS SELECT * FROM pgvec_collections.used")
    assert client.delete(f"{API}/collections/used").status_code == 409
    task = accepted(client, ["text"], collection="used")
    with working(bench.dsn):
        assert ended(client, task["task_id"])["state"] == "done"


def test_a_collection_whose_table_is_locked_is_told(bench: Bench, client: httpx2.Client, monkeypatch: Any) -> None:
    monkeypatch.setattr("pgvec_queue.collections._DROP_TRIES", 1)
    _make(client, name="locked")
    with psycopg.connect(bench.dsn) as other:
        other.execute("LOCK TABLE pgvec_collections.locked IN ACCESS SHARE MODE")
        assert client.delete(f"{API}/collections/locked").status_code == 409
    assert client.delete(f"{API}/collections/locked").status_code == 204


def test_a_collection_whose_vectorizer_was_dropped_is_gone(bench: Bench, client: httpx2.Client) -> None:
    _make(client, name="dropped")
    task = accepted(client, ["text"], collection="dropped")
    bench.sql("SELECT pgvec.drop_vectorizer('dropped')")
    assert client.get(f"{API}/collections/dropped").status_code == 404
    assert client.get(f"{API}/tasks/{task['task_id']}/status").status_code == 404
    assert client.get(f"{API}/tasks").json()["tasks"] == []
    assert client.get(f"{API}/collections/dropped/texts").status_code == 404
    assert bench.value("SELECT count(*) FROM pgvec_collections.dropped") == 1
    bench.sql("DROP TABLE pgvec_collections.dropped, pgvec_collections.dropped_vectors")
    assert _make(client, name="dropped").status_code == 201


def test_the_state_of_a_text_is_its_present_texts(
    bench: Bench, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "refuse=poison")
    task = accepted(client, ["fine", "poison", " ", "changes"], ids=["a", "b", "c", "d"])
    with working(bench.dsn):
        ended(client, task["task_id"])
    accepted(client, ["changed"], ids=["d"])
    found = client.get(f"{API}/collections/default/texts").json()["texts"]
    assert {one["id"]: one["state"] for one in found} == {"a": "done", "b": "failed", "c": "skipped", "d": "waiting"}
    assert status(client, task["task_id"])["state"] == "failed"
