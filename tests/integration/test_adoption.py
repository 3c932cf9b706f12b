"""`enqueue --adopt`: vectors that are there are taken over where they are of the model and of the present text."""

from __future__ import annotations

from collections.abc import Sequence

import psycopg
import pytest

from pgvec_queue import adoption, definition
from pgvec_queue.database import Connection
from pgvec_queue.embedders import DeviceOptions, ModelSpec, load
from pgvec_queue.vectorizer import Vectorizer
from tests.commandline import CommandLine
from tests.oracle import assert_right
from tests.support import Bench

SENTENCES = [f"Sentence {i} of a text about thing {i % 7}." for i in range(400)]


@pytest.fixture(autouse=True)
def _here(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGVEC_DSN", bench.dsn)


def _documents(bench: Bench, count: int = 20) -> None:
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, title text, body text)")
    for i in range(1, count + 1):
        bench.sql(
            "INSERT INTO docs VALUES (%s, %s, %s)", i, f"title {i}", " ".join(SENTENCES[i * 3 : i * 3 + i % 8 + 2])
        )


def _filled_by_others(bench: Bench, *, cut: int = 60, overlap: int = 10, template: str = "{chunk}") -> None:
    """A table as another program makes it: documents cut by characters, the formatted text beside its vector."""
    bench.sql(
        "CREATE TABLE store (uuid uuid PRIMARY KEY DEFAULT gen_random_uuid(), id int NOT NULL, chunk_seq int NOT NULL,"
        " chunk text NOT NULL, embedding vector(8) NOT NULL, UNIQUE (id, chunk_seq))"
    )
    for key, title, body in bench.sql("SELECT id, title, body FROM docs"):
        _store(bench, key, [template.format(title=title, chunk=piece) for piece in _cut(body, cut, overlap)])


def _cut(body: str, size: int, overlap: int) -> list[str]:
    pieces = []
    start = end = 0
    while end < len(body):
        end = start + size
        pieces.append(body[start:end].strip())
        start = end - overlap
    return pieces


def _store(bench: Bench, key: int, texts: Sequence[str]) -> None:
    for i, (text, vector) in enumerate(zip(texts, _vectors(texts), strict=True)):
        bench.sql(
            "INSERT INTO store (id, chunk_seq, chunk, embedding) VALUES (%s, %s, %s, %s::text::vector)",
            *(key, i, text, str(vector)),
        )


def _vectors(texts: Sequence[str]) -> list[list[float]]:
    embedder = load(ModelSpec("hashing", "hashing-8"), DeviceOptions())
    return embedder.embed_documents(list(texts), [1] * len(texts)).tolist()  # type: ignore[no-any-return]


ADOPT = ("enqueue", "docs", "--text", "body", "--model", "hashing-8", "--adopt")
INTO_STORE = (*ADOPT, "--into", "store", "--column", "chunk_index=chunk_seq")


def _held(bench: Bench) -> list[tuple[object, ...]]:
    return bench.sql("SELECT uuid, id, chunk_seq, chunk, embedding::text FROM store ORDER BY id, chunk_seq")


