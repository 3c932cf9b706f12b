"""What a database looks like at moments that the page has to show; written into the tables that workers write."""

from __future__ import annotations

from tests.support import Bench

MESSAGE = "the document has 1,204 tokens; the model reads 512; give --too-long truncate, or a chunk size"
HOSTILE = '<img src=x onerror="document.title=1"><script>document.title = 2</script>'


def source(bench: Bench, name: str, rows: int) -> None:
    bench.sql(f'CREATE TABLE "{name}" (id bigint PRIMARY KEY, body text)')
    bench.sql(f"INSERT INTO \"{name}\" SELECT i, 'document number ' || i FROM generate_series(1, %s) i", rows)


def idle(bench: Bench) -> None:
    """Two vectorizers that are complete, and one worker without work."""
    for name, rows in (("articles", 4_200), ("notes", 310)):
        source(bench, name, rows)
        bench.enqueue(name, "body")
    bench.drain()
    _worker(bench, "rack-1", 4711, "idle", "cpu", busy=0.97)


def busy(bench: Bench) -> None:
    """Seven vectorizers in all states, and five workers."""
    for name, rows in (
        *(("articles", 100_000), ("notes", 3_000), ("letters", 40_000), ("products", 8_000)),
        *(("reviews", 20_000), ("tickets", 1_000), ("wiki_pages", 2_000)),
    ):
        source(bench, name, min(rows, 3_000))
        bench.enqueue(name, "body", rows_per_job=500)
        bench.sql("UPDATE pgvec.vectorizers SET rows_planned = %s WHERE name = %s", rows, name)
    # Whole, and truly so.
    bench.drain(names=("tickets", "wiki_pages"))
    for name, done in (("tickets", 1_000), ("wiki_pages", 2_000)):
        bench.sql("UPDATE pgvec.counters SET rows_right = %s WHERE vectorizer_id = (SELECT id FROM pgvec.vectorizers"
                  " WHERE name = %s) AND rows_right > 0", done, name)  # fmt: skip
    bench.sql("UPDATE pgvec.vectorizers SET paused = true WHERE name = 'notes'")
    bench.sql(
        "UPDATE pgvec.vectorizers SET blocked_reason = 'https://models.example/v1 answers 401: the key is not valid;"
        " set OPENAI_API_KEY for the workers', blocked_at = now() WHERE name = 'reviews'"
    )
    bench.sql("UPDATE pgvec.vectorizers SET cancelled = true WHERE name = 'products'")
    first = _worker(bench, "rack-1", 4711, "working", "cuda:0", "float16", busy=0.96, at="articles")
    _worker(bench, "rack-1", 4712, "working", "cuda:1", "float16", busy=0.93, at="articles")
    _worker(bench, "mac-studio.local", 812, "working", "mps", "float16", busy=0.88, at="letters")
    _worker(bench, "mac-mini.local", 3301, "loading", "mps")
    bench.sql("UPDATE pgvec.workers SET waiting_for = 'the database takes 2.1 s to commit' WHERE pid = 812")
    gone = _worker(bench, "old-laptop", 990, "working", "cpu", "float32")
    bench.sql(
        "UPDATE pgvec.workers SET gone = true, beat_at = clock_timestamp() - interval '3 minutes' WHERE id = %s", gone
    )
    for name, done, rate in (("articles", 48_800, 604), ("letters", 3_100, 41)):
        _went_on(bench, name, done, rate, first)
    _worked(bench, "notes", 1_200, 0, first)
    for kind, of, host, message in (
        ("started", None, "rack-1", "pid 4711"),
        ("paused", "notes", None, None),
        ("gone", None, "old-laptop", "pid 990"),
        ("reclaimed", "articles", None, "2 jobs"),
        ("blocked", "reviews", None, "https://models.example/v1 answers 401: the key is not valid"),
    ):
        bench.sql(
            "INSERT INTO pgvec.events (kind, vectorizer_id, host, message)"
            " VALUES (%s, (SELECT id FROM pgvec.vectorizers WHERE name = %s), %s, %s)",
            *(kind, of, host, message),
        )


def failures(bench: Bench, name: str = "articles") -> None:
    """Documents in quarantine, of three classes."""
    for error_class, message, first, count in (
        ("TooLongError", MESSAGE, 1, 37),
        ("22021", "invalid byte sequence for encoding UTF8: 0x00", 100, 4),
        ("NotFiniteError", "the model gives NaN for this text", 200, 1),
    ):
        bench.sql(
            "INSERT INTO pgvec.failures (vectorizer_id, key, source_hash, error_class, message, model, last_at)"
            " SELECT v.id, ARRAY[i::text], '\\x00', %s, %s, v.model, clock_timestamp() - interval '40 s' * (i %% 9)"
            " FROM pgvec.vectorizers v, generate_series(%s::int, %s::int) i WHERE v.name = %s",
            *(error_class, message, first, first + count - 1, name),
        )
    bench.sql("INSERT INTO pgvec.events (kind, vectorizer_id, message) SELECT 'quarantined', id, '42 documents'"
              " FROM pgvec.vectorizers WHERE name = %s", name)  # fmt: skip


