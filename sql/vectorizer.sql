-- Definitions, and the flags that steer them.

-- name: by_name
SELECT {columns} FROM pgvec.vectorizers WHERE name = %(name)s;

-- name: by_ids
SELECT {columns} FROM pgvec.vectorizers WHERE id = ANY (%(ids)s);

-- name: names
SELECT name FROM pgvec.vectorizers ORDER BY name;

-- name: insert
INSERT INTO pgvec.vectorizers (
    name, source_schema, source_table, source_is_view, key_columns, key_types, text_columns, filter,
    destination_kind, destination_schema, destination_table, destination_roles, destination_key_types,
    destination_ordered, destination_created, store,
    embedder, model, revision, endpoint, tokenizer, query_prompt, document_prompt, dimensions, trust_remote_code,
    template, chunk_size, chunk_overlap, too_long, max_document_bytes, rows_per_job, priority, sync, partitions, chunks_base)
VALUES (
    %(name)s, %(source_schema)s, %(source_table)s, %(source_is_view)s, %(key_columns)s, %(key_types)s,
    %(text_columns)s, %(filter)s,
    %(destination_kind)s, %(destination_schema)s, %(destination_table)s, %(destination_roles)s,
    %(destination_key_types)s, %(destination_ordered)s, %(destination_created)s, %(store)s,
    %(embedder)s, %(model)s, %(revision)s, %(endpoint)s, %(tokenizer)s, %(query_prompt)s, %(document_prompt)s,
    %(dimensions)s, %(trust_remote_code)s,
    %(template)s, %(chunk_size)s, %(chunk_overlap)s, %(too_long)s, %(max_document_bytes)s, %(rows_per_job)s,
    %(priority)s, %(sync)s, %(partitions)s, %(chunks_base)s)
RETURNING {columns};

-- name: is_limited
SELECT limited_to IS NOT NULL FROM pgvec.vectorizers WHERE id = %(id)s;

-- name: steering
-- What a second enqueue may change without touching a vector; it also lets a blocked or cancelled one go on.
UPDATE pgvec.vectorizers
SET rows_per_job = coalesce(%(rows_per_job)s, rows_per_job), priority = coalesce(%(priority)s, priority),
    blocked_reason = NULL, blocked_at = NULL, cancelled = false
WHERE id = %(id)s;

-- name: halt
-- Why workers leave it alone; no row where they do not.
SELECT CASE WHEN blocked_reason IS NOT NULL THEN 'blocked: ' || blocked_reason
            WHEN paused THEN 'paused'
            ELSE 'cancelled' END
FROM pgvec.vectorizers
WHERE id = %(id)s AND (paused OR cancelled OR blocked_reason IS NOT NULL);

-- name: pause
SELECT pgvec.pause(%(name)s);

-- name: resume
SELECT pgvec.resume(%(name)s);

-- name: cancel
SELECT pgvec.cancel(%(name)s);

-- name: retry
SELECT pgvec.retry(%(name)s, %(error_class)s);

-- name: alter
SELECT pgvec.alter_vectorizer(%(name)s, %(new_name)s, %(priority)s, %(rows_per_job)s, %(rows_per_second)s,
                              make_interval(secs => %(replication_lag)s), make_interval(secs => %(commit_time)s));

-- name: drop
SELECT pgvec.drop_vectorizer(%(name)s);

-- name: stop_workers
SELECT pgvec.stop_workers(%(host)s);

-- name: block
WITH blocked AS (
    UPDATE pgvec.vectorizers
    SET blocked_reason = %(reason)s, blocked_at = clock_timestamp()
    WHERE id = %(id)s AND blocked_reason IS NULL
    RETURNING id
)
INSERT INTO pgvec.events (kind, vectorizer_id, message) SELECT 'blocked', id, %(reason)s FROM blocked;
