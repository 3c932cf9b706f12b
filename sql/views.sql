-- Views: created again by every `pgvec init`. Columns are only ever added at the end. Nothing here counts rows of a source
-- or jobs of a queue: docs/progress.md says where each number comes from.

-- name: recent_minutes
-- Per vectorizer and minute of the last quarter of an hour: what was done, and for how long. A minute at whose beginning or
-- end nothing went on counts from its first sample, or to its last.
CREATE OR REPLACE VIEW pgvec.recent_minutes AS
WITH parts AS (
    SELECT vectorizer_id, minute, began_at, ended_at, rows, chunks, tokens, bytes
    FROM pgvec.minutes
    WHERE minute >= date_trunc('minute', clock_timestamp()) - interval '15 minutes'
    UNION ALL
    SELECT vectorizer_id, date_trunc('minute', at), at, at + interval '10 seconds', rows, chunks, tokens, bytes
    FROM pgvec.samples
    WHERE at >= greatest(date_trunc('minute', clock_timestamp()) - interval '15 minutes',
                         (SELECT max(minute) + interval '1 minute' FROM pgvec.minutes))
), minutes AS (
    SELECT vectorizer_id, minute, min(began_at) AS began_at, max(ended_at) AS ended_at,
           sum(rows) AS rows, sum(chunks) AS chunks, sum(tokens) AS tokens, sum(bytes) AS bytes
    FROM parts GROUP BY vectorizer_id, minute
), bounded AS (
    SELECT *,
           CASE WHEN lag(minute) OVER around = minute - interval '1 minute' THEN minute ELSE began_at END AS from_at,
           CASE WHEN lead(minute) OVER around = minute + interval '1 minute' THEN minute + interval '1 minute'
                WHEN minute >= date_trunc('minute', clock_timestamp()) - interval '1 minute'
                     THEN least(minute + interval '1 minute', clock_timestamp())
                ELSE ended_at END AS to_at
    FROM minutes WINDOW around AS (PARTITION BY vectorizer_id ORDER BY minute)
)
SELECT vectorizer_id, minute, rows::bigint AS rows, chunks::bigint AS chunks, tokens::bigint AS tokens,
       bytes::bigint AS bytes, greatest(extract(epoch FROM to_at - from_at), 1)::float8 AS seconds,
       -- Half of it is gone after three minutes, so that a worker that came or went soon counts.
       power(0.5, extract(epoch FROM clock_timestamp() - minute) / 180)::float8 AS weight
