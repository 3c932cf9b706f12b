-- Claiming, giving back and taking over jobs; the workers' own rows.

-- name: runnable
-- What a worker may claim now, best first, with the oldest job of each: live changes, then sweeps, then ranges. Of equal
-- priority, first what needs the model whose turn it is, then what was served longest ago.
-- %(floors)s keeps the scan off index entries of jobs long finished, which stay for as long as somebody's snapshot does.
-- LIMIT keeps the planner from reading the whole queue once instead of probing its index.
SELECT v.id, k.kind, first.id, v.priority, pgvec.model_of(v)
FROM pgvec.vectorizers v
CROSS JOIN (VALUES ('keys', 0), ('sweep', 1), ('range', 2)) k(kind, rank)
CROSS JOIN LATERAL (
    SELECT j.id FROM pgvec.jobs j
    WHERE (j.vectorizer_id, j.kind, j.id)
          >= (v.id, k.kind, coalesce((%(floors)s::jsonb ->> (v.id || k.kind))::bigint, %(floor)s))
      AND (j.vectorizer_id, j.kind) <= (v.id, k.kind) AND j.state = 'queued'
      AND (j.run_after IS NULL OR j.run_after <= clock_timestamp())
    ORDER BY j.vectorizer_id, j.kind, j.id
    LIMIT 1
) first
WHERE NOT v.paused AND NOT v.cancelled AND v.blocked_reason IS NULL
  AND (%(names)s::text[] IS NULL OR v.name = ANY (%(names)s))
  AND v.id <> ALL (%(refused)s::bigint[])
  -- Others use up what may be read per second.
  AND (k.kind <> 'range' OR v.rows_per_second_limit IS NULL
       OR NOT EXISTS (SELECT FROM pgvec.pace p
                      WHERE p.vectorizer_id = v.id AND p.next_at > clock_timestamp() + interval '1 second'))
ORDER BY v.priority DESC, (pgvec.model_of(v) = %(turns)s::jsonb ->> v.priority::text) DESC NULLS LAST,
         coalesce((%(served)s::jsonb ->> v.id::text)::bigint, 0), v.id, k.rank;

-- name: horizon
-- Ids given out so far. A lower one may still be on its way to its commit.
SELECT last_value FROM pgvec.jobs_id_seq;

-- name: ranges_run
-- Whether it is worth looking for something to steal.
SELECT EXISTS (SELECT FROM pgvec.jobs WHERE state = 'running' AND kind = 'range');

-- name: near_end
-- Whether fewer than so many ranges are left to claim, and nobody is planning more: then what a worker holds ahead is what
-- the others will wait for. And whether so many are there for any worker that comes: those of a vectorizer with a limit are not.
SELECT count(*) < %(most)s
       AND NOT EXISTS (SELECT FROM pgvec.vectorizers v
                       WHERE NOT v.plan_complete AND v.plan_beat_at > clock_timestamp() - interval '60 seconds'),
       count(*) FILTER (WHERE NOT paced) >= %(most)s
FROM (
    SELECT v.paced FROM (
        SELECT *, rows_per_second_limit IS NOT NULL AS paced FROM pgvec.vectorizers ORDER BY rows_per_second_limit IS NOT NULL
    ) v
    CROSS JOIN LATERAL (
        SELECT j.id FROM pgvec.jobs j
        WHERE (j.vectorizer_id, j.kind, j.id)
              >= (v.id, 'range', coalesce((%(floors)s::jsonb ->> (v.id || 'range'))::bigint, %(floor)s))
          AND (j.vectorizer_id, j.kind) <= (v.id, 'range') AND j.state = 'queued'
        ORDER BY j.vectorizer_id, j.kind, j.id
        LIMIT %(most)s
    ) queued
    WHERE NOT v.paused AND NOT v.cancelled AND v.blocked_reason IS NULL
      AND (%(names)s::text[] IS NULL OR v.name = ANY (%(names)s))
    LIMIT %(most)s
) ranges;

