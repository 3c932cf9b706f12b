"""Nothing twice: unchanged rows, unchanged chunks of changed documents, repeated texts; and what of it is counted."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from pgvec_queue import keeping
from pgvec_queue.worker import Outcome, Worker, WorkerOptions, reader
from pgvec_queue.worker.metrics import WorkerCollector
from tests.prometheus import Scraped, collected
from tests.support import Bench, run_pgvec
from tests.waiting import wait_until

SIZE = 64 * 1024 * 1024
RIGHT = {"missing": 0, "orphaned": 0, "stale": 0}
LONG = " ".join(f"w{i}" for i in range(40))
CHANGED = LONG.replace("w22", "changed")


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that not everything is in one call of the model."""
    monkeypatch.setattr(reader, "_FIRST_ROWS", 20)
    monkeypatch.setattr(reader, "_MOST_ROWS", 20)


def fill(bench: Bench, texts: list[str], table: str = "docs") -> None:
    bench.sql(f"CREATE TABLE {table} (id bigint PRIMARY KEY, body text, title text)")
    with bench.connection.cursor().copy(f"COPY {table} (id, body) FROM STDIN".encode()) as copy:
        for i, text in enumerate(texts):
            copy.write_row((i, text))


def drain(bench: Bench, **options: Any) -> Scraped:
    worker = Worker(bench.database, WorkerOptions(drain=True, **options))
    assert worker.run() is Outcome.COMPLETE
    return collected(WorkerCollector(worker))


def embedded(scraped: Scraped) -> float:
    """Chunks that the model was given."""
    return scraped("pgvec_worker_chunks_embedded_total")


def counted(bench: Bench) -> dict[str, int]:
    columns = ("rows_unchanged", "chunks_kept", "chunks_reused", "chunks_cached", "chunks_written")
    (row,) = bench.sql(f"SELECT {', '.join(f'sum({column})::bigint' for column in columns)} FROM pgvec.counters")
    return dict(zip(columns, row, strict=True))


def mark(bench: Bench, table: str = "docs_vectors") -> dict[tuple[int, str], str]:
    """Gives each chunk a vector that no model makes, to know it again; returns them by row and text."""
    bench.sql(f"UPDATE {table} SET embedding = array_fill(id * 64 + chunk_index, ARRAY[8])::real[]")
    return vectors(bench, table)


def vectors(bench: Bench, table: str = "docs_vectors") -> dict[tuple[int, str], str]:
    rows = bench.sql(f"SELECT id, chunk, embedding::text FROM {table}")
    return {(key, chunk): vector for key, chunk, vector in rows}


# Rows


@pytest.mark.usefixtures("either_way")
def test_a_second_run_gives_the_model_nothing_and_says_how_many_rows_were_unchanged(bench: Bench) -> None:
    fill(bench, [f"text {i}" for i in range(100)] + ["", "  "])
    bench.enqueue("docs", "body", rows_per_job=30)
    assert embedded(drain(bench)) == 100
    assert counted(bench)["rows_unchanged"] == 2  # the blank ones
    bench.enqueue("docs", "body", rows_per_job=30)
    again = drain(bench)
    assert embedded(again) == 0
    assert counted(bench)["rows_unchanged"] == 2 + 102
    assert again("pgvec_worker_rows_unchanged_total", vectorizer="docs") == 102
    assert bench.progress("docs").rows_unchanged == 104


@pytest.mark.usefixtures("either_way")
def test_of_a_list_of_keys_what_is_as_it_was_is_unchanged(bench: Bench) -> None:
    fill(bench, ["one", "two", "three"])
    bench.enqueue("docs", "body", sync=True)
    drain(bench)
    before = counted(bench)["rows_unchanged"]
    bench.sql(
        "INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, key_count, rows)"
        " SELECT id, 'keys', '[[\"0\"], [\"1\"]]', 2, 0 FROM pgvec.vectorizers"
    )
    assert embedded(drain(bench)) == 0
    assert counted(bench)["rows_unchanged"] == before + 2


