"""`enqueue --dry-run`: it tells what then happens, and writes nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from pgvec_queue import definition
from pgvec_queue.database import versions
from pgvec_queue.definition import Options
from pgvec_queue.embedders import DEFAULT_MODEL, ModelSpec, model_files, tokenizer_of
from pgvec_queue.estimate import estimator, survey
from pgvec_queue.estimate.estimator import Estimate, Wish
from pgvec_queue.estimate.totals import Interval
from tests.commandline import CommandLine
from tests.oracle import work_off
from tests.support import WORDS, Bench

MEASURES = ("rows_selected", "rows_blank", "rows_new", "chunks", "tokens", "table_bytes")


@pytest.fixture
def here(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)
    return bench


def _estimate(bench: Bench, source: str, *text: str, wish: Wish | None = None, **options: Any) -> Estimate:
    """Estimates what a definition would mean, on a connection on which nothing can be written."""
    options.setdefault("model", "hashing-8")
    options.setdefault("no_chunking", "chunk_size" not in options and "into_column" not in options)
    connection = bench.database.connect("test")
    connection.read_only = True
    try:
        found = versions(connection)
        proposed = definition.propose(connection, Options(source=source, text=text, **options), found)
        return estimator.estimate(connection, proposed, found, wish)
    finally:
        connection.close()


def _documents(bench: Bench, rows: int, seed: int = 0, *, table: str = "docs", analyze: bool = True) -> None:
    """Texts of words of mixed length with a long tail, some blank, some NULL, and a column to filter by."""
    random = np.random.default_rng(seed)
    bench.sql(f"CREATE TABLE IF NOT EXISTS {table} (id int PRIMARY KEY, body text, kind int)")
    lengths = np.ceil(random.lognormal(2.5, 1.2, rows)).astype(int)
    with bench.connection.cursor() as cursor, cursor.copy(f"COPY {table} (id, body, kind) FROM STDIN".encode()) as copy:
        for i, length in enumerate(lengths.tolist()):
            body = " ".join(random.choice(WORDS, length))
            copy.write_row((i, None if i % 29 == 0 else " " if i % 31 == 0 else body, int(random.integers(10))))
    if analyze:
        bench.sql(f"ANALYZE {table}")


def _close(interval: Interval | None, truth: float, share: float = 0.15) -> bool:
    assert interval is not None
    return abs(interval.estimate - truth) <= share * truth


def _holds(interval: Interval | None, truth: float) -> bool:
    assert interval is not None
    return interval.low <= truth * (1 + 1e-9) and truth <= interval.high * (1 + 1e-9)


# What then happens


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_size": 16, "chunk_overlap": 4},
        {"chunk_size": 16, "where": "kind < 4", "store": "halfvec", "model": "hashing-64"},
        {"chunk_size": 16, "template": "$kind: $chunk", "columns": {"chunk_id": ["ref"]}},
        {"model": "hashing-384"},
        {"model": "hashing-1100"},
    ],
    ids=["chunks", "filter and halfvec", "template and chunk_id", "whole", "vectors out of line"],
)
def test_what_is_told_of_rows_that_were_all_read_is_what_happens(bench: Bench, options: dict[str, Any]) -> None:
    _documents(bench, 1_800)
    told = _estimate(bench, "docs", "body", **options)
    vectorizer = bench.enqueue("docs", "body", **options)
    assert bench.drain() is not None
    progress = bench.progress("docs")
    assert told.rows_in_source == Interval.exactly(1_800)
    assert told.rows_selected == Interval.exactly(progress.rows_total)
    assert told.rows_new == Interval.exactly(progress.rows_embedded)
    assert told.rows_blank == Interval.exactly(progress.rows_total - progress.rows_embedded)
    assert told.chunks == Interval.exactly(bench.value("SELECT count(*) FROM docs_vectors"))
    assert told.tokens == Interval.exactly(progress.tokens)
    assert told.jobs == Interval.exactly(bench.value("SELECT count(*) FROM pgvec.jobs"))
    table = bench.value("SELECT pg_table_size('docs_vectors')")
    # The maps of a small table are a tenth of it.
    assert _close(told.table_bytes, table), (told.table_bytes, table)
    indexes = bench.value("SELECT pg_indexes_size('docs_vectors')")
    # Identifiers as text do not come in order; and three pages, as two writers split them, are much of a small one.
    share = 0.4 if "columns" in options else max(0.15, 3 * 8192 / indexes)
    assert _close(told.key_index_bytes, indexes, share), (told.key_index_bytes, indexes)
    bench.sql(f"CREATE INDEX hnsw ON docs_vectors USING hnsw (embedding {vectorizer.store}_cosine_ops)")
    hnsw = told.hnsw_vector_bytes if vectorizer.store == "vector" else told.hnsw_halfvec_bytes
    # Texts of one word are equal, and share an element.
    assert _close(hnsw, bench.value("SELECT pg_relation_size('hnsw')"), 0.1)


def test_a_second_run_is_told_by_what_is_new_changed_and_unchanged(bench: Bench) -> None:
    _documents(bench, 600)
    bench.enqueue("docs", "body")
    work_off(bench, 200)
    bench.sql("UPDATE docs SET body = 'another text now' WHERE id IN (1, 2, 3, 4)")
    bench.sql("UPDATE docs SET body = NULL WHERE id = 5")
    bench.sql("INSERT INTO docs VALUES (1000, 'one more', 0), (1001, 'and another', 0)")
    bench.sql(
        "INSERT INTO pgvec.failures (vectorizer_id, key, source_hash, error_class, message, model)"
        " SELECT v.id, '{1001}', pgvec.source_hash('and another'), 'X', 'x', 'm' FROM pgvec.vectorizers v"
    )
    told = _estimate(bench, "docs")
    blank = bench.value("SELECT count(*) FROM docs WHERE pgvec.is_blank(body)")
    assert told.destination_exists
    counted = (told.rows_new, told.rows_changed, told.rows_blank, told.rows_in_quarantine, told.rows_unchanged)
    assert [one.estimate for one in counted] == [1, 4, blank, 1, 602 - 6 - blank]
    assert told.chunks == Interval.exactly(5)
    assert told.tokens == Interval.exactly(4 * 3 + 2)


def test_nothing_has_changed_nothing_is_to_do(bench: Bench) -> None:
    _documents(bench, 50)
    bench.enqueue("docs", "body")
    work_off(bench, 100)
    told = _estimate(bench, "docs")
    assert told.chunks == told.tokens == told.table_bytes == told.hnsw_vector_bytes == Interval.exactly(0)


def test_a_destination_that_is_there_is_measured_by_its_own_columns(bench: Bench) -> None:
    _documents(bench, 1_500)
    bench.sql(
        "CREATE TABLE mine (note text, doc text, part int, body text, v vector(64), at timestamptz DEFAULT now())"
    )
    bench.sql("CREATE INDEX ON mine (doc)")
    options: dict[str, Any] = {
        "into": "mine",
        "model": "hashing-64",
        "columns": {"key": ["doc"], "chunk_index": ["part"], "chunk": ["body"], "embedding": ["v"]},
    }
    told = _estimate(bench, "docs", "body", **options)
    bench.enqueue("docs", "body", **options)
    work_off(bench, 500)
    assert _close(told.table_bytes, bench.value("SELECT pg_table_size('mine')"))
    assert _close(told.key_index_bytes, bench.value("SELECT pg_indexes_size('mine')"), 0.6)


def test_vectors_in_a_column_are_told_as_new_versions_of_the_rows(bench: Bench) -> None:
    _documents(bench, 3_000)
    before = bench.value("SELECT pg_table_size('docs')")
    told = _estimate(bench, "docs", "body", wish=Wish(5_000), into_column="v", model="hashing-64")
    bench.enqueue("docs", "body", into_column="v", model="hashing-64")
    work_off(bench, 1_000)
    assert told.chunks == Interval.exactly(bench.value("SELECT count(v) FROM docs"))
    assert _holds(told.table_bytes, bench.value("SELECT pg_table_size('docs')") - before)


def test_documents_too_large_or_too_long_are_counted(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs VALUES (1, repeat('a word ', 1600000)), (2, 'short'), (3, ' ')")
    told = _estimate(bench, "docs", "body")
    assert told.too_long_quarantined == Interval.exactly(1)
    assert told.chunks == Interval.exactly(1)


# Samples


@pytest.fixture
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few pages, so that small tables are sampled as large ones are."""
    monkeypatch.setattr(survey, "_FEWEST_PAGES", 20)
    monkeypatch.setattr(survey, "_ROWS_PER_DOCUMENT", 4)


