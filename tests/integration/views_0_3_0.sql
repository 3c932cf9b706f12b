-- Views: created again by every `pgvec init`. Columns are only ever added at the end.

-- name: progress
CREATE OR REPLACE VIEW pgvec.progress AS
WITH counted AS (
    SELECT vectorizer_id,
           sum(rows_right)     AS rows_right,
           sum(rows_embedded)  AS rows_embedded,
           sum(rows_adjusted)  AS rows_adjusted,
           sum(chunks_written - chunks_deleted) AS chunks,
           sum(tokens)         AS tokens,
           sum(truncated)      AS truncated,
           sum(rows_wasted)    AS rows_wasted,
           sum(chunks_reused)  AS chunks_reused,
           sum(jobs_added)     AS jobs_added,
           sum(jobs_done)      AS jobs_done
    FROM pgvec.counters GROUP BY vectorizer_id
), failed AS (
    SELECT vectorizer_id, count(*) AS rows_failed FROM pgvec.failures GROUP BY vectorizer_id
), running AS (
    SELECT vectorizer_id, count(*) AS jobs, count(*) FILTER (WHERE kind <> 'keys') AS planned
    FROM pgvec.jobs WHERE state = 'running' GROUP BY vectorizer_id
), recent AS (
    SELECT vectorizer_id,
           sum(rows) AS rows, sum(chunks) AS chunks, sum(tokens) AS tokens,
           greatest(extract(epoch FROM clock_timestamp() - min(at)), 1) AS seconds
    FROM pgvec.samples
    WHERE at > clock_timestamp() - interval '60 seconds'
    GROUP BY vectorizer_id
), numbers AS (
    SELECT v.*,
           greatest(v.rows_planned + coalesce(c.rows_adjusted, 0) - v.rows_selected_base, 0) AS total,
           greatest(coalesce(c.rows_right, 0) - v.rows_right_base, 0) AS rows_right,
           coalesce(f.rows_failed, 0) AS failed,
           coalesce(c.rows_embedded, 0) AS rows_embedded,
           greatest(v.chunks_base + coalesce(c.chunks, 0), 0) AS chunks,
           coalesce(c.tokens, 0) AS tokens,
           coalesce(c.truncated, 0) AS truncated,
           coalesce(c.rows_wasted, 0) AS rows_wasted,
           coalesce(c.chunks_reused, 0) AS chunks_reused,
           coalesce(c.jobs_done, 0) AS jobs_done,
           coalesce(r.jobs, 0) AS jobs_running,
           v.jobs_planned + coalesce(c.jobs_added, 0) AS jobs_all,
           s.rows / s.seconds AS rows_per_second,
           s.chunks / s.seconds AS chunks_per_second,
           s.tokens / s.seconds AS tokens_per_second,
           -- Lists of keys come from triggers, which count nothing; more than these are not counted.
           (SELECT count(*) FROM (SELECT FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.kind = 'keys'
                                  AND j.state = 'queued' LIMIT 10000) lists) AS lists_queued,
           coalesce(r.planned, 0) AS planned_running,
           least((SELECT j.created_at FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.kind = 'keys'
                  AND j.state = 'queued' ORDER BY j.id LIMIT 1),
                 (SELECT min(j.created_at) FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.kind = 'keys'
                  AND j.state = 'running')) AS oldest_change,
           v.plan_complete AND NOT EXISTS (
               SELECT FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.state IN ('queued')
           ) AND r.jobs IS NULL AS finished
    FROM pgvec.vectorizers v
    LEFT JOIN counted c ON c.vectorizer_id = v.id
    LEFT JOIN failed f ON f.vectorizer_id = v.id
    LEFT JOIN running r ON r.vectorizer_id = v.id
    LEFT JOIN recent s ON s.vectorizer_id = v.id
)
SELECT id AS vectorizer_id,
       name,
       CASE WHEN cancelled THEN 'cancelled'
            WHEN blocked_reason IS NOT NULL THEN 'blocked'
            WHEN paused THEN 'paused'
            WHEN finished THEN 'complete'
            ELSE 'active' END AS state,
       CASE WHEN cancelled THEN NULL
            WHEN blocked_reason IS NOT NULL THEN blocked_reason
            WHEN finished OR paused THEN NULL
            WHEN NOT plan_complete AND plan_beat_at < clock_timestamp() - interval '60 seconds'
                 THEN 'the plan was stopped; run enqueue again'
            WHEN NOT EXISTS (SELECT FROM pgvec.workers w
                             WHERE NOT w.gone AND w.beat_at > clock_timestamp() - w.lease
                               AND (w.vectorizers IS NULL OR name = ANY (w.vectorizers)))
                 THEN 'no worker is running'
            WHEN rows_per_second IS NULL
                 THEN (SELECT w.host || ': ' || w.waiting_for FROM pgvec.workers w
                       WHERE NOT w.gone AND w.beat_at > clock_timestamp() - w.lease AND w.waiting_for IS NOT NULL
                         AND (w.vectorizers IS NULL OR name = ANY (w.vectorizers))
                       ORDER BY w.beat_at DESC LIMIT 1)
       END AS reason,
       greatest(total, rows_right)::bigint AS rows_total,
       greatest(rows_right - failed, 0)::bigint AS rows_done,
       failed::bigint AS rows_failed,
       chunks::bigint AS chunks,
       tokens::bigint AS tokens,
       CASE WHEN cancelled THEN 0 ELSE jobs_left END::bigint AS jobs_queued,
       jobs_running::bigint AS jobs_running,
       jobs_done::bigint AS jobs_done,
       CASE WHEN cancelled THEN jobs_left ELSE 0 END::bigint AS jobs_cancelled,
       CASE WHEN moving THEN coalesce(rows_per_second, 0) ELSE 0 END::float8 AS rows_per_second,
       CASE WHEN moving THEN coalesce(chunks_per_second, 0) ELSE 0 END::float8 AS chunks_per_second,
       CASE WHEN finished THEN 0
            WHEN moving AND rows_per_second > 0 THEN greatest(total - rows_right, 0) / rows_per_second END::float8 AS eta_seconds,
       plan_complete,
       rows_embedded::bigint AS rows_embedded,
       truncated::bigint AS rows_truncated,
       sync,
       CASE WHEN sync THEN coalesce(extract(epoch FROM clock_timestamp() - oldest_change), 0) END::float8 AS lag_seconds,
       rows_wasted::bigint AS rows_wasted,
       chunks_reused::bigint AS chunks_reused
