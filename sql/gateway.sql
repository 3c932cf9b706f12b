-- The gateway's collections, their texts, and the tasks that put texts there. {source} and {destination} are a collection's
-- two tables; {fates} is the statement of that name.

-- name: creating
-- Two who make a collection take turns; the number is the CRC-32 of 'pgvec.collections'.
SELECT pg_catalog.pg_advisory_xact_lock(2730311593);

-- name: create_schema
CREATE SCHEMA IF NOT EXISTS pgvec_collections;

-- name: create_source
CREATE TABLE {source} (
    id         text COLLATE "C" PRIMARY KEY CHECK (id <> ''),
    text       text NOT NULL,
    metadata   jsonb NOT NULL DEFAULT '{{}}' CHECK (jsonb_typeof(metadata) = 'object'),
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- name: in_the_way
-- What has the name of one of a collection's two tables. Vectors without their texts may be of any model.
SELECT c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgvec_collections' AND c.relname IN (%(name)s::text, %(name)s::text || '_vectors') ORDER BY c.relname;

-- name: index_metadata
CREATE INDEX ON {source} USING gin (metadata jsonb_path_ops);

-- name: planned
-- There was nothing to plan: the table is as new as the vectorizer, and its triggers see everything.
UPDATE pgvec.vectorizers SET plan_epoch = plan_epoch + 1, plan_complete = true, plan_beat_at = clock_timestamp()
WHERE id = %(id)s;

-- name: insert_collection
INSERT INTO pgvec.collections (name, vectorizer_id, default_of) VALUES (%(name)s, %(vectorizer)s, %(default_of)s);

-- name: collection
-- The default one of a model is where its texts without a collection have gone from the beginning, whatever embeds them now,
-- or the one that has been switched to it.
SELECT c.name, c.default_of, v.id AS vectorizer_id, v.name AS vectorizer, v.model, v.dimensions, v.store, v.chunk_size,
       v.chunk_overlap, v.source_schema, v.source_table, v.destination_schema, v.destination_table, c.created_at
FROM pgvec.collections c JOIN pgvec.vectorizers v ON v.id = c.vectorizer_id
WHERE c.name = %(name)s OR c.default_of = %(default_of)s OR (c.default_of IS NOT NULL AND v.model = %(default_of)s)
   OR c.vectorizer_id = ANY (%(vectorizers)s::bigint[])
ORDER BY c.name;

-- name: collections
SELECT c.name, c.default_of, v.id AS vectorizer_id, v.name AS vectorizer, v.model, v.dimensions, v.store, v.chunk_size,
       v.chunk_overlap, v.source_schema, v.source_table, v.destination_schema, v.destination_table, c.created_at,
       p.state, p.reason, p.rows_total, p.rows_done, p.rows_failed, p.chunks
FROM pgvec.collections c
JOIN pgvec.vectorizers v ON v.id = c.vectorizer_id
JOIN pgvec.progress p ON p.vectorizer_id = c.vectorizer_id
WHERE %(name)s::text IS NULL OR c.name = %(name)s
ORDER BY c.name;

-- name: forget_collections
-- Those whose vectorizer was dropped past the gateway, and the one that is being dropped.
DELETE FROM pgvec.collections c
WHERE NOT EXISTS (SELECT FROM pgvec.vectorizers v WHERE v.id = c.vectorizer_id);

-- name: lock_collection
-- The names of its vectorizer and of its tables.
SELECT v.id, v.name, v.source_schema, v.source_table, v.destination_schema, v.destination_table
FROM pgvec.collections c JOIN pgvec.vectorizers v ON v.id = c.vectorizer_id
WHERE c.name = %(name)s FOR UPDATE OF c;

-- name: drop_table
DROP TABLE IF EXISTS {destination};

-- name: delete_tasks_of
DELETE FROM pgvec.tasks WHERE vectorizer_id = %(vectorizer)s;

-- name: drop_tables
DROP TABLE IF EXISTS {destination}, {source};

-- name: waiting
-- Rows that wait, as the jobs say. It reads all of the collection's queued jobs: not for every request.
SELECT coalesce(sum(CASE WHEN kind = 'keys' THEN key_count ELSE rows END), 0)::bigint
FROM pgvec.jobs WHERE vectorizer_id = %(vectorizer)s AND state = 'queued';

-- name: wake
SELECT pg_notify('pgvec_jobs', '');

-- name: listen
LISTEN pgvec_written; LISTEN pgvec_jobs;

-- name: by_key
SELECT id, request_digest FROM pgvec.tasks WHERE token_id = %(token)s AND idempotency_key = %(key)s;

-- name: insert_task
-- The vectorizer is that of this moment: the collection may have been switched to another since it was looked up.
INSERT INTO pgvec.tasks (id, vectorizer_id, token_id, idempotency_key, request_digest, batch_size, texts, xid)
SELECT %(id)s, coalesce((SELECT c.vectorizer_id FROM pgvec.collections c WHERE c.name = %(collection)s), %(vectorizer)s),
       %(token)s, %(key)s, %(digest)s, %(batch_size)s, %(count)s, pg_current_xact_id()::xid::text
ON CONFLICT (token_id, idempotency_key) WHERE idempotency_key IS NOT NULL DO NOTHING
RETURNING id;

-- name: bound_batches
-- The triggers write it into the jobs of this transaction.
SELECT set_config('pgvec.batch_size', coalesce(%(batch_size)s::text, ''), true);

-- name: put_texts
-- Locked in the order of their ids, so that two requests with the same ones wait for each other and not in a circle.
WITH given AS (
    SELECT u.id, u.text, u.metadata, u.ordinal - 1 AS ordinal
    FROM unnest(%(ids)s::text[], %(texts)s::text[], %(metadata)s::text[]::jsonb[])
         WITH ORDINALITY AS u(id, text, metadata, ordinal)
), put AS (
    INSERT INTO {source} AS t (id, text, metadata)
    SELECT id, text, coalesce(metadata, '{{}}') FROM given ORDER BY id COLLATE "C"
    ON CONFLICT (id) DO UPDATE SET text = excluded.text, updated_at = clock_timestamp(){set_metadata}
)
INSERT INTO pgvec.task_texts (task_id, ordinal, text_id, source_hash, blank)
SELECT %(task)s, ordinal, id, pgvec.source_hash(text), pgvec.is_blank(text) FROM given;

-- name: set_metadata
, metadata = excluded.metadata

-- name: fates
-- What has become of each text of the tasks that are worth a look. The text itself is read and hashed only where its row
-- was written by somebody else since. Where nothing is queued, what has no vector is without any word.
SELECT w.id, t.ordinal, t.text_id, d.written_at, f.last_at,
       CASE WHEN t.cancelled THEN 'cancelled'
            WHEN t.blank THEN 'skipped'
            WHEN d.written_at IS NOT NULL THEN 'done'
            WHEN s.xid IS NULL THEN 'superseded'
            WHEN s.xid <> w.xid AND pgvec.source_hash(s.text) <> t.source_hash THEN 'superseded'
            WHEN f.last_at IS NOT NULL THEN 'failed'
            WHEN idle.idle THEN 'skipped'
            ELSE 'waiting' END AS fate
FROM pgvec.tasks w
JOIN pgvec.task_texts t ON t.task_id = w.id
LEFT JOIN LATERAL (
    SELECT d.created_at AS written_at FROM {destination} d
    WHERE d.id = t.text_id AND d.source_hash = t.source_hash LIMIT 1
) d ON true
LEFT JOIN LATERAL (
    SELECT s.xmin::text AS xid, s.text FROM {source} s
    WHERE s.id = t.text_id AND d.written_at IS NULL AND NOT t.blank AND NOT t.cancelled LIMIT 1
) s ON true
LEFT JOIN LATERAL (
    SELECT f.last_at FROM pgvec.failures f
    WHERE f.vectorizer_id = %(vectorizer)s AND f.key = ARRAY[t.text_id] AND f.source_hash = t.source_hash
      AND d.written_at IS NULL LIMIT 1
) f ON true
CROSS JOIN (
    SELECT v.sync AND NOT EXISTS (SELECT FROM pgvec.jobs j
                                      WHERE j.vectorizer_id = v.id AND j.state = 'running' AND j.kind <> 'index')
           AND (SELECT j.id FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.state = 'queued' AND j.kind <> 'index'
                ORDER BY j.vectorizer_id, j.kind, j.id LIMIT 1) IS NULL AS idle
    FROM pgvec.vectorizers v WHERE v.id = %(vectorizer)s
) idle
WHERE w.id = ANY (%(ids)s::uuid[]) AND w.vectorizer_id = %(vectorizer)s AND (w.finished_at IS NULL OR w.failed > 0)

-- name: look
-- Brings tasks of one collection up to date. What is finished without a failure stays as it is.
WITH fates AS ({fates}), counts AS (
    SELECT id,
           count(*) FILTER (WHERE fate = 'done') AS done,
           count(*) FILTER (WHERE fate = 'failed') AS failed,
           count(*) FILTER (WHERE fate = 'skipped') AS skipped,
           count(*) FILTER (WHERE fate = 'superseded') AS superseded,
           count(*) FILTER (WHERE fate = 'cancelled') AS cancelled,
           count(*) FILTER (WHERE fate = 'waiting') AS waiting,
           (array_agg(text_id ORDER BY ordinal) FILTER (WHERE fate = 'waiting'))[1] AS first_waiting,
           max(greatest(written_at, last_at)) AS ended_at
    FROM fates GROUP BY id
), found AS (
    SELECT c.*,
           CASE WHEN t.cancelled_at IS NOT NULL THEN 'cancelled'
                WHEN c.waiting = 0 AND c.failed > 0 THEN 'failed'
                WHEN c.waiting = 0 THEN 'done'
                WHEN c.done + c.failed > 0
                     OR EXISTS (SELECT FROM pgvec.jobs j
                                WHERE j.vectorizer_id = %(vectorizer)s AND j.state = 'running'
                                  AND j.keys @> jsonb_build_array(jsonb_build_array(c.first_waiting))) THEN 'running'
                ELSE 'queued' END AS state,
           CASE WHEN c.waiting = 0
                THEN coalesce(t.finished_at, CASE WHEN c.ended_at IS NOT NULL THEN greatest(c.ended_at, t.created_at) END,
                              clock_timestamp()) END AS finished_at
    FROM counts c JOIN pgvec.tasks t ON t.id = c.id
)
UPDATE pgvec.tasks t
SET done = n.done, failed = n.failed, skipped = n.skipped, superseded = n.superseded, cancelled = n.cancelled,
    state = n.state, finished_at = n.finished_at
FROM found n
WHERE t.id = n.id
  AND (t.done, t.failed, t.skipped, t.superseded, t.cancelled, t.state, t.finished_at)
      IS DISTINCT FROM (n.done, n.failed, n.skipped, n.superseded, n.cancelled, n.state, n.finished_at);

-- name: tasks
-- With the reason why nothing moves where that is plain.
SELECT t.id, c.name AS collection, v.model, t.vectorizer_id, t.state, t.texts, t.done, t.failed, t.skipped, t.superseded,
       t.cancelled, t.batch_size, t.created_at, t.finished_at,
       extract(epoch FROM coalesce(t.finished_at, clock_timestamp()) - t.created_at)::float8 AS seconds,
       CASE WHEN t.finished_at IS NOT NULL THEN NULL
            WHEN v.cancelled THEN 'the vectorizer is cancelled'
            WHEN v.blocked_reason IS NOT NULL THEN v.blocked_reason
            WHEN v.paused THEN 'the vectorizer is paused'
            WHEN NOT EXISTS (SELECT FROM pgvec.workers w
                             WHERE NOT w.gone AND w.beat_at > clock_timestamp() - w.lease
                               AND (w.vectorizers IS NULL OR v.name = ANY (w.vectorizers)))
                 THEN 'no worker is running' END AS reason
FROM pgvec.tasks t
JOIN pgvec.vectorizers v ON v.id = t.vectorizer_id
JOIN pgvec.collections c ON c.vectorizer_id = t.vectorizer_id
WHERE t.id = ANY (%(ids)s::uuid[])
ORDER BY t.created_at DESC, t.id DESC;

-- name: page_of_tasks
-- Newest first.
SELECT t.id FROM pgvec.tasks t
JOIN pgvec.collections c ON c.vectorizer_id = t.vectorizer_id
JOIN pgvec.vectorizers v ON v.id = c.vectorizer_id
WHERE (t.created_at, t.id) < (coalesce(%(before)s::timestamptz, 'infinity'),
                              coalesce(%(id)s::uuid, 'ffffffff-ffff-ffff-ffff-ffffffffffff'))
  AND (%(state)s::text IS NULL OR t.state = %(state)s)
  AND (%(collection)s::text IS NULL OR c.name = %(collection)s)
ORDER BY t.created_at DESC, t.id DESC LIMIT %(limit)s;

-- name: vectorizers_of
SELECT t.id, t.vectorizer_id FROM pgvec.tasks t
JOIN pgvec.collections c ON c.vectorizer_id = t.vectorizer_id WHERE t.id = ANY (%(ids)s::uuid[]);

-- name: newest_unfinished
SELECT t.id FROM pgvec.tasks t WHERE t.finished_at IS NULL ORDER BY t.created_at DESC LIMIT %(limit)s;

-- name: errors
SELECT t.ordinal, t.text_id AS id, f.error_class, f.message
FROM pgvec.tasks w
JOIN pgvec.task_texts t ON t.task_id = w.id
JOIN pgvec.failures f ON f.vectorizer_id = w.vectorizer_id AND f.key = ARRAY[t.text_id] AND f.source_hash = t.source_hash
WHERE w.id = %(id)s
ORDER BY t.ordinal LIMIT %(limit)s;

-- name: result
-- Vectors in the order of the request, up to the first text that still waits, so that whoever pages on misses none.
WITH fates AS ({fates}), bound AS (
    SELECT coalesce(min(ordinal), 2147483647) AS ordinal FROM fates WHERE fate = 'waiting'
), page AS (
    SELECT t.ordinal, d.chunk_index, octet_length(d.chunk) AS size,
           json_build_object('ordinal', t.ordinal, 'id', t.text_id, 'chunk_index', d.chunk_index, 'chunk', d.chunk,
                             'embedding', d.embedding::text::json)::text AS vector
    FROM pgvec.task_texts t
    JOIN {destination} d ON d.id = t.text_id AND d.source_hash = t.source_hash
    WHERE t.task_id = %(id)s AND NOT t.cancelled AND t.ordinal >= %(ordinal)s
      AND (t.ordinal, d.chunk_index) > (%(ordinal)s, %(chunk)s) AND t.ordinal < (SELECT ordinal FROM bound)
    ORDER BY t.ordinal, d.chunk_index LIMIT %(limit)s
), measured AS (
    SELECT *, count(*) OVER () AS found,
           sum(size) OVER (ORDER BY ordinal, chunk_index ROWS UNBOUNDED PRECEDING) - size AS before
    FROM page
)
SELECT ordinal, chunk_index, vector, found FROM measured WHERE before <= %(bytes)s ORDER BY ordinal, chunk_index;

-- name: lock_task
SELECT finished_at IS NOT NULL FROM pgvec.tasks WHERE id = %(id)s FOR UPDATE;

-- name: cancel
-- What waits is embedded no more for this task; of that, what was written last by this task leaves the collection.
WITH fates AS ({fates}), waiting AS (
    SELECT ordinal, text_id FROM fates WHERE fate = 'waiting'
), taken AS (
    DELETE FROM {source} s
    USING waiting, pgvec.tasks w
    WHERE w.id = ANY (%(ids)s::uuid[]) AND s.id = waiting.text_id AND s.xmin::text = w.xid
), marked AS (
    UPDATE pgvec.task_texts t SET cancelled = true
    FROM waiting WHERE t.task_id = ANY (%(ids)s::uuid[]) AND t.ordinal = waiting.ordinal
    RETURNING t.task_id
)
UPDATE pgvec.tasks SET cancelled_at = clock_timestamp() WHERE id IN (SELECT task_id FROM marked);

-- name: list_texts
SELECT t.id, t.text, t.metadata, t.created_at, t.updated_at, t.state, t.found
FROM (
    SELECT s.*, {state} AS state, count(*) OVER () AS found,
           sum(octet_length(s.text)) OVER (ORDER BY s.id ROWS UNBOUNDED PRECEDING) - octet_length(s.text) AS before
    FROM (SELECT * FROM {source} WHERE id > %(after)s ORDER BY id LIMIT %(limit)s) s
) t
WHERE t.before <= %(bytes)s ORDER BY t.id;

-- name: get_text
SELECT s.id, s.text, s.metadata, s.created_at, s.updated_at, {state} AS state, 1 AS found
FROM {source} s WHERE s.id = %(id)s;

-- name: state_of_text
CASE WHEN pgvec.is_blank(s.text) THEN 'skipped'
     WHEN EXISTS (SELECT FROM {destination} d WHERE d.id = s.id AND d.source_hash = pgvec.source_hash(s.text)) THEN 'done'
     WHEN EXISTS (SELECT FROM pgvec.failures f WHERE f.vectorizer_id = %(vectorizer)s AND f.key = ARRAY[s.id]
                  AND f.source_hash = pgvec.source_hash(s.text)) THEN 'failed'
     ELSE 'waiting' END

-- name: delete_text
DELETE FROM {source} WHERE id = %(id)s;

-- name: housekeeping_turn
SELECT pg_try_advisory_xact_lock(2730311594);

-- name: longest_unseen
-- Tasks that nobody may be asking for, a few at a time.
UPDATE pgvec.tasks t SET looked_at = clock_timestamp()
WHERE t.id IN (SELECT id FROM pgvec.tasks WHERE finished_at IS NULL ORDER BY looked_at NULLS FIRST, created_at LIMIT %(limit)s)
RETURNING t.id;

-- name: prune_tasks
DELETE FROM pgvec.tasks
WHERE id IN (SELECT id FROM pgvec.tasks
             WHERE finished_at < clock_timestamp() - make_interval(secs => %(keep)s)
             ORDER BY finished_at LIMIT %(limit)s);

-- name: prune_orphans
-- Their collection or its vectorizer was dropped past the gateway.
DELETE FROM pgvec.tasks
WHERE id IN (SELECT t.id FROM pgvec.tasks t
             WHERE NOT EXISTS (SELECT FROM pgvec.collections c JOIN pgvec.vectorizers v ON v.id = c.vectorizer_id
                               WHERE c.vectorizer_id = t.vectorizer_id)
             LIMIT %(limit)s);
