-- The tail of a running range changes hands; docs/architecture.md says why nothing is written twice.

-- name: victims
-- Ranges that others are working on and of which enough may be left, those that take their owners longest first. Only of
-- owners that were heard of lately, and since this worker is there: what has cost a worker goes on whole, so that the
-- document whose fault it was is soon found.
SELECT j.id, j.vectorizer_id, j.epoch, j.lower_key, j.upper_key, j.checkpoint, j.read_to, w.documents_per_second,
       v.priority, pgvec.model_of(v) AS model
FROM pgvec.jobs j
JOIN pgvec.vectorizers v ON v.id = j.vectorizer_id
JOIN pgvec.workers w ON w.id = j.worker_id
JOIN pgvec.workers thief ON thief.id = %(worker)s
WHERE j.state = 'running' AND j.kind = 'range' AND j.worker_id <> %(worker)s AND NOT j.alone AND j.attempts = 0
  AND w.beat_at > clock_timestamp() - w.lease / 2 AND w.beat_at > thief.started_at
  AND j.rows - j.rows_seen >= %(least_rows)s
  AND NOT v.paused AND NOT v.cancelled AND v.blocked_reason IS NULL
  AND (%(names)s::text[] IS NULL OR v.name = ANY (%(names)s))
  AND v.id <> ALL (%(refused)s::bigint[])
ORDER BY v.priority DESC, (j.rows - j.rows_seen) / nullif(w.documents_per_second, 0) DESC NULLS FIRST, j.id
LIMIT 4;

-- name: middle
-- How many rows of the source lie in the scope, %(most)s of them at most, and the key in the middle of these: by the key's
-- index, without the filter.
WITH rest AS (
    SELECT {key}, row_number() OVER (ORDER BY {key}) AS pgvec_place
    FROM {source} s WHERE {scope} ORDER BY {key} LIMIT %(most)s
), counted AS (
    SELECT count(*) AS pgvec_rows FROM rest
)
SELECT counted.pgvec_rows, {key_text}
FROM counted JOIN rest s ON s.pgvec_place = (counted.pgvec_rows + 1) / 2;

-- name: take
-- If the job is as the thief has seen it, its bound is lowered and what lies beyond becomes a job of the thief's. What both
-- are planned to have stays what it was. Nobody waits for the job's row: while it is locked, its owner is writing.
WITH seen AS (
    SELECT j.id, CASE WHEN %(rows)s::bigint < rest THEN %(rows)s WHEN %(rows)s IS NULL THEN rest / 2 ELSE rest END AS rows
    FROM pgvec.jobs j CROSS JOIN LATERAL (VALUES (greatest(j.rows - j.rows_seen, 0))) planned(rest)
    WHERE j.id = %(id)s AND j.state = 'running' AND j.epoch = %(epoch)s AND NOT j.alone
      AND j.checkpoint IS NOT DISTINCT FROM %(checkpoint)s::text[]
      AND j.upper_key IS NOT DISTINCT FROM %(upper_key)s::text[]
      AND EXISTS (SELECT FROM pgvec.vectorizers v WHERE v.id = j.vectorizer_id
                  AND NOT v.paused AND NOT v.cancelled AND v.blocked_reason IS NULL)
      AND EXISTS (SELECT FROM pgvec.workers w WHERE w.id = %(worker)s AND NOT w.gone)
      AND pgvec.world() = %(world)s
    FOR NO KEY UPDATE OF j SKIP LOCKED
), lowered AS (
    UPDATE pgvec.jobs j SET upper_key = %(middle)s, rows = j.rows - seen.rows
    FROM seen WHERE j.id = seen.id
    RETURNING j.vectorizer_id, seen.rows
), counted AS (
    INSERT INTO pgvec.counters AS c (vectorizer_id, worker_id, jobs_added)
    SELECT vectorizer_id, %(worker)s, 1 FROM lowered
    ON CONFLICT (vectorizer_id, worker_id) DO UPDATE SET jobs_added = c.jobs_added + 1
)
INSERT INTO pgvec.jobs AS j (vectorizer_id, kind, lower_key, upper_key, rows, state, epoch, worker_id, claimed_at)
SELECT vectorizer_id, 'range', %(middle)s, %(upper_key)s, rows, 'running', 1, %(worker)s, clock_timestamp() FROM lowered
RETURNING j.id, j.vectorizer_id, j.kind, j.lower_key, j.upper_key, j.keys, j.rows, j.rows_seen, j.checkpoint, j.epoch,
          j.attempts, j.alone, j.merged, false AS ranges_left;
