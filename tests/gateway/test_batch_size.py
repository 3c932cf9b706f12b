"""``batch_size`` reaches the device: what the embedder is given at a time, through trigger, claim and worker."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx2
import psycopg
import pytest

from pgvec_queue.embedders.hashing import HashingEmbedder
from pgvec_queue.queue import Claimer
from pgvec_queue.vectorizer import get
from tests.gateway.server import API, accepted, ended, serving, vectors
from tests.support import Bench


@pytest.fixture
def client(bench: Bench) -> Iterator[httpx2.Client]:
    with serving(bench.dsn) as client:
        yield client


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What the embedder was given, call by call."""
    calls: list[list[str]] = []
    embed = HashingEmbedder.embed_documents

    def watched(self: Any, texts: list[str], tokens: list[int], ids: Any) -> Any:
        calls.append(list(texts))
        return embed(self, texts, tokens, ids)

    monkeypatch.setattr(HashingEmbedder, "embed_documents", watched)
    return calls


def test_the_embedder_is_given_no_more_chunks_at_a_time(
    bench: Bench, client: httpx2.Client, calls: list[list[str]]
) -> None:
    client.post(f"{API}/collections", json={"name": "chunked", "chunk_size": 4, "chunk_overlap": 0})
    texts = [" ".join(f"{number}w{word}" for word in range(1 + number % 40)) for number in range(60)]
    capped = accepted(client, texts, collection="chunked", batch_size=5)
    bench.drain()
    assert max(map(len, calls)) == 5
    assert sum(len(call) < 5 for call in calls) <= 3
    embedder_saw = {text for call in calls for text in call}
    found = vectors(client, ended(client, capped["task_id"])["task_id"])
    assert {one["chunk"] for one in found} == embedder_saw
    calls.clear()
    free = accepted(client, [f"free {text}" for text in texts], collection="chunked")
    bench.drain()
    assert max(map(len, calls)) > 5
    by_text = {one["chunk"]: one["embedding"] for one in vectors(client, free["task_id"])}
    assert len(by_text) > 60


def test_a_capped_vector_is_the_vector_of_its_own_text(bench: Bench, client: httpx2.Client) -> None:
    texts = ["the same", "x " * 30, "short", "the same", "y " * 20, "another"]
    capped = accepted(client, texts, batch_size=2)
    bench.drain()
    free = accepted(client, texts)
    bench.drain()
    of = [[(one["chunk"], one["embedding"]) for one in vectors(client, task["task_id"])] for task in (capped, free)]
    assert of[0] == of[1]


def test_lists_of_other_bounds_are_not_claimed_together(bench: Bench, client: httpx2.Client) -> None:
    for number, batch_size in enumerate([3, 3, None, None, 7, 3]):
        more = {} if batch_size is None else {"batch_size": batch_size}
        accepted(client, ["text"], ids=[str(number)], **more)
    claimer = Claimer(bench.register(), None)
    claimed = []
    while (job := claimer.claim(bench.connection)) is not None:
        claimed.append((job.batch_size, sorted(key for [key] in job.keys or [])))
    assert sorted(claimed, key=str) == sorted([(3, ["0", "1", "5"]), (None, ["2", "3"]), (7, ["4"])], key=str)


def test_jobs_side_by_side_keep_their_own_bounds(
    bench: Bench, client: httpx2.Client, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "delay=0.002")
    barrier = threading.Barrier(3)

    def submit(batch_size: int) -> None:
        barrier.wait()
        for number in range(10):
            accepted(client, [f"of{batch_size} {number} {one}" for one in range(20)], batch_size=batch_size)

    threads = [threading.Thread(target=submit, args=(size,)) for size in (3, 7, 11)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bench.drain()
    for size in (3, 7, 11):
        mine = [call for call in calls if call[0].startswith(f"of{size} ")]
        assert all(text.startswith(f"of{size} ") for call in mine for text in call)
        assert max(map(len, mine)) <= size


def test_the_setting_is_the_transactions_own(bench: Bench, client: httpx2.Client) -> None:
    accepted(client, ["first"], batch_size=9)
    with psycopg.connect(bench.dsn, autocommit=True) as user:
        for value, found in (("5", 5), ("", None), ("0", None), ("-1", None), ("many", None), ("9" * 30, None)):
            with user.transaction():
                user.execute("SELECT set_config('pgvec.batch_size', %s, true)", [value])
                user.execute(
                    'INSERT INTO pgvec_collections."default" (id, text) VALUES (%s, %s)', [f"id {value}", "text"]
                )
            stored = bench.value("SELECT batch_size FROM pgvec.jobs WHERE keys @> %s", f'[["id {value}"]]')
            assert stored == found
        user.execute("INSERT INTO pgvec_collections.\"default\" (id, text) VALUES ('after', 'text')")
    assert bench.value("SELECT batch_size FROM pgvec.jobs WHERE keys @> '[[\"after\"]]'") is None


def test_a_text_that_changes_under_the_workers_hands_keeps_its_bound(bench: Bench, client: httpx2.Client) -> None:
    accepted(client, ["old"], ids=["a"], batch_size=4)
    worker = bench.register()
    job = bench.claim(worker)
    vectorizer = get(bench.connection, "default")
    part = bench.read(vectorizer, job)
    bench.sql('ALTER TABLE pgvec_collections."default" DISABLE TRIGGER USER')
    bench.sql("UPDATE pgvec_collections.\"default\" SET text = 'new'")
    bench.write(vectorizer, part, bench.embed(vectorizer, part), worker)
    assert bench.value("SELECT batch_size FROM pgvec.jobs WHERE kind = 'keys' AND state = 'queued'") == 4


def test_triggers_of_before_go_on_and_are_renewed_by_the_next_enqueue(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    vectorizer = bench.enqueue("docs", "body", sync=True)
    function = f"pgvec.sync_{vectorizer.id}"
    source = bench.value("SELECT prosrc FROM pg_proc WHERE oid = %s::regproc", function)
    old = source.replace(", batch_size)", ")").replace(
        "pgvec_l.pgvec_size,\n           substring(current_setting('pgvec.batch_size', true) FROM"
        " '^[1-9][0-9]{0,8}$')::integer",
        "pgvec_l.pgvec_size",
    )
    assert "batch_size)" not in old.replace("SET LOCAL pgvec.batch_size", "")
    assert "::integer\n    FROM unnest" not in old
    bench.sql(
        f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
        f" SET search_path = pg_catalog, pg_temp AS $body${old}$body$"
    )
    change = "BEGIN; SET LOCAL pgvec.batch_size = 3; INSERT INTO docs VALUES ({0}, 'text'); COMMIT"
    bench.sql(change.format(1))
    bench.enqueue("docs")
    bench.sql(change.format(2))
    assert bench.sql("SELECT keys, batch_size FROM pgvec.jobs WHERE kind = 'keys' ORDER BY id") == [
        ([["1"]], None),
        ([["2"]], 3),
    ]
    bench.drain()
    assert bench.wrong(vectorizer) == {"missing": 0, "orphaned": 0, "stale": 0}
