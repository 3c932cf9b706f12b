"""Places, clocks, streams, problems, headers and lines of the log: what surrounds every answer."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from pgvec_queue.cli.logs import Lines
from pgvec_queue.database import Database
from pgvec_queue.gateway.app import Gateway, create_app
from pgvec_queue.gateway.limits import Limits
from tests.commandline import undone
from tests.gateway import endpoints
from tests.gateway.conftest import Serve
from tests.gateway.serving import Served
from tests.logs import parsed
from tests.prometheus import scrape
from tests.support import Bench
from tests.waiting import wait_until

Tested = Callable[..., Served]


@pytest.fixture
def tested(bench: Bench, serve: Serve) -> Tested:
    """Starts a gateway with endpoints for tests."""

    def begin(**limits: Any) -> Served:
        chosen = Limits(**limits)
        app: Gateway = create_app(Database(bench.dsn), chosen)
        app.include_router(endpoints.router)
        app.include_router(endpoints.bodies)
        return serve(chosen, app=app)

    return begin


def in_flight(gateway: Served) -> int:
    return int(gateway.app.state.measures.in_flight)


# Places and clocks


def test_more_requests_than_there_are_places_are_told_to_come_again(tested: Tested) -> None:
    gateway = tested(requests=3, request_seconds=20)
    with ThreadPoolExecutor(3) as others:
        late = [others.submit(gateway.get, "/api/v1/test/late/2") for _ in range(3)]
        wait_until(lambda: in_flight(gateway) == 3, what="three requests")
        refused = gateway.get("/api/v1/test/late/0")
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "2"
        assert refused.json()["detail"] == "the gateway is busy with other requests"
        assert gateway.get("/health").status_code == gateway.get("/ready").status_code == 200
        assert [one.result().status_code for one in late] == [200] * 3
    assert gateway.get("/api/v1/test/late/0").status_code == 200
    wait_until(lambda: in_flight(gateway) == 0, what="no place taken")


def test_a_request_that_takes_too_long_is_given_up(tested: Tested) -> None:
    gateway = tested(request_seconds=0.3, pool_size=1)
    for path in ("late/5", "query/5", "late/5"):
        began = time.monotonic()
        answer = gateway.get(f"/api/v1/test/{path}")
        assert answer.status_code == 504
        assert time.monotonic() - began < 3
        assert answer.json()["detail"] == "it took longer than 0.3 s"
    # Neither the place nor the connection is lost.
    wait_until(lambda: in_flight(gateway) == 0, what="its place is free")
    wait_until(lambda: gateway.get("/api/v1/test/query/0").status_code == 200, what="a connection")


def test_a_wait_for_a_connection_ends(tested: Tested) -> None:
    gateway = tested(pool_size=1, connection_seconds=0.3)
    with ThreadPoolExecutor(1) as others:
        late = others.submit(gateway.get, "/api/v1/test/query/2")
        wait_until(lambda: in_flight(gateway) == 1, what="the connection in use")
        refused = gateway.get("/api/v1/test/query/0")
        assert refused.status_code == 503
        assert refused.headers["content-type"] == "application/problem+json"
        assert late.result().status_code == 200


def test_a_client_that_leaves_gives_its_place_back(tested: Tested) -> None:
    gateway = tested(request_seconds=3)
    for _ in range(5):
        with socket.create_connection((gateway.host, gateway.port)) as client:
            client.sendall(f"GET /api/v1/test/late/1 HTTP/1.1\r\nHost: localhost:{gateway.port}\r\n\r\n".encode())
            wait_until(lambda: in_flight(gateway) > 0, what="the request")
    wait_until(lambda: in_flight(gateway) == 0, what="the places back")


# Streams


def test_a_stream_has_no_clock_and_takes_no_place(tested: Tested) -> None:
    gateway = tested(requests=1, request_seconds=0.3)
    with gateway.client.stream("GET", "/api/v1/test/stream") as stream:
        lines = (line for line in stream.iter_lines() if line)
        began = time.monotonic()
        while time.monotonic() - began < 1:
            assert next(lines).startswith("data: ")
        with httpx2.Client(base_url=gateway.url, trust_env=False) as other:
            assert other.get("/api/v1/test/late/0").status_code == 200
    wait_until(lambda: gateway.app.state.measures.streams == 0, what="the end of the stream")


def test_there_are_not_more_streams_than_that(tested: Tested) -> None:
    gateway = tested(streams=1)
    with gateway.client.stream("GET", "/api/v1/test/stream") as stream:
        # Forgotten, it would close the stream.
        lines = stream.iter_lines()
        assert next(lines).startswith("data: ")
        with httpx2.Client(base_url=gateway.url, trust_env=False) as other:
            refused = other.get("/api/v1/test/stream")
        assert refused.status_code == 503
        assert refused.json()["detail"] == "too many streams are open"
    wait_until(lambda: gateway.app.state.measures.streams == 0, what="the end of the stream")
    wait_until(lambda: in_flight(gateway) == 0, what="no place taken")
    with gateway.client.stream("GET", "/api/v1/test/stream") as stream:
        assert stream.status_code == 200


def test_a_client_that_stops_reading_its_stream_is_dropped(tested: Tested) -> None:
    gateway = tested(unread_seconds=0.5)
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    client.connect((gateway.host, gateway.port))
    path = "/api/v1/test/stream?size=100000&every=0.001"
    client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost:{gateway.port}\r\n\r\n".encode())
    with client:
        wait_until(lambda: gateway.app.state.measures.streams == 1, what="the stream")
        wait_until(lambda: gateway.app.state.measures.streams == 0, 10, what="its end")


def test_streams_end_in_order_when_the_gateway_leaves(tested: Tested) -> None:
    gateway = tested()
    read: list[str] = []
    begun = threading.Event()

    def follow() -> None:
        with (
            httpx2.Client(base_url=gateway.url, trust_env=False) as client,
            client.stream("GET", "/api/v1/test/stream") as stream,
        ):
            for line in stream.iter_lines():
                read.append(line)
                begun.set()
        read.append("end")

    thread = threading.Thread(target=follow)
    thread.start()
    assert begun.wait(10)
    began = time.monotonic()
    gateway.server.should_exit = True
    thread.join(10)
    assert read[-1] == "end", "the stream was cut off"
    assert time.monotonic() - began < 4


def test_requests_in_flight_are_answered_when_the_gateway_leaves(tested: Tested) -> None:
    gateway = tested()
    with ThreadPoolExecutor(1) as others:
        late = others.submit(gateway.get, "/api/v1/test/late/1")
        wait_until(lambda: in_flight(gateway) == 1, what="the request")
        gateway.server.should_exit = True
        assert late.result().json() == {"seconds": 1}

    def refused() -> bool:
        try:
            socket.create_connection((gateway.host, gateway.port), timeout=1).close()
        except OSError:
            return True
        return False

    wait_until(refused, what="no new connections")


def test_the_end_of_an_answer_does_not_wait_for_the_client_to_acknowledge_its_beginning(tested: Tested) -> None:
    gateway = tested()
    gateway.get("/health")
    (connection,) = gateway.server.server_state.connections
    kernel = connection.transport.get_extra_info("socket")
    assert kernel.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Problems


@pytest.mark.parametrize(
    ("how", "status", "detail"),
    [
        ("program", 500, "the gateway has failed; its log says more"),
        ("database", 503, "the database cannot be used at the moment"),
        ("definition", 422, "there is no table postgresql://me:***@db.internal/shop here"),
        ("model", 503, "the model cannot be used at the moment"),
        ("nul", 422, "the database takes no such value"),
        ("value", 422, "the database takes no such value"),
        ("unique", 409, "something else has that name or key, or still depends on it"),
        ("table", 500, "the gateway has failed; its log says more"),
        ("schema", 503, "the schema pgvec is missing, or not the one that this gateway needs; run: pgvec init"),
        ("lost", 503, "the database cannot be used at the moment"),
        ("timeout", 504, "the database took too long"),
        ("server", 503, "the database cannot be used at the moment"),
    ],
)
def test_what_goes_wrong_is_a_problem_without_anything_of_the_inside(
    tested: Tested, how: str, status: int, detail: str
) -> None:
    answer = tested().get(f"/api/v1/test/fail/{how}", headers={"x-request-id": "mine-7"})
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["detail"]) == (status, status, detail)
    assert problem["type"] == "about:blank"
    assert problem["request_id"] == answer.headers["x-request-id"] == "mine-7"
    assert "hunter2" not in answer.text
    assert "Traceback" not in answer.text
    if status in (503, 504):
        assert int(answer.headers["retry-after"]) >= (7 if how == "model" else 1)


def test_a_problem_may_have_headers_of_its_own(tested: Tested) -> None:
    answer = tested().get("/api/v1/test/fail/problem")
    assert (answer.status_code, answer.headers["x-own"], answer.json()["title"]) == (418, "yes", "I'm a Teapot")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/api/v1/nothing", 404),
        ("PUT", "/health", 405),
        ("GET", "/api/v1/test/late/x", 422),
    ],
)
def test_what_is_not_there_is_a_problem_too(tested: Tested, method: str, path: str, status: int) -> None:
    answer = tested().client.request(method, path)
    assert (answer.status_code, answer.json()["status"]) == (status, status)
    assert answer.headers["content-type"] == "application/problem+json"
    if status == 405:
        assert answer.headers["allow"] == "GET"


# Headers


@pytest.mark.parametrize("path", ["/health", "/nothing", "/api/v1/test/fail/program", "/docs", "/docs.css", "/metrics"])
def test_every_answer_has_the_headers_that_keep_browsers_in_check(tested: Tested, path: str) -> None:
    headers = tested().get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["x-frame-options"] == "DENY"
    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert ("style-src 'self'" in policy) is (path == "/docs")
    assert headers["cache-control"] == ("max-age=3600" if path == "/docs.css" else "no-store")
    assert "server" not in headers
    assert len(headers.get_list("x-request-id")) == 1


@pytest.mark.parametrize(
    ("given", "taken"),
    [("abc-1.2:3_4", True), ("a" * 64, True), ("a" * 65, False), ("two words", False), ('x"y', False), ("", False)],
)
def test_a_request_id_is_taken_where_it_is_harmless(tested: Tested, given: str, taken: bool) -> None:
    answered = tested().get("/health", headers={"x-request-id": given}).headers["x-request-id"]
    assert (answered == given) is taken
    assert taken or re.fullmatch("[0-9a-f]{32}", answered)


# Lines of the log


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[str], list[dict[str, Any]]]]:
    """Reads what was logged of an event, as of JSON; each has to be as docs/logs.md says."""
    shown: list[str] = []

    class Written(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            shown.append(self.format(record))

    handler = Written()
    handler.setFormatter(Lines("json"))

    def read(event: str) -> list[dict[str, Any]]:
        return [line for line in parsed("\n".join(shown)) if line["event"] == event]

    with undone():
        logging.getLogger("pgvec").setLevel(logging.DEBUG)
        logging.getLogger().addHandler(handler)
        yield read


Read = Callable[[str], list[dict[str, Any]]]


def test_each_request_has_a_line_without_what_was_asked(tested: Tested, lines: Read) -> None:
    gateway = tested()
    gateway.get("/api/v1/test/late/0?secret=hunter2", headers={"x-request-id": "one", "authorization": "Basic hunter2"})
    gateway.post("/api/v1/test/echo?q=hunter2", json={"text": "hunter2"}, headers={"x-request-id": "two"})
    gateway.get("/nothing/hunter2", headers={"x-request-id": "three"})
    gateway.get("/health", headers={"x-request-id": "four"})
    wait_until(lambda: len(lines("request is served")) == 4, what="four lines")
    one, two, three, four = lines("request is served")
    assert (one["path"], one["method"], one["status"], one["request_id"]) == (
        "/api/v1/test/late/{seconds}",
        "GET",
        200,
        "one",
    )
    assert (two["path"], two["method"], two["who"]) == ("/api/v1/test/echo", "POST", "127.0.0.1")
    assert (three["path"], three["status"], three["level"]) == ("none", 404, "info")
    assert (four["path"], four["level"]) == ("/health", "debug")
    assert 0 <= one["seconds"] < 5
    assert "hunter2" not in json.dumps([one, two, three, four])


def test_a_line_from_within_a_request_names_it(tested: Tested, lines: Read, caplog: pytest.LogCaptureFixture) -> None:
    gateway = tested()
    with ThreadPoolExecutor(8) as others:
        list(others.map(lambda n: gateway.get("/api/v1/test/fail/log", headers={"x-request-id": f"r{n}"}), range(20)))
    wait_until(lambda: len(lines("gateway is not ready")) == 20, what="twenty lines")
    assert {line["request_id"] for line in lines("gateway is not ready")} == {f"r{n}" for n in range(20)}


def test_a_fault_of_the_program_is_in_the_log_under_the_request_s_id(tested: Tested, lines: Read) -> None:
    gateway = tested()
    answer = gateway.get("/api/v1/test/fail/program")
    wait_until(lambda: lines("request has failed"), what="the line")
    (line,) = lines("request has failed")
    assert line["request_id"] == answer.json()["request_id"]
    assert (line["error_class"], line["level"], line["path"]) == ("RuntimeError", "error", "/api/v1/test/fail/{how}")
    assert "postgresql://me:***@" in line["error"]
    assert "Traceback" in line["traceback"]
    assert "hunter2" not in line["traceback"]
    assert [line["logger"] for line in [*lines("Exception in ASGI application\n")]] == []


def test_what_was_turned_away_is_counted_by_its_reason(tested: Tested) -> None:
    gateway = tested(body_bytes=10, request_seconds=0.1)
    gateway.post("/api/v1/test/echo", json={"text": "a" * 100})
    gateway.get("/api/v1/test/late/3")
    gateway.post("/api/v1/test/echo", headers={"origin": "http://evil.example"})
    gateway.get("/metrics", headers={"host": "evil.example"})
    scraped = scrape(gateway.url)
    for reason in ("body", "timeout", "origin", "host"):
        assert scraped("pgvec_gateway_rejected_total", reason=reason) == 1
