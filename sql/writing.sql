-- The write of a slice, step by step; docs/architecture.md says why each step is there.

-- name: fence
-- Step 1. Locks the job if it is still as this worker last saw it. No row: the worker lost it, or its bound moved.
SELECT true FROM pgvec.jobs
WHERE id = %(id)s AND state = 'running' AND worker_id = %(worker)s AND epoch = %(epoch)s
  AND checkpoint IS NOT DISTINCT FROM %(checkpoint)s::text[]
  AND upper_key IS NOT DISTINCT FROM %(upper_key)s::text[]
  AND pgvec.world() = %(world)s
FOR NO KEY UPDATE;

-- name: within
-- Which of the listed keys lie within a bound that was lowered, compared as the source's own columns are, collations
-- included: of s there is never a row.
SELECT u.pgvec_ordinal FROM {listed} LEFT JOIN {source} s ON false WHERE {listed_is_within} ORDER BY u.pgvec_ordinal;

-- name: lock_shared
-- Step 2, for a range: ranges are disjoint and may write side by side, but never beside a list of keys. 'PGVC' above the id.
SELECT pg_advisory_xact_lock_shared((1346852419::bigint << 32) | %(vectorizer)s);

-- name: lock_exclusive
SELECT pg_advisory_xact_lock((1346852419::bigint << 32) | %(vectorizer)s);

-- name: refuse_hidden
-- Reading no row of either locks both, so that no policy can come between this look and the end of the transaction.
-- What a filter reads elsewhere (and a view, below it) is not locked: from here on the server refuses each statement from which a
-- policy would hide rows. Not where policies of the source itself apply, all of which are open by then: see hidden_elsewhere.
SELECT pgvec.refuse_hidden({source_name}::regclass, {destination_name}::regclass),
       CASE WHEN row_security_active({source_name}::regclass) THEN {filtered}
            WHEN {beyond} THEN set_config('row_security', 'off', true) IS NULL END
FROM (VALUES (true)) one
LEFT JOIN (SELECT FROM {source} s LIMIT 0) read ON true
LEFT JOIN (SELECT FROM {destination} d LIMIT 0) written ON true;

-- name: row_security
SELECT set_config('row_security', %(as)s, true);

-- name: hidden_elsewhere
-- The filter over a row of the source that is read from nowhere: what is left of policies is that of other tables.
SELECT FROM (SELECT (NULL::{source}).*) s WHERE false AND {selected};

-- name: survey
-- Step 3, at once where nothing has happened: the rows of the range now, and how many of them may have changed since they
-- were read; whether any chunk lies in the range, and whether anything is in quarantine.
SELECT count(*), count(*) FILTER (WHERE {moved}),
       EXISTS (SELECT FROM {destination} d WHERE {destination_scope}),
       EXISTS (SELECT FROM pgvec.failures f WHERE f.vectorizer_id = %(vectorizer)s)
FROM {source} s WHERE {scope} AND {selected};

-- name: moved_in_range
-- Step 3. Every row of the range that may have been changed since it was read, with what it is now.
SELECT {key_text}, {xmin}::text, {hash}, {blank}, {settled}
FROM {source} s WHERE {scope} AND {selected} AND {moved};

-- name: count_and_gone
-- Step 3. The rows of the range now, which of those that were read are gone, whether any chunk lies in the range, and
-- whether anything is in quarantine.
SELECT (SELECT count(*) FROM {source} s WHERE {scope} AND {selected}),
       ARRAY(SELECT u.pgvec_ordinal FROM {listed}
             WHERE NOT EXISTS (SELECT FROM {source} s WHERE {listed_is_source} AND {selected} AND NOT {blank})),
       EXISTS (SELECT FROM {destination} d WHERE {destination_scope}),
       EXISTS (SELECT FROM pgvec.failures f WHERE f.vectorizer_id = %(vectorizer)s);

-- name: present_keys
SELECT u.pgvec_ordinal, now.selected, now.xmin, now.hash, coalesce(now.blank, true), coalesce(now.settled, true)
FROM {listed}
LEFT JOIN LATERAL (
    SELECT true AS selected, {xmin}::text AS xmin, {hash} AS hash, {blank} AS blank, {settled} AS settled
    FROM {source} s WHERE {listed_is_source} AND {selected}
) now ON true
ORDER BY u.pgvec_ordinal;