-- name: claim
-- The oldest job of one kind. What has to run alone is not for a worker that has something else in hand.
WITH picked AS (
    SELECT j.id
    FROM pgvec.jobs j
    WHERE (j.vectorizer_id, j.kind, j.id) >= (%(vectorizer)s::bigint, %(kind)s::text, %(floor)s::bigint)
      AND (j.vectorizer_id, j.kind) <= (%(vectorizer)s::bigint, %(kind)s::text) AND j.state = 'queued'
      AND (j.run_after IS NULL OR j.run_after <= clock_timestamp())
      AND EXISTS (SELECT FROM pgvec.vectorizers v WHERE v.id = j.vectorizer_id
                  AND NOT v.paused AND NOT v.cancelled AND v.blocked_reason IS NULL)
      AND EXISTS (SELECT FROM pgvec.workers w WHERE w.id = %(worker)s AND NOT w.gone)
      AND pgvec.world() = %(world)s
      AND (%(idle)s OR NOT j.alone)
    ORDER BY j.vectorizer_id, j.kind, j.id
    LIMIT 1
    FOR UPDATE SKIP LOCKED
)
UPDATE pgvec.jobs j
SET state = 'running', epoch = j.epoch + 1, worker_id = %(worker)s, claimed_at = clock_timestamp(), run_after = NULL,
    in_hand = false, read_to = NULL
FROM picked WHERE j.id = picked.id
RETURNING j.id, j.vectorizer_id, j.kind, j.lower_key, j.upper_key, j.keys, j.rows, j.rows_seen, j.checkpoint, j.epoch,
          j.attempts, j.alone, j.merged, false AS ranges_left, j.batch_size;

-- name: claim_keys
-- The oldest list of keys, with as many of the next as make up %(keys)s keys: they become one job, the oldest. A list
-- that somebody has begun, or died on, stays as it is, and so does one with another bound of the device's batch.
WITH seen AS (
    SELECT j.id, j.keys, j.rows, j.key_count, j.merged, j.created_at, j.batch_size,
           j.checkpoint IS NULL AND j.attempts = 0 AND NOT j.alone AS fresh
    FROM pgvec.jobs j
    WHERE (j.vectorizer_id, j.kind, j.id) >= (%(vectorizer)s::bigint, 'keys'::text, %(floor)s::bigint)
      AND (j.vectorizer_id, j.kind) <= (%(vectorizer)s::bigint, 'keys'::text) AND j.state = 'queued'
      AND (j.run_after IS NULL OR j.run_after <= clock_timestamp())
      AND EXISTS (SELECT FROM pgvec.vectorizers v WHERE v.id = j.vectorizer_id
                  AND NOT v.paused AND NOT v.cancelled AND v.blocked_reason IS NULL)
      AND EXISTS (SELECT FROM pgvec.workers w WHERE w.id = %(worker)s AND NOT w.gone)
      AND pgvec.world() = %(world)s
      AND (%(idle)s OR NOT j.alone)
    ORDER BY j.vectorizer_id, j.kind, j.id
    LIMIT least(%(keys)s, 500)
    FOR UPDATE SKIP LOCKED
), counted AS (
    SELECT *, row_number() OVER before AS place, sum(key_count) OVER before AS upto,
           first_value(fresh) OVER before AS first_fresh, first_value(rows > 0) OVER before AS first_owed,
           first_value(batch_size) OVER before AS first_batch_size
    FROM seen WINDOW before AS (ORDER BY id)
), picked AS (
    SELECT * FROM counted
    WHERE place = 1 OR (first_fresh AND fresh AND (rows > 0) = first_owed AND upto <= %(keys)s
                        AND batch_size IS NOT DISTINCT FROM first_batch_size)
), merged AS (
    SELECT min(id) AS id, count(*) AS lists, sum(rows) AS rows, sum(merged) AS merged, min(created_at) AS created_at
    FROM picked
), keys AS (
    SELECT jsonb_agg(DISTINCT listed) AS keys, count(DISTINCT listed) AS key_count
    FROM picked CROSS JOIN LATERAL jsonb_array_elements(picked.keys) listed
    WHERE (SELECT lists FROM merged) > 1
), absorbed AS (
    DELETE FROM pgvec.jobs j USING picked, merged WHERE j.id = picked.id AND j.id <> merged.id
)
UPDATE pgvec.jobs j
SET state = 'running', epoch = j.epoch + 1, worker_id = %(worker)s, claimed_at = clock_timestamp(), run_after = NULL,
    in_hand = false, keys = coalesce(keys.keys, j.keys), key_count = CASE WHEN keys.keys IS NULL THEN j.key_count ELSE keys.key_count END,
    rows = merged.rows, merged = merged.merged, created_at = merged.created_at