@pytest.mark.usefixtures("coarse")
def test_an_interval_holds_the_truth_nine_times_in_ten(bench: Bench) -> None:
    held = dict.fromkeys(MEASURES, 0)
    rounds = 0
    options: dict[str, Any] = {"chunk_size": 16, "where": "kind < 6"}
    for seed in range(6):
        _documents(bench, 2_500, seed, table=f"docs{seed}")
        truth = _estimate(bench, f"docs{seed}", "body", wish=Wish(100_000), **options)
        for again in range(10):
            told = _estimate(bench, f"docs{seed}", "body", wish=Wish(100, small=0, seed=100 * seed + again), **options)
            rounds += 1
            for name in MEASURES:
                held[name] += _holds(getattr(told, name), getattr(truth, name).estimate)
    assert min(held.values()) >= 0.9 * rounds, held


@pytest.mark.usefixtures("coarse")
def test_a_sample_reads_a_part_of_the_table(bench: Bench) -> None:
    _documents(bench, 6_000)
    told = _estimate(bench, "docs", "body", wish=Wish(100, small=0, seed=1))
    assert told.sampled_rows < 4_000
    assert 50 < told.sampled_documents < 200
    assert not told.rows_in_source.is_exact
    assert _holds(told.rows_in_source, 6_000)