-- name: delete_orphans
-- Step 4. Chunks whose source row is gone, no longer selected or blank. The source is looked up by key alone: with the
-- range as well, the planner, which takes a range for one row, may read the range once per chunk.
DELETE FROM {destination} d
WHERE {destination_scope}
  AND NOT EXISTS (SELECT FROM {source} s WHERE {matches_destination} AND {selected} AND NOT {blank});

-- name: delete_listed
-- Tells how many chunks went, and of how many documents.
WITH gone AS (
    DELETE FROM {destination} d USING {listed} WHERE {listed_is_destination} AND {destination_scope}
    RETURNING u.pgvec_ordinal
)
SELECT count(*), count(DISTINCT pgvec_ordinal) FROM gone;

-- name: sweep
-- For a destination whose key has another type, and after a TRUNCATE: the destination's own keys are looked up in the
-- source. Tells how many chunks went, and of how many documents.
WITH gone AS (
    DELETE FROM {destination} d
    WHERE {destination_scope}
      AND NOT EXISTS (SELECT FROM {source} s
                      WHERE {key_from_destination} AND {matches_destination} AND {selected} AND NOT {blank})
    RETURNING {destination_key_text} AS key
)
SELECT count(*), count(DISTINCT key) FROM gone;

-- name: copy
COPY {destination} ({columns}) FROM STDIN (FORMAT BINARY);

-- name: lock_rows
-- A column of the source: rows that somebody else holds are left for later, so that nobody waits for anybody.
SELECT u.pgvec_ordinal, s.{embedding} IS NOT NULL
FROM {listed} JOIN {source} s ON {listed_is_source} FOR NO KEY UPDATE OF s SKIP LOCKED;

-- name: update_rows
UPDATE {source} s SET {embedding} = u.pgvec_vector{set_hash}
FROM {listed}
WHERE {listed_is_source} AND {selected} AND NOT {blank} AND {hash} = u.pgvec_hash
RETURNING u.pgvec_ordinal;

-- name: clear_range
-- The rows that must not have a vector, and of each whether it was taken: what somebody else holds is left for later.
WITH stale AS (
    SELECT {key}, {key_text} AS pgvec_key FROM {source} s
    WHERE {scope} AND {embedding} IS NOT NULL AND (({selected}) IS NOT TRUE OR {blank})
), held AS (
    SELECT {key} FROM stale JOIN {source} s ON {is_stale} FOR NO KEY UPDATE OF s SKIP LOCKED
), cleared AS (
    UPDATE {source} s SET {embedding} = NULL{clear_hash} FROM held WHERE {is_held} RETURNING {key_text} AS pgvec_key
)
SELECT pgvec_key, cleared.pgvec_key IS NOT NULL FROM stale LEFT JOIN cleared USING (pgvec_key);

-- name: clear_listed
WITH stale AS (
    SELECT {key}, {key_text} AS pgvec_key FROM {listed} JOIN {source} s ON {listed_is_source}
    WHERE s.{embedding} IS NOT NULL
), held AS (
    SELECT {key} FROM stale JOIN {source} s ON {is_stale} FOR NO KEY UPDATE OF s SKIP LOCKED
), cleared AS (
    UPDATE {source} s SET {embedding} = NULL{clear_hash} FROM held WHERE {is_held} RETURNING {key_text} AS pgvec_key
)
SELECT pgvec_key, cleared.pgvec_key IS NOT NULL FROM stale LEFT JOIN cleared USING (pgvec_key);

-- name: requeue
-- Rows that changed under the worker's hands become a list of keys, in the same transaction.
INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, key_count, rows, run_after, batch_size)
VALUES (%(vectorizer)s, 'keys', %(keys)s, %(key_count)s, %(rows)s,
        CASE WHEN %(delay)s > 0 THEN clock_timestamp() + make_interval(secs => %(delay)s) END, %(batch_size)s);

-- name: quarantine
INSERT INTO pgvec.failures AS f (vectorizer_id, key, source_hash, error_class, message, model)
VALUES (%(vectorizer)s, %(key)s, %(hash)s, %(error_class)s, %(message)s, %(model)s)
ON CONFLICT (vectorizer_id, key) DO UPDATE
SET source_hash = excluded.source_hash, error_class = excluded.error_class, message = excluded.message,
    model = excluded.model, attempts = f.attempts + 1, last_at = clock_timestamp()
RETURNING attempts;

-- name: absolve
-- Documents that are embedded now, or that are gone, leave the quarantine.
DELETE FROM pgvec.failures f
USING jsonb_array_elements(%(keys)s) listed
WHERE f.vectorizer_id = %(vectorizer)s
  AND EXISTS (SELECT FROM pgvec.failures WHERE vectorizer_id = %(vectorizer)s)
  AND f.key = ARRAY(SELECT jsonb_array_elements_text(listed));

