"""Tasks over HTTP: status, result, events, cancelling, listing, and their end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack

import httpx2
import psycopg
import pytest

from pgvec_queue import tasks
from pgvec_queue.async_database import async_connect
from pgvec_queue.gateway.routes import tasks as routes
from tests.gateway.server import API, accepted, ended, post, serving, status, vectors, working
from tests.support import Bench
from tests.waiting import wait_until

NONE = {"waiting": 0, "done": 0, "failed": 0, "skipped": 0, "superseded": 0, "cancelled": 0}
TABLE = 'pgvec_collections."default"'
LISTENING = """
SELECT count(*) FROM pg_stat_activity
WHERE application_name LIKE 'pgvec gateway l%' AND datname = current_database()
"""


@pytest.fixture
def client(bench: Bench) -> Iterator[httpx2.Client]:
    with serving(bench.dsn) as client:
        yield client


def test_texts_in_quarantine_fail_the_task_and_are_told(
    bench: Bench, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "refuse=poison")
    task = accepted(client, ["fine", "poison", "good"], ids=["a", "b/ä", "c"])
    with working(bench.dsn):
        found = ended(client, task["task_id"])
    assert (found["state"], found["counts"]) == ("failed", {**NONE, "done": 2, "failed": 1})
    [error] = found["errors"]
    assert (error["ordinal"], error["id"], error["error"]) == (1, "b/ä", "EmbedderError")
    assert error["message"]
    assert [one["ordinal"] for one in vectors(client, task["task_id"])] == [0, 2]
    monkeypatch.delenv("PGVEC_HASHING_FAULTS")
    bench.sql("SELECT pgvec.retry('default')")
    assert status(client, task["task_id"])["state"] == "running"
    with working(bench.dsn):
        found = ended(client, task["task_id"])
    assert (found["state"], found["counts"], found["errors"]) == ("done", {**NONE, "done": 3}, [])


def test_a_text_that_is_updated_or_deleted_first_is_superseded(bench: Bench, client: httpx2.Client) -> None:
    first = accepted(client, ["old", "goes", "stays", "edited"], ids=["a", "b", "c", "d"])
    second = accepted(client, ["new"], ids=["a"])
    assert client.delete(f"{API}/collections/default/texts/b").status_code == 204
    bench.sql(f"UPDATE {TABLE} SET text = 'in SQL' WHERE id = 'd'")
    counts = status(client, first["task_id"])["counts"]
    assert counts == {**NONE, "waiting": 1, "superseded": 3}
    with working(bench.dsn):
        assert ended(client, first["task_id"])["counts"] == {**NONE, "done": 1, "superseded": 3}
        assert ended(client, second["task_id"])["counts"] == {**NONE, "done": 1}
    assert [one["id"] for one in vectors(client, first["task_id"])] == ["c"]


def test_the_same_text_from_another_request_supersedes_nothing(bench: Bench, client: httpx2.Client) -> None:
    first = accepted(client, ["same"], ids=["a"])
    second = accepted(client, ["same"], ids=["a"], metadata={"k": 1})
    assert status(client, first["task_id"])["counts"] == {**NONE, "waiting": 1}
    with working(bench.dsn):
        assert ended(client, first["task_id"])["counts"] == {**NONE, "done": 1}
        assert ended(client, second["task_id"])["counts"] == {**NONE, "done": 1}


def test_a_job_in_a_workers_hands_makes_the_task_run(bench: Bench, client: httpx2.Client) -> None:
    task = accepted(client, ["text"])
    bench.claim(bench.register())
    found = status(client, task["task_id"])
    assert (found["state"], found["reason"]) == ("running", None)


@pytest.mark.parametrize("action", ["pause", "cancel"])
def test_a_task_that_cannot_move_says_why(bench: Bench, client: httpx2.Client, action: str) -> None:
    task = accepted(client, ["text"])
    bench.sql(f"SELECT pgvec.{action}('default')")
    assert action in status(client, task["task_id"])["reason"]


def test_results_are_paged_in_order_and_each_vector_comes_once(bench: Bench) -> None:
    with serving(bench.dsn) as client:
        client.post(f"{API}/collections", json={"name": "chunked", "chunk_size": 4, "chunk_overlap": 0})
        texts = [" ".join(f"w{number}x{word}" for word in range(number + 1)) for number in range(12)]
        task = accepted(client, texts, collection="chunked")
        with working(bench.dsn):
            ended(client, task["task_id"])
        whole = vectors(client, task["task_id"])
        assert len({(one["ordinal"], one["chunk_index"]) for one in whole}) == len(whole) > 20
        assert [(one["ordinal"], one["chunk_index"]) for one in whole] == sorted(
            (one["ordinal"], one["chunk_index"]) for one in whole
        )
        for limit in (1, 7, len(whole)):
            assert vectors(client, task["task_id"], limit) == whole
        assert all(len(one["embedding"]) == 8 for one in whole)
        assert {one["id"] for one in whole} == {f"{task['task_id']}-{number}" for number in range(12)}


def test_a_client_that_follows_a_running_task_gets_every_vector_once(bench: Bench, client: httpx2.Client) -> None:
    task = accepted(client, ["b waits", "a is first"], ids=["b", "a"])
    # Worked out of order: the second text has its vector, the first has none.
    bench.sql(
        "UPDATE pgvec.jobs SET keys = '[[\"a\"]]', key_count = 1 WHERE kind = 'keys';"
        " INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, key_count, run_after)"
        " SELECT vectorizer_id, 'keys', '[[\"b\"]]', 1, clock_timestamp() + interval '1 hour'"
        " FROM pgvec.jobs WHERE kind = 'keys'"
    )
    with working(bench.dsn):
        wait_until(lambda: status(client, task["task_id"])["counts"]["done"] == 1, 20)
        page = client.get(f"{API}/tasks/{task['task_id']}/result").json()
        assert (page["state"], page["vectors"]) == ("running", [])
        assert page["next"] is not None
        bench.sql("UPDATE pgvec.jobs SET run_after = NULL")
        ended(client, task["task_id"])
    page = client.get(f"{API}/tasks/{task['task_id']}/result", params={"cursor": page["next"]}).json()
    assert ([one["id"] for one in page["vectors"]], page["next"]) == (["b", "a"], None)


def test_cancelling_takes_out_what_is_not_embedded(bench: Bench, client: httpx2.Client) -> None:
    with working(bench.dsn):
        ended(client, accepted(client, ["embedded"], ids=["a"])["task_id"])
    task = accepted(client, ["embedded", "waits", "shared"], ids=["a", "b", "c"])
    other = accepted(client, ["shared"], ids=["c"])
    for _ in range(2):
        answer = client.delete(f"{API}/tasks/{task['task_id']}")
        assert answer.status_code == 200
        assert (answer.json()["state"], answer.json()["counts"]) == ("cancelled", {**NONE, "done": 1, "cancelled": 2})
    # What another request has accepted is embedded all the same.
    assert bench.sql(f"SELECT id FROM {TABLE} ORDER BY id") == [("a",), ("c",)]
    with working(bench.dsn):
        assert ended(client, other["task_id"])["counts"]["done"] == 1
    assert status(client, task["task_id"])["state"] == "cancelled"
    assert [one["id"] for one in vectors(client, task["task_id"])] == ["a"]
    assert bench.sql("SELECT id FROM pgvec_collections.default_vectors ORDER BY id") == [("a",), ("c",)]


def test_cancelling_what_has_ended_changes_nothing(bench: Bench, client: httpx2.Client) -> None:
    task = accepted(client, ["text"])
    with working(bench.dsn):
        ended(client, task["task_id"])
    assert client.delete(f"{API}/tasks/{task['task_id']}").json()["state"] == "done"
    assert bench.value(f"SELECT count(*) FROM {TABLE}") == 1


@pytest.mark.parametrize("path", ["status", "result", "events", ""])
def test_an_unknown_task_is_404_and_no_id_is_422(client: httpx2.Client, path: str) -> None:
    method = client.get if path else client.delete
    assert method(f"{API}/tasks/{uuid.uuid4()}/{path}".rstrip("/")).status_code == 404
    assert method(f"{API}/tasks/none/{path}".rstrip("/")).status_code == 422


@pytest.mark.parametrize("cursor", ["x", "W10", "WzFd", "WyJhIiwgImIiXQ", "\u00e9", "WzFlOTk5LDFd", "W1tbW1tb"])
def test_a_made_up_cursor_is_refused(client: httpx2.Client, cursor: str) -> None:
    task = accepted(client, ["text"])
    for path in (f"tasks/{task['task_id']}/result", "tasks", "collections/default/texts"):
        answer = client.get(f"{API}/{path}", params={"cursor": cursor})
        if (path, cursor) != ("collections/default/texts", "WyJhIl0"):
            assert answer.status_code == 422, (path, answer.text)


def test_tasks_are_listed_newest_first_by_state_and_page(bench: Bench, client: httpx2.Client) -> None:
    with working(bench.dsn):
        done = [accepted(client, ["text"], ids=[f"d{number}"])["task_id"] for number in range(3)]
        ended(client, done[-1])
        [ended(client, one) for one in done]
    waiting = [accepted(client, ["text"], ids=[f"w{number}"])["task_id"] for number in range(2)]
    listed = client.get(f"{API}/tasks").json()
    assert [one["task_id"] for one in listed["tasks"]] == [*reversed(waiting), *reversed(done)]
    assert listed["next"] is None
    paged: list[str] = []
    cursor: str | None = None
    while True:
        page = client.get(f"{API}/tasks", params={"limit": "2", **({"cursor": cursor} if cursor else {})}).json()
        paged += [one["task_id"] for one in page["tasks"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert paged == [*reversed(waiting), *reversed(done)]
    of_state = {
        state: [one["task_id"] for one in client.get(f"{API}/tasks", params={"state": state}).json()["tasks"]]
        for state in ("queued", "done", "failed")
    }
    assert of_state == {"queued": waiting[::-1], "done": done[::-1], "failed": []}
    assert client.get(f"{API}/tasks", params={"state": "odd"}).status_code == 422
    assert client.get(f"{API}/tasks", params={"collection": "none"}).json()["tasks"] == []


def _read_events(client: httpx2.Client, task: str, found: list[tuple[str, dict[str, object]]]) -> None:
    with client.stream("GET", f"{API}/tasks/{task}/events") as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        name = ""
        for line in answer.iter_lines():
            if line.startswith("event: "):
                name = line.removeprefix("event: ")
            elif line.startswith("data: "):
                found.append((name, json.loads(line.removeprefix("data: "))))


def test_events_come_at_once_with_each_change_and_end_with_the_task(bench: Bench, client: httpx2.Client) -> None:
    task = accepted(client, ["one", "two"])["task_id"]
    found: list[tuple[str, dict[str, object]]] = []
    thread = threading.Thread(target=_read_events, args=(client, task, found))
    thread.start()
    wait_until(lambda: found, 10)
    assert (found[0][0], found[0][1]["state"]) == ("status", "queued")
    with working(bench.dsn):
        thread.join(20)
    assert not thread.is_alive()
    assert [name for name, _ in found[:-1]] == ["status"] * (len(found) - 1)
    assert found[-1] == ("end", {})
    assert (found[-2][1]["state"], found[-2][1]["progress"]) == ("done", 1)
    ended_at_once: list[tuple[str, dict[str, object]]] = []
    _read_events(client, task, ended_at_once)
    assert [name for name, _ in ended_at_once] == ["status", "end"]


def test_a_change_is_told_well_before_the_next_tick(
    bench: Bench, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the worker's NOTIFY: the tick alone would take minutes."""
    monkeypatch.setattr("pgvec_queue.gateway.notices.TICK_SECONDS", 120.0)
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "delay=1")
    with working(bench.dsn):
        answer = post(client, ["second"], params={"wait": "20"})
        assert (answer.status_code, answer.json()["state"]) == (200, "done")
        wait_until(
            lambda: bench.value(LISTENING),
            5,
        )


