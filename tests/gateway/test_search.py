"""``POST /api/v1/search`` over a real server."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import pytest
from pydantic import ValidationError

from pgvec_queue.gateway.routes.search import SearchRequest
from tests.gateway.serving import serving
from tests.support import Bench

Ask = Callable[..., httpx2.Response]


@pytest.fixture
def ask(bench: Bench) -> Iterator[Ask]:
    with serving(bench.dsn) as gateway:

        def post(query: Any = "document 3", **body: Any) -> httpx2.Response:
            content = json.dumps({"query": query, **body})
            return gateway.client.post("/api/v1/search", content=content, headers={"content-type": "application/json"})

        yield post


def fill(bench: Bench, *names: str) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text, metadata jsonb)")
    bench.sql(
        "INSERT INTO docs SELECT i, 'document ' || i, jsonb_build_object('odd', i %% 2 = 1)"
        " FROM generate_series(1, %s) i",
        12,
    )
    for name in names:
        bench.enqueue("docs", "body", name=name, into=f"{name}_vectors", chunk_size=20)
    bench.drain()


def test_the_nearest_texts_come_with_score_key_and_metadata(bench: Bench, ask: Ask) -> None:
    fill(bench, "docs")
    answer = ask("document 3", limit=2)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["vectorizer"], body["best_score"], len(body["hits"])) == ("docs", None, 2)
    assert body["hits"][0] == {
        "text": "document 3",
        "score": pytest.approx(1),
        "key": ["3"],
        "chunk_index": 0,
        "metadata": {"odd": True},
        "fused": None,
        "context_before": None,
        "context_after": None,
    }
    assert [hit["key"] for hit in ask(limit=5, offset=2).json()["hits"]] == [
        hit["key"] for hit in ask(limit=7).json()["hits"][2:]
    ]
    assert [hit["metadata"] for hit in ask(filter={"odd": False}).json()["hits"]] == [{"odd": False}] * 6
    hybrid = ask("document 3", hybrid=True, exact=True, all_chunks=True, neighbours=2, language="simple").json()["hits"]
    assert (hybrid[0]["key"], hybrid[0]["fused"]) == (["3"], pytest.approx(2 / 61))


def test_nothing_above_the_threshold_says_the_best_score(bench: Bench, ask: Ask) -> None:
    fill(bench, "docs")
    body = ask("artificial intelligence", limit=10, threshold=0.999).json()
    assert body["hits"] == []
    assert -1 <= body["best_score"] < 0.999
    bench.sql("TRUNCATE docs_vectors")
    assert ask("artificial intelligence", threshold=0.7).json() == {
        "hits": [],
        "best_score": None,
        "vectorizer": "docs",
    }


def test_what_is_searched_is_named_or_goes_without_saying(bench: Bench, ask: Ask) -> None:
    refused = ask()
    assert (refused.status_code, "there is no vectorizer yet" in refused.text) == (422, True)
    fill(bench, "one", "two")
    refused = ask()
    assert refused.status_code == 422
    assert "it is unclear what to search; name a vectorizer or a collection (vectorizers: one, two)" in refused.text
    assert ask(vectorizer="two").json()["vectorizer"] == "two"
    bench.sql("INSERT INTO pgvec.collections SELECT 'notes', id FROM pgvec.vectorizers WHERE name = 'one'")
    assert ask(collection="notes").json()["vectorizer"] == "one"
    assert (ask(collection="one").status_code, ask(vectorizer="notes").status_code) == (404, 404)
    told = "no collection is called 'one'; but a vectorizer is: give it as vectorizer"
    assert ask(collection="one").json()["detail"] == told
    assert ask(collection="neither").json()["detail"] == "no collection is called 'neither'"
    assert ask(collection="notes", vectorizer="one").status_code == 422
    bench.sql("UPDATE pgvec.collections SET name = 'default'")
    assert ask().json()["vectorizer"] == "one"
    bench.sql("UPDATE pgvec.vectorizers SET name = 'default' WHERE name = 'two'")
    assert ask().status_code == 422
    bench.sql("DELETE FROM pgvec.collections")
    assert ask().json()["vectorizer"] == "default"


@pytest.mark.parametrize(
    "body",
    [
        *[{"query": query} for query in ("", " \n", "a\0b", "x" * 8_193, 7, None, ["x"])],
        *({"limit": limit} for limit in (0, -1, 1_001, "10", 1.5)),
        *({"threshold": threshold} for threshold in (1.1, -1.1, "high")),
        {"filter": "x"},
        {"filter": [1]},
        {"filter": {"a\0": 1}},
        {"filter": {"a": ["\0"]}},
        {"offset": -1},
        {"neighbours": 101},
        {"language": "klingon"},
        {"language": "a b"},
        {"collection": ""},
        {"vectorizer": "\0"},
        {"hybrid": "yes"},
        {"unknown": 1},
    ],
    ids=str,
)
def test_a_request_that_makes_no_sense_is_refused(bench: Bench, ask: Ask, body: dict[str, Any]) -> None:
    if "language" in body:
        fill(bench, "docs")
    assert ask(**{"query": "document", **body}).status_code == 422


@pytest.mark.parametrize("value", ["\ud800", {"\0": 1}, float("nan"), float("inf"), [[["\udfff"]]]], ids=ascii)
def test_a_filter_that_jsonb_does_not_take_is_refused(value: Any) -> None:
    with pytest.raises(ValidationError):
        SearchRequest.model_validate({"query": "x", "filter": {"a": value}})
    deep: Any = 1
    for _ in range(60):
        deep = {"a": deep}
    with pytest.raises(ValidationError, match="nested"):
        SearchRequest.model_validate({"query": "x", "filter": deep})


def test_vectors_that_are_gone_are_a_conflict(bench: Bench, ask: Ask) -> None:
    fill(bench, "docs")
    bench.sql("DROP TABLE docs_vectors")
    refused = ask()
    assert (refused.status_code, "public.docs_vectors is not what it was" in refused.text) == (409, True)


def test_a_model_that_cannot_be_used_is_said_to_be_so(bench: Bench, ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    fill(bench, "docs")
    bench.sql("UPDATE pgvec.vectorizers SET model = 'no such model'")
    refused = ask()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "60")
    assert refused.json()["detail"] == "the model cannot be used; the gateway's log says why"
    assert "no model 'no such model'" in caplog.text