-- name: checkpoint
-- Step 5. How far the job is, in the transaction that makes it true. Who died before this died of something else.
UPDATE pgvec.jobs
SET checkpoint = %(checkpoint)s, read_to = %(read_to)s::text[], rows_seen = %(rows_seen)s, attempts = 0,
    in_hand = false, alone = %(alone)s
WHERE id = %(id)s;

-- name: finish
UPDATE pgvec.jobs
SET checkpoint = coalesce(%(checkpoint)s, checkpoint), rows_seen = %(rows_seen)s,
    state = 'done', worker_id = NULL, finished_at = clock_timestamp()
WHERE id = %(id)s;

-- name: finish_list
-- A list of keys is not kept: live changes may make a thousand of them a second.
DELETE FROM pgvec.jobs WHERE id = %(id)s;

-- name: count
INSERT INTO pgvec.counters AS c (vectorizer_id, worker_id, rows_right, rows_embedded, rows_adjusted, rows_wasted,
                                 chunks_written, chunks_deleted, chunks_reused, tokens, truncated, jobs_added, jobs_done,
                                 bytes_written, rows_unchanged, chunks_kept, chunks_cached)
VALUES (%(vectorizer)s, %(worker)s, %(rows_right)s, %(rows_embedded)s, %(rows_adjusted)s, %(rows_wasted)s,
        %(chunks_written)s, %(chunks_deleted)s, %(chunks_reused)s, %(tokens)s, %(truncated)s, %(jobs_added)s, %(jobs_done)s,
        %(bytes_written)s, %(rows_unchanged)s, %(chunks_kept)s, %(chunks_cached)s)
ON CONFLICT (vectorizer_id, worker_id) DO UPDATE
SET rows_right = c.rows_right + excluded.rows_right, rows_embedded = c.rows_embedded + excluded.rows_embedded,
    rows_adjusted = c.rows_adjusted + excluded.rows_adjusted, rows_wasted = c.rows_wasted + excluded.rows_wasted,
    chunks_written = c.chunks_written + excluded.chunks_written,
    chunks_deleted = c.chunks_deleted + excluded.chunks_deleted,
    chunks_reused = c.chunks_reused + excluded.chunks_reused, tokens = c.tokens + excluded.tokens,
    truncated = c.truncated + excluded.truncated, jobs_added = c.jobs_added + excluded.jobs_added,
    jobs_done = c.jobs_done + excluded.jobs_done, bytes_written = c.bytes_written + excluded.bytes_written,
    rows_unchanged = c.rows_unchanged + excluded.rows_unchanged, chunks_kept = c.chunks_kept + excluded.chunks_kept,
    chunks_cached = c.chunks_cached + excluded.chunks_cached;

-- name: count_waste
INSERT INTO pgvec.counters AS c (vectorizer_id, worker_id, rows_wasted, writes_refused)
VALUES (%(vectorizer)s, %(worker)s, %(rows_wasted)s, %(refused)s)
ON CONFLICT (vectorizer_id, worker_id) DO UPDATE
SET rows_wasted = c.rows_wasted + excluded.rows_wasted,
    writes_refused = c.writes_refused + excluded.writes_refused;

-- name: sample
INSERT INTO pgvec.samples AS s (vectorizer_id, worker_id, at, rows, chunks, tokens, bytes)
VALUES (%(vectorizer)s, %(worker)s,
        date_bin('10 seconds', clock_timestamp(), timestamptz '2000-01-01 00:00:00+00'),
        %(rows)s, %(chunks_written)s, %(tokens)s, %(bytes_written)s)
ON CONFLICT (vectorizer_id, at, worker_id) DO UPDATE
SET rows = s.rows + excluded.rows, chunks = s.chunks + excluded.chunks, tokens = s.tokens + excluded.tokens,
    bytes = s.bytes + excluded.bytes;

-- name: note_quarantined
-- One event for a slice, however many of its documents it was.
INSERT INTO pgvec.events (kind, vectorizer_id, worker_id, host, job_id, message)
SELECT 'quarantined', %(vectorizer)s, w.id, w.host, %(job)s, %(message)s
FROM (VALUES (%(worker)s::bigint)) this(id) LEFT JOIN pgvec.workers w ON w.id = this.id;

-- name: vector_oid
SELECT t.oid FROM pg_catalog.pg_type t JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
WHERE n.nspname = %(schema)s AND t.typname = %(type)s;
