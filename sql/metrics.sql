-- What the exporter reads at each scrape: a statement per view, each cheap at a million jobs.

-- name: vectorizers
-- The oldest queued job of each kind is the one with the lowest id. Compared row-wise, as in a claim: with equal signs the
-- planner reads the whole queue for a kind that has no job. It is not looked for where there is none: finished jobs
-- may be in the index for as long as somebody's snapshot is.
SELECT p.name, p.state, p.source, p.destination, p.model, p.plan_complete,
       p.rows_total, p.rows_done, p.rows_failed, p.chunks,
       p.jobs_queued, p.jobs_running, p.jobs_done, p.jobs_cancelled, p.jobs_reclaimed,
       p.rows_embedded, p.rows_wasted, p.rows_truncated, p.chunks_reused, p.tokens, p.bytes_written,
       p.rows_per_second, p.chunks_per_second, p.tokens_per_second,
       p.eta_seconds, p.eta_low_seconds, p.eta_high_seconds, p.lag_seconds,
       p.rows_unchanged, p.chunks_kept, p.chunks_cached, p.rows_per_second_limit,
       extract(epoch FROM v.replication_lag_limit)::float8 AS replication_lag_limit,
       extract(epoch FROM v.commit_time_limit)::float8 AS commit_time_limit,
       extract(epoch FROM clock_timestamp() - oldest.created_at)::float8 AS oldest_queued
FROM pgvec.progress p
JOIN pgvec.vectorizers v ON v.id = p.vectorizer_id
LEFT JOIN LATERAL (
    SELECT min(first.created_at) AS created_at
    FROM (VALUES ('keys'), ('sweep'), ('range')) k(kind)
    CROSS JOIN LATERAL (
        SELECT j.created_at FROM pgvec.jobs j
        WHERE (j.vectorizer_id, j.kind, j.id) >= (v.id, k.kind, 0) AND (j.vectorizer_id, j.kind) <= (v.id, k.kind)
          AND j.state = 'queued'
        ORDER BY j.vectorizer_id, j.kind, j.id
        LIMIT 1
    ) first
    WHERE p.jobs_queued > 0
) oldest ON true
ORDER BY p.name;

-- name: failures
-- A trigger of the user's may raise any SQLSTATE it likes: the twenty most frequent classes are told apart.
SELECT v.name, ranked.error_class, sum(ranked.documents)::bigint AS documents
FROM (SELECT vectorizer_id, documents,
             CASE WHEN row_number() OVER (PARTITION BY vectorizer_id ORDER BY documents DESC, error_class) <= 20
                  THEN error_class ELSE 'other' END AS error_class
      FROM (SELECT vectorizer_id, error_class, count(*) AS documents
            FROM pgvec.failures GROUP BY vectorizer_id, error_class) counted) ranked
JOIN pgvec.vectorizers v ON v.id = ranked.vectorizer_id
GROUP BY v.name, ranked.error_class
ORDER BY v.name, ranked.error_class;

-- name: workers
SELECT state, count(*) AS workers, sum(jobs)::bigint AS jobs,
       min(extract(epoch FROM since_beat))::float8 AS youngest_beat,
       max(extract(epoch FROM since_beat))::float8 AS oldest_beat,
       sum(busy)::float8 AS busy, count(busy) AS busy_workers,
       max(lag_seconds)::float8 AS lag, max(commit_seconds)::float8 AS commit_time
FROM pgvec.worker_status
GROUP BY state;
