"""Queries of many callers: embedded together, remembered, and each with its own answer or error."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
import pytest

from pgvec_queue.embedders import ModelSpec
from pgvec_queue.embedders.hashing import HashingEmbedder
from pgvec_queue.errors import EmbedderError, Kind, PgvecError
from pgvec_queue.queries import BATCH, QueryEmbedder
from tests.unit.test_openai_embedder import (
    DIMENSIONS,
    Answer,
    Endpoint,
    endpoint,
    no_keys,
    raw,
    status,
    vector,
    vectors,
)

__all__ = ["endpoint", "no_keys"]

HASHING = ModelSpec("hashing", "hashing-8")


def remote(endpoint: Endpoint, model: str = "mini") -> ModelSpec:
    return ModelSpec("openai", model, endpoint=endpoint.url, dimensions=DIMENSIONS)


def run(work: Callable[[QueryEmbedder], Coroutine[Any, Any, Any]], **options: Any) -> Any:
    async def whole() -> Any:
        queries = QueryEmbedder(**options)
        try:
            return await work(queries)
        finally:
            await queries.close()

    return asyncio.run(whole())


def held(endpoint: Endpoint) -> tuple[threading.Event, threading.Event]:
    """Lets the endpoint's next answer wait for the second event; the first tells that it was asked."""
    asked, go_on = threading.Event(), threading.Event()

    def slow(request: dict[str, Any]) -> Answer:
        asked.set()
        assert go_on.wait(30)
        return vectors(request)

    endpoint.answers.append(slow)
    return asked, go_on


def test_a_vector_is_what_the_model_makes_of_the_query() -> None:
    async def work(queries: QueryEmbedder) -> Any:
        return await queries.embed(HASHING, "cat")

    found = run(work)
    np.testing.assert_array_equal(found, HashingEmbedder(HASHING).embed_query("cat"))
    with pytest.raises(ValueError, match="read-only"):
        found[0] = 1


def test_queries_at_the_same_time_go_to_the_model_together(endpoint: Endpoint) -> None:
    texts = [f"text {i}" for i in range(BATCH + 10)]

    async def work(queries: QueryEmbedder) -> Any:
        await queries.embed(remote(endpoint), "first")
        return await asyncio.gather(*(queries.embed(remote(endpoint), text) for text in [*texts, *texts[:5]]))

    found = run(work)
    assert [one.tolist() for one in found] == [vector(text) for text in [*texts, *texts[:5]]]
    assert [request["input"] for request in endpoint.requests] == [["first"], texts[:BATCH], texts[BATCH:]]


def test_a_query_waits_a_moment_for_others(endpoint: Endpoint) -> None:
    async def work(queries: QueryEmbedder) -> None:
        await queries.embed(remote(endpoint), "first")
        one = asyncio.create_task(queries.embed(remote(endpoint), "one"))
        for _ in range(5):
            await asyncio.sleep(0)
        await asyncio.gather(one, queries.embed(remote(endpoint), "two"))

    run(work)
    assert [request["input"] for request in endpoint.requests] == [["first"], ["one", "two"]]


def test_what_comes_while_the_model_works_is_its_next_batch(endpoint: Endpoint) -> None:
    asked, go_on = held(endpoint)

    async def work(queries: QueryEmbedder) -> None:
        first = asyncio.create_task(queries.embed(remote(endpoint), "first"))
        await asyncio.to_thread(asked.wait, 30)
        others = [asyncio.create_task(queries.embed(remote(endpoint), f"{i}")) for i in range(3)]
        gone = others.pop()
        await asyncio.sleep(0)
        gone.cancel()
        go_on.set()
        await asyncio.gather(first, *others)

    run(work)
    assert [request["input"] for request in endpoint.requests] == [["first"], ["0", "1"]]


def test_a_query_is_embedded_once_while_it_is_remembered(endpoint: Endpoint) -> None:
    async def work(queries: QueryEmbedder) -> None:
        for text in ("a", "b", "a", "c", "a", "b"):
            assert (await queries.embed(remote(endpoint), text)).tolist() == vector(text)
        await queries.embed(remote(endpoint, "other"), "a")

    run(work, remembered=2)
    assert [(request["model"], request["input"]) for request in endpoint.requests] == [
        *(("mini", [text]) for text in ("a", "b", "c", "b")),
        ("other", ["a"]),
    ]


