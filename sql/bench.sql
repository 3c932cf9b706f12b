-- What `pgvec bench` asks of its own databases.

-- name: version
SHOW server_version;

-- name: settings
SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings
WHERE name IN ('fsync', 'synchronous_commit', 'full_page_writes', 'shared_buffers', 'max_wal_size') ORDER BY name;

-- name: renumber
-- Makes what was planned while it was paused as new as if it had been planned this instant: a worker that has just looked
-- at the whole queue and passed it over looks at newer ids only for a while.
WITH planned AS (
    DELETE FROM pgvec.jobs WHERE vectorizer_id = %(id)s AND state = 'queued'
    RETURNING id, kind, lower_key, upper_key, rows
)
INSERT INTO pgvec.jobs (vectorizer_id, kind, lower_key, upper_key, rows)
SELECT %(id)s, kind, lower_key, upper_key, rows FROM planned ORDER BY id;

-- name: open
-- From here on its jobs are claimable; the database's clock says since when.
UPDATE pgvec.vectorizers SET paused = false WHERE id = %(id)s RETURNING clock_timestamp();

-- name: state
-- Whether any job is left, and what may keep it from ever being done.
SELECT EXISTS (SELECT FROM pgvec.jobs WHERE vectorizer_id = v.id AND state = 'queued')
       OR EXISTS (SELECT FROM pgvec.jobs WHERE vectorizer_id = v.id AND state = 'running') AS unfinished,
       v.blocked_reason,
       (SELECT f.message FROM pgvec.failures f WHERE f.vectorizer_id = v.id LIMIT 1) AS failure
FROM pgvec.vectorizers v WHERE v.id = %(id)s;

-- name: seconds
-- From the first job's being claimable to the last checkpoint.
SELECT extract(epoch FROM max(finished_at) - %(opened)s)::float8 FROM pgvec.jobs WHERE vectorizer_id = %(id)s;

-- name: counted
SELECT coalesce(sum(rows_embedded), 0)::bigint, coalesce(sum(chunks_written), 0)::bigint,
       coalesce(sum(tokens), 0)::bigint
FROM pgvec.counters WHERE vectorizer_id = %(id)s;

-- name: contributors
-- Workers that have written something of this vectorizer.
SELECT count(*) FROM pgvec.counters WHERE vectorizer_id = %(id)s AND worker_id <> 0 AND rows_embedded > 0;

-- name: blocked
SELECT blocked_reason FROM pgvec.vectorizers WHERE blocked_reason IS NOT NULL LIMIT 1;

-- name: registered
SELECT count(*) FROM pgvec.workers WHERE NOT gone;

-- name: workers
-- As JSON: what a worker tells of itself differs from one version of the schema to the next.
SELECT to_jsonb(w) FROM pgvec.workers w WHERE NOT w.gone ORDER BY w.id;

-- name: forget_jobs
DELETE FROM pgvec.jobs WHERE vectorizer_id = %(id)s;

-- name: create_documents
CREATE TABLE {table} (id bigint PRIMARY KEY, body text NOT NULL);

-- name: copy_documents
COPY {table} (id, body) FROM STDIN;

-- name: make_documents
-- Texts of about 400 characters, each its own.
INSERT INTO {table} (id, body)
SELECT i, left((SELECT string_agg(md5(i::text || '/' || k), ' ') FROM generate_series(1, 13) k), 400)
FROM generate_series(%(first)s::bigint, %(last)s::bigint) i;

-- name: make_short_documents
INSERT INTO {table} (id, body) SELECT i, 'document ' || i FROM generate_series(%(first)s::bigint, %(rows)s::bigint) i;

-- name: create_bare
-- What somebody would make who has only the vectors to keep.
CREATE TABLE {table} (
    id bigint PRIMARY KEY,
    chunk text NOT NULL,
    embedding {vector} NOT NULL,
    source_hash bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (toast_tuple_target = 8160);

-- name: read_bare
COPY (SELECT id, chunk, embedding, source_hash FROM {table} ORDER BY id) TO STDOUT (FORMAT BINARY);

-- name: copy_bare
COPY {table} (id, chunk, embedding, source_hash) FROM STDIN (FORMAT BINARY);

-- name: chunks
SELECT chunk FROM {table} ORDER BY id, chunk_index;

-- name: index_scan
-- The least that any plan has to do.
SELECT count(*) FROM {table} WHERE id > 0;

-- name: insert_jobs
INSERT INTO pgvec.jobs (vectorizer_id, kind, lower_key, upper_key, rows)
SELECT %(vectorizer)s, 'range', ARRAY[(i * 1000)::text], ARRAY[((i + 1) * 1000)::text], 1000
FROM generate_series(1, %(jobs)s) i;

-- name: claim_set
-- The three updates of a job's life, for many jobs at a time.
UPDATE pgvec.jobs SET state = 'running', epoch = epoch + 1, worker_id = 0, claimed_at = clock_timestamp()
WHERE id IN (SELECT j.id FROM pgvec.jobs j JOIN pgvec.vectorizers v ON v.id = j.vectorizer_id
             WHERE j.id > %(after)s AND j.state = 'queued' AND NOT v.paused ORDER BY j.id LIMIT %(jobs)s)
RETURNING id;

-- name: checkpoint_set
UPDATE pgvec.jobs SET checkpoint = '{1}', rows_seen = 500 WHERE id = ANY (%(ids)s);

-- name: finish_set
UPDATE pgvec.jobs SET checkpoint = upper_key, rows_seen = 1000, state = 'done', worker_id = NULL,
                      finished_at = clock_timestamp() WHERE id = ANY (%(ids)s);

-- name: many_queued
-- Whether a claim leaves enough for everybody else.
SELECT count(*) > %(least)s FROM (
    SELECT FROM pgvec.jobs WHERE vectorizer_id = %(id)s AND kind = 'range' AND state = 'queued' LIMIT %(least)s + 1
) left_over;

-- name: backend
SELECT pg_catalog.pg_backend_pid();

-- name: max_connections
SELECT pg_catalog.current_setting('max_connections')::int - pg_catalog.current_setting('superuser_reserved_connections')::int;

-- name: transactions
-- Of this database, as far as its sessions have told: within a second of now.
SELECT xact_commit + xact_rollback FROM pg_catalog.pg_stat_database WHERE datname = pg_catalog.current_database();

-- name: waits
-- Sessions at work in this moment, by what they wait for. Who has answered and waits for the client's next word inside a
-- transaction is idle in it.
SELECT CASE WHEN state <> 'active' THEN 'the client' ELSE coalesce(wait_event_type || ':' || wait_event, 'CPU') END, count(*)
FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND pid <> pg_catalog.pg_backend_pid() AND state <> 'idle'
GROUP BY 1;

-- name: worker_sessions
SELECT count(*) FROM pg_catalog.pg_stat_activity
WHERE datname = pg_catalog.current_database() AND application_name LIKE 'pgvec %%' AND application_name NOT LIKE 'pgvec bench%%';

-- name: plan_bytes
-- The job table, its indexes, and how far the WAL is.
SELECT pg_catalog.pg_table_size('pgvec.jobs'), pg_catalog.pg_indexes_size('pgvec.jobs'),
       (pg_catalog.pg_current_wal_lsn() - '0/0')::bigint;

-- name: idle_workers
SELECT count(*) FROM pgvec.workers WHERE NOT gone AND state = 'idle';

-- name: busy_workers
-- That have a job. By the workers' own word it would take a heartbeat.
SELECT count(DISTINCT worker_id) FROM pgvec.jobs WHERE state = 'running';