FROM merged, keys WHERE j.id = merged.id
RETURNING j.id, j.vectorizer_id, j.kind, j.lower_key, j.upper_key, j.keys, j.rows, j.rows_seen, j.checkpoint, j.epoch,
          j.attempts, j.alone, j.merged,
          EXISTS (SELECT FROM pgvec.jobs r WHERE r.vectorizer_id = j.vectorizer_id AND r.kind = 'range'
                  AND r.state = 'queued' AND r.id >= %(range_floor)s)
          OR EXISTS (SELECT FROM pgvec.jobs r WHERE r.vectorizer_id = j.vectorizer_id AND r.state = 'running'
                     AND r.kind = 'range')
          OR NOT (SELECT v.plan_complete FROM pgvec.vectorizers v WHERE v.id = j.vectorizer_id) AS ranges_left, j.batch_size;

-- name: reread
SELECT j.id, j.vectorizer_id, j.kind, j.lower_key, j.upper_key, j.keys, j.rows, j.rows_seen, j.checkpoint, j.epoch,
       j.attempts, j.alone, j.merged, %(ranges_left)s AS ranges_left, j.batch_size
FROM pgvec.jobs j
WHERE j.id = %(id)s AND j.state = 'running' AND j.epoch = %(epoch)s AND j.worker_id = %(worker)s
  AND pgvec.world() = %(world)s;

-- name: take_in_hand
-- From here on the worker's death is the document's doing, as far as anybody can tell.
UPDATE pgvec.jobs SET in_hand = true
WHERE id = %(id)s AND state = 'running' AND epoch = %(epoch)s AND worker_id = %(worker)s;

-- name: release
-- One's own running jobs go back with their checkpoints; no attempt is counted.
UPDATE pgvec.jobs
SET state = 'queued', worker_id = NULL
WHERE state = 'running' AND worker_id = %(worker)s
  -- Whoever builds an index ends the build before it gives the job back.
  AND (%(vectorizer)s::bigint IS NULL OR (vectorizer_id = %(vectorizer)s AND kind <> 'index'))
  AND (%(job)s::bigint IS NULL OR id = %(job)s);

-- name: release_strays
-- Running jobs of a worker that does not know of them: it claimed them, and its connection broke before it heard so.
UPDATE pgvec.jobs
SET state = 'queued', worker_id = NULL
WHERE state = 'running' AND worker_id = %(worker)s AND id <> ALL (%(known)s::bigint[]);

-- name: mark_gone
-- Atomic with the beat, which requires NOT gone: a worker is either heard or dead, never both.
WITH gone AS (
    UPDATE pgvec.workers w
    SET gone = true
    WHERE w.id IN (SELECT id FROM pgvec.workers
                   WHERE NOT gone AND beat_at < clock_timestamp() - lease
                   ORDER BY id FOR UPDATE SKIP LOCKED)
    RETURNING w.id, w.host, w.pid
)
INSERT INTO pgvec.events (kind, worker_id, host, message) SELECT 'gone', id, host, 'pid ' || pid FROM gone;

-- name: reclaim
-- Running jobs that have no live worker, dropped or gone, return to the queue. This counts as an attempt, unless the
-- worker was told to leave and its supervisor lost patience. Two attempts at one checkpoint: from then on the job runs
-- alone, and its count begins anew, of deaths with a document in hand. An index has no documents: its count goes on.
WITH lost AS (
    SELECT j.id FROM pgvec.jobs j
    WHERE j.state = 'running'
      AND NOT EXISTS (SELECT FROM pgvec.workers w WHERE w.id = j.worker_id AND NOT w.gone)
    ORDER BY j.id
    FOR UPDATE SKIP LOCKED
), judged AS (
    SELECT j.id, CASE WHEN EXISTS (SELECT FROM pgvec.workers w WHERE w.id = j.worker_id AND w.state = 'stopping')
                           OR (j.alone AND NOT j.in_hand) THEN 0 ELSE 1 END AS attempts
    FROM pgvec.jobs j JOIN lost ON j.id = lost.id
), returned AS (
    UPDATE pgvec.jobs j
    SET state = 'queued', worker_id = NULL,
        alone = j.alone OR (j.kind <> 'index' AND j.attempts + judged.attempts >= 2),
        attempts = CASE WHEN j.alone OR j.kind = 'index' OR j.attempts + judged.attempts < 2 THEN j.attempts + judged.attempts ELSE 0 END
    FROM judged WHERE j.id = judged.id
    RETURNING j.vectorizer_id, j.id
), noted AS (
    INSERT INTO pgvec.events (kind, vectorizer_id, worker_id, job_id, message)
    SELECT 'reclaimed', vectorizer_id, %(worker)s, min(id), count(*) || CASE count(*) WHEN 1 THEN ' job' ELSE ' jobs' END
    FROM returned GROUP BY vectorizer_id
), counted AS (
    INSERT INTO pgvec.counters AS c (vectorizer_id, worker_id, jobs_reclaimed)
    SELECT vectorizer_id, %(worker)s, count(*) FROM returned GROUP BY vectorizer_id
    ON CONFLICT (vectorizer_id, worker_id) DO UPDATE SET jobs_reclaimed = c.jobs_reclaimed + excluded.jobs_reclaimed
)
SELECT count(*) FROM returned;