FROM bounded;
COMMENT ON VIEW pgvec.recent_minutes IS 'What was done of each vectorizer in each of the last fifteen minutes; rates and the time left come from it';
COMMENT ON COLUMN pgvec.recent_minutes.vectorizer_id IS 'Of pgvec.vectorizers';
COMMENT ON COLUMN pgvec.recent_minutes.minute IS 'Its beginning';
COMMENT ON COLUMN pgvec.recent_minutes.rows IS 'Rows that were made right in it';
COMMENT ON COLUMN pgvec.recent_minutes.chunks IS 'Chunks that were written in it';
COMMENT ON COLUMN pgvec.recent_minutes.tokens IS 'Tokens of these';
COMMENT ON COLUMN pgvec.recent_minutes.bytes IS 'Bytes that were sent to the destination';
COMMENT ON COLUMN pgvec.recent_minutes.seconds IS 'For how long something went on in it';
COMMENT ON COLUMN pgvec.recent_minutes.weight IS 'What it counts for the time left: half as much after three minutes';

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
           sum(jobs_done)      AS jobs_done,
           sum(jobs_reclaimed) AS jobs_reclaimed,
           sum(bytes_written)  AS bytes_written,
           sum(rows_unchanged) AS rows_unchanged,
           sum(chunks_kept)    AS chunks_kept,
           sum(chunks_cached)  AS chunks_cached,
           sum(rows_adopted)   AS rows_adopted
    FROM pgvec.counters GROUP BY vectorizer_id
), failed AS (
    SELECT vectorizer_id, count(*) AS rows_failed FROM pgvec.failures GROUP BY vectorizer_id
), running AS (
    -- An index is none of the rows: pgvec.index_status tells of it.
    SELECT vectorizer_id, count(*) AS jobs, count(*) FILTER (WHERE kind <> 'keys') AS planned
    FROM pgvec.jobs WHERE state = 'running' AND kind <> 'index' GROUP BY vectorizer_id
), recent AS (
    SELECT vectorizer_id,
           sum(rows) AS rows, sum(chunks) AS chunks, sum(tokens) AS tokens,
           greatest(extract(epoch FROM clock_timestamp() - min(at)), 1) AS seconds
    FROM pgvec.samples
    WHERE at > clock_timestamp() - interval '60 seconds'
    GROUP BY vectorizer_id
), lately AS (
    SELECT vectorizer_id,
           sum(rows) / sum(seconds) AS rows_per_second,
           sum(weight * rows) / sum(weight * seconds) AS weighted,
           -- How far single minutes are from each other; the last, which has only begun, says nothing of that.
           count(*) FILTER (WHERE seconds >= 20) AS minutes,
           stddev_samp(rows / seconds) FILTER (WHERE seconds >= 20) AS deviation,
           sum(seconds) AS seconds
    FROM pgvec.recent_minutes GROUP BY vectorizer_id
), live AS (
    SELECT w.*, w.beat_at > clock_timestamp() - w.lease AS heard,
           -- The schema is not made for its program. Before 0.7.0 a worker did not tell which revision it was made for.
           coalesce(w.revision, '0007') < pgvec.oldest_program()
           OR (w.revision IS NULL
               AND string_to_array(substring(w.version from '^[0-9]+(?:[.][0-9]+)*'), '.')::bigint[] < '{0,6}') AS old
    FROM pgvec.workers w WHERE NOT w.gone
), numbers AS MATERIALIZED (
    -- Once each: what follows mentions some of them ten times.
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
           coalesce(c.bytes_written, 0) AS bytes_written,
           coalesce(c.rows_adopted, 0) AS rows_adopted,
           coalesce(c.jobs_reclaimed, 0) AS jobs_reclaimed,
           coalesce(c.jobs_done, 0) AS jobs_done,
           coalesce(c.rows_unchanged, 0) AS rows_unchanged,
           coalesce(c.chunks_kept, 0) AS chunks_kept,
           coalesce(c.chunks_cached, 0) AS chunks_cached,
           coalesce(r.jobs, 0) AS jobs_running,
           s.rows / s.seconds AS rows_per_second,
           s.chunks / s.seconds AS chunks_per_second,
           s.tokens / s.seconds AS tokens_per_second,
           l.rows_per_second AS rows_per_second_15m,
           l.weighted AS rows_per_second_weighted,
           -- Of the rate: twice the standard error, never better than 5 %, and 25 % as long as little is known.
           CASE WHEN l.minutes >= 3 AND l.rows_per_second > 0
                THEN least(greatest(2 * l.deviation / sqrt(l.minutes) / l.rows_per_second, 0.05), 0.9)
                ELSE 0.25 END AS spread,
           -- Lists of keys come from triggers, which count nothing; more than these are not counted.
           (SELECT count(*) FROM (SELECT FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.kind = 'keys'
                                  AND j.state = 'queued' LIMIT 10000) lists) AS lists_queued,
           v.jobs_planned + coalesce(c.jobs_added, 0) - coalesce(c.jobs_done, 0) - coalesce(r.planned, 0) AS planned_left,
           least((SELECT j.created_at FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.kind = 'keys'
                  AND j.state = 'queued' ORDER BY j.id LIMIT 1),
                 (SELECT min(j.created_at) FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.kind = 'keys'
                  AND j.state = 'running')) AS oldest_change,
           -- While it moves, the counters are believed: the queue's index may hold the entries of a million finished jobs,
           -- for as long as somebody's snapshot does.
           CASE WHEN NOT v.plan_complete OR r.jobs > 0 THEN false
                WHEN s.rows > 0 AND v.jobs_planned + coalesce(c.jobs_added, 0) > coalesce(c.jobs_done, 0) THEN false
                -- In the order of its index, or a million jobs of others would be read to find that there is none of this one.
                ELSE (SELECT j.id FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.state = 'queued' AND j.kind <> 'index'
                      ORDER BY j.vectorizer_id, j.kind, j.id LIMIT 1) IS NULL
           END AS finished
    FROM pgvec.vectorizers v
    LEFT JOIN counted c ON c.vectorizer_id = v.id
    LEFT JOIN failed f ON f.vectorizer_id = v.id
    LEFT JOIN running r ON r.vectorizer_id = v.id
    LEFT JOIN recent s ON s.vectorizer_id = v.id
    LEFT JOIN lately l ON l.vectorizer_id = v.id
)
SELECT id AS vectorizer_id,
       name,
       CASE WHEN cancelled THEN 'cancelled'
            WHEN blocked_reason IS NOT NULL THEN 'blocked'
            WHEN paused THEN 'paused'
            WHEN finished THEN 'complete'
            ELSE 'active' END AS state,
       CASE WHEN cancelled THEN 'cancelled; to go on: pgvec resume ' || name
            WHEN blocked_reason IS NOT NULL THEN blocked_reason
            WHEN paused THEN 'paused; to go on: pgvec resume ' || name
            WHEN finished AND failed > 0
                 THEN failed || CASE failed WHEN 1 THEN ' row is' ELSE ' rows are' END || ' in quarantine; see: pgvec failures ' || name
            WHEN finished THEN NULL
            WHEN NOT plan_complete AND plan_beat_at < clock_timestamp() - interval '60 seconds'
                 THEN 'the plan was stopped; run enqueue again'
            WHEN NOT EXISTS (SELECT FROM live w WHERE w.heard)
                 THEN 'no worker is running'
            WHEN NOT EXISTS (SELECT FROM live w WHERE w.heard AND (w.vectorizers IS NULL OR name = ANY (w.vectorizers)))
                 THEN 'the workers that run work on others only'
            WHEN replication_lag_limit < (SELECT make_interval(secs => max(w.lag_seconds)) FROM live w WHERE w.heard)
                 THEN (SELECT format('a standby is %s s behind; the limit is %s s', round(max(w.lag_seconds)::numeric, 1),
                                     round(extract(epoch FROM replication_lag_limit), 1))
                       FROM live w WHERE w.heard)
            WHEN commit_time_limit < (SELECT make_interval(secs => min(w.commit_seconds)) FROM live w
                                      WHERE w.heard AND (w.vectorizers IS NULL OR name = ANY (w.vectorizers)))
                 THEN (SELECT format('a small commit takes %s s; the limit is %s s', round(min(w.commit_seconds)::numeric, 2),
                                     round(extract(epoch FROM commit_time_limit), 2))
                       FROM live w WHERE w.heard AND (w.vectorizers IS NULL OR name = ANY (w.vectorizers)))
            WHEN rows_per_second IS NULL
                 AND NOT EXISTS (SELECT FROM live w WHERE w.heard AND w.old IS NOT TRUE
                                 AND (w.vectorizers IS NULL OR name = ANY (w.vectorizers)))
                 THEN (SELECT format('all workers that run are too old for this schema (pgvec-queue %s); upgrade them',
                                     string_agg(DISTINCT w.version, ', ' ORDER BY w.version))
                       FROM live w WHERE w.heard AND (w.vectorizers IS NULL OR name = ANY (w.vectorizers)))
            WHEN rows_per_second IS NULL
                 THEN coalesce(
                     (SELECT format('%s (pid %s) holds a lock in a transaction that is open for %s s, and a worker waits for it',
                                    coalesce(nullif(other.application_name, ''), other.usename, 'somebody'), other.pid,
                                    round(extract(epoch FROM clock_timestamp() - other.xact_start)))
                      FROM pg_stat_activity ours
                      CROSS JOIN LATERAL unnest(pg_blocking_pids(ours.pid)) blocking(pid)
                      JOIN pg_stat_activity other ON other.pid = blocking.pid
                      WHERE ours.application_name LIKE 'pgvec %' AND ours.wait_event_type = 'Lock'
                        AND ours.datname = current_database() AND other.application_name NOT LIKE 'pgvec %'
                      ORDER BY other.xact_start LIMIT 1),
                     (SELECT w.host || ': ' || w.waiting_for FROM live w
                      WHERE w.heard AND w.waiting_for IS NOT NULL AND (w.vectorizers IS NULL OR name = ANY (w.vectorizers))
                      ORDER BY w.beat_at DESC LIMIT 1),
                     (SELECT w.host || ' is loading a model' FROM live w
                      WHERE w.heard AND w.state = 'loading' AND (w.vectorizers IS NULL OR name = ANY (w.vectorizers))
                      LIMIT 1))
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
       CASE WHEN finished THEN 0 ELSE rows_left / rate END::float8 AS eta_seconds,
       plan_complete,
       rows_embedded::bigint AS rows_embedded,
       truncated::bigint AS rows_truncated,
       sync,
       CASE WHEN sync THEN coalesce(extract(epoch FROM clock_timestamp() - oldest_change), 0) END::float8 AS lag_seconds,
       rows_wasted::bigint AS rows_wasted,
       chunks_reused::bigint AS chunks_reused,
       CASE WHEN finished THEN 0 ELSE rows_left / (rate * (1 + spread)) END::float8 AS eta_low_seconds,
       CASE WHEN finished THEN 0 ELSE rows_left / (rate * (1 - spread)) END::float8 AS eta_high_seconds,
       CASE WHEN moving THEN coalesce(tokens_per_second, 0) ELSE 0 END::float8 AS tokens_per_second,
       coalesce(rows_per_second_15m, 0)::float8 AS rows_per_second_15m,
       bytes_written::bigint AS bytes_written,
       jobs_reclaimed::bigint AS jobs_reclaimed,
       priority,
       rows_per_second_limit,
       source_schema || '.' || source_table AS source,
       destination_schema || '.' || destination_table AS destination,
       model,
       rows_unchanged::bigint AS rows_unchanged,
       chunks_kept::bigint AS chunks_kept,
       chunks_cached::bigint AS chunks_cached,
       rows_adopted::bigint AS rows_adopted