@pytest.mark.usefixtures("coarse")
def test_a_table_that_was_never_analyzed_is_counted(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text, kind int) WITH (autovacuum_enabled = off)")
    _documents(bench, 6_000, analyze=False)
    told = _estimate(bench, "docs", "body", wish=Wish(100, small=0, seed=1))
    assert told.sampled_rows < 4_000
    assert told.rows_in_source == Interval.exactly(6_000)


@pytest.mark.usefixtures("coarse")
def test_old_statistics_are_found_out_by_the_sample(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text, kind int) WITH (autovacuum_enabled = off)")
    _documents(bench, 10_000)
    # As if three rows of four had gone since, and nobody had counted how many: the planner would take it for 40,000.
    bench.sql("UPDATE pg_class SET reltuples = 4 * reltuples WHERE oid = 'docs'::regclass")
    told = _estimate(bench, "docs", "body", wish=Wish(200, small=0, seed=3))
    assert not told.rows_in_source.is_exact
    assert _holds(told.rows_in_source, 10_000)


@pytest.mark.usefixtures("coarse")
def test_a_filter_that_selects_little_has_more_pages_read(bench: Bench) -> None:
    _documents(bench, 6_000)
    few = _estimate(bench, "docs", "body", where="id % 97 = 0", wish=Wish(100, small=0, seed=1))
    assert few.rows_selected == Interval.exactly(bench.value("SELECT count(*) FROM docs WHERE id % 97 = 0"))
    none = _estimate(bench, "docs", "body", where="kind > 99", wish=Wish(100, small=0, seed=1))
    assert none.rows_selected == Interval.exactly(0)