def test_vectors_that_are_there_are_not_made_again(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    _filled_by_others(bench)
    before = _held(bench)
    ran = cli(*INTO_STORE, "--chunk-size", "12")
    assert ran.code == 0, ran
    assert "adds the column source_hash to public.store" in ran.err
    assert "took over the vectors of 20 rows\n" in ran.err
    assert "rows are cut otherwise than they would be now; they keep their chunks" in ran.err
    bench.drain()
    assert _held(bench) == before
    progress = bench.progress("docs")
    assert (progress.rows_adopted, progress.rows_embedded, progress.rows_done) == (20, 0, 20)
    assert (progress.state, progress.chunks) == ("complete", len(before))
    assert cli("verify", "docs").code == 0


def test_a_row_that_changes_after_that_is_cut_by_our_own_rule(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    _filled_by_others(bench)
    cli(*INTO_STORE, "--chunk-size", "12", "--sync")
    bench.drain()
    others = [row for row in _held(bench) if row[1] != 7]
    bench.sql("UPDATE docs SET body = body || ' And more.' WHERE id = 7")
    bench.sql("DELETE FROM docs WHERE id = 8")
    bench.drain()
    assert bench.progress("docs").rows_embedded == 1
    assert [row for row in _held(bench) if row[1] != 7] == [row for row in others if row[1] != 8]
    changed = [chunk for (chunk,) in bench.sql("SELECT chunk FROM store WHERE id = 7 ORDER BY chunk_seq")]
    assert len(changed) > 1
    assert all(len(chunk.split()) <= 12 for chunk in changed)


def test_our_own_chunks_without_their_hashes_are_as_if_we_had_made_them(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    bench.enqueue("docs", "body", chunk_size=12)
    bench.drain()
    bench.sql("SELECT pgvec.drop_vectorizer('docs')")
    bench.sql("ALTER TABLE docs_vectors DROP source_hash")
    ran = cli(*ADOPT, "--chunk-size", "12")
    assert "cut otherwise" not in ran.err
    bench.drain()
    assert bench.progress("docs").rows_embedded == 0
    assert_right(bench, _vectorizer(bench))


def test_only_what_is_not_of_the_present_text_is_made_anew(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    _filled_by_others(bench)
    bench.sql("UPDATE docs SET body = 'Other text.' WHERE id = 1")
    bench.sql("DELETE FROM store WHERE id = 2 AND chunk_seq = 0")
    bench.sql(
        "UPDATE store SET chunk_seq = chunk_seq + 1"
        " WHERE id = 3 AND chunk_seq = (SELECT max(chunk_seq) FROM store WHERE id = 3)"
    )
    bench.sql("DELETE FROM store WHERE id = 4")
    bench.sql("UPDATE docs SET body = ' ' WHERE id = 5")
    bench.sql("DELETE FROM docs WHERE id = 6")
    ran = cli(*INTO_STORE, "--chunk-size", "12")
    assert "took over the vectors of 14 rows\n" in ran.err
    assert (
        "the vectors of 3 rows are made anew: 2 a vector or a number missing; 1 not the chunks of the present text\n"
        in ran.err
    )
    bench.drain()
    progress = bench.progress("docs")
    assert (progress.rows_adopted, progress.rows_embedded, progress.rows_done, progress.rows_total) == (14, 4, 19, 19)
    assert progress.chunks == bench.value("SELECT count(*) FROM store")
    assert bench.wrong(_vectorizer(bench)) == {"missing": 0, "orphaned": 0, "stale": 0}


def test_vectors_of_another_model_are_refused_and_nothing_is_changed(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    _filled_by_others(bench)
    bench.sql("UPDATE store SET embedding = '[1,0,0,0,0,0,0,0]' WHERE id = 9 AND chunk_seq = 0")
    ran = cli(*INTO_STORE)
    assert ran.code == 1
    assert ran.err.splitlines()[1].startswith(
        "pgvec: public.store holds other vectors than hashing-8 makes: of 82 compared, 1 below a cosine of 0.999, "
    ), ran.err
    assert "(key 9); nothing was changed." in ran.err
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 0
    assert not bench.sql("SELECT FROM pg_attribute WHERE attrelid = 'store'::regclass AND attname = 'source_hash'")


def test_a_formatted_chunk_is_taken_over_by_its_template(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    _filled_by_others(bench, template="{title}: {chunk}")
    bench.sql("UPDATE docs SET title = 'another' WHERE id = 3")
    before = [row for row in _held(bench) if row[1] != 3]
    ran = cli(*INTO_STORE, "--template", "$title: $chunk", "--chunk-size", "12")
    assert "took over the vectors of 19 rows\n" in ran.err, ran
    bench.drain()
    assert [row for row in _held(bench) if row[1] != 3] == before
    assert bench.progress("docs").rows_embedded == 1
    # Ours are stored without what surrounds them.
    assert bench.value("SELECT chunk FROM store WHERE id = 3 AND chunk_seq = 0").startswith("Sentence 9 ")


def test_without_the_template_formatted_chunks_are_none_of_their_text(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    _filled_by_others(bench, template="{title}: {chunk}")
    ran = cli(*INTO_STORE)
    assert "took over the vectors of 0 rows\n" in ran.err


def test_chunks_stored_without_their_template_are_compared_in_it(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    bench.enqueue("docs", "body", chunk_size=12, template="$title: $chunk")
    # The helper of the tests embeds no template: this is the worker itself.
    bench.drain()
    bench.sql("SELECT pgvec.drop_vectorizer('docs')")
    bench.sql("ALTER TABLE docs_vectors DROP source_hash")
    ran = cli(*ADOPT, "--template", "$title: $chunk", "--chunk-size", "12")
    assert "took over the vectors of 20 rows\n" in ran.err, ran
    bench.drain()
    assert_right(bench, _vectorizer(bench))


def test_a_column_of_the_source_is_taken_over(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    bench.sql("ALTER TABLE docs ADD v vector(8), ADD v_hash bytea")
    keys, bodies = zip(*bench.sql("SELECT id, body FROM docs"), strict=True)
    for key, vector in zip(keys, _vectors(bodies), strict=True):
        bench.sql("UPDATE docs SET v = %s::text::vector WHERE id = %s", str(vector), key)
    bench.sql("UPDATE docs SET v = NULL WHERE id = 4")
    with psycopg.connect(bench.dsn) as other:
        other.execute("SELECT FROM docs WHERE id = 5 FOR UPDATE")
        ran = cli(*ADOPT, "--into-column", "v")
        assert "took over the vectors of 18 rows\n" in ran.err, ran
        assert "the vectors of 1 row are made anew: 1 changed or locked by somebody just then\n" in ran.err
    assert bench.value("SELECT count(v_hash) FROM docs") == 18
    again = cli(*ADOPT, "--into-column", "v")
    assert "took over the vectors of 1 row\n" in again.err
    bench.drain()
    progress = bench.progress("docs")
    assert (progress.rows_adopted, progress.rows_embedded, progress.rows_done) == (19, 1, 20)
    assert_right(bench, _vectorizer(bench))


def test_whole_documents_without_their_text_are_believed_where_the_sample_agrees(
    bench: Bench, cli: CommandLine
) -> None:
    _documents(bench)
    bench.sql("CREATE TABLE store (id text PRIMARY KEY, embedding halfvec(8))")
    for key, body in bench.sql("SELECT id, body FROM docs"):
        bench.sql("INSERT INTO store VALUES (%s, %s::text::halfvec)", str(key), str(_vectors([body])[0]))
    ran = cli(*ADOPT, "--into", "store", "--store", "halfvec", "--no-chunking")
    assert "took over the vectors of 20 rows\n" in ran.err, ran
    bench.drain()
    assert bench.progress("docs").rows_embedded == 0
    assert_right(bench, _vectorizer(bench))
    again = cli.refused(*ADOPT, "--into", "store", "--store", "halfvec", "--no-chunking", "--name", "b")
    assert again.startswith("the destination public.store belongs to the vectorizer 'docs'")


def test_chunks_that_the_model_does_not_read_in_full_are_made_anew(bench: Bench, cli: CommandLine) -> None:
    """Another tool may have cut them in silence; we never do."""
    _documents(bench, 3)
    _filled_by_others(bench, cut=10_000)
    defined = bench.define(
        "docs", "body", into="store", columns={"chunk_index": ["chunk_seq"]}, chunk_size=12, adopt=True
    )
    fragments = bench.fragments(defined.vectorizer)
    embedder = load(defined.vectorizer.spec, DeviceOptions())
    info = embedder.info.__class__(8, 26, None, "", "")
    adopted = adoption.adopt(bench.connection, fragments, adoption.Rules(True, info, embedder.tokenizer))
    words = dict(bench.sql("SELECT id, array_length(string_to_array(body, ' '), 1) FROM docs"))
    assert adopted.rows == sum(count <= 26 for count in words.values()) > 0
    assert adopted.left == {adoption.LONG: sum(count > 26 for count in words.values())}


def test_a_row_that_changed_since_it_was_compared_is_left_alone(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    _documents(bench)
    _filled_by_others(bench)
    vectorizer = bench.define(
        "docs", "body", into="store", columns={"chunk_index": ["chunk_seq"]}, chunk_size=12, adopt=True
    ).vectorizer
    embedder = load(vectorizer.spec, DeviceOptions())
    compare = adoption.faults

    def meanwhile(*arguments: object) -> list[str | None]:
        found = compare(*arguments)  # type: ignore[arg-type]
        bench.sql("UPDATE docs SET body = 'Other text.' WHERE id = 1")
        bench.sql("UPDATE store SET chunk = 'other' WHERE id = 2 AND chunk_seq = 0")
        bench.sql("DELETE FROM store WHERE id = 3 AND chunk_seq = 0")
        return found

    monkeypatch.setattr(adoption, "faults", meanwhile)
    rules = adoption.Rules(True, embedder.info, embedder.tokenizer)
    adopted = adoption.adopt(bench.connection, bench.fragments(vectorizer), rules)
    assert (adopted.rows, adopted.left) == (17, {adoption.HELD: 3})
    assert bench.sql("SELECT DISTINCT id FROM store WHERE source_hash IS NULL ORDER BY 1") == [(1,), (2,), (3,)]


@pytest.mark.parametrize("key", ["text", "bigint"])
def test_slices_by_rows_and_by_bytes_take_over_every_row_once(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    _documents(bench, 30)
    _filled_by_others(bench)
    bench.sql(f"ALTER TABLE store ALTER id TYPE {key}")
    options = {"into": "store", "columns": {"chunk_index": ["chunk_seq"]}, "chunk_size": 12, "adopt": True}
    vectorizer = bench.define("docs", "body", **options).vectorizer
    assert not vectorizer.destination_ordered
    embedder = load(vectorizer.spec, DeviceOptions())
    monkeypatch.setattr(adoption, "ROWS", 7)
    monkeypatch.setattr(adoption, "BYTES", 700)
    seen: list[int] = []
    rules = adoption.Rules(True, embedder.info, embedder.tokenizer)
    adopted = adoption.adopt(bench.connection, bench.fragments(vectorizer), rules, progress=seen.append)
    assert (adopted.rows, dict(adopted.left)) == (30, {})
    assert len(seen) > 30 // 7 + 1
    assert bench.value("SELECT count(*) FROM store WHERE source_hash IS NULL") == 0
    assert bench.progress("docs").rows_adopted == 30


def test_a_filter_may_use_names_that_chunks_have_too(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    bench.sql("ALTER TABLE docs ADD chunk_seq int, ADD chunk text DEFAULT 'yes', ADD hash text, ADD pgvec_key int")
    _filled_by_others(bench)
    ran = cli(*INTO_STORE, "--chunk-size", "12", "--where", "chunk = 'yes' AND chunk_seq IS NULL AND id <= 10")
    assert "took over the vectors of 10 rows\n" in ran.err, ran
    bench.drain()
    assert bench.value("SELECT count(DISTINCT id) FROM store") == 10


def test_a_composite_key_with_capitals_is_taken_over(bench: Bench, cli: CommandLine) -> None:
    bench.sql('CREATE TABLE docs ("A%" text COLLATE "C", b date, body text, PRIMARY KEY ("A%", b))')
    bench.sql(
        "INSERT INTO docs SELECT 'k' || i, date '2024-01-01' + i, 'text number ' || i FROM generate_series(1, 9) i"
    )
    bench.enqueue("docs", "body", chunk_size=12)
    bench.drain()
    bench.sql("SELECT pgvec.drop_vectorizer('docs')")
    bench.sql("UPDATE docs_vectors SET chunk = chunk; ALTER TABLE docs_vectors DROP source_hash")
    assert "took over the vectors of 9 rows\n" in cli(*ADOPT, "--chunk-size", "12").err
    bench.drain()
    assert bench.progress("docs").rows_embedded == 0


def test_without_numbers_chunks_are_compared_by_where_they_lie(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    _filled_by_others(bench)
    bench.sql("CREATE TABLE heap AS SELECT id, chunk, embedding FROM store ORDER BY random()")
    bench.sql("CREATE INDEX near ON heap USING hnsw (embedding vector_cosine_ops)")
    ran = cli(*ADOPT, "--into", "heap", "--chunk-size", "12")
    assert "builds an index on id of public.heap, which has none" in ran.err
    assert "is added to near once more" in ran.err
    assert "took over the vectors of 20 rows\n" in ran.err, ran
    bench.drain()
    assert bench.progress("docs").rows_embedded == 0


def test_a_run_that_was_stopped_goes_on(bench: Bench, cli: CommandLine, monkeypatch: pytest.MonkeyPatch) -> None:
    _documents(bench)
    _filled_by_others(bench)
    monkeypatch.setattr(adoption, "ROWS", 5)
    take = adoption._take_over
    calls = 0

    def stopped(*arguments: object) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return take(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(adoption, "_take_over", stopped)
    assert cli(*INTO_STORE, "--chunk-size", "12").code == 130
    assert bench.progress("docs").rows_adopted == 10
    ran = cli("enqueue", "docs", "--adopt")
    assert "took over the vectors of 10 rows\n" in ran.err, ran
    bench.drain()
    assert (bench.progress("docs").rows_adopted, bench.progress("docs").rows_embedded) == (20, 0)


def test_a_dry_run_checks_and_changes_nothing(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    _filled_by_others(bench)
    bench.sql("UPDATE docs SET body = 'Other text.' WHERE id = 1")
    ran = cli(*INTO_STORE, "--chunk-size", "12", "--dry-run")
    assert ran.code == 0
    assert "of 20 rows in the sample 1 cannot be taken over: 1 not the chunks of the present text" in ran.err
    assert "public.store (exists)" in ran.out
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 0


def test_nobody_waits_while_vectors_are_counted(
    bench: Bench, cli: CommandLine, monkeypatch: pytest.MonkeyPatch
) -> None:
    _documents(bench)
    _filled_by_others(bench)
    count = definition._count_chunks
    locked: list[object] = []

    def counted(connection: Connection, proposed: Vectorizer) -> int:
        made = count(connection, proposed)
        with psycopg.connect(bench.dsn) as other:
            locked.extend(
                other.execute(
                    "SELECT mode FROM pg_locks WHERE relation = 'store'::regclass AND mode <> 'AccessShareLock'"
                )
            )
        assert made == bench.value("SELECT count(*) FROM store")
        return made

    monkeypatch.setattr(definition, "_count_chunks", counted)
    ran = cli(*INTO_STORE, "--chunk-size", "12")
    assert "adds the column source_hash to public.store" in ran.err, ran
    assert (ran.code, locked) == (0, [])


def test_what_cannot_be_adopted_is_refused_in_one_line(bench: Bench, cli: CommandLine) -> None:
    _documents(bench)
    there = "does not exist, so there are no vectors to take over"
    assert cli.refused(*ADOPT).startswith(f"public.docs_vectors {there}")
    assert cli.refused(*ADOPT, "--into-column", "v").startswith(f"the column v of public.docs {there}")
    bench.sql("CREATE TABLE store (id int, chunk_seq int, chunk text, embedding vector(8))")
    assert "public.store holds no vectors that could be taken over" in cli(*INTO_STORE).err
    bench.sql("INSERT INTO store VALUES (1, 0, NULL, '[1,0,0,0,0,0,0,0]')")
    assert "none of the vectors of public.store can be compared" in cli(*INTO_STORE).err
    bench.sql("CREATE TABLE bare (id int, embedding vector(8))")
    assert "has no column for the text of a chunk" in cli(*ADOPT, "--into", "bare").err
    assert "--limit and --adopt exclude each other" in cli.misused(*INTO_STORE, "--limit", "5")
    assert "--price is for the estimate" in cli.misused(*INTO_STORE, "--dry-run", "--price", "1")
    bench.define("docs", "body", into="bare")
    assert "was made without a column for the hash" in cli("enqueue", "docs", "--adopt").err
    assert bench.value("SELECT count(*) FROM pgvec.vectorizers") == 1


def test_the_sample_comes_from_all_over_a_table(bench: Bench, cli: CommandLine) -> None:
    """Vectors of another model in its last tenth are seen in the sample of 200."""
    bench.sql("CREATE TABLE docs (id int PRIMARY KEY, body text)")
    bench.sql("INSERT INTO docs SELECT i, 'text ' || i FROM generate_series(1, 3000) i")
    bench.enqueue("docs", "body")
    bench.drain()
    bench.sql("SELECT pgvec.drop_vectorizer('docs')")
    bench.sql("UPDATE docs_vectors SET source_hash = '', embedding = '[0,0,0,1,0,0,0,0]' WHERE id > 2700")
    ran = cli(*ADOPT, "--no-chunking")
    assert "public.docs_vectors holds other vectors than hashing-8 makes: of 200 compared" in ran.err, ran


def _vectorizer(bench: Bench, name: str = "docs") -> Vectorizer:
    from pgvec_queue import vectorizer

    return vectorizer.get(bench.connection, name)