def hostile(bench: Bench) -> None:
    """Names and texts that want to be more than text."""
    source(bench, "docs", 10)
    name = HOSTILE + "\u202eevil"
    vectorizer = bench.enqueue("docs", "body")
    bench.sql("UPDATE pgvec.vectorizers SET name = %s, model = %s, blocked_reason = %s", name, HOSTILE, HOSTILE)
    worker = _worker(bench, HOSTILE, 1, "working", HOSTILE, HOSTILE)
    bench.sql("UPDATE pgvec.workers SET waiting_for = %s WHERE id = %s", HOSTILE, worker)
    bench.sql(
        "INSERT INTO pgvec.failures (vectorizer_id, key, source_hash, error_class, message, model)"
        " VALUES (%s, ARRAY[%s], '\\x00', %s, %s, %s)",
        *(vectorizer.id, HOSTILE, HOSTILE, HOSTILE, HOSTILE),
    )
    bench.sql(
        "INSERT INTO pgvec.events (kind, vectorizer_id, host, message) VALUES (%s, %s, %s, %s)",
        *(HOSTILE, vectorizer.id, HOSTILE, HOSTILE),
    )


def _worker(
    bench: Bench,
    host: str,
    pid: int,
    state: str,
    device: str | None = None,
    dtype: str | None = None,
    *,
    busy: float | None = None,
    at: str | None = None,
) -> int:
    """Registers a worker that is heard of for an hour, with a job in hand where ``at`` names a vectorizer."""
    member = bench.register(3600)
    bench.sql(
        "UPDATE pgvec.workers SET host = %s, pid = %s, state = %s, device = %s, dtype = %s, busy = %s WHERE id = %s",
        *(host, pid, state, device, dtype, busy, member.worker),
    )
    if at is not None:
        bench.sql(
            "UPDATE pgvec.jobs SET state = 'running', worker_id = %s, epoch = epoch + 1,"
            " claimed_at = clock_timestamp(), checkpoint = ARRAY['4199']"
            " WHERE id = (SELECT j.id FROM pgvec.jobs j JOIN pgvec.vectorizers v ON"
            " v.id = j.vectorizer_id WHERE v.name = %s AND j.state = 'queued' ORDER BY j.id LIMIT 1)",
            *(member.worker, at),
        )
    return member.worker


def _worked(bench: Bench, name: str, done: int, jobs: int, worker: int) -> None:
    bench.sql(
        "INSERT INTO pgvec.counters (vectorizer_id, worker_id, rows_right, rows_embedded, chunks_written, tokens,"
        " jobs_done) SELECT id, %s, %s, %s, %s, %s, %s FROM pgvec.vectorizers WHERE name = %s",
        *(worker, done, done, done, done * 60, jobs, name),
    )


def _went_on(bench: Bench, name: str, done: int, rate: int, worker: int) -> None:
    """Rates of the last quarter of an hour: twelve minutes that are over, and the last ten seconds of each since."""
    _worked(bench, name, done, 2, worker)
    bench.sql(
        "INSERT INTO pgvec.minutes (vectorizer_id, worker_id, minute, began_at, ended_at, host, rows, chunks,"
        " tokens, bytes) SELECT v.id, %s, m, m, m + interval '1 minute', 'rack-1', r, r, r * 60,"
        " r * 800 FROM pgvec.vectorizers v, LATERAL (SELECT"
        " date_trunc('minute', clock_timestamp()) - interval '1 minute' * i AS m,"
        " (60 * %s * (1 - 0.04 * ((i * 7) %% 5) - CASE WHEN i > 9 THEN 0.3 ELSE 0 END))::bigint AS r"
        " FROM generate_series(2, 13) i) past WHERE v.name = %s",
        *(worker, rate, name),
    )
    bench.sql(
        "INSERT INTO pgvec.samples (vectorizer_id, worker_id, at, rows, chunks, tokens, bytes)"
        " SELECT v.id, %s, at, 10 * %s, 10 * %s, 600 * %s, 8000 * %s FROM pgvec.vectorizers v,"
        " generate_series(date_trunc('minute', clock_timestamp()) - interval '1 minute',"
        " clock_timestamp() - interval '10 seconds', interval '10 seconds') at WHERE v.name = %s",
        *(worker, rate, rate, rate, rate, name),
    )