def test_without_notifications_the_tick_is_enough(bench: Bench, client: httpx2.Client) -> None:
    task = accepted(client, ["text"])["task_id"]
    found: list[tuple[str, dict[str, object]]] = []
    thread = threading.Thread(target=_read_events, args=(client, task, found))
    thread.start()
    wait_until(lambda: found, 10)
    bench.sql(f"DELETE FROM {TABLE}")
    thread.join(10)
    assert not thread.is_alive()
    assert found[-1][0] == "end"


def test_streams_survive_a_listening_connection_that_is_ended(bench: Bench, client: httpx2.Client) -> None:
    task = accepted(client, ["text"])["task_id"]
    found: list[tuple[str, dict[str, object]]] = []
    thread = threading.Thread(target=_read_events, args=(client, task, found))
    thread.start()
    ending = LISTENING.replace("count(*)", "pg_terminate_backend(pid)")
    wait_until(lambda: bench.sql(ending), 10)
    with working(bench.dsn):
        thread.join(20)
    assert not thread.is_alive()
    assert found[-1][0] == "end"


def test_one_look_serves_all_streams(bench: Bench, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    look = tasks.look

    async def counted(connection: object, ids: list[uuid.UUID]) -> object:
        looks.append(len(ids))
        return await look(connection, ids)  # type: ignore[arg-type]

    made = [accepted(client, ["text"])["task_id"] for _ in range(10)]
    monkeypatch.setattr("pgvec_queue.gateway.watch.tasks.look", counted)
    found: list[list[tuple[str, dict[str, object]]]] = [[] for _ in made]
    with ExitStack() as stack:
        threads = [
            threading.Thread(target=_read_events, args=(client, task, into))
            for task, into in zip(made, found, strict=True)
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: all(found), 20)
        wait_until(lambda: looks and looks[-1] == 10, 20)
        looks.clear()
        time_at = time.monotonic()
        wait_until(lambda: len(looks) >= 3, 20)
        assert time.monotonic() - time_at > 1.5, "several looks per tick"
        assert set(looks) == {10}
        stack.enter_context(working(bench.dsn))
        for thread in threads:
            thread.join(20)
    assert all(events[-1][0] == "end" for events in found)


def test_a_stream_without_news_is_kept_alive(
    bench: Bench, client: httpx2.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "HEARTBEAT_SECONDS", 0.05)
    task = accepted(client, ["text"])["task_id"]
    with client.stream("GET", f"{API}/tasks/{task}/events") as answer:
        assert next(line for line in answer.iter_lines() if line.startswith(":"))


def test_a_stream_that_is_left_is_followed_no_more(bench: Bench, client: httpx2.Client) -> None:
    task = accepted(client, ["text"])["task_id"]
    with client.stream("GET", f"{API}/tasks/{task}/events") as answer:
        next(answer.iter_lines())
    wait_until(lambda: bench.value(LISTENING) == 0, 20, what="the end of the listening connection")


def test_old_tasks_are_removed_and_young_ones_are_not(bench: Bench, client: httpx2.Client) -> None:
    old, young = (accepted(client, ["text"], ids=[name])["task_id"] for name in ("old", "young"))
    with working(bench.dsn):
        ended(client, old)
        ended(client, young)
    waiting = accepted(client, ["waits"])["task_id"]
    bench.sql("UPDATE pgvec.tasks SET finished_at = finished_at - interval '8 days' WHERE id = %s", old)
    bench.sql("UPDATE pgvec.tasks SET created_at = created_at - interval '80 days' WHERE id = %s", waiting)

    async def keep_house() -> None:
        async with await async_connect(bench.database, "test") as connection:
            await tasks.housekeeping(connection, keep=7 * 86_400)

    asyncio.run(keep_house())
    assert {str(one) for (one,) in bench.sql("SELECT id FROM pgvec.tasks")} == {young, waiting}
    assert client.get(f"{API}/tasks/{old}/status").status_code == 404
    # Texts outlive their task.
    assert bench.value(f"SELECT count(*) FROM {TABLE}") == 3
    with psycopg.connect(bench.dsn) as other:
        other.execute("SELECT pg_advisory_xact_lock(2730311594)")
        bench.sql("UPDATE pgvec.tasks SET finished_at = finished_at - interval '8 days' WHERE id = %s", young)
        asyncio.run(keep_house())
        assert bench.value("SELECT count(*) FROM pgvec.tasks") == 2