-- name: register
WITH registered AS (
    INSERT INTO pgvec.workers (host, pid, version, revision, vectorizers, lease)
    VALUES (%(host)s, %(pid)s, %(version)s, %(revision)s, %(names)s, make_interval(secs => %(lease)s))
    RETURNING id, host, pid
), noted AS (
    INSERT INTO pgvec.events (kind, worker_id, host, message) SELECT 'started', id, host, 'pid ' || pid FROM registered
)
SELECT id, pgvec.world() FROM registered;

-- name: beat
-- No row: gone, or this is not the world in which the worker registered. Tells how many workers there are, whether one of
-- them has not been heard of for its lease, whether one of them knows of plenty of jobs that this one may do, and what people want: whether to
-- leave, which of the vectorizers in hand are to be worked on no more, and the limits of those that have any (rows per
-- second; seconds of lag; seconds of a commit). And the schema's revision, since somebody may have upgraded it.
UPDATE pgvec.workers w
SET beat_at = clock_timestamp(), state = %(state)s, device = %(device)s, dtype = %(dtype)s, runtime = %(runtime)s,
    models = %(models)s, memory_bytes = %(memory)s, waiting_for = %(waiting_for)s, busy = %(busy)s,
    documents_per_second = %(documents_per_second)s, loads = %(loads)s, batch_tokens = %(batch_tokens)s,
    padding = %(padding)s, commit_seconds = %(commit_seconds)s, lag_seconds = %(lag_seconds)s,
    cache_chunks = %(cache_chunks)s, cache_bytes = %(cache_bytes)s, cache_lookups = %(cache_lookups)s,
    cache_hits = %(cache_hits)s, plenty = %(plenty)s
FROM (SELECT count(*) AS size,
             coalesce(bool_or(o.id <> %(worker)s AND o.beat_at < clock_timestamp() - o.lease), false) AS overdue,
             coalesce(bool_or(o.id <> %(worker)s AND o.plenty
                              AND coalesce(o.vectorizers && (SELECT own.vectorizers FROM pgvec.workers own
                                                             WHERE own.id = %(worker)s), true)), false) AS plenty
      FROM pgvec.workers o WHERE NOT o.gone) fleet
WHERE w.id = %(worker)s AND NOT w.gone AND pgvec.world() = %(world)s
RETURNING fleet.size, fleet.overdue, fleet.plenty, w.leave,
          ARRAY(SELECT h.id FROM unnest(%(in_hand)s::bigint[]) h(id)
                WHERE NOT EXISTS (SELECT FROM pgvec.vectorizers v WHERE v.id = h.id AND NOT v.paused AND NOT v.cancelled
                                  AND v.blocked_reason IS NULL)),
          ARRAY(SELECT jsonb_build_array(v.id, v.rows_per_second_limit, extract(epoch FROM v.replication_lag_limit),
                                         extract(epoch FROM v.commit_time_limit))
                FROM pgvec.vectorizers v
                WHERE (v.rows_per_second_limit IS NOT NULL OR v.replication_lag_limit IS NOT NULL
                       OR v.commit_time_limit IS NOT NULL)
                  AND (w.vectorizers IS NULL OR v.name = ANY (w.vectorizers))),
          (SELECT version_num FROM pgvec.alembic_version);

-- name: replication
-- Where the slowest standby is, in bytes of WAL, and where this server is; and how many positions may not be seen.
SELECT (pg_current_wal_lsn() - '0/0')::float8, min(replay_lsn - '0/0')::float8,
       count(*) FILTER (WHERE replay_lsn IS NULL)
FROM pg_stat_replication WHERE state IS NULL OR state IN ('streaming', 'catchup');

