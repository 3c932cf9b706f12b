"""`import-pgai`, against a real installation of pgai 0.12.1: its schema, its worker, and vectors that it made."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from benchmarks.peers import environments, model_endpoint
from benchmarks.peers.pgai_program import Program
from pgvec_queue.embedded_files import flock
from tests.commandline import CommandLine
from tests.support import Bench

# In one process: the environment takes half a minute to install where it is not there yet.
pytestmark = pytest.mark.xdist_group("pgai")

# Not the run's own: it may stay. Taken before tests have a home of their own.
_SCRATCH = Path(os.environ.get("PGVEC_TEST_PEERS", Path.home() / ".cache" / "pgvec-queue" / "peers"))

TEXT = "One sentence of a text about queues. Another one, somewhat longer, about workers and what they do. "
HASHING = ("--model", "hashing-16")


@pytest.fixture(scope="session")
def environment() -> environments.Environment:
    _SCRATCH.mkdir(parents=True, exist_ok=True)
    with flock(_SCRATCH / "pgai.lock", fcntl.LOCK_EX):
        try:
            return environments.provide(_SCRATCH, "pgai")
        except environments.UnavailableError as error:
            pytest.skip(f"pgai 0.12.1 cannot be installed here: {error}")


@pytest.fixture(scope="module")
def endpoint() -> Iterator[model_endpoint.Endpoint]:
    with model_endpoint.running("hashing-16") as running:
        yield running


@pytest.fixture
def program(bench: Bench, environment: environments.Environment, monkeypatch: pytest.MonkeyPatch) -> Program:
    """pgai in the test's database, over a table of documents."""
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)
    program = Program(environment, bench.dsn)
    program.install()
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, title text, body text)")
    bench.sql(
        "INSERT INTO docs SELECT i, 'title ' || i, 'Text number ' || i || '. ' || repeat(%s, i %% 12)"
        " FROM generate_series(1, 30) i",
        TEXT,
    )
    return program


def _create(bench: Bench, endpoint: model_endpoint.Endpoint, *, name: str = "theirs", **parts: str) -> None:
    parts = {
        "loading": "ai.loading_column('body')",
        "embedding": f"ai.embedding_ollama('all-minilm', 16, base_url => '{endpoint.url}')",
        **parts,
    }
    source = parts.pop("source", "docs")
    listed = ", ".join(f"{part} => {value}" for part, value in parts.items())
    bench.sql(f"SELECT ai.create_vectorizer('{source}'::regclass, name => '{name}', {listed})")


def _held(bench: Bench, table: str = "docs_embedding_store") -> list[tuple[object, ...]]:
    return bench.sql(
        f"SELECT embedding_uuid, id, chunk_seq, chunk, embedding::text FROM {table} ORDER BY id, chunk_seq"
    )


def test_a_vectorizer_with_its_vectors_becomes_ours_and_nothing_is_embedded_anew(
    bench: Bench, cli: CommandLine, program: Program, endpoint: model_endpoint.Endpoint
) -> None:
    _create(bench, endpoint)
    program.work()
    before = _held(bench)
    assert len(before) > 30
    view = bench.sql("SELECT id, chunk_seq, chunk FROM docs_embedding ORDER BY 1, 2")
    ran = cli("import-pgai", "theirs", *HASHING)
    assert ran.code == 0, ran
    assert ran.out.splitlines()[-1] == "SELECT ai.drop_vectorizer('theirs');"
    assert "took over the vectors of 30 rows\n" in ran.err
    assert "800 characters, overlap 400 (recursive_character_text_splitter)  200 tokens, overlap 100" in ran.err
    bench.drain()
    assert _held(bench) == before
    progress = bench.progress("theirs")
    assert (progress.rows_adopted, progress.rows_embedded, progress.chunks) == (30, 0, len(before))
    assert bench.sql("SELECT id, chunk_seq, chunk FROM docs_embedding ORDER BY 1, 2") == view
    assert cli("verify", "theirs").code == 0