FROM numbers
CROSS JOIN LATERAL (
    SELECT NOT (finished OR paused OR cancelled OR blocked_reason IS NOT NULL) AS moving,
           greatest(planned_left, 0) + lists_queued AS jobs_left,
           greatest(total - rows_right, 0) AS rows_left
) now
CROSS JOIN LATERAL (
    SELECT CASE WHEN moving AND rows_per_second > 0 AND rows_per_second_weighted > 0 THEN rows_per_second_weighted END AS rate
) speed;
COMMENT ON VIEW pgvec.progress IS 'One row per vectorizer: how far it is, how fast, when it ends, and why nothing moves';
COMMENT ON COLUMN pgvec.progress.vectorizer_id IS 'Its id; what jobs, counters and failures refer to';
COMMENT ON COLUMN pgvec.progress.name IS 'Its name';
COMMENT ON COLUMN pgvec.progress.state IS 'active, paused, blocked, cancelled or complete';
COMMENT ON COLUMN pgvec.progress.reason IS 'Why nothing moves, and what to do; NULL: nothing is wrong';
COMMENT ON COLUMN pgvec.progress.rows_total IS 'Selected rows: as planned, corrected by each job that ends and by live changes';
COMMENT ON COLUMN pgvec.progress.rows_done IS 'Rows whose chunks are right, those of blank text included';
COMMENT ON COLUMN pgvec.progress.rows_failed IS 'Rows in quarantine';
COMMENT ON COLUMN pgvec.progress.chunks IS 'Chunks in the destination';
COMMENT ON COLUMN pgvec.progress.tokens IS 'Tokens of the chunks written since it was made, however they came by their vectors';
COMMENT ON COLUMN pgvec.progress.jobs_queued IS 'Jobs that wait; of lists of changed keys, 10,000 are counted at most';
COMMENT ON COLUMN pgvec.progress.jobs_running IS 'Jobs in a worker''s hands';
COMMENT ON COLUMN pgvec.progress.jobs_done IS 'Jobs done since it was made';
COMMENT ON COLUMN pgvec.progress.jobs_cancelled IS 'Jobs given up by a cancellation';
COMMENT ON COLUMN pgvec.progress.rows_per_second IS 'Rows made right per second, of the last minute';
COMMENT ON COLUMN pgvec.progress.chunks_per_second IS 'Chunks written per second, of the last minute';
COMMENT ON COLUMN pgvec.progress.eta_seconds IS 'Time left at the rate of the last minutes, the last of which count most; NULL: nothing moves';
COMMENT ON COLUMN pgvec.progress.plan_complete IS 'Whether all jobs of the last enqueue are planned';
COMMENT ON COLUMN pgvec.progress.rows_embedded IS 'Rows embedded since it was made';
COMMENT ON COLUMN pgvec.progress.rows_truncated IS 'Rows that were cut to what the model reads';
COMMENT ON COLUMN pgvec.progress.sync IS 'Whether triggers of the source queue its changes';
COMMENT ON COLUMN pgvec.progress.lag_seconds IS 'Age of the oldest live change that is not in the destination; NULL without sync';
COMMENT ON COLUMN pgvec.progress.rows_wasted IS 'Rows embedded whose vectors were thrown away: they had changed, or the job was lost';
COMMENT ON COLUMN pgvec.progress.chunks_reused IS 'Chunks that took the vector of an identical one in the same call of the model';
COMMENT ON COLUMN pgvec.progress.eta_low_seconds IS 'The time left if the rate is better than it was, by as much as minutes differ';
COMMENT ON COLUMN pgvec.progress.eta_high_seconds IS 'The time left if it is worse by as much';
COMMENT ON COLUMN pgvec.progress.tokens_per_second IS 'Tokens of the chunks written per second, of the last minute';
COMMENT ON COLUMN pgvec.progress.rows_per_second_15m IS 'Rows made right per second, of those of the last 15 minutes in which something moved';
COMMENT ON COLUMN pgvec.progress.bytes_written IS 'Bytes of keys, chunks and vectors sent to the destination since it was made';
COMMENT ON COLUMN pgvec.progress.jobs_reclaimed IS 'Jobs taken back from workers that were gone';
COMMENT ON COLUMN pgvec.progress.priority IS 'Higher goes first';
COMMENT ON COLUMN pgvec.progress.rows_per_second_limit IS 'Rows of ranges that all workers together may read per second; NULL: no limit';
COMMENT ON COLUMN pgvec.progress.source IS 'The table that is read';
COMMENT ON COLUMN pgvec.progress.destination IS 'The table that is written';
COMMENT ON COLUMN pgvec.progress.model IS 'The model';
COMMENT ON COLUMN pgvec.progress.rows_unchanged IS 'Rows found as they were when they were embedded, and blank ones, since it was made';
COMMENT ON COLUMN pgvec.progress.chunks_kept IS 'Chunks of changed documents that kept the vector that they had';
COMMENT ON COLUMN pgvec.progress.chunks_cached IS 'Chunks that took their vector from a worker''s cache';
COMMENT ON COLUMN pgvec.progress.rows_adopted IS 'Rows whose vectors were there before, and were taken over';

