-- What the gateway's page and its endpoints read, beside pgvec.progress.

-- name: overview
-- Everything that the page shows, as one JSON text in one line, and when that was, apart from it: two looks between which nothing has
-- happened have the same text. Times are seconds since 1970 by the database's clock. Lists are cut at what a page can show.
WITH progress AS MATERIALIZED (
    SELECT * FROM pgvec.progress
), vectorizers AS (
    SELECT name, state, left(reason, 500) AS reason, rows_total, rows_done, rows_failed, chunks, tokens,
           jsonb_build_object('queued', jobs_queued, 'running', jobs_running, 'done', jobs_done, 'cancelled', jobs_cancelled) AS jobs,
           round(rows_per_second::numeric, 1) AS rows_per_second,
           round(rows_per_second_15m::numeric, 1) AS rows_per_second_15m,
           round(chunks_per_second::numeric, 1) AS chunks_per_second,
           round(tokens_per_second::numeric, 1) AS tokens_per_second,
           round(eta_seconds::numeric, 1) AS eta_seconds,
           round(eta_low_seconds::numeric, 1) AS eta_low_seconds,
           round(eta_high_seconds::numeric, 1) AS eta_high_seconds,
           round(lag_seconds::numeric, 1) AS lag_seconds,
           plan_complete, sync, rows_truncated, rows_wasted, priority, rows_per_second_limit, source, destination, model
    FROM progress
    ORDER BY state = 'complete' AND rows_failed = 0, name LIMIT 300
), workers AS (
    SELECT s.worker_id, s.host, s.pid, s.version, s.device, s.dtype, s.runtime, s.state, s.jobs,
           left(s.waiting_for, 500) AS waiting_for, round(s.busy::numeric, 2) AS busy,
           round(s.rows_per_second::numeric, 1) AS rows_per_second, s.vectorizer, s.job_id, s.job_kind,
           left(s.checkpoint, 200) AS checkpoint, round(extract(epoch FROM w.beat_at)::numeric, 1) AS beat_at
    FROM pgvec.worker_status s JOIN pgvec.workers w ON w.id = s.worker_id
    -- Who is long gone and holds nothing is no news any more.
    WHERE s.state <> 'gone' OR s.jobs > 0 OR s.since_beat < interval '15 minutes'
), minutes AS (
    SELECT v.name, extract(epoch FROM m.minute)::bigint AS minute, m.rows, m.seconds
    FROM pgvec.recent_minutes m JOIN pgvec.vectorizers v ON v.id = m.vectorizer_id
), series AS (
    SELECT name, sum(rows) AS rows,
           jsonb_agg(jsonb_build_array(minute, round((rows / seconds)::numeric, 1)) ORDER BY minute) AS minutes
    FROM minutes GROUP BY name ORDER BY sum(rows) DESC, name LIMIT 50
), classes AS (
    SELECT f.vectorizer_id, f.error_class, count(*) AS documents, max(f.last_at) AS last_at
    FROM pgvec.failures f GROUP BY f.vectorizer_id, f.error_class ORDER BY max(f.last_at) DESC, f.error_class LIMIT 50
), failures AS (
    SELECT v.name AS vectorizer, c.error_class, c.documents, round(extract(epoch FROM c.last_at)::numeric, 1) AS last_at,
           latest.key, latest.message
    FROM classes c
    JOIN pgvec.vectorizers v ON v.id = c.vectorizer_id
    CROSS JOIN LATERAL (
        SELECT left(array_to_string(f.key, ', '), 200) AS key, left(f.message, 500) AS message FROM pgvec.failures f
        WHERE f.vectorizer_id = c.vectorizer_id AND f.error_class = c.error_class AND f.last_at = c.last_at
        ORDER BY f.key LIMIT 1
    ) latest
), events AS (
    -- The last ones, and beside them the last claims, of which there are many more.
    (SELECT * FROM pgvec.recent_events WHERE kind <> 'claimed' ORDER BY at DESC LIMIT 30)
    UNION ALL
    (SELECT * FROM pgvec.recent_events WHERE kind = 'claimed' ORDER BY at DESC LIMIT 10)
)
SELECT extract(epoch FROM clock_timestamp())::float8 AS at,
       jsonb_build_object(
           'totals', (SELECT jsonb_build_object(
                          'vectorizers', count(*), 'rows_total', coalesce(sum(rows_total), 0),
                          'rows_done', coalesce(sum(rows_done), 0), 'rows_failed', coalesce(sum(rows_failed), 0),
                          'rows_per_second', coalesce(round(sum(rows_per_second)::numeric, 1), 0),
                          'workers', (SELECT count(*) FROM workers WHERE state <> 'gone'),
                          'workers_gone', (SELECT count(*) FROM workers WHERE state = 'gone')) FROM progress),
           'vectorizers', (SELECT coalesce(jsonb_agg(v ORDER BY v.name), '[]') FROM vectorizers v),
           'workers', (SELECT coalesce(jsonb_agg(w), '[]') FROM (
                           SELECT * FROM workers
                           ORDER BY state <> 'gone', waiting_for IS NULL, host, pid LIMIT 200) w),
           'throughput', jsonb_build_object(
               'all', (SELECT coalesce(jsonb_agg(jsonb_build_array(minute, rate) ORDER BY minute), '[]') FROM (
                           SELECT minute, round((sum(rows) / max(seconds))::numeric, 1) AS rate
                           FROM minutes GROUP BY minute) a),
               'vectorizers', (SELECT coalesce(jsonb_agg(jsonb_build_object('name', name, 'minutes', minutes) ORDER BY name), '[]')
                               FROM series)),
           'failures', (SELECT coalesce(jsonb_agg(f ORDER BY f.vectorizer, f.documents DESC, f.error_class), '[]') FROM failures f),
           'events', (SELECT coalesce(jsonb_agg(jsonb_build_object(
                          'at', round(extract(epoch FROM e.at)::numeric, 1), 'kind', e.kind, 'vectorizer', e.vectorizer,
                          'host', e.host, 'job_id', e.job_id, 'message', left(e.message, 500))
                          ORDER BY e.at DESC, e.kind, e.job_id), '[]') FROM events e)
       )::text AS state;

-- name: failures_page
-- In the order of its key, so that a page costs no more the further on it is.
SELECT f.key, f.error_class, f.message, f.model, f.attempts,
       extract(epoch FROM f.first_at)::float8 AS first_at, extract(epoch FROM f.last_at)::float8 AS last_at
FROM pgvec.failures f
WHERE f.vectorizer_id = %(id)s
  AND (%(after)s::text[] IS NULL OR f.key > %(after)s::text[])
  AND (%(error_class)s::text IS NULL OR f.error_class = %(error_class)s)
ORDER BY f.key LIMIT %(limit)s;

-- name: vectorizer_id
SELECT id FROM pgvec.vectorizers WHERE name = %(name)s;

-- name: workers
-- No interval and no timestamp: a client reads these in some of the server's styles only.
SELECT s.worker_id, s.host, s.pid, s.version, s.state, s.device, s.dtype, s.runtime, s.models, s.vectorizers,
       extract(epoch FROM s.since_beat)::float8 AS since_beat_seconds, extract(epoch FROM s.started_at)::float8 AS started_at,
       s.memory_bytes, s.jobs, s.waiting_for, s.busy::float8 AS busy, s.rows_per_second, s.tokens_per_second,
       s.vectorizer, s.job_id, s.job_kind, s.checkpoint, s.leaving
FROM pgvec.worker_status s ORDER BY s.host, s.pid;