def test_after_its_statement_changes_are_ours_alone_and_nothing_else_went(
    bench: Bench, cli: CommandLine, program: Program, endpoint: model_endpoint.Endpoint
) -> None:
    _create(bench, endpoint)
    program.work()
    cli("import-pgai", "theirs", *HASHING)
    bench.drain()
    before = _held(bench)
    removal = cli("import-pgai", "theirs", *HASHING, "--dry-run").out
    bench.sql(removal)
    assert _held(bench) == before
    left = "SELECT tgname FROM pg_trigger WHERE tgrelid = 'docs'::regclass AND tgname NOT LIKE 'pgvec%'"
    assert bench.sql(left) == []
    queues = "SELECT relname FROM pg_class WHERE relnamespace = 'ai'::regnamespace AND relname LIKE '_vectorizer_q%'"
    assert bench.sql(queues) == []
    asked = len(endpoint.texts)
    bench.sql("UPDATE docs SET body = 'Another text.' WHERE id = 3")
    bench.sql("DELETE FROM docs WHERE id = 4")
    bench.drain()
    assert [row for row in _held(bench) if row[1] not in (3, 4)] == [row for row in before if row[1] not in (3, 4)]
    assert bench.sql("SELECT chunk FROM docs_embedding WHERE id = 3") == [("Another text.",)]
    assert bench.sql("SELECT FROM docs_embedding WHERE id = 4") == []
    assert len(endpoint.texts) == asked


def test_what_waits_in_its_queue_is_embedded_by_us(
    bench: Bench, cli: CommandLine, program: Program, endpoint: model_endpoint.Endpoint
) -> None:
    _create(bench, endpoint)
    program.work()
    bench.sql("UPDATE docs SET body = 'Another text.' WHERE id IN (3, 5)")
    bench.sql("INSERT INTO docs VALUES (50, 'new', 'New text.')")
    ran = cli("import-pgai", "theirs", *HASHING)
    assert "3 rows wait in pgai's queue" in ran.err
    assert "the vectors of 2 rows are made anew: 2 not the chunks of the present text\n" in ran.err
    bench.drain()
    assert bench.progress("theirs").rows_embedded == 3
    assert cli("verify", "theirs").code == 0


