-- Claiming, giving back and taking over jobs; the workers' own rows.

-- name: runnable
-- Vectorizers that a worker may work on now, best first; one that has nothing queued costs one index probe.
SELECT v.id
FROM pgvec.vectorizers v
WHERE NOT v.paused AND NOT v.cancelled AND v.blocked_reason IS NULL
  AND (%(names)s::text[] IS NULL OR v.name = ANY (%(names)s))
  AND v.id <> ALL (%(refused)s::bigint[])
  AND EXISTS (SELECT FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.state = 'queued')
ORDER BY v.priority DESC, (v.id = %(current)s) DESC, v.id;

-- name: claim
-- The oldest job of one kind. %(floor)s keeps the scan off index entries of jobs long finished, which stay until vacuum.
WITH picked AS (
    SELECT j.id
    FROM pgvec.jobs j
    WHERE j.vectorizer_id = %(vectorizer)s AND j.kind = %(kind)s AND j.state = 'queued' AND j.id >= %(floor)s
      AND (j.run_after IS NULL OR j.run_after <= clock_timestamp())
      AND EXISTS (SELECT FROM pgvec.vectorizers v WHERE v.id = j.vectorizer_id
                  AND NOT v.paused AND NOT v.cancelled AND v.blocked_reason IS NULL)
      AND EXISTS (SELECT FROM pgvec.workers w WHERE w.id = %(worker)s AND NOT w.gone)
    ORDER BY j.id
    LIMIT 1
    FOR UPDATE SKIP LOCKED
)
UPDATE pgvec.jobs j
SET state = 'running', epoch = j.epoch + 1, worker_id = %(worker)s, claimed_at = clock_timestamp(), run_after = NULL
FROM picked WHERE j.id = picked.id
RETURNING j.id, j.vectorizer_id, j.kind, j.lower_key, j.upper_key, j.keys, j.rows, j.rows_seen, j.checkpoint, j.epoch,
          j.attempts;

-- name: reread
SELECT j.id, j.vectorizer_id, j.kind, j.lower_key, j.upper_key, j.keys, j.rows, j.rows_seen, j.checkpoint, j.epoch,
       j.attempts
FROM pgvec.jobs j
WHERE j.id = %(id)s AND j.state = 'running' AND j.epoch = %(epoch)s AND j.worker_id = %(worker)s;

-- name: release
-- One's own running jobs go back with their checkpoints; no attempt is counted.
UPDATE pgvec.jobs
SET state = 'queued', worker_id = NULL
WHERE state = 'running' AND worker_id = %(worker)s
  AND (%(vectorizer)s::bigint IS NULL OR vectorizer_id = %(vectorizer)s)
  AND (%(job)s::bigint IS NULL OR id = %(job)s);

-- name: mark_gone
-- Atomic with the beat, which requires NOT gone: a worker is either heard or dead, never both.
UPDATE pgvec.workers w
SET gone = true
WHERE w.id IN (SELECT id FROM pgvec.workers
               WHERE NOT gone AND beat_at < clock_timestamp() - lease
               ORDER BY id FOR UPDATE SKIP LOCKED)
RETURNING w.id;

-- name: reclaim
-- Running jobs that have no live worker, dropped or gone, return to the queue; this counts as an attempt.
WITH lost AS (
    SELECT j.id FROM pgvec.jobs j
    WHERE j.state = 'running'
      AND NOT EXISTS (SELECT FROM pgvec.workers w WHERE w.id = j.worker_id AND NOT w.gone)
    ORDER BY j.id
    FOR UPDATE SKIP LOCKED
)
UPDATE pgvec.jobs j
SET state = 'queued', worker_id = NULL, attempts = j.attempts + 1
FROM lost WHERE j.id = lost.id
RETURNING j.id;

-- name: register
INSERT INTO pgvec.workers (host, pid, version, vectorizers, lease)
VALUES (%(host)s, %(pid)s, %(version)s, %(names)s, make_interval(secs => %(lease)s))
RETURNING id;

-- name: beat
UPDATE pgvec.workers
SET beat_at = clock_timestamp(), state = %(state)s, device = %(device)s, dtype = %(dtype)s, models = %(models)s,
    memory_bytes = %(memory)s
WHERE id = %(worker)s AND NOT gone
RETURNING id;