-- name: worker_status
CREATE OR REPLACE VIEW pgvec.worker_status AS
SELECT w.id AS worker_id, w.host, w.pid, w.version, w.device, w.dtype, w.models, w.vectorizers,
       CASE WHEN w.gone OR w.beat_at < clock_timestamp() - w.lease THEN 'gone'
            WHEN w.leave THEN 'stopping' ELSE w.state END AS state,
       clock_timestamp() - w.beat_at AS since_beat, w.started_at, w.memory_bytes,
       coalesce(held.jobs, 0) AS jobs,
       w.waiting_for, w.busy, w.documents_per_second, w.loads, w.batch_tokens, w.runtime, w.padding,
       held.job_id, v.name AS vectorizer, first.kind AS job_kind, array_to_string(first.checkpoint, ', ') AS checkpoint,
       coalesce(recent.rows_per_second, 0)::float8 AS rows_per_second,
       coalesce(recent.tokens_per_second, 0)::float8 AS tokens_per_second,
       w.leave AS leaving, w.commit_seconds, w.lag_seconds,
       w.cache_chunks, w.cache_bytes, w.cache_lookups, w.cache_hits
FROM pgvec.workers w
LEFT JOIN (SELECT worker_id, count(*) AS jobs, min(id) AS job_id FROM pgvec.jobs WHERE state = 'running' GROUP BY worker_id) held
       ON held.worker_id = w.id
