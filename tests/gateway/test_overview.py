"""The stream behind the page: one look for all who watch, news only, the newest state for who is slow."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx2
import psycopg
import pytest

from pgvec_queue.gateway.limits import Limits
from pgvec_queue.gateway.overview import EVERY, Look, Overview, reason_of
from tests.gateway.serving import Served, closed, serving
from tests.gateway.test_vectorizers import fill, quarantine
from tests.support import Bench
from tests.waiting import wait_until

EVENTS = "/api/v1/overview/events"


class Database:
    """What is looked at: counts the looks, and answers what it is told to."""

    def __init__(self) -> None:
        self.looks = 0
        self.state = "{}"
        self.error: Exception | None = None

    async def read(self) -> Look:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return Look(float(self.looks), self.state)


@asynccontextmanager
async def overview(database: Database, **options: float) -> AsyncIterator[Overview]:
    found = Overview(database.read, **{"every": 0.01, **options})
    async with found.running():
        yield found


async def until(condition: Any, what: str) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.002)


def test_nobody_watches_nothing_is_asked() -> None:
    async def run() -> None:
        database = Database()
        async with overview(database) as found:
            assert found._task is None
            stream = found.events()
            assert b"event: overview\n" in await anext(stream)
            await stream.aclose()
            await until(lambda: found._task is None, "the end of looking")

    asyncio.run(run())


def test_all_who_watch_share_a_look_and_hear_only_of_news() -> None:
    async def run() -> None:
        database = Database()
        async with overview(database) as found:
            streams = [found.events() for _ in range(20)]
            first = [await anext(stream) for stream in streams]
            assert len(set(first)) == 1
            waiting = [asyncio.ensure_future(anext(stream)) for stream in streams]
            looks = database.looks
            await until(lambda: database.looks > looks + 5, "more looks")
            assert not any(task.done() for task in waiting)
            database.state = '{"a": 1}'
            second = await asyncio.gather(*waiting)
            assert len(set(second)) == 1
            assert b'"state": {"a": 1}}' in second[0]
            assert database.looks < 60
            for stream in streams:
                await stream.aclose()

    asyncio.run(run())


def test_a_slow_reader_gets_the_newest_state_and_no_backlog() -> None:
    async def run() -> None:
        database = Database()
        async with overview(database) as found:
            slow, quick = found.events(), found.events()
            await anext(slow)
            await anext(quick)
            for number in range(10):
                database.state = json.dumps({"number": number})
                assert json.dumps({"number": number}).encode() in await anext(quick)
            assert b'{"number": 9}' in await anext(slow)
            more = asyncio.ensure_future(anext(slow))
            looks = database.looks
            await until(lambda: database.looks > looks + 3, "more looks")
            assert not more.done()
            more.cancel()
            await quick.aclose()

    asyncio.run(run())


def test_looks_keep_their_distance_however_often_pages_come_and_go() -> None:
    async def run() -> None:
        database = Database()
        async with overview(database, every=0.2) as found:
            began = asyncio.get_running_loop().time()
            for _ in range(5):
                stream = found.events()
                await anext(stream)
                await stream.aclose()
                for _ in range(20):
                    await asyncio.sleep(0)
            took = asyncio.get_running_loop().time() - began
            assert database.looks <= took / 0.2 + 1

    asyncio.run(run())


def test_silence_is_broken_by_a_comment() -> None:
    async def run() -> None:
        async with overview(Database(), heartbeat=0.05) as found:
            stream = found.events()
            await anext(stream)
            assert (await anext(stream)).startswith(b":")
            await stream.aclose()

    asyncio.run(run())


def test_a_look_that_fails_is_told_once_and_looks_go_on() -> None:
    async def run() -> None:
        database = Database()
        async with overview(database) as found:
            stream = found.events()
            await anext(stream)
            for error, told in (
                (psycopg.OperationalError("host db.secret refused the password of joe"), "cannot be reached"),
                (RuntimeError("secret"), "its log says why"),
            ):
                database.error = error
                message = (await anext(stream)).decode()
                assert message.startswith("event: outage\ndata: ")
                assert told in message
                assert "secret" not in message
                database.error = None
                assert b"event: overview" in await anext(stream)
            await stream.aclose()

    asyncio.run(run())


def test_streams_end_with_the_gateway() -> None:
    async def run() -> None:
        database = Database()
        async with overview(database) as found:
            streams = [found.events() for _ in range(3)]
            for stream in streams:
                await anext(stream)
            waiting = [asyncio.ensure_future(anext(stream, None)) for stream in streams]
            await asyncio.sleep(0)
            found.close()
            assert await asyncio.gather(*waiting) == [None, None, None]
            assert await anext(found.events(), None) is None

    asyncio.run(run())


def test_reasons_name_no_host_and_no_role() -> None:
    assert "pgvec init" in reason_of(psycopg.errors.UndefinedTable("relation pgvec.x"))
    assert "5 s" in reason_of(psycopg.errors.QueryCanceled("x"))
    assert reason_of(OSError("db.secret")) == "the database cannot be reached"


# With a database


class Stream:
    """A stream that is being read, by a thread."""

    def __init__(self, response: httpx2.Response) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.ended = threading.Event()
        self._response = response
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        event = ""
        try:
            rest = b""
            for part in self._response.iter_bytes():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if line.startswith(b"event: "):
                        event = line[7:].decode()
                    elif line.startswith(b"data: "):
                        self.events.append((event, json.loads(line[6:])))
        except httpx2.HTTPError:
            pass
        finally:
            self.ended.set()

    def wait(self, condition: Any, what: str, timeout: float = 15) -> Any:
        """Returns the newest state, once it is as wished."""
        wait_until(lambda: self.events and condition(self.events[-1]), timeout, what=what)
        return self.events[-1][1].get("state")

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()


@contextmanager
def watching(served: Served) -> Iterator[Stream]:
    with served.client.stream("GET", EVENTS, timeout=60) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["cache-control"] == "no-store"
        stream = Stream(response)
        try:
            yield stream
        finally:
            # Closing it would not wake the thread that reads.
            response.extensions["network_stream"].get_extra_info("socket").shutdown(socket.SHUT_RDWR)
            stream.join()


def test_everything_that_the_page_shows_is_in_the_stream(bench: Bench) -> None:
    with serving(bench.dsn) as served, watching(served) as stream:
        state = stream.wait(lambda one: one[0] == "overview", "the first event")
        assert state["vectorizers"] == state["workers"] == state["failures"] == state["events"] == []
        assert state["totals"]["rows_total"] == 0
        fill(bench, 300)
        bench.enqueue("docs", "body", rows_per_job=100)
        bench.drain()
        quarantine(bench, "docs", 3)
        quarantine(bench, "docs", 5, "UnicodeError")
        member = bench.register()
        state = stream.wait(lambda one: one[1]["state"]["failures"] and one[1]["state"]["workers"], "the state")
        (docs,) = state["vectorizers"]
        progress = bench.progress("docs").as_json()
        same = {*docs} - {name for name in docs if name.endswith(("_second", "_15m", "_seconds"))}
        assert len(same) > 15
        assert {name: docs[name] for name in same} == {name: progress[name] for name in same}
        assert [(one["error_class"], one["documents"], one["key"]) for one in state["failures"]] == [
            ("TooLongError", 3, "0003"),
            ("UnicodeError", 2, "0005"),
        ]
        assert state["workers"][0]["worker_id"] == member.worker
        at = stream.events[-1][1]["at"]
        assert abs(state["workers"][0]["beat_at"] - at) < 60
        (series,) = state["throughput"]["vectorizers"]
        assert series["name"] == "docs"
        assert all(minute % 60 == 0 and rate > 0 for minute, rate in series["minutes"])
        assert series["minutes"] == state["throughput"]["all"]
        assert {"started", "left"} <= {one["kind"] for one in state["events"]}


def test_what_does_not_change_is_not_sent_again(bench: Bench) -> None:
    fill(bench, 10)
    bench.enqueue("docs", "body")
    with serving(bench.dsn) as served, watching(served) as stream:
        stream.wait(lambda one: one[0] == "overview", "the first event")
        overview = served.app.state.overview
        later = overview._next_at + 2 * EVERY
        wait_until(lambda: overview._next_at > later, 30, what="more looks")
        assert len(stream.events) == 1


def test_hostile_texts_stay_in_their_line(bench: Bench) -> None:
    name = "x\r\n\r\nevent: outage\ndata: {}\u2028</script>"
    fill(bench, 3)
    bench.enqueue("docs", "body")
    bench.sql("UPDATE pgvec.vectorizers SET name = %s", name)
    with serving(bench.dsn) as served, watching(served) as stream:
        state = stream.wait(lambda one: one[0] == "overview", "the first event")
        assert [one["name"] for one in state["vectorizers"]] == [name]
        assert len(stream.events) == 1


def test_a_lost_database_is_told_and_comes_back(bench: Bench) -> None:
    fill(bench, 10)
    bench.enqueue("docs", "body")
    with serving(bench.dsn, Limits(connection_seconds=0.5)) as served, watching(served) as stream:
        stream.wait(lambda one: one[0] == "overview", "the first event")
        with closed(bench):
            stream.wait(lambda one: one[0] == "outage", "the outage", 30)
            assert stream.events[-1][1] == {"reason": "the database cannot be reached"}
        stream.wait(lambda one: one[0] == "overview", "the database", 60)


def test_a_schema_that_goes_missing_is_named(bench: Bench) -> None:
    with serving(bench.dsn) as served, watching(served) as stream:
        stream.wait(lambda one: one[0] == "overview", "the first event")
        bench.sql("DROP SCHEMA pgvec CASCADE")
        stream.wait(lambda one: one[0] == "outage", "the outage")
        assert "pgvec init" in stream.events[-1][1]["reason"]


def test_one_query_serves_all_who_watch(bench: Bench) -> None:
    fill(bench, 10)
    bench.enqueue("docs", "body")
    with serving(bench.dsn) as served:
        with watching(served) as one, watching(served) as two, watching(served) as three:
            for stream in (one, two, three):
                stream.wait(lambda event: event[0] == "overview", "the first event")
            assert served.app.state.overview.watchers == 3
            wait_until(
                lambda: (
                    bench.value(
                        "SELECT count(*) FROM pg_stat_activity"
                        " WHERE datname = current_database() AND application_name LIKE 'pgvec gateway%%'"
                    )
                    == 1
                ),
                what="one connection",
            )
        wait_until(lambda: served.app.state.overview.watchers == 0, what="everybody gone")


@pytest.mark.parametrize(
    "path", ["/dashboard", "/dashboard/main.js", "/dashboard/dashboard.css", "/dashboard/icon.svg"]
)
def test_the_page_comes_with_a_strict_policy(bench: Bench, path: str) -> None:
    with serving(bench.dsn) as served:
        answer = served.get(path)
        assert answer.status_code == 200
        policy = answer.headers["content-security-policy"].split("; ")
        wanted = {"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self'"}
        assert wanted <= set(policy)
        assert not [part for part in policy if "unsafe" in part or "*" in part or "http" in part]
        assert answer.headers["x-content-type-options"] == "nosniff"
        again = served.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        for wrong in ("none.js", "..%2Fapp.py", "%2e%2e/app.py", "dashboard.html%00", "__init__.py"):
            assert served.get(f"/dashboard/{wrong}").status_code == 404