-- name: reserve
-- So many rows of a vectorizer with a limit have been read. Tells for how many seconds they have to wait; nothing where
-- that would be too long, or where there is no limit any more.
INSERT INTO pgvec.pace AS p (vectorizer_id, next_at)
SELECT v.id, clock_timestamp() + make_interval(secs => %(rows)s / v.rows_per_second_limit)
FROM pgvec.vectorizers v WHERE v.id = %(vectorizer)s AND v.rows_per_second_limit IS NOT NULL
ON CONFLICT (vectorizer_id) DO UPDATE
SET next_at = greatest(p.next_at, clock_timestamp()) + (excluded.next_at - clock_timestamp())
WHERE p.next_at <= clock_timestamp() + make_interval(secs => %(most)s)
RETURNING extract(epoch FROM next_at - clock_timestamp())::float8
          - %(rows)s / (SELECT v.rows_per_second_limit FROM pgvec.vectorizers v WHERE v.id = p.vectorizer_id);

-- name: spent
-- For how many seconds more what has been read of a vectorizer uses up what may be read.
SELECT extract(epoch FROM next_at - clock_timestamp())::float8 FROM pgvec.pace WHERE vectorizer_id = %(vectorizer)s;

-- name: leave
WITH left_ AS (DELETE FROM pgvec.workers WHERE id = %(worker)s RETURNING id, host, pid)
INSERT INTO pgvec.events (kind, worker_id, host, message) SELECT 'left', id, host, 'pid ' || pid FROM left_;

-- name: fold_counters
-- What a worker counted outlives its row; worker 0 stands for all that have left.
WITH gone AS (
    DELETE FROM pgvec.counters c
    WHERE c.worker_id <> 0 AND NOT EXISTS (SELECT FROM pgvec.workers w WHERE w.id = c.worker_id AND NOT w.gone)
    RETURNING c.*
)
INSERT INTO pgvec.counters AS c (vectorizer_id, worker_id, rows_right, rows_embedded, rows_adjusted, rows_wasted,
                                 chunks_written, chunks_deleted, chunks_reused, tokens, truncated, jobs_added,
                                 jobs_done, jobs_reclaimed, writes_refused, bytes_written, rows_unchanged, chunks_kept,
                                 chunks_cached, rows_adopted)
SELECT g.vectorizer_id, 0, sum(g.rows_right), sum(g.rows_embedded), sum(g.rows_adjusted), sum(g.rows_wasted),
       sum(g.chunks_written), sum(g.chunks_deleted), sum(g.chunks_reused), sum(g.tokens), sum(g.truncated),
       sum(g.jobs_added), sum(g.jobs_done), sum(g.jobs_reclaimed), sum(g.writes_refused),
       sum(g.bytes_written), sum(g.rows_unchanged), sum(g.chunks_kept), sum(g.chunks_cached), sum(g.rows_adopted)
FROM gone g GROUP BY g.vectorizer_id
ON CONFLICT (vectorizer_id, worker_id) DO UPDATE
SET rows_right = c.rows_right + excluded.rows_right, rows_embedded = c.rows_embedded + excluded.rows_embedded,
    rows_adjusted = c.rows_adjusted + excluded.rows_adjusted, rows_wasted = c.rows_wasted + excluded.rows_wasted,
    chunks_written = c.chunks_written + excluded.chunks_written,
    chunks_deleted = c.chunks_deleted + excluded.chunks_deleted,
    chunks_reused = c.chunks_reused + excluded.chunks_reused, tokens = c.tokens + excluded.tokens,
    truncated = c.truncated + excluded.truncated, jobs_added = c.jobs_added + excluded.jobs_added,
    jobs_done = c.jobs_done + excluded.jobs_done, jobs_reclaimed = c.jobs_reclaimed + excluded.jobs_reclaimed,
    writes_refused = c.writes_refused + excluded.writes_refused,
    bytes_written = c.bytes_written + excluded.bytes_written,
    rows_unchanged = c.rows_unchanged + excluded.rows_unchanged, chunks_kept = c.chunks_kept + excluded.chunks_kept,
    chunks_cached = c.chunks_cached + excluded.chunks_cached, rows_adopted = c.rows_adopted + excluded.rows_adopted;

-- name: prune_workers
DELETE FROM pgvec.workers WHERE gone AND beat_at < clock_timestamp() - interval '1 day';

-- name: prune_samples
-- Summed up by then: what is looked at every second stays small.
DELETE FROM pgvec.samples
WHERE at < least(clock_timestamp() - interval '5 minutes', (SELECT max(minute) FROM pgvec.minutes));