LEFT JOIN pgvec.jobs first ON first.id = held.job_id
LEFT JOIN pgvec.vectorizers v ON v.id = first.vectorizer_id
LEFT JOIN (SELECT worker_id,
                  sum(rows) / greatest(extract(epoch FROM clock_timestamp() - min(at)), 1) AS rows_per_second,
                  sum(tokens) / greatest(extract(epoch FROM clock_timestamp() - min(at)), 1) AS tokens_per_second
           FROM pgvec.samples WHERE at > clock_timestamp() - interval '60 seconds' GROUP BY worker_id) recent
       ON recent.worker_id = w.id;
COMMENT ON VIEW pgvec.worker_status IS 'One row per worker: where it runs, what it does, when it was last heard of';
COMMENT ON COLUMN pgvec.worker_status.worker_id IS 'Its id; a worker that begins anew has another';
COMMENT ON COLUMN pgvec.worker_status.host IS 'The machine';
COMMENT ON COLUMN pgvec.worker_status.pid IS 'Its process there';
COMMENT ON COLUMN pgvec.worker_status.version IS 'Of pgvec-queue';
COMMENT ON COLUMN pgvec.worker_status.device IS 'cpu, mps or cuda:N; NULL before a model is loaded';
COMMENT ON COLUMN pgvec.worker_status.dtype IS 'Of its vectors on the device';
COMMENT ON COLUMN pgvec.worker_status.models IS 'Models in its memory';
COMMENT ON COLUMN pgvec.worker_status.vectorizers IS 'Those that it works on; NULL: all';
COMMENT ON COLUMN pgvec.worker_status.state IS 'starting, idle, loading, working, stopping, or gone: its lease ran out';
COMMENT ON COLUMN pgvec.worker_status.since_beat IS 'Since it was heard of';
COMMENT ON COLUMN pgvec.worker_status.started_at IS 'When it registered';
COMMENT ON COLUMN pgvec.worker_status.memory_bytes IS 'The most memory that its process has had';
COMMENT ON COLUMN pgvec.worker_status.jobs IS 'Jobs in its hands';
COMMENT ON COLUMN pgvec.worker_status.waiting_for IS 'Why it makes no progress at present';
COMMENT ON COLUMN pgvec.worker_status.busy IS 'Share, 0 to 1, of the last minute with a job in hand in which the device worked';
COMMENT ON COLUMN pgvec.worker_status.documents_per_second IS 'Of the device alone';
COMMENT ON COLUMN pgvec.worker_status.loads IS 'Models that it has loaded';
COMMENT ON COLUMN pgvec.worker_status.batch_tokens IS 'Tokens that the model takes at a time';
COMMENT ON COLUMN pgvec.worker_status.runtime IS 'What computes: torch or openvino';
COMMENT ON COLUMN pgvec.worker_status.padding IS 'Share, 0 to 1, of computed tokens that were padding';
COMMENT ON COLUMN pgvec.worker_status.job_id IS 'The job that it claimed first of those in its hands';
COMMENT ON COLUMN pgvec.worker_status.vectorizer IS 'Whose job that is';
COMMENT ON COLUMN pgvec.worker_status.job_kind IS 'range, keys, sweep or index';
COMMENT ON COLUMN pgvec.worker_status.checkpoint IS 'How far that job is committed: a key, or of a list the number of keys';
COMMENT ON COLUMN pgvec.worker_status.rows_per_second IS 'Rows made right per second, of the last minute';
COMMENT ON COLUMN pgvec.worker_status.tokens_per_second IS 'Tokens embedded per second, of the last minute';
COMMENT ON COLUMN pgvec.worker_status.leaving IS 'It has been told to leave';
COMMENT ON COLUMN pgvec.worker_status.commit_seconds IS 'What its heartbeat took to commit; NULL: no limit asks for it';
COMMENT ON COLUMN pgvec.worker_status.lag_seconds IS 'How far the slowest standby was behind; NULL: no limit asks for it, or there is none';
COMMENT ON COLUMN pgvec.worker_status.cache_chunks IS 'Vectors that it remembers; NULL: none, or it has switched that off since it did not pay';
COMMENT ON COLUMN pgvec.worker_status.cache_bytes IS 'What these take of its memory';
COMMENT ON COLUMN pgvec.worker_status.cache_lookups IS 'Chunks that its process has looked for there';
COMMENT ON COLUMN pgvec.worker_status.cache_hits IS 'Chunks that it has found there';