FROM numbers
CROSS JOIN LATERAL (
    SELECT NOT (finished OR paused OR cancelled OR blocked_reason IS NOT NULL) AS moving,
           greatest(jobs_all - jobs_done - planned_running, 0) + lists_queued AS jobs_left
) now;
COMMENT ON VIEW pgvec.progress IS 'One row per vectorizer: how far it is, how fast, when it ends, and why nothing moves';

-- name: worker_status
CREATE OR REPLACE VIEW pgvec.worker_status AS
SELECT w.id AS worker_id, w.host, w.pid, w.version, w.device, w.dtype, w.models, w.vectorizers,
       CASE WHEN w.gone OR w.beat_at < clock_timestamp() - w.lease THEN 'gone' ELSE w.state END AS state,
       clock_timestamp() - w.beat_at AS since_beat, w.started_at, w.memory_bytes,
       (SELECT count(*) FROM pgvec.jobs j WHERE j.state = 'running' AND j.worker_id = w.id) AS jobs,
       w.waiting_for, w.busy, w.documents_per_second, w.loads, w.batch_tokens, w.runtime, w.padding
FROM pgvec.workers w;
COMMENT ON VIEW pgvec.worker_status IS 'One row per worker: where it runs, what it does, when it was last heard of';

-- name: throughput
CREATE OR REPLACE VIEW pgvec.throughput AS
SELECT date_trunc('minute', s.at) AS minute, v.name, s.worker_id,
       sum(s.rows)::bigint AS rows, sum(s.chunks)::bigint AS chunks, sum(s.tokens)::bigint AS tokens
FROM pgvec.samples s JOIN pgvec.vectorizers v ON v.id = s.vectorizer_id
GROUP BY 1, 2, 3;
COMMENT ON VIEW pgvec.throughput IS 'Rows, chunks and tokens per minute, vectorizer and worker';