-- name: leave
DELETE FROM pgvec.workers WHERE id = %(worker)s;

-- name: fold_counters
-- What a worker counted outlives its row; worker 0 stands for all that have left.
WITH gone AS (
    DELETE FROM pgvec.counters c
    WHERE c.worker_id <> 0 AND NOT EXISTS (SELECT FROM pgvec.workers w WHERE w.id = c.worker_id AND NOT w.gone)
    RETURNING c.*
)
INSERT INTO pgvec.counters AS c (vectorizer_id, worker_id, rows_right, rows_embedded, rows_adjusted, chunks_written,
                                 chunks_deleted, tokens, truncated, jobs_added, jobs_done)
SELECT g.vectorizer_id, 0, sum(g.rows_right), sum(g.rows_embedded), sum(g.rows_adjusted), sum(g.chunks_written),
       sum(g.chunks_deleted), sum(g.tokens), sum(g.truncated), sum(g.jobs_added), sum(g.jobs_done)
FROM gone g GROUP BY g.vectorizer_id
ON CONFLICT (vectorizer_id, worker_id) DO UPDATE
SET rows_right = c.rows_right + excluded.rows_right, rows_embedded = c.rows_embedded + excluded.rows_embedded,
    rows_adjusted = c.rows_adjusted + excluded.rows_adjusted, chunks_written = c.chunks_written + excluded.chunks_written,
    chunks_deleted = c.chunks_deleted + excluded.chunks_deleted, tokens = c.tokens + excluded.tokens,
    truncated = c.truncated + excluded.truncated, jobs_added = c.jobs_added + excluded.jobs_added,
    jobs_done = c.jobs_done + excluded.jobs_done;

-- name: prune_workers
DELETE FROM pgvec.workers WHERE gone AND beat_at < clock_timestamp() - interval '1 day';

-- name: prune_samples
DELETE FROM pgvec.samples WHERE at < clock_timestamp() - interval '1 hour';

-- name: prune_jobs
-- Finished jobs are kept a week for whoever asks what happened.
DELETE FROM pgvec.jobs
WHERE id IN (SELECT id FROM pgvec.jobs
             WHERE state IN ('done', 'cancelled') AND finished_at < clock_timestamp() - interval '7 days'
             LIMIT 10000);

-- name: housekeeping_turn
SELECT pg_try_advisory_xact_lock(2312187184);

-- name: pending
-- What a draining worker still waits for: unfinished jobs, or a plan that somebody is making.
SELECT v.id, v.name,
       EXISTS (SELECT FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.state = 'queued') AS queued,
       EXISTS (SELECT FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.state = 'running') AS running,
       NOT v.plan_complete AND v.plan_beat_at > clock_timestamp() - interval '60 seconds' AS planning,
       NOT v.plan_complete AS unplanned,
       v.blocked_reason,
       v.paused
FROM pgvec.vectorizers v
WHERE NOT v.cancelled AND (%(names)s::text[] IS NULL OR v.name = ANY (%(names)s));

-- name: notify
SELECT pg_notify('pgvec_jobs', %(payload)s);

-- name: listen
LISTEN pgvec_jobs;

-- name: retry
-- Documents leave the quarantine and become lists of keys; until they are done they count as right no longer.
WITH freed AS (
    DELETE FROM pgvec.failures
    WHERE vectorizer_id = %(id)s AND (%(error_class)s::text IS NULL OR error_class = %(error_class)s)
    RETURNING key
), numbered AS (
    SELECT key, (row_number() OVER () - 1) / 1000 AS part FROM freed
), lists AS (
    INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, rows)
    SELECT %(id)s, 'keys', jsonb_agg(to_jsonb(key)), count(*) FROM numbered GROUP BY part
    RETURNING rows
), counted AS (
    INSERT INTO pgvec.counters AS c (vectorizer_id, worker_id, rows_right, jobs_added)
    SELECT %(id)s, 0, -sum(rows), count(*) FROM lists HAVING count(*) > 0
    ON CONFLICT (vectorizer_id, worker_id) DO UPDATE
    SET rows_right = c.rows_right + excluded.rows_right, jobs_added = c.jobs_added + excluded.jobs_added
)
SELECT coalesce(sum(rows), 0)::bigint FROM lists;