-- name: throughput
-- Minutes that are over have been summed up; the last ones are still samples.
CREATE OR REPLACE VIEW pgvec.throughput AS
SELECT m.minute, v.name, m.worker_id, m.rows, m.chunks, m.tokens, m.bytes, m.host
FROM pgvec.minutes m JOIN pgvec.vectorizers v ON v.id = m.vectorizer_id
UNION ALL
SELECT date_trunc('minute', s.at), v.name, s.worker_id,
       sum(s.rows)::bigint, sum(s.chunks)::bigint, sum(s.tokens)::bigint, sum(s.bytes)::bigint, max(w.host)
FROM pgvec.samples s
JOIN pgvec.vectorizers v ON v.id = s.vectorizer_id
LEFT JOIN pgvec.workers w ON w.id = s.worker_id
WHERE s.at >= coalesce((SELECT max(minute) + interval '1 minute' FROM pgvec.minutes), '-infinity')
GROUP BY 1, 2, 3;
COMMENT ON VIEW pgvec.throughput IS 'Rows, chunks, tokens and bytes per minute, vectorizer and worker: of single workers for a day, of all together for a week';
COMMENT ON COLUMN pgvec.throughput.minute IS 'Its beginning';
COMMENT ON COLUMN pgvec.throughput.name IS 'The vectorizer';
COMMENT ON COLUMN pgvec.throughput.worker_id IS 'The worker; 0: all together, for minutes of more than a day ago';
COMMENT ON COLUMN pgvec.throughput.rows IS 'Rows made right';
COMMENT ON COLUMN pgvec.throughput.chunks IS 'Chunks written';
COMMENT ON COLUMN pgvec.throughput.tokens IS 'Tokens embedded';
COMMENT ON COLUMN pgvec.throughput.bytes IS 'Bytes sent to the destination';
COMMENT ON COLUMN pgvec.throughput.host IS 'The worker''s machine';

