"""The gateway while what it serves moves to another model: searches, collections, their tasks and their results."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2
import psycopg
import pytest

from pgvec_queue import model_migration, model_migration_begin, model_migration_end, tasks
from pgvec_queue.async_database import AsyncConnection
from pgvec_queue.database import versions
from pgvec_queue.errors import DefinitionError
from pgvec_queue.gateway import preparing
from pgvec_queue.model_migration import Migration
from tests.gateway import serving as gateway
from tests.gateway.server import API, MODEL, accepted, post, serving, working
from tests.support import Bench
from tests.waiting import wait_until

WAITING_FOR_A_LOCK = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
)
OTHER = {"document_prompt": "other: ", "query_prompt": "other: "}


@pytest.fixture
def client(bench: Bench) -> Iterator[httpx2.Client]:
    with serving(bench.dsn) as client:
        yield client


def begin(bench: Bench, name: str, **given: Any) -> Migration:
    begun = model_migration_begin.begin(bench.connection, name, given or OTHER, versions(bench.connection))
    bench.plan(begun.migration.new)
    bench.drain()
    return begun.migration


def now(bench: Bench, name: str) -> Migration:
    return model_migration.get(bench.connection, name)


def ask(client: httpx2.Client, query: str, **body: Any) -> dict[str, Any]:
    answer = client.post(f"{API}/search", json={"query": query, "limit": 1, **body})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def done(client: httpx2.Client, texts: list[str], **more: Any) -> dict[str, Any]:
    task = accepted(client, texts, **more)
    return ended(client, task["task_id"])


def ended(client: httpx2.Client, id_: str) -> dict[str, Any]:
    def status() -> dict[str, Any]:
        answer = client.get(f"{API}/tasks/{id_}/status")
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    wait_until(lambda: status()["finished_at"] is not None, 30, what="the end of the task")
    return status()


def test_searches_over_http_never_fail_and_never_mix(bench: Bench, client: httpx2.Client) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 40) i")
    bench.enqueue("docs", "body", model="hashing-32", sync=True)
    bench.drain()
    wrong: list[Any] = []
    asked = 0
    stop = threading.Event()

    def search(first: int) -> None:
        nonlocal asked
        with httpx2.Client(base_url=client.base_url, timeout=30, trust_env=False) as own:
            while not stop.is_set():
                first = first % 40 + 1
                # Without a name: there is one to search, whatever waits beside it.
                answer = own.post(f"{API}/search", json={"query": f"document number {first}", "limit": 1})
                asked += 1
                if answer.status_code != 200 or answer.json()["hits"][0]["score"] < 0.99:
                    wrong.append(answer.text)

    threads = [threading.Thread(target=search, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()

    def after(more: int) -> None:
        until = asked + more
        wait_until(lambda: asked >= until or wrong, 30)

    try:
        begin(bench, "docs")
        for step in (
            model_migration.switch,
            model_migration.roll_back,
            model_migration.switch,
            model_migration_end.finish,
        ):
            after(10)
            step(bench.connection, now(bench, "docs"))
            after(10)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert wrong == []


def test_the_new_model_is_loaded_before_anybody_switches(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparing, "EVERY_SECONDS", 0.05)
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'document number ' || i FROM generate_series(1, 40) i")
    bench.enqueue("docs", "body", model="hashing-32")
    bench.drain()
    with gateway.serving(bench.dsn) as served:
        queries = served.app.state.context.queries
        begun = model_migration_begin.begin(
            bench.connection, "docs", {"model": "hashing-48"}, versions(bench.connection)
        )
        bench.plan(begun.migration.new)
        ask(served.client, "document number 1", vectorizer="docs")
        looks = bench.value("SELECT clock_timestamp()")
        wait_until(lambda: bench.value("SELECT clock_timestamp() > %s + interval '0.3 s'", looks))
        # It is not filled yet, which may take days.
        assert queries.loaded == ["hashing-32"]
        bench.drain()
        wait_until(lambda: "hashing-48" in queries.loaded)
        model_migration.switch(bench.connection, now(bench, "docs"))
        assert ask(served.client, "document number 1", vectorizer="docs")["hits"][0]["score"] == pytest.approx(1)
        assert sorted(queries.loaded) == ["hashing-32", "hashing-48"]


def test_a_model_that_the_gateway_cannot_load_is_told_before_the_switch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(preparing, "EVERY_SECONDS", 0.05)
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs VALUES (1, 'document number 1')")
    bench.enqueue("docs", "body", model="hashing-32")
    bench.drain()
    with gateway.serving(bench.dsn) as served:
        begin(bench, "docs", model="hashing-48")
        bench.sql("UPDATE pgvec.vectorizers SET model = 'nowhere' WHERE name = 'docs@other'")
        ask(served.client, "document number 1", vectorizer="docs")
        wait_until(lambda: any("a switch to it would fail here" in line.message for line in caplog.records))
        ask(served.client, "document number 1", vectorizer="docs")


def test_a_collection_moves_with_its_tasks(bench: Bench, client: httpx2.Client) -> None:
    client.post(f"{API}/collections", json={"name": "notes", "model": MODEL}).raise_for_status()
    with working(bench.dsn):
        first = done(client, ["one lamp", "two lamps"], collection="notes")
    migration = begin(bench, "notes", model="hashing-48")
    model_migration.switch(bench.connection, now(bench, "notes"))
    assert ask(client, "two lamps", collection="notes")["hits"][0]["score"] == pytest.approx(1)
    assert client.get(f"{API}/collections/notes").json()["model"] == "hashing-48"
    status = client.get(f"{API}/tasks/{first['task_id']}/status").json()
    assert (status["state"], status["counts"]["done"], status["model"]) == ("done", 2, "hashing-48")
    result = client.get(f"{API}/tasks/{first['task_id']}/result").json()
    assert [len(one["embedding"]) for one in result["vectors"]] == [48, 48]
    with working(bench.dsn):
        second = done(client, ["three lamps"], collection="notes")
        assert second["state"] == "done"
    model_migration.roll_back(bench.connection, now(bench, "notes"))
    result = client.get(f"{API}/tasks/{second['task_id']}/result").json()
    assert [len(one["embedding"]) for one in result["vectors"]] == [8]
    model_migration.switch(bench.connection, now(bench, "notes"))
    model_migration_end.finish(bench.connection, now(bench, "notes"))
    result = client.get(f"{API}/tasks/{second['task_id']}/result").json()
    assert [len(one["embedding"]) for one in result["vectors"]] == [48]
    assert [text["state"] for text in client.get(f"{API}/collections/notes/texts").json()["texts"]] == ["done"] * 3
    assert bench.value("SELECT count(DISTINCT vectorizer_id) FROM pgvec.tasks") == 1
    assert bench.value("SELECT vectorizer_id FROM pgvec.tasks LIMIT 1") == migration.new.id
    assert client.delete(f"{API}/collections/notes").status_code == 204


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"into_column": "vectors"}, "leave --into-column out"),
        ({"into": "public.mine"}, r"public\.mine exists: name a new one"),
        ({"template": "$id: $chunk"}, r"leave \$id out of the template"),
    ],
)
def test_what_a_collection_cannot_be_is_refused(
    bench: Bench, client: httpx2.Client, given: dict[str, Any], said: str
) -> None:
    client.post(f"{API}/collections", json={"name": "notes", "model": MODEL}).raise_for_status()
    bench.sql(
        "CREATE TABLE mine (id text, chunk_index int, chunk text, embedding vector(48), source_hash bytea,"
        " UNIQUE (id, chunk_index))"
    )
    with pytest.raises(DefinitionError, match=f"notes is the collection 'notes' of the gateway.*{said}"):
        begin(bench, "notes", model="hashing-48", **given)
    for _ in range(2):
        assert begin(bench, "notes", model="hashing-48", into="fresh", template="text: $chunk").new.dimensions == 48


def test_pages_of_one_result_are_of_one_model(bench: Bench, client: httpx2.Client) -> None:
    client.post(f"{API}/collections", json={"name": "notes", "model": MODEL}).raise_for_status()
    with working(bench.dsn):
        task = done(client, ["one lamp", "two lamps"], collection="notes")["task_id"]
    begin(bench, "notes")
    page = client.get(f"{API}/tasks/{task}/result", params={"limit": 1}).json()
    assert client.get(f"{API}/tasks/{task}/result", params={"limit": 1, "cursor": page["next"]}).status_code == 200
    model_migration.switch(bench.connection, now(bench, "notes"))
    answer = client.get(f"{API}/tasks/{task}/result", params={"limit": 1, "cursor": page["next"]})
    assert answer.status_code == 409
    assert "has been switched to another model since the first page" in answer.text


def test_a_task_that_is_being_written_moves_too(bench: Bench, client: httpx2.Client) -> None:
    client.post(f"{API}/collections", json={"name": "notes", "model": MODEL}).raise_for_status()
    migration = begin(bench, "notes")

    def switch() -> None:
        with psycopg.connect(bench.dsn, autocommit=True) as connection:
            model_migration.switch(connection, migration)

    thread = threading.Thread(target=switch)
    with psycopg.connect(bench.dsn) as writer:
        writer.execute(
            "INSERT INTO pgvec.tasks (id, vectorizer_id, request_digest, xid, texts)"
            " VALUES (gen_random_uuid(), %s, '', '1', 1)",
            [migration.old.id],
        )
        thread.start()
        wait_until(lambda: bench.value(WAITING_FOR_A_LOCK) > 0, what="the switch to wait")
    thread.join(30)
    assert bench.sql("SELECT vectorizer_id FROM pgvec.tasks") == [(migration.new.id,)]


def test_a_task_belongs_to_what_its_collection_has_become_meanwhile(bench: Bench, client: httpx2.Client) -> None:
    client.post(f"{API}/collections", json={"name": "notes", "model": MODEL}).raise_for_status()
    migration = begin(bench, "notes")
    with psycopg.connect(bench.dsn) as switching:
        # The request finds the collection as it was, and comes to write its task while the switch holds the table.
        switching.execute("SELECT pgvec.switch_model('notes')")
        answers: list[httpx2.Response] = []
        thread = threading.Thread(target=lambda: answers.append(post(client, ["one lamp"], collection="notes")))
        thread.start()
        wait_until(lambda: bench.value(WAITING_FOR_A_LOCK) > 0, what="the task to wait")
    thread.join(30)
    assert answers[0].status_code == 202, answers[0].text
    assert bench.sql("SELECT vectorizer_id FROM pgvec.tasks") == [(migration.new.id,)]


@pytest.mark.parametrize("what", ["look", "result"])
def test_a_task_whose_vectors_go_while_it_is_read_is_read_again(
    bench: Bench, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    client.post(f"{API}/collections", json={"name": "notes", "model": MODEL}).raise_for_status()
    id_ = uuid.UUID(accepted(client, ["one lamp"], collection="notes")["task_id"])
    begin(bench, "notes", model="hashing-48")
    found = tasks._by_collection
    moved: list[bool] = []

    async def find_and_finish(connection: AsyncConnection, ids: Any) -> Any:
        before = await found(connection, ids)
        if not moved:
            moved.append(True)
            model_migration.switch(bench.connection, now(bench, "notes"))
            model_migration_end.finish(bench.connection, now(bench, "notes"))
        return before

    async def read() -> Any:
        async with await psycopg.AsyncConnection.connect(bench.dsn, autocommit=True) as connection:
            if what == "look":
                return await tasks.look(connection, [id_])
            task = (await tasks.look(connection, [id_]))[0]
            monkeypatch.setattr(tasks, "_by_collection", find_and_finish)
            return await tasks.result(connection, task, after=(-1, -1), limit=10)

    if what == "look":
        monkeypatch.setattr(tasks, "_by_collection", find_and_finish)
    answer = asyncio.run(read())
    assert moved
    if what == "look":
        assert (answer[0].model, answer[0].done) == ("hashing-48", 1)
    else:
        assert len(answer.items) == 1
        assert answer.vectorizer_id == bench.value("SELECT vectorizer_id FROM pgvec.tasks")


def test_texts_without_a_collection_go_on_where_they_went(bench: Bench) -> None:
    with serving(bench.dsn, models=(MODEL, "hashing-48")) as client:
        accepted(client, ["one lamp"])
        begin(bench, "default", model="hashing-48")
        model_migration.switch(bench.connection, now(bench, "default"))
        assert accepted(client, ["two lamps"])["collection"] == "default"
        assert accepted(client, ["three lamps"], model_name="hashing-48")["collection"] == "default"
        refused = post(client, ["four lamps"], model_name=MODEL)
        assert refused.status_code == 422
        assert f"the default collection of {MODEL} is embedded with hashing-48 by now" in refused.text
        assert [one["name"] for one in client.get(f"{API}/collections").json()["collections"]] == ["default"]
        model_migration.roll_back(bench.connection, now(bench, "default"))
        assert accepted(client, ["five lamps"], model_name=MODEL)["collection"] == "default"
        assert accepted(client, ["six lamps"], model_name="hashing-48")["collection"] == "default_hashing_48"
        model_migration.switch(bench.connection, now(bench, "default"))
        assert accepted(client, ["seven lamps"])["collection"] == "default"


@pytest.mark.parametrize("switched", [False, True])
def test_a_collection_is_deleted_with_what_waits_beside_it(bench: Bench, client: httpx2.Client, switched: bool) -> None:
    client.post(f"{API}/collections", json={"name": "notes", "model": MODEL}).raise_for_status()
    begin(bench, "notes")
    if switched:
        model_migration.switch(bench.connection, now(bench, "notes"))
    assert client.delete(f"{API}/collections/notes").status_code == 204
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 0
    assert bench.value("SELECT count(*) FROM pg_tables WHERE schemaname = 'pgvec_collections'") == 0
