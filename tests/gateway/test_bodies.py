"""Bodies: too large, too slow, too deep, or no JSON that anything further in could take."""

from __future__ import annotations

import json
import random
import socket
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from pgvec_queue.database import Database
from pgvec_queue.gateway.app import Gateway, create_app
from pgvec_queue.gateway.limits import Limits
from tests.gateway import endpoints
from tests.gateway.conftest import Serve
from tests.gateway.serving import Served
from tests.support import Bench
from tests.waiting import wait_until

ECHO, STORE = "/api/v1/test/echo", "/api/v1/test/store"
JSON = {"content-type": "application/json"}


def with_endpoints(bench: Bench, limits: Limits | None = None) -> Gateway:
    app = create_app(Database(bench.dsn), limits)
    app.include_router(endpoints.router)
    app.include_router(endpoints.bodies)
    return app


@pytest.fixture
def gateway(bench: Bench, serve: Serve) -> Served:
    return serve(app=with_endpoints(bench))


@pytest.mark.parametrize(
    "body",
    [
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": "\\udc00\\ud800"}',
        b'{"text": "a\x00b"}',
        b'{"text": "a", "number": NaN}',
        b'{"text": "a", "number": Infinity}',
        b'{"text": "a", "number": -Infinity}',
        b'{"text": "a", "number": 1e999}',
        b'{"text": "a", "number": -' + b"9" * 400 + b".0}",
        b'{"text": "a", "metadata": {"n": [1e999]}}',
        b'{"text": "a", "metadata": {"n": NaN}}',
        b'{"text": "a", "metadata": ' + b'{"a":' * 100_000 + b"1" + b"}" * 100_000 + b"}",
        b"[" * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
        b'{"text": "a"',
        b'{"text": "a"}}',
        b"\xef\xbb\xbf{}",
        '{"text": "a"}'.encode("utf-16"),
        b"{'text': 'a'}",
        b"\x00",
        b" ",
        b'{"text": "a",}',
        b"\x1f\x8b\x08\x00",
    ],
    ids=range(23),
)
def test_what_is_no_json_that_all_can_take_is_a_bad_request(gateway: Served, body: bytes) -> None:
    for path in (ECHO, STORE, "/metrics", "/nowhere"):
        answer = gateway.post(path, content=body, headers=JSON)
        assert answer.status_code == 400, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert len(answer.content) < 1_000


def test_a_text_that_postgresql_cannot_hold_is_told_where_it_is_stored(gateway: Served) -> None:
    answer = gateway.post(STORE, content=b'{"text": "a\\u0000b"}', headers=JSON)
    assert (answer.status_code, answer.json()["title"]) == (422, "Unprocessable Content")


@pytest.mark.parametrize(
    "text",
    ["", "a", "Zürich 東京 🙂", "\\u0000", "\\\\u0000", "a" * 500_000, "\x7f\x01", "\u2028", "NaN", "\ufeffa"],
    ids=range(10),
)
def test_every_text_that_postgresql_can_hold_is_taken(gateway: Served, text: str) -> None:
    for ascii_only in (True, False):
        body = json.dumps({"text": text}, ensure_ascii=ascii_only).encode()
        assert gateway.post(ECHO, content=body, headers=JSON).json()["text"] == text
        assert gateway.post(STORE, content=body, headers=JSON).json() == {"length": len(text)}


def test_great_numbers_that_are_numbers_are_taken(gateway: Served) -> None:
    body = b'{"text": "a", "number": 1e300, "metadata": {"n": ' + b"9" * 350 + b', "s": "1e999"}}'
    answer = gateway.post(ECHO, content=body, headers=JSON)
    assert answer.status_code == 200
    assert answer.json()["number"] == 1e300


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"text": 5}, "body.text"),
        ({"texts": "a"}, "body.text"),
        ({"text": "a", "hunter2": 1}, "body.hunter2"),
        ({"text": "a", "number": "hunter2"}, "body.number"),
        ({"text": "a", "x" * 5_000: 1}, "body.xxx"),
        ("hunter2", "body"),
        (None, "body"),
        ([{"text": "hunter2"}], "body"),
    ],
)
def test_a_value_that_does_not_fit_is_named_by_its_place_and_not_repeated(
    gateway: Served, body: object, place: str
) -> None:
    answer = gateway.post(ECHO, json=body)
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["title"]) == (422, 422, "Unprocessable Content")
    assert problem["errors"][0]["place"].startswith(place)
    assert problem["detail"].startswith(place)
    assert "hunter2" not in answer.text.replace("body.hunter2", "")
    assert len(answer.text) < 2_000


def test_many_errors_are_not_all_told(gateway: Served) -> None:
    body = {"text": "a", **{f"key{number}": 1 for number in range(1_000)}}
    assert len(gateway.post(ECHO, json=body).json()["errors"]) == 20


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/x-www-form-urlencoded"},
        {"content-type": "multipart/form-data; boundary=x"},
        {"content-type": ""},
        {"content-type": "application/jsonx"},
        {**JSON, "content-encoding": "gzip"},
    ],
)
def test_only_json_as_it_is_is_read(gateway: Served, headers: dict[str, str]) -> None:
    answer = gateway.post(ECHO, content=b'{"text": "a"}', headers=headers)
    assert answer.status_code == 415
    assert "application/json" in answer.text or "Content-Encoding" in answer.text


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "application/vnd.api+json", "APPLICATION/JSON"])
def test_any_json_is_json(gateway: Served, kind: str) -> None:
    assert gateway.post(ECHO, content=b'{"text": "a"}', headers={"content-type": kind}).status_code == 200