-- name: recent_events
-- What a look at a run shows as it happens. That a job was claimed is no event of its own, there are too many: the jobs that
-- run tell.
CREATE OR REPLACE VIEW pgvec.recent_events AS
SELECT e.at, e.kind, v.name AS vectorizer, e.worker_id, e.host, e.job_id, e.message
FROM pgvec.events e LEFT JOIN pgvec.vectorizers v ON v.id = e.vectorizer_id
UNION ALL
SELECT j.claimed_at, 'claimed', v.name, j.worker_id, w.host, j.id, j.kind
FROM pgvec.jobs j
JOIN pgvec.vectorizers v ON v.id = j.vectorizer_id
LEFT JOIN pgvec.workers w ON w.id = j.worker_id
WHERE j.state = 'running';
COMMENT ON VIEW pgvec.recent_events IS 'Events, and the claims of the jobs that run';
COMMENT ON COLUMN pgvec.recent_events.at IS 'When it happened, by the database''s clock';
COMMENT ON COLUMN pgvec.recent_events.kind IS 'claimed, reclaimed, quarantined, blocked, paused, resumed, cancelled, retried, altered, dropped, started, left, gone';
COMMENT ON COLUMN pgvec.recent_events.vectorizer IS 'The vectorizer, where it concerns one';
COMMENT ON COLUMN pgvec.recent_events.worker_id IS 'The worker, where it concerns one';
COMMENT ON COLUMN pgvec.recent_events.host IS 'That worker''s machine';
COMMENT ON COLUMN pgvec.recent_events.job_id IS 'The job, where it concerns one';
COMMENT ON COLUMN pgvec.recent_events.message IS 'What there is to say of it';

-- name: index_status
-- What a build is at is told by the server process that has the lock of its table, whoever began it.
CREATE OR REPLACE VIEW pgvec.index_status AS
SELECT v.id AS vectorizer_id, v.name,
       CASE WHEN i.state IN ('wanted', 'building') AND build.pid IS NOT NULL THEN 'building'
            WHEN i.state = 'building' AND NOT EXISTS (SELECT FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.kind = 'index'
                                                      AND j.state = 'running') THEN 'wanted'
            WHEN i.state = 'built' AND index_class.oid IS NULL THEN 'missing'
            ELSE i.state END AS state,
       coalesce(i.reason, CASE WHEN i.state = 'built' AND index_class.oid IS NULL
                               THEN 'it was dropped; to have it again: pgvec index ' || v.name END) AS reason,
       i.index_name, i.m, i.ef_construction, i.store,
       build.phase,
       CASE WHEN parts.count > 0 THEN (parts.built + CASE WHEN parts.built < parts.count THEN coalesce(build.share, 0) ELSE 0 END)
                                      / parts.count ELSE build.share END AS share,
       build.waiting_for, i.started_at, i.built_at,
       coalesce(i.seconds, CASE WHEN build.pid IS NOT NULL THEN extract(epoch FROM clock_timestamp() - i.started_at) END)::float8 AS seconds,
       coalesce(size.bytes, i.size_bytes) AS size_bytes, i.recall, i.recall_queries, i.recall_at,
       nullif(parts.count, 0)::integer AS partitions,
       CASE WHEN parts.count > 0 THEN parts.built::integer END AS partitions_built
FROM pgvec.indexes i
JOIN pgvec.vectorizers v ON v.id = i.vectorizer_id
-- By name, not by regclass: that is an error for whoever may not look into the schema, and would hide all the others.
LEFT JOIN pg_namespace index_schema ON index_schema.nspname = (parse_ident(i.index_name))[1]
LEFT JOIN pg_class index_class ON index_class.relnamespace = index_schema.oid AND index_class.relname = (parse_ident(i.index_name))[2]
                              AND i.state = 'built'