# Chunks of changed documents


@pytest.mark.parametrize("store", ["vector", "halfvec"])
@pytest.mark.parametrize("sync", [False, True])
def test_unchanged_chunks_of_a_changed_document_keep_the_very_vectors_that_they_had(
    bench: Bench, store: str, sync: bool
) -> None:
    fill(bench, [LONG] * 3)
    options: dict[str, Any] = {"chunk_size": 8, "chunk_overlap": 0, "store": store, "sync": sync}
    vectorizer = bench.enqueue("docs", "body", **options)
    drain(bench)
    marked = mark(bench)
    bench.sql("UPDATE docs SET body = %s WHERE id = 1", CHANGED)
    if not sync:
        bench.enqueue("docs", "body", **options)
    scraped = drain(bench)
    now = vectors(bench)
    changed = now.keys() - marked.keys()
    assert {chunk for _, chunk in changed} == {" ".join(CHANGED.split()[16:24])}
    assert {at: now[at] for at in now.keys() & marked.keys()} == {at: marked[at] for at in now.keys() & marked.keys()}
    assert len(now.keys() & marked.keys()) == 14
    assert embedded(scraped) == 1
    assert counted(bench)["chunks_kept"] == 4
    assert scraped("pgvec_worker_chunks_kept_total", vectorizer="docs") == 4
    assert bench.progress("docs").chunks_kept == 4
    assert bench.wrong(vectorizer) == RIGHT