-- name: prune_jobs
-- Finished jobs are kept a week for whoever asks what happened.
DELETE FROM pgvec.jobs
WHERE id IN (SELECT id FROM pgvec.jobs
             WHERE state IN ('done', 'cancelled') AND finished_at < clock_timestamp() - interval '7 days'
             LIMIT 10000);

-- name: sum_up_minutes
-- A minute is summed up when the one after it is over as well: nobody commits a sample of it any more by then.
INSERT INTO pgvec.minutes (vectorizer_id, worker_id, minute, began_at, ended_at, host, rows, chunks, tokens, bytes)
SELECT s.vectorizer_id, s.worker_id, date_trunc('minute', s.at), min(s.at), max(s.at) + interval '10 seconds',
       max(w.host), sum(s.rows), sum(s.chunks), sum(s.tokens), sum(s.bytes)
FROM pgvec.samples s LEFT JOIN pgvec.workers w ON w.id = s.worker_id
WHERE s.at >= coalesce((SELECT max(minute) + interval '1 minute' FROM pgvec.minutes), '-infinity')
  AND s.at < date_trunc('minute', clock_timestamp() - interval '1 minute')
GROUP BY 1, 2, 3
ON CONFLICT DO NOTHING;

-- name: fold_minutes
-- After a day, what single workers did counts no more: a week of a thousand workers would be ten million rows.
WITH old AS (
    DELETE FROM pgvec.minutes
    WHERE minute < date_trunc('minute', clock_timestamp()) - interval '1 day' AND worker_id <> 0
    RETURNING *
)
INSERT INTO pgvec.minutes AS m (vectorizer_id, worker_id, minute, began_at, ended_at, rows, chunks, tokens, bytes)
SELECT vectorizer_id, 0, minute, min(began_at), max(ended_at), sum(rows), sum(chunks), sum(tokens), sum(bytes)
FROM old GROUP BY vectorizer_id, minute
ON CONFLICT (vectorizer_id, minute, worker_id) DO UPDATE
SET rows = m.rows + excluded.rows, chunks = m.chunks + excluded.chunks, tokens = m.tokens + excluded.tokens,
    bytes = m.bytes + excluded.bytes;

-- name: prune_minutes
DELETE FROM pgvec.minutes WHERE minute < clock_timestamp() - interval '7 days';

-- name: prune_events
DELETE FROM pgvec.events
WHERE at < clock_timestamp() - interval '7 days'
   OR id <= (SELECT id FROM pgvec.events ORDER BY id DESC OFFSET 10000 LIMIT 1);

-- name: housekeeping_turn
SELECT pg_try_advisory_xact_lock(2312187184);

-- name: pending
-- What a draining worker still waits for: unfinished jobs, or a plan that somebody is making.
SELECT v.id, v.name,
       EXISTS (SELECT FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.state = 'queued' AND j.kind <> 'index') AS queued,
       EXISTS (SELECT FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.state = 'running' AND j.kind <> 'index') AS running,
       NOT v.plan_complete AND v.plan_beat_at > clock_timestamp() - interval '60 seconds' AS planning,
       NOT v.plan_complete AS unplanned,
       v.blocked_reason,
       v.paused
FROM pgvec.vectorizers v
WHERE NOT v.cancelled AND (%(names)s::text[] IS NULL OR v.name = ANY (%(names)s));

-- name: pending_indexes
-- Apart, since a role that was given its rights before there were indexes may not look. Nobody waits for one that is not wanted.
SELECT i.vectorizer_id,
       EXISTS (SELECT FROM pgvec.jobs j WHERE (j.vectorizer_id, j.kind) = (i.vectorizer_id, 'index') AND j.state = 'queued'),
       EXISTS (SELECT FROM pgvec.jobs j WHERE (j.vectorizer_id, j.kind) = (i.vectorizer_id, 'index') AND j.state = 'running')
FROM pgvec.indexes i
WHERE i.state <> 'unwanted';

-- name: announce
-- Tells gateways that something was written, where anybody may be waiting for it.
SELECT pg_notify('pgvec_written', '')
WHERE EXISTS (SELECT FROM pgvec.tasks WHERE vectorizer_id = %(vectorizer)s AND finished_at IS NULL);

-- name: notify
SELECT pg_notify('pgvec_jobs', %(payload)s);

-- name: listen
LISTEN pgvec_jobs;

-- name: retry
SELECT pgvec.retry_documents(%(id)s, %(error_class)s, %(keys)s);