def test_a_body_that_is_too_large_is_refused_by_what_it_says_and_by_what_it_is(bench: Bench, serve: Serve) -> None:
    limits = Limits(body_bytes=1_000)
    gateway = serve(limits, app=with_endpoints(bench, limits))

    def parts() -> Iterator[bytes]:
        for _ in range(50):
            yield b"a" * 100

    assert gateway.post(ECHO, json={"text": "a" * 900}).status_code == 200
    assert gateway.post(ECHO, json={"text": "a" * 1_000}).status_code == 413
    streamed = gateway.post(ECHO, content=parts(), headers=JSON)
    assert streamed.status_code == 413
    assert streamed.json()["detail"] == "a body may have 1,000 bytes"
    assert gateway.post(ECHO, json={"text": "a" * 900}).status_code == 200


def test_all_bodies_together_are_bounded(bench: Bench, serve: Serve) -> None:
    limits = Limits(bodies_bytes=2_000)
    gateway = serve(limits, app=with_endpoints(bench, limits))
    answer = gateway.post(ECHO, json={"text": "a" * 3_000})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert gateway.post(ECHO, json={"text": "a" * 1_500}).status_code == 200
    assert "pgvec_gateway_bodies_bytes 0.0" in gateway.get("/metrics").text


# Slow clients


def connected(gateway: Served, sent: bytes) -> socket.socket:
    client = socket.create_connection((gateway.host, gateway.port), timeout=20)
    client.sendall(sent)
    return client


def head(gateway: Served, path: str, length: int) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost:{gateway.port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n\r\n"
    ).encode()


def test_slow_bodies_hold_neither_a_place_nor_a_connection(bench: Bench, serve: Serve) -> None:
    limits = Limits(requests=2, pool_size=1, body_seconds=3)
    gateway = serve(limits, app=with_endpoints(bench, limits))
    slow = [connected(gateway, head(gateway, STORE, 1_000) + b'{"text"') for _ in range(12)]
    wait_until(lambda: "pgvec_gateway_bodies_bytes 84.0" in gateway.get("/metrics").text, what="twelve slow bodies")
    for _ in range(10):
        assert gateway.post(STORE, json={"text": "quick"}).status_code == 200
    for client in slow:
        assert client.recv(4_096).startswith(b"HTTP/1.1 408 ")
        client.close()
    assert gateway.post(STORE, json={"text": "quick"}).status_code == 200


@pytest.mark.parametrize("sent", [b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-A: b"])
def test_a_head_that_does_not_come_is_not_waited_for(bench: Bench, serve: Serve, sent: bytes) -> None:
    gateway = serve(Limits(head_seconds=0.5))
    with connected(gateway, sent) as client:
        began = time.monotonic()
        with suppress(ConnectionResetError):
            assert client.recv(4_096) == b""
        assert 0.3 < time.monotonic() - began < 5


def test_a_head_that_drips_is_not_waited_for(serve: Serve) -> None:
    gateway = serve(Limits(head_seconds=1))
    with connected(gateway, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ") as client:
        client.settimeout(0.05)
        ended = False
        deadline = time.monotonic() + 8
        while not ended and time.monotonic() < deadline:
            try:
                client.sendall(b"a")
                ended = client.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
        assert ended


def test_a_connection_between_two_requests_is_kept(serve: Serve) -> None:
    gateway = serve(Limits(head_seconds=0.3))
    ask = f"GET /health HTTP/1.1\r\nHost: localhost:{gateway.port}\r\n\r\n".encode()
    with connected(gateway, ask) as client:
        assert answered(client).startswith(b"HTTP/1.1 200")
        # Longer than a head may take.
        time.sleep(0.6)
        client.sendall(ask)
        assert answered(client).startswith(b"HTTP/1.1 200")


def answered(client: socket.socket) -> bytes:
    """Reads one answer, whose body is a JSON object."""
    read = b""
    while not read.endswith(b"}"):
        part = client.recv(4_096)
        assert part, read
        read += part
    return read


def test_a_head_that_is_too_large_is_refused(gateway: Served) -> None:
    with connected(gateway, b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 100_000) as client:
        assert client.recv(4_096).startswith(b"HTTP/1.1 400")


def test_bodies_of_any_bytes_are_never_an_error_of_the_program(gateway: Served) -> None:
    chance = random.Random(6)
    good = json.dumps({"text": "Zürich", "number": 1.5, "metadata": {"a": [1, None, {"b": "c"}]}}).encode()
    for _ in range(200):
        body = bytearray(good)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(body))
            body[at : at + chance.randint(0, 3)] = chance.randbytes(chance.randint(0, 4))
        for path in (ECHO, STORE):
            answer = gateway.post(path, content=bytes(body), headers=JSON)
            assert answer.status_code in (200, 400, 422), (body, answer.text)