def test_a_refused_text_is_refused_to_its_caller_alone(endpoint: Endpoint) -> None:
    def refuse_bad(request: dict[str, Any]) -> Answer:
        return status(400, "bad text")(request) if "bad" in request["input"] else vectors(request)

    endpoint.answers.extend([refuse_bad] * 4)

    async def work(queries: QueryEmbedder) -> Any:
        asked = (queries.embed(remote(endpoint), text) for text in ("good", "bad", "fine"))
        return await asyncio.gather(*asked, return_exceptions=True)

    # The model is there before the second comes, so that they are one batch.
    async def warmed(queries: QueryEmbedder) -> Any:
        await queries.embed(remote(endpoint), "first")
        return await work(queries)

    good, bad, fine = run(warmed)
    assert (good.tolist(), fine.tolist()) == (vector("good"), vector("fine"))
    assert isinstance(bad, EmbedderError)
    assert bad.kind is Kind.ROW


def test_an_error_of_the_model_reaches_all_and_the_next_may_have_more_luck(endpoint: Endpoint) -> None:
    endpoint.answers.append(status(401))

    async def work(queries: QueryEmbedder) -> Any:
        failed = await asyncio.gather(*(queries.embed(remote(endpoint), text) for text in "a"), return_exceptions=True)
        return [*failed, await queries.embed(remote(endpoint), "a")]

    failed, then = run(work)
    assert isinstance(failed, EmbedderError)
    assert failed.kind is Kind.VECTORIZER
    assert then.tolist() == vector("a")


def test_a_model_that_cannot_be_loaded_is_tried_again() -> None:
    async def work(queries: QueryEmbedder) -> None:
        bad = ModelSpec("hashing", "no such model")
        for _ in range(2):
            found = await asyncio.gather(*(queries.embed(bad, text) for text in "abc"), return_exceptions=True)
            assert all(isinstance(error, EmbedderError) for error in found)
            assert queries.loaded == []
        await queries.embed(HASHING, "x")
        assert queries.loaded == ["hashing-8"]

    run(work)


def test_a_vector_that_is_none_is_an_error(endpoint: Endpoint) -> None:
    endpoint.answers.append(raw(b'{"data": [{"index": 0, "embedding": [null, 1, 2, 3]}]}'))

    async def work(queries: QueryEmbedder) -> None:
        with pytest.raises(EmbedderError, match="no proper vector"):
            await queries.embed(remote(endpoint), "a")

    run(work)


def test_few_models_are_kept_and_their_threads_end() -> None:
    async def work(queries: QueryEmbedder) -> None:
        for text, dimensions in enumerate((8, 16, 8, 32)):
            found = await queries.embed(ModelSpec("hashing", f"hashing-{dimensions}"), str(text))
            assert found.shape == (dimensions,)
        assert queries.loaded == ["hashing-8", "hashing-32"]

    run(work, models=2)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pgvec-queries")]


def test_closing_ends_what_is_under_way_and_refuses_what_waits(endpoint: Endpoint) -> None:
    asked, go_on = held(endpoint)

    async def work(queries: QueryEmbedder) -> Any:
        first = asyncio.create_task(queries.embed(remote(endpoint), "first"))
        await asyncio.to_thread(asked.wait, 30)
        second = asyncio.create_task(queries.embed(remote(endpoint), "second"))
        await asyncio.sleep(0)
        closing = asyncio.create_task(queries.close())
        await asyncio.wait([second])
        go_on.set()
        await closing
        with pytest.raises(PgvecError, match="closing"):
            await queries.embed(remote(endpoint), "late")
        return await asyncio.gather(first, second, return_exceptions=True)

    first, second = run(work)
    assert first.tolist() == vector("first")
    assert isinstance(second, PgvecError)
    assert [request["input"] for request in endpoint.requests] == [["first"]]


def test_models_that_are_kept_are_loaded_ahead_and_stay_beside_the_others() -> None:
    first, second, third = (ModelSpec("hashing", f"hashing-{dimensions}") for dimensions in (8, 16, 24))

    async def work(queries: QueryEmbedder) -> None:
        await queries.embed(first, "cat")
        await queries.keep([first, second])
        assert sorted(queries.loaded) == ["hashing-16", "hashing-8"]
        await queries.embed(third, "cat")
        assert sorted(queries.loaded) == ["hashing-16", "hashing-24", "hashing-8"]
        await queries.keep([])
        await queries.embed(third, "dog")
        assert queries.loaded == ["hashing-24"]
        # Loaded again, though what it was tried with has been embedded before.
        await queries.keep([second])
        assert queries.has(second)
        with pytest.raises(EmbedderError, match="nowhere"):
            await queries.keep([ModelSpec("hashing", "nowhere")])

    run(work, models=1)
