"""Texts over HTTP: what is accepted is stored, queued and embedded; what is not right is refused with a line."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pgvec_queue.embedders import ModelSpec
from pgvec_queue.embedders.hashing import HashingEmbedder
from tests.gateway.server import API, MODEL, Process, accepted, ended, post, serving, status, vectors, working
from tests.support import Bench
from tests.waiting import wait_until

ALL_DONE = {"waiting": 0, "failed": 0, "skipped": 0, "superseded": 0, "cancelled": 0}


@pytest.fixture
def client(bench: Bench) -> Iterator[httpx2.Client]:
    with serving(bench.dsn) as client:
        yield client


def _texts(bench: Bench, collection: str = "default") -> dict[str, str]:
    return dict(bench.sql(f'SELECT id, text FROM pgvec_collections."{collection}"'))


def test_the_request_of_the_documentation_is_accepted_embedded_and_answered(
    bench: Bench, client: httpx2.Client
) -> None:
    texts = ["Hello world", "Machine learning is awesome"]
    answer = post(client, texts, model_name=MODEL, batch_size=32)
    assert answer.status_code == 202
    task = answer.json()
    assert answer.headers["location"] == task["links"]["status"] == f"{API}/tasks/{task['task_id']}/status"
    assert (task["state"], task["counts"]["waiting"], task["progress"]) == ("queued", 2, 0)
    assert task["reason"] == "no worker is running"
    with working(bench.dsn):
        done = ended(client, task["task_id"])
    assert (done["state"], done["progress"], done["reason"]) == ("done", 1, None)
    assert done["counts"] == {**ALL_DONE, "done": 2}
    assert done["texts_per_second"] > 0
    found = client.get(task["links"]["result"]).json()["vectors"]
    assert [(one["ordinal"], one["chunk_index"], one["chunk"]) for one in found] == [(0, 0, texts[0]), (1, 0, texts[1])]
    embedder = HashingEmbedder(ModelSpec("hashing", MODEL))
    for one in found:
        assert np.allclose(one["embedding"], embedder.embed_query(one["chunk"]), atol=1e-6)


def test_texts_and_jobs_are_there_when_the_answer_is(bench: Bench, client: httpx2.Client) -> None:
    task = accepted(client, ["one", "two"], ids=["b", "a"], batch_size=7)
    assert _texts(bench) == {"a": "two", "b": "one"}
    there = bench.sql("SELECT kind, state, keys, batch_size FROM pgvec.jobs WHERE kind <> 'index'")
    assert there == [("keys", "queued", [["a"], ["b"]], 7)]
    assert bench.value("SELECT count(*) FROM pgvec.task_texts WHERE task_id = %s", task["task_id"]) == 2


def test_an_id_that_comes_again_has_its_text_updated(bench: Bench, client: httpx2.Client) -> None:
    with working(bench.dsn):
        first = accepted(client, ["old", "kept"], ids=["x", "y"], metadata={"lang": "en"})
        ended(client, first["task_id"])
        second = accepted(client, ["new"], ids=["x"])
        assert ended(client, second["task_id"])["counts"]["done"] == 1
    assert _texts(bench) == {"x": "new", "y": "kept"}
    assert [one["chunk"] for one in vectors(client, second["task_id"])] == ["new"]
    assert bench.sql('SELECT DISTINCT metadata FROM pgvec_collections."default"') == [({"lang": "en"},)]
    # What has ended stays as it ended, but its vector is no longer there.
    assert status(client, first["task_id"])["counts"]["done"] == 2
    assert [one["chunk"] for one in vectors(client, first["task_id"])] == ["kept"]


def test_a_text_that_is_embedded_already_is_done_at_once(bench: Bench, client: httpx2.Client) -> None:
    with working(bench.dsn):
        ended(client, accepted(client, ["same"], ids=["x"])["task_id"])
    again = accepted(client, ["same"], ids=["x"], metadata={"seen": 2})
    assert again["state"] == "done"
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind <> 'index'") == 0
    assert bench.value('SELECT metadata FROM pgvec_collections."default"') == {"seen": 2}


def test_metadata_is_one_for_all_or_one_each(bench: Bench, client: httpx2.Client) -> None:
    accepted(client, ["a", "b"], ids=["1", "2"], metadata={"n": [1, {"deep": None}]})
    accepted(client, ["c", "d"], ids=["3", "4"], metadata=[{"own": 1.5}, None])
    assert bench.sql('SELECT id, metadata FROM pgvec_collections."default" ORDER BY id') == [
        ("1", {"n": [1, {"deep": None}]}),
        ("2", {"n": [1, {"deep": None}]}),
        ("3", {"own": 1.5}),
        ("4", {}),
    ]


def test_blank_texts_are_accepted_and_reported_as_skipped(bench: Bench, client: httpx2.Client) -> None:
    task = accepted(client, ["", " \n\u2003", "text"])
    with working(bench.dsn):
        done = ended(client, task["task_id"])
    assert done["state"] == "done"
    assert done["counts"] == {**ALL_DONE, "done": 1, "skipped": 2}
    assert [one["ordinal"] for one in vectors(client, task["task_id"])] == [2]
    only_blank = accepted(client, [" "])
    assert only_blank["state"] == "done"


def test_a_text_of_which_no_job_is_left_does_not_keep_a_task_open(bench: Bench, client: httpx2.Client) -> None:
    """Where nothing is queued, everything is right: what has no vector then is to have none."""
    task = accepted(client, ["text"])
    assert status(client, task["task_id"])["state"] == "queued"
    bench.sql("DELETE FROM pgvec.jobs WHERE kind <> 'index'")
    found = status(client, task["task_id"])
    assert (found["state"], found["counts"]) == ("done", {**ALL_DONE, "done": 0, "skipped": 1})


def test_waiting_for_a_small_thing_answers_with_its_end(bench: Bench, client: httpx2.Client) -> None:
    slow = post(client, ["nobody works"], params={"wait": "0.3"})
    assert (slow.status_code, slow.json()["state"]) == (202, "queued")
    with working(bench.dsn):
        answer = post(client, ["soon"], params={"wait": "20"})
    assert (answer.status_code, answer.json()["state"]) == (200, "done")
    assert answer.headers["location"].endswith("/status")


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no texts": ({}, "texts"),
    "an empty list": ({"texts": []}, "texts"),
    "a text that is none": ({"texts": [1]}, "texts"),
    "one text alone": ({"texts": "one"}, "texts"),
    "a NUL": ({"texts": ["a\x00b"]}, "NUL"),
    "a NUL in an id": ({"texts": ["a"], "ids": ["\x00"]}, "NUL"),
    "a NUL in metadata": ({"texts": ["a"], "metadata": {"k": ["\x00"]}}, "NUL"),
    "a NUL in a name in metadata": ({"texts": ["a"], "metadata": {"\x00": 1}}, "NUL"),
    "an unknown field": ({"texts": ["a"], "modle": "x"}, "modle"),
    "an unknown model": ({"texts": ["a"], "model_name": "gpt-99"}, "allowed"),
    "a model with odd characters": ({"texts": ["a"], "model_name": "../../etc\x00"}, "allowed"),
    "a batch of none": ({"texts": ["a"], "batch_size": 0}, "batch_size"),
    "a batch of many": ({"texts": ["a"], "batch_size": 10**9}, "batch_size"),
    "a batch that is no number": ({"texts": ["a"], "batch_size": "32"}, "batch_size"),
    "a batch that is a truth": ({"texts": ["a"], "batch_size": True}, "batch_size"),
    "too few ids": ({"texts": ["a", "b"], "ids": ["1"]}, "ids"),
    "an id twice": ({"texts": ["a", "b"], "ids": ["1", "1"]}, "ids[1] is the same as ids[0]"),
    "an empty id": ({"texts": ["a"], "ids": [""]}, "empty"),
    "a long id": ({"texts": ["a"], "ids": ["é" * 300]}, "512 bytes"),
    "an id that is a number": ({"texts": ["a"], "ids": [1]}, "ids"),
    "too few metadata": ({"texts": ["a", "b"], "metadata": [{}]}, "metadata"),
    "metadata that is a list of numbers": ({"texts": ["a"], "metadata": [1]}, "metadata"),
    "metadata that is a string": ({"texts": ["a"], "metadata": "x"}, "metadata"),
    "long metadata": ({"texts": ["a"], "metadata": {"k": "x" * 70_000}}, "65,536 bytes"),
    "a long text": ({"texts": ["é" * 1_000]}, "1,500 bytes"),
    "many texts": ({"texts": ["a"] * 51}, "more than the 50"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_is_not_right_is_refused_and_nothing_is_stored(bench: Bench, case: tuple[dict[str, Any], str]) -> None:
    body, words = case
    with serving(bench.dsn, texts=50, text_bytes=1_500) as client:
        answer = client.post(f"{API}/vectorize", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert words in answer.json()["detail"]
    assert bench.value("SELECT count(*) FROM pgvec.tasks") == 0


DEEP = '{"k":' * 200 + "1" + "}" * 200
RAW = {
    "half a surrogate pair": '{"texts": ["\\ud800"]}',
    "the other half, in a field's name": '{"texts": ["a"], "\\udc00": 1}',
    "half a pair in an id": '{"texts": ["a"], "ids": ["\\ud83d"]}',
    "half a pair in metadata": '{"texts": ["a"], "metadata": {"\\ud83d": "\\udc00"}}',
    "half a pair as a model": '{"texts": ["a"], "model_name": "\\ud83d"}',
    "half a pair as a collection": '{"texts": ["a"], "collection": "\\ud83d"}',
    "NaN": '{"texts": ["a"], "metadata": {"k": NaN}}',
    "Infinity": '{"texts": ["a"], "metadata": {"k": 1e999}}',
    "deep metadata": f'{{"texts": ["a"], "metadata": {DEEP}}}',
    "very deep metadata": f'{{"texts": ["a"], "metadata": {DEEP.replace(DEEP, "[" * 100_000)}',
    "a number of many digits": f'{{"texts": ["a"], "metadata": {{"k": {"9" * 5_000}}}}}',
    "no JSON": "texts",
    "a list": "[]",
    "null": "null",
    "nothing": "",
    "no UTF-8": b'{"texts": ["\xff"]}',
}


@pytest.mark.parametrize("body", RAW.values(), ids=RAW)
def test_what_no_client_library_would_send_is_refused(bench: Bench, client: httpx2.Client, body: str | bytes) -> None:
    answer = client.post(f"{API}/vectorize", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert bench.value("SELECT count(*) FROM pgvec.tasks") == 0


def test_a_model_is_never_fetched_because_a_request_names_it(bench: Bench, client: httpx2.Client) -> None:
    answer = post(client, ["a"], model_name="somebody/something")
    assert answer.status_code == 422
    assert MODEL in answer.json()["detail"]
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 0


def test_each_model_has_a_default_collection(bench: Bench) -> None:
    with serving(bench.dsn, models=("hashing-8", "hashing-16")) as client:
        assert accepted(client, ["a"])["collection"] == "default"
        assert accepted(client, ["a"], model_name="hashing-16")["collection"] == "default_hashing_16"
        assert accepted(client, ["a"], model_name="hashing-8")["collection"] == "default"


def test_first_requests_at_once_make_one_default_collection(bench: Bench, client: httpx2.Client) -> None:
    barrier = threading.Barrier(8)

    def first(number: int) -> str:
        barrier.wait()
        return str(accepted(client, [f"text {number}"])["collection"])

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(first, range(8))) == {"default"}
    assert bench.value("SELECT count(*) FROM pgvec.collections") == 1
    assert len(_texts(bench)) == 8


def test_a_key_makes_one_task(bench: Bench, client: httpx2.Client) -> None:
    headers = {"Idempotency-Key": "one"}
    first = post(client, ["a"], headers=headers)
    again = post(client, ["a"], headers=headers)
    assert again.status_code == 202
    assert again.json()["task_id"] == first.json()["task_id"]
    assert "idempotent-replay" not in first.headers
    assert again.headers["idempotent-replay"] == "true"
    other = post(client, ["b"], headers=headers)
    assert (other.status_code, "Idempotency-Key" in other.json()["detail"]) == (409, True)
    assert len(_texts(bench)) == 1
    assert post(client, ["a"], headers={"Idempotency-Key": "\x01"}).status_code == 422
    assert post(client, ["a"], headers={"Idempotency-Key": "x" * 300}).status_code == 422


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(requests=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from("xyz")), min_size=2, max_size=8))
def test_keys_under_concurrency(bench: Bench, client: httpx2.Client, requests: list[tuple[str, str]]) -> None:
    """Of requests with one key at once, one body gets a task, the same for all that have it; the others get 409."""
    example = uuid.uuid4().hex
    barrier = threading.Barrier(len(requests))

    def send(request: tuple[str, str]) -> tuple[str, str, int, str]:
        key, body = request
        barrier.wait()
        answer = post(client, [f"{example} {body}"], headers={"Idempotency-Key": f"{example}{key}"})
        return key, body, answer.status_code, answer.json().get("task_id", "")

    with ThreadPoolExecutor(len(requests)) as pool:
        answers = list(pool.map(send, requests))
    assert {code for _, _, code, _ in answers} <= {202, 409}
    for key in {key for key, _ in requests}:
        mine = [(body, code, task) for of, body, code, task in answers if of == key]
        winners = {(body, task) for body, code, task in mine if code == 202}
        assert len(winners) == 1
        [(won, _)] = winners
        assert all((code == 202) == (body == won) for body, code, _ in mine)
    keys = bench.value("SELECT count(*) FROM pgvec.tasks WHERE idempotency_key LIKE %s", f"{example}%")
    assert keys == len({key for key, _ in requests})
    assert bench.value('SELECT count(*) FROM pgvec_collections."default" WHERE text LIKE %s', f"{example}%") == keys


def test_a_full_queue_refuses_more(bench: Bench) -> None:
    with serving(bench.dsn, queued_rows=10) as client:
        task = accepted(client, ["text"] * 8)
        accepted(client, ["text"] * 2)
        answer = post(client, ["one more"])
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert len(_texts(bench)) == 10
        with working(bench.dsn):
            ended(client, task["task_id"])
        wait_until(lambda: post(client, ["one more"]).status_code == 202, 20)


def test_an_accepted_task_is_embedded_though_the_server_is_killed(bench: Bench) -> None:
    server = Process(bench.dsn)
    told: list[str] = []
    stop = threading.Event()

    def submit(number: int) -> None:
        with server.client() as client:
            while not stop.is_set():
                text = f"text {number} {uuid.uuid4()}"
                try:
                    answer = post(client, [text], ids=[text])
                except httpx2.TransportError:
                    return
                if answer.status_code == 202:
                    told.append(text)

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(told) >= 30, 30)
    server.kill()
    stop.set()
    for thread in threads:
        thread.join()
    bench.drain()
    embedded = {chunk for (chunk,) in bench.sql("SELECT chunk FROM pgvec_collections.default_vectors")}
    assert set(told) <= embedded
    # A request that was not answered is there whole or not at all.
    assert bench.value("SELECT count(*) FROM pgvec.task_texts") == bench.value("SELECT count(*) FROM pgvec.tasks")


def test_a_broken_request_leaves_nothing(bench: Bench, client: httpx2.Client) -> None:
    accepted(client, ["a"])
    bench.sql('ALTER TABLE pgvec_collections."default" ADD CHECK (text <> %s)'.replace("%s", "'forbidden'"))
    answer = post(client, ["b", "forbidden"])
    assert (answer.status_code, "check constraint" in answer.json()["detail"]) == (422, True)
    assert len(_texts(bench)) == 1
    assert bench.value("SELECT count(*) FROM pgvec.tasks") == 1


def test_a_thousand_texts_make_one_job_and_are_quick(bench: Bench, client: httpx2.Client) -> None:
    accepted(client, ["first"])
    began = time.monotonic()
    accepted(client, [f"text {number}" for number in range(1_000)])
    assert time.monotonic() - began < 5
    assert bench.value("SELECT max(key_count) FROM pgvec.jobs") == 1_000
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE kind <> 'index'") == 2