def test_vectors_are_kept_where_the_key_has_another_type_or_several_columns(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (a int, b text, body text, PRIMARY KEY (a, b))")
    bench.sql("INSERT INTO docs VALUES (1, 'x', %s), (1, 'y', %s), (2, 'x', %s)", LONG, LONG + " more", LONG + " else")
    options: dict[str, Any] = {"chunk_size": 8, "chunk_overlap": 0}
    bench.enqueue("docs", "body", **options)
    bench.sql(
        "CREATE TABLE other (a text, b text, chunk_index int, chunk text, embedding vector(8), source_hash bytea,"
        " created_at timestamptz DEFAULT now(), PRIMARY KEY (a, b, chunk_index))"
    )
    bench.enqueue("docs", "body", name="other", into="other", **options)
    drain(bench)
    bench.sql("UPDATE docs SET body = %s WHERE (a, b) = (1, 'y')", CHANGED + " more")
    bench.enqueue("docs", "body", **options)
    bench.enqueue("docs", "body", name="other", into="other", **options)
    assert embedded(drain(bench, cache=0)) == 2
    assert counted(bench)["chunks_kept"] == 2 * 5


def test_where_the_text_does_not_tell_what_the_model_was_given_nothing_is_kept(bench: Bench) -> None:
    fill(bench, [LONG] * 2)
    bench.sql("UPDATE docs SET title = 'old'")
    for name, template in (("named", "$title: $chunk"), ("fixed", "text: $chunk")):
        bench.enqueue(
            "docs", "body", name=name, into=f"{name}_vectors", chunk_size=12, chunk_overlap=0, template=template
        )
    drain(bench)
    mark(bench, "named_vectors")
    marked = mark(bench, "fixed_vectors")
    bench.sql("UPDATE docs SET body = %s, title = 'new' WHERE id = 1", CHANGED)
    for name, template in (("named", "$title: $chunk"), ("fixed", "text: $chunk")):
        bench.enqueue(
            "docs", "body", name=name, into=f"{name}_vectors", chunk_size=12, chunk_overlap=0, template=template
        )
    drain(bench)
    now = vectors(bench, "fixed_vectors")
    assert len(now.keys() & marked.keys()) == len(now) - 1
    assert all(now[at] == marked[at] for at in now.keys() & marked.keys())
    # Its title stands in each chunk's input: a vector of the old one would be wrong.
    fresh = bench.sql(
        "SELECT count(*) FROM named_vectors WHERE id = 1 AND embedding <-> array_fill(0, ARRAY[8])::real[]::vector < 2"
    )
    assert fresh == bench.sql("SELECT count(*) FROM named_vectors WHERE id = 1")
    assert bench.progress("named").chunks_kept == 0
    assert bench.progress("fixed").chunks_kept == len(marked) // 2 - 1


def test_nothing_is_kept_that_may_come_from_another_model(bench: Bench) -> None:
    """In a table that was there before, what has no hash is somebody's own, the rest a dropped vectorizer's."""
    fill(bench, [LONG] * 3)
    options: dict[str, Any] = {"chunk_size": 8, "chunk_overlap": 0}
    bench.enqueue("docs", "body", document_prompt="then: ", **options)
    drain(bench)
    bench.sql("SELECT pgvec.drop_vectorizer('docs')")
    bench.sql("UPDATE docs_vectors SET source_hash = '\\x00'")
    bench.sql("ALTER TABLE docs_vectors ALTER source_hash DROP NOT NULL")
    bench.sql("UPDATE docs_vectors SET source_hash = NULL, created_at = 'infinity' WHERE id = 2")
    bench.enqueue("docs", "body", document_prompt="now: ", **options)
    # Seven words beside the prompt's, all three alike.
    assert embedded(drain(bench)) == 6
    assert counted(bench)["chunks_kept"] == 0
    # What has been written since is its own.
    bench.sql("UPDATE docs SET body = %s WHERE id = 1", CHANGED)
    bench.enqueue("docs", "body", document_prompt="now: ", **options)
    assert embedded(drain(bench)) == 1
    assert counted(bench)["chunks_kept"] == 5


def test_a_table_without_texts_or_hashes_keeps_nothing_and_is_right(bench: Bench) -> None:
    fill(bench, [LONG] * 2)
    bench.sql(
        "CREATE TABLE bare (id bigint, chunk_index int, embedding vector(8), source_hash bytea,"
        " created_at timestamptz DEFAULT now(), PRIMARY KEY (id, chunk_index))"
    )
    options: dict[str, Any] = {"into": "bare", "chunk_size": 8, "chunk_overlap": 0}
    bench.enqueue("docs", "body", **options)
    drain(bench)
    bench.sql("UPDATE docs SET body = %s WHERE id = 1", CHANGED)
    vectorizer = bench.enqueue("docs", "body", **options)
    assert embedded(drain(bench)) == 5
    assert bench.wrong(vectorizer) == RIGHT


def test_a_column_of_the_source_keeps_nothing(bench: Bench) -> None:
    fill(bench, ["one", "two"])
    bench.enqueue("docs", "body", into_column="vector")
    drain(bench)
    bench.sql("UPDATE docs SET body = 'two ' WHERE id = 1")
    bench.enqueue("docs", "body", into_column="vector")
    assert embedded(drain(bench)) == 1


def test_the_vectors_read_for_a_slice_are_bounded_and_the_rest_is_embedded(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(bench, [LONG] * 4)
    options: dict[str, Any] = {"chunk_size": 8, "chunk_overlap": 0}
    bench.enqueue("docs", "body", **options)
    drain(bench)
    bench.sql("UPDATE docs SET body = body || ' end'")
    vectorizer = bench.enqueue("docs", "body", **options)
    # Seven, of 36 bytes and what is beside each.
    monkeypatch.setattr(keeping, "OLD_BYTES", 7 * (36 + 200))
    job = bench.claim(worker := bench.register())
    part = bench.read(vectorizer, job)
    assert sum(map(len, part.old.vectors.values())) <= 7
    assert part.old.size == 7 * (36 + 200)
    bench.sql("UPDATE pgvec.jobs SET state = 'queued', worker_id = NULL WHERE worker_id = %s", worker.worker)
    bench.sql("DELETE FROM pgvec.workers")
    drain(bench)
    assert 0 < counted(bench)["chunks_kept"] <= 7
    assert bench.wrong(vectorizer) == RIGHT


def test_a_first_backfill_looks_for_no_old_chunks(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(bench, [f"text {i}" for i in range(100)])
    bench.enqueue("docs", "body", rows_per_job=50)
    looks = []
    read = keeping.read

    def noted(*arguments: Any) -> Any:
        looks.append(1)
        return read(*arguments)

    monkeypatch.setattr(keeping, "read", noted)
    drain(bench)
    assert not looks
    bench.sql("UPDATE docs SET body = 'new' WHERE id = 7")
    bench.enqueue("docs", "body", rows_per_job=50)
    drain(bench)
    assert len(looks) == 1


# Repeated texts


def test_a_repeated_text_is_embedded_once_however_far_it_is_from_itself(bench: Bench) -> None:
    fill(bench, [f"text {i % 70}" for i in range(300)])
    vectorizer = bench.enqueue("docs", "body", rows_per_job=30)
    scraped = drain(bench, cache=SIZE)
    assert embedded(scraped) == 70
    assert bench.value("SELECT count(DISTINCT (chunk, embedding::text)) FROM docs_vectors") == 70
    assert bench.wrong(vectorizer) == RIGHT
    saved = counted(bench)
    assert saved["chunks_reused"] + saved["chunks_cached"] == 230
    assert saved["chunks_cached"] > 0
    assert scraped("pgvec_worker_chunks_cached_total", vectorizer="docs") == saved["chunks_cached"]
    assert scraped("pgvec_worker_cache_hits_total") == saved["chunks_cached"]
    assert scraped("pgvec_worker_cache_chunks") == 70
    assert bench.progress("docs").chunks_cached == saved["chunks_cached"]


@pytest.mark.usefixtures("either_way")
def test_what_the_model_was_given_is_what_was_written_less_what_was_known(bench: Bench) -> None:
    fill(bench, [" ".join(f"w{(i * 7 + j) % 50}" for j in range(30)) for i in range(120)])
    options: dict[str, Any] = {"chunk_size": 8, "chunk_overlap": 2, "rows_per_job": 40}
    bench.enqueue("docs", "body", **options)
    given = embedded(drain(bench, cache=SIZE))
    bench.sql("UPDATE docs SET body = body || ' w1 w2 w3 w4 w5 w6 w7' WHERE id %% 3 = %s", 0)
    bench.enqueue("docs", "body", **options)
    given += embedded(drain(bench, cache=SIZE))
    saved = counted(bench)
    assert min(saved[one] for one in ("chunks_kept", "chunks_reused", "chunks_cached")) > 0
    assert given == saved["chunks_written"] - saved["chunks_kept"] - saved["chunks_reused"] - saved["chunks_cached"]


def test_without_a_cache_only_a_call_s_own_texts_are_compared(bench: Bench) -> None:
    fill(bench, [f"text {i % 70}" for i in range(300)])
    bench.enqueue("docs", "body", rows_per_job=30)
    scraped = drain(bench, cache=0)
    saved = counted(bench)
    assert saved["chunks_cached"] == 0
    assert embedded(scraped) == 300 - saved["chunks_reused"] > 70
    assert not scraped.has("pgvec_worker_cache_chunks")


def test_no_vector_passes_from_one_model_or_prompt_to_another(bench: Bench) -> None:
    fill(bench, [f"text {i}" for i in range(60)])
    made = {}
    definitions: dict[str, dict[str, Any]] = {
        "plain": {"model": "hashing-8"},
        "prompted": {"model": "hashing-8", "document_prompt": "passage: "},
        "larger": {"model": "hashing-16"},
    }
    for name, options in definitions.items():
        bench.enqueue("docs", "body", name=name, into=f"{name}_vectors", rows_per_job=20, **options)
    assert embedded(drain(bench, cache=SIZE)) == 180
    for name in ("plain", "prompted", "larger"):
        made[name] = bench.sql(f"SELECT embedding::text FROM {name}_vectors ORDER BY id")
    assert not set(made["plain"]) & set(made["prompted"])
    bench.sql("SELECT pgvec.drop_vectorizer('prompted')")
    bench.sql("DROP TABLE prompted_vectors")
    bench.enqueue("docs", "body", name="prompted", into="prompted_vectors", document_prompt="passage: ")
    drain(bench, names=["prompted"], cache=0)
    assert bench.sql("SELECT embedding::text FROM prompted_vectors ORDER BY id") == made["prompted"]


def test_a_document_that_fails_leaves_nothing_behind_in_the_cache(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_HASHING_FAULTS", "nan=poison;refuse=refused")
    texts = [f"text {i % 30}" for i in range(120)]
    for at in (10, 50, 90):
        texts[at] = f"poison {at % 4}"
    texts[70] = "refused"
    fill(bench, texts)
    vectorizer = bench.enqueue("docs", "body", rows_per_job=30)
    assert bench.drain(cache=SIZE) is Outcome.QUARANTINED
    failed = bench.sql("SELECT key[1]::int FROM pgvec.failures ORDER BY 1")
    assert failed == [(10,), (50,), (70,), (90,)]
    assert bench.wrong(vectorizer) == RIGHT
    assert bench.value("SELECT count(DISTINCT embedding::text) FROM docs_vectors") == 30


# What is shown


def test_status_and_workers_show_what_was_saved(bench: Bench) -> None:
    fill(bench, [f"text {i % 70}" for i in range(300)])
    bench.enqueue("docs", "body", rows_per_job=30)
    drain(bench, cache=SIZE)
    bench.enqueue("docs", "body", rows_per_job=30)
    drain(bench)
    saved = counted(bench)
    shown = run_pgvec("status", dsn=bench.dsn)
    assert shown.code == 0, shown.err
    assert "docs: not embedded again: 300 rows unchanged" in shown.out
    assert f"{saved['chunks_cached']} chunks from a worker's cache" in shown.out.replace("\n", " ")
    told = bench.progress("docs").as_json()
    assert {name: told[name] for name in saved if name in told} == {
        name: value for name, value in saved.items() if name != "chunks_written"
    }


def test_a_heartbeat_tells_of_the_cache(bench: Bench) -> None:
    fill(bench, [f"text {i % 70}" for i in range(300)])
    bench.enqueue("docs", "body", rows_per_job=30)
    worker = Worker(bench.database, WorkerOptions(cache=SIZE, lease=3))
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    try:
        told = "SELECT cache_lookups, cache_chunks FROM pgvec.workers"
        wait_until(
            lambda: (
                bench.progress("docs").state == "complete" and bench.sql(told) == [(worker.look().cache.lookups, 70)]
            ),
            20,
        )
        (row,) = bench.sql("SELECT cache_bytes, cache_lookups, cache_hits FROM pgvec.worker_status")
        assert row[0] >= 70 * 8 * 4
        assert row[1] >= 70
        assert row[1] - row[2] == 70
        listed = run_pgvec("workers", dsn=bench.dsn, env={"COLUMNS": "250"})
        assert f"70 ({row[2] / row[1]:.0%})" in listed.out
    finally:
        worker.stop()
        thread.join(20)


def test_a_created_at_that_is_no_point_in_time_keeps_nothing_and_hinders_nothing(bench: Bench) -> None:
    fill(bench, [f"text {i}. And more." for i in range(20)])
    bench.sql(
        "CREATE TABLE made (id bigint, chunk_index int, chunk text, embedding vector(8), source_hash bytea,"
        " created_at text DEFAULT now()::text, PRIMARY KEY (id, chunk_index))"
    )
    bench.enqueue("docs", "body", into="made", chunk_size=8, chunk_overlap=0)
    drain(bench)
    bench.sql("UPDATE docs SET body = body || ' Still more.' WHERE id < 5")
    bench.enqueue("docs", "body", into="made", chunk_size=8, chunk_overlap=0)
    drain(bench)
    assert bench.progress("docs").state == "complete"
    assert counted(bench)["chunks_kept"] == 0