def test_its_endpoint_goes_on_to_be_asked(
    bench: Bench, cli: CommandLine, program: Program, endpoint: model_endpoint.Endpoint, tmp_path: Path
) -> None:
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    Tokenizer(WordLevel({"[UNK]": 0}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    _create(bench, endpoint, embedding=f"ai.embedding_openai('some-model', 16, base_url => '{endpoint.url}/v1')")
    program.work()
    assert "it is not known how model 'some-model'" in cli("import-pgai", "theirs").err
    asked = len(endpoint.texts)
    ran = cli("import-pgai", "theirs", "--tokenizer", str(tmp_path / "tokenizer.json"))
    assert ran.code == 0, ran
    sample = len(endpoint.texts) - asked
    assert 30 <= sample <= 200
    bench.drain()
    assert len(endpoint.texts) == asked + sample
    bench.sql("UPDATE docs SET body = 'Another text.' WHERE id = 3")
    bench.drain()
    assert endpoint.texts[asked + sample :] == ["Another text."]


@pytest.mark.parametrize(
    "chunking",
    [
        "ai.chunking_none()",
        "ai.chunking_character_text_splitter(200, 50, separator => '. ')",
        "ai.chunking_recursive_character_text_splitter(120, 30)",
    ],
)
def test_each_of_its_splitters_is_kept(
    bench: Bench, cli: CommandLine, program: Program, endpoint: model_endpoint.Endpoint, chunking: str
) -> None:
    formatting = "ai.formatting_python_template('$title: $chunk')"
    _create(bench, endpoint, chunking=chunking, formatting=formatting, destination="ai.destination_table('vecs')")
    program.work()
    before = _held(bench, "vecs_store")
    ran = cli("import-pgai", "theirs", "--name", "ours", *HASHING)
    assert "took over the vectors of 30 rows\n" in ran.err, ran
    assert "stored formatted" in ran.err
    bench.drain()
    assert _held(bench, "vecs_store") == before
    assert bench.progress("ours").rows_embedded == 0


def test_a_column_of_the_source_with_a_composite_key_is_taken_over(
    bench: Bench, cli: CommandLine, program: Program, endpoint: model_endpoint.Endpoint
) -> None:
    bench.sql('CREATE TABLE "Notes" (a int, "B c" text, note text, PRIMARY KEY ("B c", a))')
    bench.sql("""INSERT INTO "Notes" SELECT i, 'k' || i % 3, 'note ' || i FROM generate_series(1, 20) i""")
    _create(
        bench,
        endpoint,
        source='"Notes"',
        chunking="ai.chunking_none()",
        loading="ai.loading_column('note')",
        destination="ai.destination_column('v')",
    )
    program.work()
    bench.sql("""UPDATE "Notes" SET note = 'Another text.' WHERE a = 3""")
    ran = cli("import-pgai", "theirs", *HASHING)
    # Its own text is not kept, so what waits in the queue is not believed.
    assert "took over the vectors of 19 rows\n" in ran.err, ran
    bench.drain()
    assert bench.progress("theirs").rows_embedded == 1
    assert cli("verify", "theirs").code == 0
    bench.sql(ran.out.splitlines()[-1])


def test_other_vectors_are_refused_and_nothing_is_changed(
    bench: Bench, cli: CommandLine, program: Program, endpoint: model_endpoint.Endpoint
) -> None:
    _create(bench, endpoint)
    program.work()
    bench.sql("UPDATE docs_embedding_store SET embedding = (SELECT embedding FROM docs_embedding_store LIMIT 1)")
    columns = bench.sql("SELECT attname FROM pg_attribute WHERE attrelid = 'docs_embedding_store'::regclass")
    ran = cli("import-pgai", "theirs", *HASHING)
    assert ran.code == 1
    assert "holds other vectors than hashing-16 makes" in ran.err
    assert "give --anew to embed all rows anew" in ran.err
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 0
    assert bench.sql("SELECT attname FROM pg_attribute WHERE attrelid = 'docs_embedding_store'::regclass") == columns
    assert cli("import-pgai", "theirs", *HASHING, "--anew").code == 0
    bench.drain()
    assert bench.progress("theirs").rows_embedded == 30


def test_a_worker_at_work_is_not_raced(
    bench: Bench, cli: CommandLine, program: Program, endpoint: model_endpoint.Endpoint
) -> None:
    _create(bench, endpoint)
    with psycopg.connect(bench.dsn, application_name="pgai-worker[1]: abc"):
        refusal = cli("import-pgai", "1", *HASHING)
        assert refusal.code == 1
        assert "a worker of pgai is at work on it" in refusal.err
        bench.sql("SELECT ai.disable_vectorizer_schedule('theirs')")
        # Nothing was embedded yet: there is nothing to take over, and that is no error.
        ran = cli("import-pgai", "theirs", *HASHING)
        assert ran.code == 0, ran
        assert "holds no vectors that could be taken over" in ran.err
    bench.drain()
    assert bench.progress("theirs").rows_embedded == 30


def test_what_has_no_counterpart_is_refused_in_one_line(
    bench: Bench, cli: CommandLine, program: Program, endpoint: model_endpoint.Endpoint
) -> None:
    assert cli.refused("import-pgai", "theirs") == "pgai has no vectorizer 'theirs'; it has none"
    bench.sql("ALTER TABLE docs ADD raw bytea")
    destination = iter(f"ai.destination_table('t{i}')" for i in range(9))
    _create(bench, endpoint, name="files", loading="ai.loading_uri('body')", destination=next(destination))
    _create(bench, endpoint, name="raw", loading="ai.loading_column('raw')", destination=next(destination))
    _create(
        bench,
        endpoint,
        name="twice",
        formatting="ai.formatting_python_template('$chunk $chunk')",
        destination=next(destination),
    )
    _create(
        bench, endpoint, name="voyage", embedding="ai.embedding_voyageai('voyage-3', 16)", destination=next(destination)
    )
    _create(
        bench,
        endpoint,
        name="pages",
        parsing="ai.parsing_docling()",
        loading="ai.loading_column('raw')",
        destination=next(destination),
    )
    _create(bench, endpoint, name="whole", chunking="ai.chunking_none()", destination=next(destination))
    _create(bench, endpoint, name="gone", destination=next(destination))
    bench.sql("DROP VIEW t6; DROP TABLE t6_store")
    listed = "there are: files, raw, twice, voyage, pages, whole, gone"
    for name, why in (
        ("docs", f"pgai has no vectorizer 'docs'; {listed}"),
        ("files", "pgai's files loads what a column names (ai.loading_uri)"),
        ("twice", "pgai's twice has a format that is none here: template '$chunk $chunk' has $chunk 2 times"),
        ("voyage", "pgai's voyage asks voyageai for its vectors; name an endpoint"),
        ("pages", "pgai's pages parses documents (ai.parsing_docling)"),
        ("gone", "the table public.t6_store of pgai's gone is gone"),
    ):
        assert cli.refused("import-pgai", name).startswith(why)
    assert "public.docs.raw is bytea, not text" in cli("import-pgai", "raw").err
    assert "does not chunk" in cli.refused("import-pgai", "whole", "--chunk-size", "50")
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 0


def test_without_pgai_there_is_nothing_to_import(
    bench: Bench, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)
    assert cli.refused("import-pgai", "x") == "there is no pgai in this database: it has no table ai.vectorizer"
