"""The endpoint embedder against a server in a thread that answers what the test tells it to."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from pgvec_queue.embedders import DeviceOptions, ModelSpec, describe, load, openai
from pgvec_queue.embedders.openai import OpenAIEmbedder
from pgvec_queue.errors import EmbedderError, Kind

DIMENSIONS = 4
Answer = tuple[int, dict[str, str], bytes]


def vector(text: str) -> list[float]:
    """What the stand-in makes of a text; exact in float32."""
    return [float(len(text)), float(sum(map(ord, text)) % 1024), 0.5, -1.0]


def vectors(request: dict[str, Any]) -> Answer:
    """Answers as OpenAI does, except that the texts come in reverse."""
    data = []
    for index, text in reversed(list(enumerate(request["input"]))):
        embedding: object = vector(text)
        if request.get("encoding_format") == "base64":
            embedding = base64.b64encode(np.array(embedding, "<f4").tobytes()).decode()
        data.append({"index": index, "embedding": embedding})
    return 200, {}, json.dumps({"data": data}).encode()


def status(code: int, message: str = "", **headers: str) -> Callable[[dict[str, Any]], Answer]:
    body = json.dumps({"error": {"message": message}}).encode()
    return lambda _: (code, {name.replace("_", "-"): value for name, value in headers.items()}, body)


def raw(body: bytes) -> Callable[[dict[str, Any]], Answer]:
    return lambda _: (200, {}, body)


@dataclass
class Endpoint:
    """What the server was asked, and what it answers next; `vectors` once `answers` are used up."""

    url: str = ""
    answers: list[Callable[[dict[str, Any]], Answer]] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # the whole answer in one packet: two would wait for the client to acknowledge the first

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            state.requests.append(request)
            state.paths.append(self.path)
            state.keys.append(self.headers["authorization"])
            code, headers, body = (state.answers.pop(0) if state.answers else vectors)(request)
            if not code:
                self.close_connection = True
                return
            self.send_response_only(code)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Opened:
    embedder: OpenAIEmbedder
    slept: list[float]

    def embed(self, texts: list[str], tokens: list[int] | None = None) -> list[list[float]]:
        found: list[list[float]] = self.embedder.embed_documents(texts, tokens or [1] * len(texts)).tolist()
        return found


Open = Callable[..., Opened]


@pytest.fixture
def open_embedder(endpoint: Endpoint) -> Iterator[Open]:
    opened: list[OpenAIEmbedder] = []

    def connect(model: str = "mini", batch_tokens: int | None = None, **fields: Any) -> Opened:
        spec = ModelSpec("openai", model, **{"endpoint": endpoint.url, "dimensions": DIMENSIONS, **fields})
        slept: list[float] = []
        opened.append(OpenAIEmbedder(spec, DeviceOptions(batch_tokens=batch_tokens), sleep=slept.append))
        return Opened(opened[-1], slept)

    yield connect
    for embedder in opened:
        embedder.close()


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.delenv("PGVEC_ENDPOINT_KEY", raising=False)


# Requests and answers


def test_vectors_come_in_the_order_of_the_texts(endpoint: Endpoint, open_embedder: Open) -> None:
    texts = ["one", "two", "three"]
    opened = open_embedder()
    assert opened.embed(texts) == [vector(text) for text in texts]
    assert opened.embedder.embed_query("one").tolist() == vector("one")
    assert endpoint.paths == ["/v1/embeddings"] * 2
    assert endpoint.requests[0] == {"model": "mini", "input": texts, "encoding_format": "base64"}


def test_a_query_in_the_endpoint_stays(endpoint: Endpoint, open_embedder: Open) -> None:
    open_embedder(endpoint=f"{endpoint.url}/?api-version=7").embed(["a"])
    assert endpoint.paths == ["/v1/embeddings?api-version=7"]


def test_lists_of_numbers_are_understood_too(endpoint: Endpoint, open_embedder: Open) -> None:
    endpoint.answers = [raw(b'{"data": [{"index": 0, "embedding": [1, 2.5, null, 1e300]}]}')]
    found = open_embedder().embed(["a"])[0]
    assert found[:2] == [1.0, 2.5]
    assert np.isnan(found[2])
    assert np.isinf(found[3])


def test_a_server_that_refuses_base64_is_asked_for_floats_from_then_on(endpoint: Endpoint, open_embedder: Open) -> None:
    endpoint.answers = [status(400, "encoding_format: only float is supported")]
    opened = open_embedder()
    assert opened.embed(["a"]) == [vector("a")]
    assert opened.embed(["b"]) == [vector("b")]
    assert [request["encoding_format"] for request in endpoint.requests] == ["base64", "float", "float"]


def test_no_texts_make_no_request(endpoint: Endpoint, open_embedder: Open) -> None:
    assert open_embedder().embedder.embed_documents([], []).shape == (0, DIMENSIONS)
    assert endpoint.requests == []


def test_a_request_carries_at_most_256_texts(endpoint: Endpoint, open_embedder: Open) -> None:
    texts = [f"text {i}" for i in range(600)]
    assert open_embedder().embed(texts) == [vector(text) for text in texts]
    assert sorted(len(request["input"]) for request in endpoint.requests) == [88, 256, 256]


def test_several_requests_are_under_way_at_a_time(endpoint: Endpoint, open_embedder: Open) -> None:
    together = threading.Barrier(3, timeout=20)

    def meet(request: dict[str, Any]) -> Answer:
        together.wait()
        return vectors(request)

    endpoint.answers = [meet] * 3
    texts = [f"text {i}" for i in range(600)]
    assert open_embedder().embed(texts) == [vector(text) for text in texts]
    assert not together.broken


def test_what_one_of_several_requests_is_refused_for_is_raised(endpoint: Endpoint, open_embedder: Open) -> None:
    endpoint.answers = [vectors, status(401), *[vectors] * 8]
    with pytest.raises(EmbedderError, match="answered 401") as caught:
        open_embedder(batch_tokens=16).embed([f"text {i}" for i in range(10)], [16] * 10)
    assert caught.value.kind is Kind.VECTORIZER


@pytest.mark.parametrize(
    ("batch_tokens", "tokens", "batches"),
    [
        (None, [40_000, 60_000, 1], [2, 1]),
        (10, [5, 5, 5], [2, 1]),
        (10, [11, 1, 20, 2], [1, 1, 1, 1]),
        (1_000_000, [150_000, 150_000, 150_000], [2, 1]),
    ],
)
def test_a_request_carries_at_most_a_budget_of_tokens(
    endpoint: Endpoint, open_embedder: Open, batch_tokens: int | None, tokens: list[int], batches: list[int]
) -> None:
    open_embedder(batch_tokens=batch_tokens).embed(["a"] * len(tokens), tokens)
    assert sorted(len(request["input"]) for request in endpoint.requests) == sorted(batches)


def test_prompts_are_put_before_the_text(endpoint: Endpoint, open_embedder: Open) -> None:
    opened = open_embedder(query_prompt="query: ", document_prompt="passage: ")
    opened.embed(["cat"])
    opened.embedder.embed_query("cat")
    assert [request["input"] for request in endpoint.requests] == [["passage: cat"], ["query: cat"]]
    assert (opened.embedder.info.query_prompt, opened.embedder.info.document_prompt) == ("query: ", "passage: ")


def test_queries_go_together_as_far_as_a_request_may(endpoint: Endpoint, open_embedder: Open) -> None:
    opened = open_embedder(query_prompt="? ")
    texts = [f"text {i}" for i in range(300)]
    found = opened.embedder.embed_queries(texts)
    assert found.tolist() == [vector(f"? {text}") for text in texts]
    assert [len(request["input"]) for request in endpoint.requests] == [256, 44]


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b'{"data": []}',
        b'{"data": [{"index": 0, "embedding": [1, 2, 3, 4]}]}',
        b'{"data": [{"index": 0, "embedding": [1, 2, 3, 4]}, {"index": 0, "embedding": [1, 2, 3, 4]}]}',
        b'{"data": [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1]}, {"index": 1, "embedding": [1]}]}',
        b'{"data": [{"embedding": [1, 2, 3, 4]}, {"embedding": [1, 2, 3, 4]}]}',
        b'{"data": [{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": "%%%%"}]}',
        b'{"data": [{"index": 0, "embedding": []}, {"index": 1, "embedding": []}]}',
        b'{"data": [{"index": 0, "embedding": [[1]]}, {"index": 1, "embedding": [[1]]}]}',
    ],
)
def test_an_answer_that_is_not_one_vector_per_text_passes(endpoint: Endpoint, open_embedder: Open, body: bytes) -> None:
    endpoint.answers = [raw(body)] * 4
    with pytest.raises(EmbedderError, match="no proper embeddings") as caught:
        open_embedder().embed(["a", "b"])
    assert caught.value.kind is Kind.PASSING


def test_an_answer_that_numbers_its_vectors_otherwise_is_told(endpoint: Endpoint, open_embedder: Open) -> None:
    endpoint.answers = [raw(b'{"data": [{"index": 1, "embedding": [1, 2, 3, 4]}]}')] * 4
    with pytest.raises(EmbedderError, match="1 vectors for 1 texts, or not numbered as they are"):
        open_embedder().embed(["a"])


# Dimensions


@pytest.mark.parametrize(
    ("model", "asked", "told", "sent"),
    [
        ("text-embedding-3-small", None, 1536, None),
        ("text-embedding-3-large", None, 3072, None),
        ("text-embedding-ada-002", None, 1536, None),
        ("text-embedding-ada-002", 1536, 1536, None),
        ("text-embedding-3-large", 256, 256, 256),
        ("openai/text-embedding-3-large", 256, 256, 256),
        ("mini", 4, 4, None),
    ],
)
def test_dimensions_are_known_or_given_and_sent_only_where_understood(
    endpoint: Endpoint, open_embedder: Open, model: str, asked: int | None, told: int, sent: int | None
) -> None:
    spec = ModelSpec("openai", model, endpoint=endpoint.url, dimensions=asked)
    assert describe(spec).dimensions == told
    assert endpoint.requests == []
    body = json.dumps({"data": [{"index": 0, "embedding": [0.5] * told}]}).encode()
    endpoint.answers = [raw(body)]
    assert len(open_embedder(model, dimensions=asked).embed(["a"])[0]) == told
    assert endpoint.requests[0].get("dimensions") == sent


def test_only_known_models_have_a_known_longest_input() -> None:
    assert describe(ModelSpec("openai", "text-embedding-3-small")).max_tokens == 8191
    assert describe(ModelSpec("openai", "mini", dimensions=4)).max_tokens is None


def test_an_unknown_model_is_described_by_embedding_one_word(endpoint: Endpoint) -> None:
    info = describe(ModelSpec("openai", "mini", endpoint=endpoint.url))
    assert info.dimensions == DIMENSIONS
    assert [len(request["input"]) for request in endpoint.requests] == [1]


@pytest.mark.parametrize(
    ("model", "asked"),
    [("text-embedding-3-small", 1537), ("text-embedding-3-small", 0), ("text-embedding-ada-002", 256), ("mini", -1)],
)
def test_dimensions_that_the_model_cannot_give_are_refused(model: str, asked: int) -> None:
    with pytest.raises(EmbedderError, match=f"cannot give {asked} dimensions") as caught:
        describe(ModelSpec("openai", model, dimensions=asked))
    assert caught.value.kind is Kind.VECTORIZER


def test_vectors_of_other_dimensions_are_the_vectorizers_error(open_embedder: Open) -> None:
    with pytest.raises(EmbedderError, match="gives 4 dimensions, not 5; give --dimensions 4") as caught:
        open_embedder(dimensions=5).embed(["a"])
    assert caught.value.kind is Kind.VECTORIZER


# Refusals and retries


@pytest.mark.parametrize(
    ("kind", "statuses"),
    [
        (Kind.ROW, [400, 413, 422]),
        (Kind.PASSING, [408, 409, 425, 429, 500, 502, 503, 504, 529]),
        (Kind.VECTORIZER, [301, 307, 401, 402, 403, 404, 405, 410, 415, 418]),
    ],
)
def test_a_refusal_has_the_kind_of_its_status_and_only_what_passes_is_tried_again(
    endpoint: Endpoint, open_embedder: Open, kind: Kind, statuses: list[int]
) -> None:
    opened = open_embedder()
    for code in statuses:
        endpoint.requests.clear()
        endpoint.answers = [status(code)] * (4 if kind is Kind.PASSING else 1)
        with pytest.raises(EmbedderError, match=str(code)) as caught:
            opened.embed(["a"])
        assert caught.value.kind is kind
        assert len(endpoint.requests) == (4 if kind is Kind.PASSING else 1)


def test_what_passes_is_tried_again(endpoint: Endpoint, open_embedder: Open) -> None:
    endpoint.answers = [status(503), lambda _: (0, {}, b""), status(429)]
    opened = open_embedder()
    assert opened.embed(["a"]) == [vector("a")]
    assert len(opened.slept) == 3
    assert all(0 <= seconds <= 5 for seconds in opened.slept)
    assert len(set(opened.slept)) == 3


def test_a_short_wait_that_the_endpoint_asks_for_is_kept(endpoint: Endpoint, open_embedder: Open) -> None:
    now = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
    later = format_datetime(now + timedelta(seconds=4), usegmt=True)
    endpoint.answers = [
        status(429, retry_after="3"),
        status(503, retry_after=later, date=format_datetime(now, usegmt=True)),
    ]
    opened = open_embedder()
    opened.embed(["a"])
    assert opened.slept == [3.0, 4.0]


def test_a_long_wait_is_left_to_the_caller(endpoint: Endpoint, open_embedder: Open) -> None:
    endpoint.answers = [status(429, "slow down", retry_after="60")]
    opened = open_embedder()
    with pytest.raises(EmbedderError, match="429: slow down") as caught:
        opened.embed(["a"])
    assert (caught.value.kind, caught.value.retry_after) == (Kind.PASSING, 60.0)
    assert opened.slept == []


@pytest.mark.parametrize("value", ["", "soon", "-1", "Sun, 01 Mar 2026 12:00:00 GMT"])
def test_a_wait_that_cannot_be_read_is_none(endpoint: Endpoint, open_embedder: Open, value: str) -> None:
    endpoint.answers = [status(500, retry_after=value)] * 4
    with pytest.raises(EmbedderError) as caught:
        open_embedder().embed(["a"])
    assert caught.value.retry_after is None


def test_an_endpoint_that_cannot_be_reached_passes(endpoint: Endpoint, open_embedder: Open) -> None:
    opened = open_embedder(endpoint="http://127.0.0.1:1/v1")
    with pytest.raises(EmbedderError, match=r"127\.0\.0\.1:1 cannot be reached") as caught:
        opened.embed(["a"])
    assert caught.value.kind is Kind.PASSING
    assert len(opened.slept) == 3


def test_an_endpoint_that_does_not_answer_in_time_passes(
    endpoint: Endpoint, open_embedder: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openai, "_TIMEOUT", httpx2.Timeout(0.05))
    release = threading.Event()

    def stall(_: dict[str, Any]) -> Answer:
        release.wait(30)
        return 0, {}, b""

    endpoint.answers = [stall] * 4
    opened = open_embedder()
    try:
        with pytest.raises(EmbedderError, match="cannot be reached: timed out") as caught:
            opened.embed(["a"])
    finally:
        release.set()
    assert caught.value.kind is Kind.PASSING


# Keys, endpoints, tokenizers


def test_the_endpoints_key_is_sent_and_openais_is_not(
    endpoint: Endpoint, open_embedder: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_embedder().embed(["a"])
    monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    open_embedder().embed(["a"])
    monkeypatch.setenv("PGVEC_ENDPOINT_KEY", "sk-mine\n")
    open_embedder().embed(["a"])
    assert endpoint.keys == [None, None, "Bearer sk-mine"]


@pytest.mark.parametrize(
    ("environment", "key"),
    [
        ({"OPENAI_API_KEY": "sk-openai"}, "sk-openai"),
        ({"OPENAI_API_KEY": "sk-openai", "PGVEC_ENDPOINT_KEY": "sk-mine"}, "sk-mine"),
    ],
)
def test_openai_gets_its_key_unless_another_is_set(
    open_embedder: Open, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], key: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    embedder = open_embedder("text-embedding-3-small", endpoint=None, dimensions=None).embedder
    assert embedder.device == "api.openai.com"
    assert embedder._client.headers["authorization"] == f"Bearer {key}"


@pytest.mark.parametrize("endpoint_url", [None, "http://api.openai.com/v1"])
def test_openai_without_a_key_is_an_error(
    open_embedder: Open, monkeypatch: pytest.MonkeyPatch, endpoint_url: str | None
) -> None:
    if endpoint_url is not None:
        monkeypatch.setenv("OPENAI_API_KEY", "sk-openai")
    with pytest.raises(EmbedderError, match="set OPENAI_API_KEY") as caught:
        open_embedder("text-embedding-3-small", endpoint=endpoint_url, dimensions=None)
    assert caught.value.kind is Kind.VECTORIZER


@pytest.mark.parametrize("code", [400, 401, 403, 404, 500])
def test_a_key_is_in_no_error(
    endpoint: Endpoint, open_embedder: Open, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    monkeypatch.setenv("PGVEC_ENDPOINT_KEY", "sk-very-secret")
    endpoint.answers = [status(code, "the key sk-very-secret (or sk-very***) is bad")] * 4
    with pytest.raises(EmbedderError) as caught:
        open_embedder().embed(["a"])
    assert "sk-very-secret" not in str(caught.value)
    if code in (401, 403):
        assert "sk-very" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "example.org/v1", "ftp://example.org", "http://[::1", "http://"])
def test_an_endpoint_that_is_no_url_is_refused(open_embedder: Open, url: str) -> None:
    with pytest.raises(EmbedderError, match="https://host/v1") as caught:
        open_embedder(endpoint=url)
    assert caught.value.kind is Kind.VECTORIZER


def test_a_password_in_the_endpoint_is_refused_and_not_shown(open_embedder: Open) -> None:
    with pytest.raises(EmbedderError, match="PGVEC_ENDPOINT_KEY") as caught:
        open_embedder(endpoint="https://me:secret@example.org/v1")
    assert "secret" not in str(caught.value)


def test_lengths_are_counted_by_the_named_tokenizer(open_embedder: Open, tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    vocabulary = {"[UNK]": 0, "two": 1, "words": 2}
    file.write_text(
        json.dumps(
            {
                "version": "1.0",
                "added_tokens": [],
                "pre_tokenizer": {"type": "Whitespace"},
                "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
            }
        )
    )
    assert open_embedder(tokenizer=str(file)).embedder.tokenizer.count(["two words", "x"]) == [2, 1]


def test_without_a_tokenizer_an_unknown_model_says_to_name_one(open_embedder: Open) -> None:
    opened = open_embedder()
    assert opened.embed(["a"], [1]) == [vector("a")]
    with pytest.raises(EmbedderError, match="give --tokenizer") as caught:
        _ = opened.embedder.tokenizer
    assert caught.value.kind is Kind.VECTORIZER


def test_openais_models_are_counted_by_cl100k_base(
    open_embedder: Open, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    embedder = open_embedder("text-embedding-3-small", dimensions=None).embedder
    counts, problem = [0], ""
    try:
        counts = embedder.tokenizer.count(["hello world"])
    except EmbedderError as error:
        problem = str(error)
    # Where the encoding cannot be downloaded, the error at least shows that it was the one asked for.
    assert counts == [2] or "cl100k_base" in problem


def test_load_gives_an_embedder_that_says_where_it_is(endpoint: Endpoint) -> None:
    embedder = load(ModelSpec("openai", "mini", endpoint=endpoint.url, dimensions=DIMENSIONS), DeviceOptions())
    assert (embedder.dtype, embedder.memory_bytes) == ("remote", 0)
    assert f"http://{embedder.device}/v1" == endpoint.url
    embedder.close()
