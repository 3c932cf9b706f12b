"""How slices pass through a worker: several to a call of the model, tokenized once, identical chunks embedded once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

from pgvec_queue.embedders.hashing import HashingEmbedder
from pgvec_queue.errors import StalledError
from pgvec_queue.worker import Outcome, Worker, WorkerOptions, reader
from tests.support import WORDS, Bench
from tests.waiting import wait_until

RIGHT = {"missing": 0, "orphaned": 0, "stale": 0}

Calls = list[tuple[list[str], list[int], list[Any]]]


def _watch(monkeypatch: pytest.MonkeyPatch, embedder: type) -> Calls:
    """Notes what the embedder is given."""
    calls: Calls = []
    embed: Callable[..., Any] = vars(embedder)["embed_documents"]

    def watched(self: Any, texts: list[str], tokens: list[int], ids: list[Any]) -> Any:
        calls.append((texts, tokens, ids))
        return embed(self, texts, tokens, ids)

    monkeypatch.setattr(embedder, "embed_documents", watched)
    return calls


def _fill(bench: Bench, texts: list[str]) -> None:
    bench.sql("CREATE TABLE docs (id bigint PRIMARY KEY, body text)")
    with bench.connection.cursor().copy("COPY docs FROM STDIN") as copy:
        for i, text in enumerate(texts):
            copy.write_row((i, text))


def test_identical_chunks_are_embedded_once_and_all_have_their_vector(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = _watch(monkeypatch, HashingEmbedder)
    _fill(bench, ["the same", "another", "the same", "the same again", "another", "the same"])
    vectorizer = bench.enqueue("docs", "body")
    assert bench.drain() is Outcome.COMPLETE
    assert [texts for texts, _, _ in calls] == [["the same", "another", "the same again"]]
    assert bench.wrong(vectorizer) == RIGHT
    assert bench.sql(
        "SELECT chunk, count(*), count(DISTINCT embedding::text) FROM docs_vectors GROUP BY 1 ORDER BY 1"
    ) == [
        ("another", 2, 1),
        ("the same", 3, 1),
        ("the same again", 1, 1),
    ]
    assert bench.value("SELECT count(DISTINCT embedding::text) FROM docs_vectors") == 3
    assert bench.value("SELECT sum(chunks_reused) FROM pgvec.counters") == 3


def test_a_call_holds_several_slices_where_they_are_ready(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_FIRST_ROWS", 20)
    monkeypatch.setattr(reader, "_MOST_ROWS", 20)
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "delay=0.005")
    calls = _watch(monkeypatch, HashingEmbedder)
    _fill(bench, [f"text number {i}" for i in range(300)])
    vectorizer = bench.enqueue("docs", "body", rows_per_job=70)
    assert bench.drain() is Outcome.COMPLETE
    assert max(len(texts) for texts, _, _ in calls) > 20
    assert sum(len(texts) for texts, _, _ in calls) == 300
    assert bench.wrong(vectorizer) == RIGHT
    assert bench.value("SELECT rows_done FROM pgvec.progress") == 300


def test_near_the_end_little_is_held_where_others_could_help(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "_FIRST_ROWS", 20)
    monkeypatch.setattr(reader, "_MOST_ROWS", 20)
    monkeypatch.setattr(reader, "_END_LOOK", 0.0)
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "delay=0.005")
    calls = _watch(monkeypatch, HashingEmbedder)
    _fill(bench, [f"text number {i}" for i in range(400)])
    bench.enqueue("docs", "body", rows_per_job=400)
    bench.register()
    assert bench.drain() is Outcome.COMPLETE
    # Before the first heartbeat it does not know that it is not alone.
    assert max(len(texts) for texts, _, _ in calls[-10:]) <= 3 * 20


@pytest.mark.model
def test_the_death_of_a_process_that_chunks_counts_as_the_workers_own(bench: Bench) -> None:
    _fill(bench, ["the queue is a table. " * 40] * 60)
    bench.enqueue("docs", "body", model="sentence-transformers/all-MiniLM-L6-v2", rows_per_job=20)
    worker = Worker(bench.database, WorkerOptions(drain=True, lease=60.0, tokenizers=1))
    before = {child.pid for child in psutil.Process().children()}

    def kill() -> None:
        wait_until(lambda: [one for one in _cutters() if one.pid not in before], 60)
        for child in _cutters():
            if child.pid not in before:
                child.kill()

    killing = threading.Thread(target=kill)
    killing.start()
    with pytest.raises(StalledError, match="a process that chunks has died"):
        worker.run()
    killing.join()
    # Not given back: whoever takes them over counts an attempt.
    assert bench.value("SELECT count(*) FROM pgvec.jobs WHERE state = 'running'") > 0


def _cutters() -> list[psutil.Process]:
    return [one for one in psutil.Process().children() if "spawn_main" in " ".join(one.cmdline())]


@pytest.mark.model
@pytest.mark.parametrize("processes", [0, 2])
def test_the_model_is_given_the_tokens_that_chunking_found(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    from pgvec_queue.embedders.sentence_transformers import SentenceTransformersEmbedder

    calls = _watch(monkeypatch, SentenceTransformersEmbedder)
    _fill(bench, [" ".join(WORDS[(i + j) % len(WORDS)] for j in range(1 + 9 * i)) + "." for i in range(30)])
    bench.enqueue("docs", "body", model="sentence-transformers/all-MiniLM-L6-v2", chunk_size=48, chunk_overlap=8)
    assert bench.drain(tokenizers=processes) is Outcome.COMPLETE
    assert calls
    for _, tokens, ids in calls:
        assert [len(one) for one in ids] == tokens
    import sentence_transformers

    from pgvec_queue.embedders import DEFAULT_MODEL, ModelSpec, model_files

    path = model_files.locate(ModelSpec("sentence-transformers", DEFAULT_MODEL)).path
    reference = sentence_transformers.SentenceTransformer(str(path), device="cpu")
    rows = bench.sql("SELECT chunk, embedding::real[] FROM docs_vectors ORDER BY id, chunk_index")
    expected = reference.encode([chunk for chunk, _ in rows])
    assert (expected * np.array([vector for _, vector in rows])).sum(axis=1).min() >= 0.9999
