-- What `pgvec dashboard` reads once a second, beside pgvec.progress. Times are ages in seconds: a client reads a timestamp
-- or an interval in some of the server's styles only.

-- name: workers
SELECT host, pid, device, state, jobs, waiting_for, busy::float8, rows_per_second, vectorizer, job_id, job_kind, checkpoint,
       extract(epoch FROM since_beat)::float8 AS since_beat
FROM pgvec.worker_status;

-- name: minutes
-- Of the last fifteen minutes, oldest first. A minute that has only just begun is left out, and one more of the old ones
-- is taken instead: what it says of the rate is mostly chance.
SELECT v.name, 14 - (minutes_ago - early) AS place, m.rows / m.seconds AS rows_per_second
FROM pgvec.recent_minutes m
JOIN pgvec.vectorizers v ON v.id = m.vectorizer_id
CROSS JOIN (SELECT clock_timestamp() AS at) now
CROSS JOIN LATERAL (
    SELECT CASE WHEN extract(second FROM now.at) < 20 THEN 1 ELSE 0 END AS early,
           round(extract(epoch FROM date_trunc('minute', now.at) - m.minute) / 60)::integer AS minutes_ago
) counted
WHERE minutes_ago - early BETWEEN 0 AND 14;

-- name: failures
-- By error class, with what the last of each says.
SELECT c.error_class, c.documents, extract(epoch FROM clock_timestamp() - c.last_at)::float8 AS ago, latest.message
FROM (SELECT f.error_class, count(*) AS documents, max(f.last_at) AS last_at
      FROM pgvec.failures f JOIN pgvec.vectorizers v ON v.id = f.vectorizer_id
      WHERE v.name = %(name)s
      GROUP BY f.error_class ORDER BY count(*) DESC, f.error_class LIMIT 20) c
CROSS JOIN LATERAL (
    SELECT left(f.message, 500) AS message
    FROM pgvec.failures f JOIN pgvec.vectorizers v ON v.id = f.vectorizer_id
    WHERE v.name = %(name)s AND f.error_class = c.error_class AND f.last_at = c.last_at
    ORDER BY f.key LIMIT 1
) latest
ORDER BY c.documents DESC, c.error_class;

-- name: events
-- The last ones, and beside them the last claims, of which there are many more.
(SELECT extract(epoch FROM clock_timestamp() - at)::float8 AS ago, kind, vectorizer, host, job_id, left(message, 500) AS message
 FROM pgvec.recent_events WHERE kind <> 'claimed' ORDER BY at DESC LIMIT 10)
UNION ALL
(SELECT extract(epoch FROM clock_timestamp() - at)::float8, kind, vectorizer, host, job_id, left(message, 500)
 FROM pgvec.recent_events WHERE kind = 'claimed' ORDER BY at DESC LIMIT 10);