LEFT JOIN LATERAL (
    SELECT CASE index_class.relkind
                WHEN 'i' THEN pg_relation_size(index_class.oid)
                WHEN 'I' THEN (SELECT sum(pg_relation_size(part.relid))::bigint FROM pg_partition_tree(index_class.oid) part)
           END AS bytes
) size ON true
LEFT JOIN LATERAL (
    SELECT l.pid, p.phase,
           CASE WHEN p.phase LIKE 'building index%' AND p.blocks_total > 0 THEN p.blocks_done::float8 / p.blocks_total END AS share,
           CASE WHEN p.phase LIKE 'waiting%' AND other.pid IS NOT NULL
                THEN format('the transaction of %s (pid %s), open for %s s',
                            coalesce(nullif(other.application_name, ''), other.usename, 'somebody'), other.pid,
                            round(extract(epoch FROM clock_timestamp() - other.xact_start))) END AS waiting_for
    FROM pg_locks l
    LEFT JOIN pg_stat_progress_create_index p ON p.pid = l.pid
    LEFT JOIN pg_stat_activity other ON other.pid = nullif(p.current_locker_pid, 0)
    WHERE i.state IN ('wanted', 'building') AND l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
      AND l.classid = 1885828713
      AND l.objid = (SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
                     WHERE n.nspname = v.destination_schema AND c.relname = v.destination_table)
      AND l.database = (SELECT d.oid FROM pg_database d WHERE d.datname = current_database())
    LIMIT 1
) build ON true
CROSS JOIN LATERAL (
    -- Of the index that is there, else of the one that is on its way: what an older one has, which is valid, does not count.
    SELECT count(*)::float8 AS count, count(*) FILTER (WHERE EXISTS (
               SELECT FROM pg_index x
               JOIN pg_class xc ON xc.oid = x.indexrelid
               JOIN pg_am am ON am.oid = xc.relam AND am.amname = 'hnsw'
               JOIN pg_attribute first ON first.attrelid = xc.oid AND first.attnum = 1
               JOIN pg_type keyed ON keyed.oid = first.atttypid
               LEFT JOIN pg_index whole ON whole.indexrelid = pg_partition_root(x.indexrelid)
               WHERE x.indrelid = part.relid AND x.indisvalid
                 AND CASE WHEN i.state = 'built' THEN coalesce(whole.indisvalid, false)
                          -- Its own may be complete while an older one is yet to be dropped.
                          ELSE xc.relname ~ CASE WHEN xc.relispartition THEN '' ELSE format('_hnsw_%s_[0-9]+b?$', part.relid::oid) END
                               AND (am.amname, keyed.typname,
                                    coalesce((SELECT option_value::integer FROM pg_options_to_table(xc.reloptions)
                                              WHERE option_name = 'm'), 16),
                                    coalesce((SELECT option_value::integer FROM pg_options_to_table(xc.reloptions)
                                              WHERE option_name = 'ef_construction'), 64))
                                   = ('hnsw', i.store, i.m, i.ef_construction)
                     END))::float8 AS built
    FROM pg_class c
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = v.destination_schema
    CROSS JOIN LATERAL pg_partition_tree(c.oid) part
    WHERE c.relname = v.destination_table AND c.relkind = 'p' AND part.isleaf
) parts;
COMMENT ON VIEW pgvec.index_status IS 'One row per vectorizer with an index, or with the wish for one or for none: what it is, and how far its build is';
COMMENT ON COLUMN pgvec.index_status.vectorizer_id IS 'Of pgvec.vectorizers';
COMMENT ON COLUMN pgvec.index_status.name IS 'The vectorizer''s name';
COMMENT ON COLUMN pgvec.index_status.state IS 'unwanted, wanted, building, built, refused, or missing: it was built, and is there no more';
COMMENT ON COLUMN pgvec.index_status.reason IS 'Why it is refused, or not built yet; of a built one, what is worth knowing';
COMMENT ON COLUMN pgvec.index_status.index_name IS 'Schema and name, quoted as in SQL';
COMMENT ON COLUMN pgvec.index_status.m IS 'Of HNSW: neighbours of each element';
COMMENT ON COLUMN pgvec.index_status.ef_construction IS 'Of HNSW: candidates that are looked at for each element';
COMMENT ON COLUMN pgvec.index_status.store IS 'What is indexed: the vectors as vector, or as halfvec';
COMMENT ON COLUMN pgvec.index_status.phase IS 'What a build is at, as PostgreSQL calls it';
COMMENT ON COLUMN pgvec.index_status.share IS 'How far a build is, 0 to 1: the part of the table that it has read, of a partitioned one partitions that are done';
COMMENT ON COLUMN pgvec.index_status.waiting_for IS 'Whose transaction a build waits for';
COMMENT ON COLUMN pgvec.index_status.started_at IS 'When its last build began';
COMMENT ON COLUMN pgvec.index_status.built_at IS 'When it was built, or met';
COMMENT ON COLUMN pgvec.index_status.seconds IS 'What its build took, or has taken so far';
COMMENT ON COLUMN pgvec.index_status.size_bytes IS 'Its size';
COMMENT ON COLUMN pgvec.index_status.recall IS 'Share of the ten nearest, by exact search, that a search through it finds, on a sample';
COMMENT ON COLUMN pgvec.index_status.recall_queries IS 'Searches in that sample';
COMMENT ON COLUMN pgvec.index_status.recall_at IS 'When that was measured';
COMMENT ON COLUMN pgvec.index_status.partitions IS 'Of the destination, each of which has an index of its own; NULL: one table';
COMMENT ON COLUMN pgvec.index_status.partitions_built IS 'Of these, that have theirs: of the index that is wanted, or is there';