@pytest.mark.usefixtures("coarse")
def test_long_texts_that_stand_side_by_side_have_more_pages_read(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql(
        "INSERT INTO docs SELECT i, CASE WHEN i % 4000 < 200 THEN repeat('long text ', 100 + i % 50) ELSE 'short' END"
        " FROM generate_series(1, 12000) i"
    )
    bench.sql("ANALYZE docs")
    truth = bench.value("SELECT sum(cardinality(regexp_split_to_array(btrim(body), ' '))) FROM docs")
    held = 0
    for seed in range(5):
        told = _estimate(bench, "docs", "body", wish=Wish(100, small=0, seed=seed))
        assert told.sampled_rows > 1_500
        assert _close(told.tokens, truth)
        held += _holds(told.tokens, truth)
    assert held >= 4


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("small", [100_000, 0], ids=["whole", "sampled"])
def test_partitions_and_children_are_a_part_of_their_table(bench: Bench, small: int) -> None:
    bench.sql("CREATE TABLE parted (id int PRIMARY KEY, body text) PARTITION BY RANGE (id)")
    for part in range(3):
        bounds = f"FROM ({part * 2000}) TO ({(part + 1) * 2000})"
        bench.sql(f"CREATE TABLE parted{part} PARTITION OF parted FOR VALUES {bounds}")
    bench.sql("INSERT INTO parted SELECT i, repeat('word ', 1 + i % 50) FROM generate_series(0, 5999) i")
    bench.sql("CREATE TABLE parent (id int PRIMARY KEY, body text)")
    bench.sql("CREATE TABLE child (PRIMARY KEY (id)) INHERITS (parent)")
    bench.sql("INSERT INTO parent SELECT i, repeat('word ', 1 + i % 50) FROM generate_series(0, 2999) i")
    bench.sql("INSERT INTO child SELECT i, repeat('word ', 1 + i % 50) FROM generate_series(3000, 5999) i")
    bench.sql("ANALYZE parted, parent, child")
    for table in ("parted", "parent"):
        told = _estimate(bench, table, "body", wish=Wish(300, small=small, seed=5))
        assert _holds(told.rows_in_source, 6_000), table
        assert _holds(told.tokens, sum(1 + i % 50 for i in range(6_000))), table


@pytest.mark.usefixtures("coarse")
@pytest.mark.parametrize("small", [100_000, 0], ids=["whole", "sampled"])
def test_a_view_is_walked_along_its_key(bench: Bench, small: int) -> None:
    _documents(bench, 5_500)
    bench.sql("CREATE VIEW seen AS SELECT id, upper(body) AS body, kind FROM docs WHERE kind < 8")
    truth = _estimate(bench, "docs", "body", where="kind < 8 AND kind > 2", wish=Wish(100_000))
    told = _estimate(bench, "seen", "body", key=["id"], where="kind > 2", wish=Wish(400, small=small, seed=2))
    rows = bench.value("SELECT count(*) FROM seen")
    assert told.rows_in_source == Interval.exactly(rows)
    assert told.sampled_rows == rows if small else told.sampled_rows < rows
    for name in ("rows_selected", "rows_blank", "chunks", "tokens"):
        assert _holds(getattr(told, name), getattr(truth, name).estimate), name


# Time and cost


def test_time_is_told_by_what_workers_did_with_the_same_model_lately(bench: Bench) -> None:
    _documents(bench, 200)
    unknown = _estimate(bench, "docs", "body")
    assert unknown.seconds is None
    bench.sql("CREATE TABLE others AS SELECT * FROM docs")
    bench.sql("ALTER TABLE others ADD PRIMARY KEY (id)")
    other = bench.enqueue("others", "body")
    bench.sql(
        "INSERT INTO pgvec.minutes (vectorizer_id, worker_id, minute, began_at, ended_at, rows, chunks, tokens, bytes)"
        " SELECT %s, w, m, m, m + interval '1 minute', 60, 60, 30 * w, 1"
        " FROM generate_series(1, 2) w, generate_series(date_trunc('minute', now()) - interval '1 hour',"
        " date_trunc('minute', now()) - interval '50 minutes', interval '1 minute') m",
        other.id,
    )
    told = _estimate(bench, "docs", "body")
    assert told.tokens is not None
    assert told.seconds is not None
    assert told.seconds.estimate == pytest.approx(told.tokens.estimate / 1.5)
    assert told.seconds.low < told.seconds.estimate < told.seconds.high
    assert told.workers == 2
    assert _estimate(bench, "docs", "body", model="hashing-16").seconds is None


def test_a_worker_that_has_just_done_something_tells_the_time(bench: Bench) -> None:
    _documents(bench, 200)
    bench.sql("CREATE TABLE others AS SELECT * FROM docs")
    bench.sql("ALTER TABLE others ADD PRIMARY KEY (id)")
    bench.enqueue("others", "body")
    bench.drain()
    told = _estimate(bench, "docs", "body")
    assert told.workers == 1
    assert told.seconds is not None
    assert 0 < told.seconds.low < told.seconds.high < 120


def test_a_limit_takes_its_share_of_everything(bench: Bench) -> None:
    _documents(bench, 1_000)
    every = _estimate(bench, "docs", "body", wish=Wish(price=2.0))
    some = _estimate(bench, "docs", "body", wish=Wish(price=2.0, limit=100))
    assert every.tokens is not None
    assert every.cost == every.tokens.times(2e-6)
    assert some.rows_selected == Interval.exactly(100)
    for name in ("rows_new", "chunks", "tokens", "cost"):
        assert getattr(some, name).estimate == pytest.approx(getattr(every, name).estimate / 10)


# The command


def test_a_dry_run_works_where_nothing_can_be_written_at_all(cli: CommandLine, here: Bench) -> None:
    _documents(here, 100)
    here.sql(f'ALTER DATABASE "{here.connection.info.dbname}" SET default_transaction_read_only = on')
    arguments = ("enqueue", "docs", "--text", "body", "--key", "id", "--model", "hashing-8", "--where", "kind < 5")
    assert cli(*arguments).code == 1
    ran = cli(*arguments, "--dry-run")
    assert (ran.code, ran.err) == (0, "")


def test_the_object_holds_each_number_with_its_interval(cli: CommandLine, here: Bench) -> None:
    _documents(here, 100)
    ran = cli("enqueue", "docs", "--text", "body", "--model", "hashing-8", "--dry-run", "--json", "--price", "1.5")
    told = json.loads(ran.out)
    assert told["rows_in_source"] == {"estimate": 100, "low": 100, "high": 100}
    assert told["cost"]["estimate"] == pytest.approx(told["tokens"]["estimate"] * 1.5e-6)
    assert told["seconds"] is None
    assert (told["name"], told["destination"], told["destination_exists"]) == ("docs", "public.docs_vectors", False)


def test_lines_say_what_is_not_known_and_how_to_find_out(cli: CommandLine, here: Bench) -> None:
    _documents(here, 100)
    ran = cli("enqueue", "docs", "--text", "body", "--model", "hashing-8", "--dry-run", "--price", "3")
    lines = dict(line.split(":", 1) for line in ran.out.splitlines() if not line.startswith("note:"))
    assert lines["rows in the source"].strip() == "100"
    assert lines["cost"].strip().startswith("0.01")
    assert lines["table"].strip().endswith("kB)")
    assert "time" not in lines
    assert "pgvec bench encode" in ran.out
    assert "Nothing was written" in ran.out


def test_a_bare_dry_run_takes_the_stored_definition_and_another_is_refused(cli: CommandLine, here: Bench) -> None:
    _documents(here, 100)
    cli("enqueue", "docs", "--text", "body", "--model", "hashing-8", "--chunk-size", "16")
    told = json.loads(cli("enqueue", "docs", "--dry-run", "--json").out)
    assert told["chunks"]["estimate"] > told["rows_new"]["estimate"]
    assert any("jobs of an earlier plan are unfinished (1)" in note for note in told["notes"])
    line = cli.refused("enqueue", "docs", "--text", "body", "--model", "hashing-16", "--dry-run", "--json")
    assert "exists with another definition" in line
    assert "no vectorizer is called" in cli.refused("enqueue", "pg_class", "--dry-run")


def test_a_destination_that_is_there_is_said_to_be_with_the_indexes_that_no_line_tells_of(
    cli: CommandLine, here: Bench
) -> None:
    _documents(here, 100)
    assert cli("enqueue", "docs", "--text", "body", "--model", "hashing-8").code == 0
    here.sql("CREATE INDEX ON docs_vectors USING hnsw (embedding vector_cosine_ops)")
    ran = cli("enqueue", "docs", "--dry-run")
    assert "destination: public.docs_vectors (exists)" in ran.out.splitlines()
    assert "B-tree" not in ran.out
    here.sql("CREATE INDEX ON docs_vectors USING gin (to_tsvector('english', chunk))")
    told = "public.docs_vectors has indexes of other kinds than B-tree and HNSW (1), which grow besides"
    assert f"note: {told}" in cli("enqueue", "docs", "--dry-run").out.splitlines()
    here.sql("DROP TABLE docs_vectors")
    assert "public.docs_vectors (gone)" in cli("enqueue", "docs", "--dry-run").out


def test_what_belongs_to_a_dry_run_is_refused_without_one(cli: CommandLine, here: Bench) -> None:
    for arguments in (["--json"], ["--sample", "500"], ["--price", "1"]):
        line = cli.misused("enqueue", "docs", "--text", "body", *arguments)
        assert line == f"{arguments[0]} belongs to --dry-run"


def test_a_filter_that_fails_on_a_row_ends_it_in_one_line(cli: CommandLine, here: Bench) -> None:
    _documents(here, 100)
    cli.refused("enqueue", "docs", "--text", "body", "--model", "hashing-8", "--where", "1 / kind > 0", "--dry-run")


def test_rows_are_told_where_no_tokenizer_can_be_had(cli: CommandLine, here: Bench) -> None:
    _documents(here, 100)
    arguments = ("enqueue", "docs", "--text", "body", "--model", "no/such-model", "--dimensions", "8", "--dry-run")
    ran = cli(*arguments)
    assert ran.code == 0
    assert "rows to embed" in ran.out
    assert "chunks:                   " not in ran.out
    assert "note: chunks and tokens are not known here" in ran.out


@pytest.mark.model
def test_a_models_own_tokenizer_counts_without_torch(here: Bench) -> None:
    here.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    here.sql("INSERT INTO docs SELECT i, 'Tokenizers unhappily split ' || i FROM generate_series(1, 20) i")
    arguments = ["enqueue", "docs", "--text", "body", "--dry-run", "--json"]
    ran = subprocess.run([sys.executable, "-c", _LOADED, *arguments], capture_output=True, text=True, check=True)
    told = json.loads(ran.stdout)
    assert told["chunks"]["estimate"] == 20
    # Two special tokens each, and words in pieces.
    assert told["tokens"]["estimate"] > 20 * (2 + 4)
    loaded = set(ran.stderr.split("loaded ")[1].split())
    assert "tokenizers" in loaded
    assert not loaded & {"torch", "sentence_transformers", "transformers"}


@pytest.mark.model
def test_an_endpoints_texts_are_counted_by_the_tokenizer_that_is_named(bench: Bench) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'Tokenizers unhappily split ' || i FROM generate_series(1, 20) i")
    spec = ModelSpec("sentence-transformers", DEFAULT_MODEL)
    own = tokenizer_of(spec)
    told = _estimate(
        bench,
        "docs",
        "body",
        model="somebodys-model",
        endpoint="http://127.0.0.1:9/v1",
        dimensions=8,
        tokenizer=str(model_files.tokenizer_file(spec)),
    )
    assert told.tokens == Interval.exactly(sum(own.count([f"Tokenizers unhappily split {i}" for i in range(1, 21)])))


_LOADED = """
import sys
from pgvec_queue.cli import run
code = run(sys.argv[1:])
print("loaded", *sys.modules, file=sys.stderr)
sys.exit(code)
"""
