-- The index on a vectorizer's vectors: what is wanted, what is there, and its build.

-- name: table
-- Where the vectors are: the table, its owner, and whether this session may make an index there.
SELECT c.oid, n.nspname, c.relname, c.relkind::text, a.attnum, pg_catalog.pg_get_userbyid(c.relowner),
       pg_catalog.pg_has_role(c.relowner, 'USAGE'), pg_catalog.has_schema_privilege(n.oid, 'CREATE')
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = %(embedding)s AND NOT a.attisdropped
WHERE n.nspname = %(schema)s AND c.relname = %(table)s AND c.relkind IN ('r', 'p');

-- name: tree
-- All partitions of a table, those of partitions included, each after what it is a partition of.
SELECT c.oid, n.nspname, c.relname, c.relkind::text, a.attnum, pg_catalog.pg_get_userbyid(c.relowner),
       pg_catalog.pg_has_role(c.relowner, 'USAGE'), pg_catalog.has_schema_privilege(n.oid, 'CREATE'),
       t.parentrelid::oid, CASE WHEN c.relkind = 'r' THEN pg_catalog.pg_table_size(c.oid) ELSE 0 END
FROM pg_catalog.pg_partition_tree(%(oid)s::oid) t
JOIN pg_catalog.pg_class c ON c.oid = t.relid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = %(embedding)s AND NOT a.attisdropped
WHERE t.relid <> %(oid)s::oid
ORDER BY t.level, n.nspname, c.relname;

-- name: existing
-- Indexes that a search by cosine could go through: over the column as it is, or cast to halfvec; ours or somebody's.
SELECT c.relname AS name, pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname) AS label,
       am.amname AS method, i.indisvalid AS valid, t.typname AS type, i.indkey[0] = 0 AS casts,
       coalesce((SELECT option_value::integer FROM pg_catalog.pg_options_to_table(c.reloptions) WHERE option_name = 'm'), 16) AS m,
       coalesce((SELECT option_value::integer FROM pg_catalog.pg_options_to_table(c.reloptions)
                 WHERE option_name = 'ef_construction'), 64) AS ef_construction,
       CASE c.relkind WHEN 'i' THEN pg_catalog.pg_relation_size(c.oid)
            ELSE (SELECT sum(pg_catalog.pg_relation_size(part.relid))::bigint FROM pg_catalog.pg_partition_tree(c.oid) part)
       END AS size_bytes,
       (SELECT h.inhparent FROM pg_catalog.pg_inherits h WHERE h.inhrelid = c.oid)::oid AS parent, c.oid,
       c.relname = ANY (%(names)s) AS named
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_am am ON am.oid = c.relam AND am.amname IN ('hnsw', 'ivfflat')
JOIN pg_catalog.pg_opclass o ON o.oid = i.indclass[0] AND o.opcname IN ('vector_cosine_ops', 'halfvec_cosine_ops')
JOIN pg_catalog.pg_attribute keyed ON keyed.attrelid = c.oid AND keyed.attnum = 1
JOIN pg_catalog.pg_type t ON t.oid = keyed.atttypid
WHERE i.indrelid = %(oid)s::oid AND i.indnatts = 1 AND i.indpred IS NULL
  AND (i.indkey[0] = %(attnum)s
       -- Written as PostgreSQL writes it, whatever the search path hides.
       OR pg_catalog.pg_get_expr(i.indexprs, i.indrelid)
          = pg_catalog.format('(%%I)::%%s', %(embedding)s::text, pg_catalog.format_type(t.oid, keyed.atttypmod)))
ORDER BY i.indisvalid DESC, c.oid;

-- name: leftovers
-- Indexes of ours on the table that are of no use: a build that was cut short leaves one, which is maintained and never read.
SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname)
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = %(oid)s::oid AND NOT i.indisvalid AND c.relname = ANY (%(names)s)
ORDER BY c.oid;

-- name: lock
-- One builder per table, of the session: a server process whose client has died keeps it for as long as it goes on building.
SELECT pg_catalog.pg_try_advisory_lock((1885828713::bigint << 32) | %(oid)s::bigint);

-- name: unlock
SELECT pg_catalog.pg_advisory_unlock((1885828713::bigint << 32) | %(oid)s::bigint);

-- name: others
-- Whoever builds an index on the table, or has the lock of ours and is about to; that somebody builds is shown to all, on what
-- is not.
SELECT a.pid, coalesce(nullif(a.application_name, ''), a.usename, 'somebody'),
       extract(epoch FROM clock_timestamp() - a.query_start)::float8, now.builds
FROM pg_catalog.pg_stat_activity a
CROSS JOIN LATERAL (
    SELECT EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index p
                   JOIN pg_catalog.pg_locks l ON l.pid = p.pid AND l.granted
                                             AND (l.relation = %(oid)s::oid
                                                  OR l.relation IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(%(oid)s::oid) t))
                                             AND l.mode = 'ShareUpdateExclusiveLock'
                   WHERE p.pid = a.pid AND p.datname = current_database()) AS builds,
           EXISTS (SELECT FROM pg_catalog.pg_locks l
                   WHERE l.pid = a.pid AND l.granted AND l.locktype = 'advisory' AND l.objsubid = 1
                     AND l.classid = 1885828713 AND l.objid = %(oid)s::oid
                     AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = current_database())) AS has_lock
) now
WHERE a.pid <> pg_catalog.pg_backend_pid() AND (now.builds OR now.has_lock)
ORDER BY now.builds DESC, a.pid LIMIT 1;

-- name: server
SELECT extract(epoch FROM pg_catalog.pg_postmaster_start_time())::float8;

-- name: settings
SELECT pg_catalog.pg_size_bytes(current_setting('maintenance_work_mem')),
       pg_catalog.pg_size_bytes(current_setting('shared_buffers')),
       current_setting('max_parallel_maintenance_workers')::integer,
       least(current_setting('max_parallel_workers')::integer, current_setting('max_worker_processes')::integer);

-- name: vectors
-- How many vectors there are: as counted since the vectorizer was made, else as by the table's statistics.
SELECT coalesce(nullif(greatest(v.chunks_base + coalesce((SELECT sum(c.chunks_written - c.chunks_deleted)
                                                           FROM pgvec.counters c WHERE c.vectorizer_id = v.id), 0), 0), 0),
                (SELECT sum(greatest(r.reltuples, 0)) FROM pg_catalog.pg_partition_tree(%(oid)s::oid) part
                 JOIN pg_catalog.pg_class r ON r.oid = part.relid WHERE part.isleaf),
                (SELECT greatest(r.reltuples, 0) FROM pg_catalog.pg_class r WHERE r.oid = %(oid)s::oid), 0)::float8
FROM pgvec.vectorizers v WHERE v.id = %(vectorizer)s;

-- name: untimed
-- Of a connection that does nothing else: a build runs in no transaction, where SET LOCAL has no effect. A role or a database
-- may have timeouts of its own.
SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false),
       set_config('idle_in_transaction_session_timeout', '0', false),
       (SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings WHERE name = 'transaction_timeout');

-- name: session
SELECT set_config('maintenance_work_mem', %(memory)s, false),
       set_config('max_parallel_maintenance_workers', %(workers)s, false);

-- name: create
CREATE INDEX CONCURRENTLY {index} ON {table} USING hnsw ({value} {opclass}) WITH (m = {m}, ef_construction = {ef_construction});

-- name: create_on_only
-- Of a partitioned table: no index but that of its partitions, which are attached to it one by one. Valid with the last one.
CREATE INDEX {index} ON ONLY {table} USING hnsw ({value} {opclass}) WITH (m = {m}, ef_construction = {ef_construction});

-- name: attach
ALTER INDEX {index} ATTACH PARTITION {part};

-- name: lock_gently
-- Against vacuum and definitions alone: readers and writers neither wait for it nor are waited for, and autovacuum gives way.
LOCK TABLE {table} IN SHARE UPDATE EXCLUSIVE MODE;

-- name: lock_wholly
-- With all of its partitions, and theirs.
LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE;

-- name: patience
SELECT set_config('statement_timeout', %(statement)s, true), set_config('lock_timeout', %(lock)s, true);

-- name: partition_exists
SELECT FROM pg_catalog.pg_partition_tree(%(oid)s::oid) t WHERE t.relid = %(part)s::oid;

-- name: drop
DROP INDEX CONCURRENTLY IF EXISTS {index};

-- name: drop_partitioned
-- With those of all partitions; PostgreSQL drops no such index concurrently.
DROP INDEX IF EXISTS {index};

-- name: building
-- What a build is at, by its server process.
SELECT p.phase,
       CASE WHEN p.phase LIKE 'building index%%' AND p.blocks_total > 0 THEN p.blocks_done::float8 / p.blocks_total END,
       p.tuples_done, other.pid, coalesce(nullif(other.application_name, ''), other.usename, 'somebody'),
       extract(epoch FROM clock_timestamp() - other.xact_start)::float8
FROM pg_catalog.pg_stat_progress_create_index p
LEFT JOIN pg_catalog.pg_stat_activity other
       ON other.pid = nullif(p.current_locker_pid, 0) AND p.phase LIKE 'waiting%%'
WHERE p.pid = %(pid)s;

-- name: wish
SELECT m, ef_construction, store, memory_bytes AS memory, parallel_workers AS workers, anyway
FROM pgvec.indexes WHERE vectorizer_id = %(vectorizer)s;

-- name: state
SELECT state FROM pgvec.indexes WHERE vectorizer_id = %(vectorizer)s;

-- name: want
INSERT INTO pgvec.indexes AS i (vectorizer_id, m, ef_construction, store, memory_bytes, parallel_workers, anyway, state)
VALUES (%(vectorizer)s, %(m)s, %(ef_construction)s, %(store)s, %(memory)s, %(workers)s, %(anyway)s, %(state)s)
ON CONFLICT (vectorizer_id) DO UPDATE
SET m = excluded.m, ef_construction = excluded.ef_construction, store = excluded.store,
    memory_bytes = excluded.memory_bytes, parallel_workers = excluded.parallel_workers, anyway = excluded.anyway,
    state = excluded.state, reason = NULL, failures = 0;

-- name: queue
-- One that runs makes what was wanted when it began: for another wish there is another job, after it.
INSERT INTO pgvec.jobs (vectorizer_id, kind)
SELECT %(vectorizer)s, 'index'
WHERE NOT EXISTS (SELECT FROM pgvec.jobs j WHERE (j.vectorizer_id, j.kind) = (%(vectorizer)s, 'index')
                  AND (j.state = 'queued' OR (j.state = 'running' AND NOT %(anew)s)));

-- name: unqueue
DELETE FROM pgvec.jobs j WHERE (j.vectorizer_id, j.kind) = (%(vectorizer)s, 'index') AND j.state = 'queued';

-- name: withdrawn
-- Queued jobs of what is not wanted any more, which a worker has left that died. Under the lock that whoever wants it again
-- takes first, and then looks for a job.
WITH withdrawn AS MATERIALIZED (
    SELECT i.vectorizer_id FROM pgvec.indexes i
    WHERE i.state = 'unwanted'
      AND EXISTS (SELECT FROM pgvec.jobs j WHERE (j.vectorizer_id, j.kind) = (i.vectorizer_id, 'index') AND j.state = 'queued')
    FOR UPDATE SKIP LOCKED
)
DELETE FROM pgvec.jobs j USING withdrawn
WHERE (j.vectorizer_id, j.kind) = (withdrawn.vectorizer_id, 'index') AND j.state = 'queued';

-- name: found
-- The index is there: built, or met as it was; what is known of the one that is met stays known.
UPDATE pgvec.indexes i
SET state = 'built', failures = 0, index_name = %(name)s::text, size_bytes = %(size)s,
    -- Of another state the reason is why there was none.
    reason = CASE WHEN same AND i.state IN ('built', 'building') THEN i.reason ELSE %(remark)s::text END,
    built_at = CASE WHEN same THEN i.built_at ELSE clock_timestamp() END,
    seconds = CASE WHEN same THEN i.seconds ELSE %(seconds)s::float8 END,
    recall = CASE WHEN same THEN i.recall END, recall_queries = CASE WHEN same THEN i.recall_queries END,
    recall_at = CASE WHEN same THEN i.recall_at END
FROM (SELECT vectorizer_id, coalesce(index_name = %(name)s::text, false) AND %(seconds)s::float8 IS NULL AS same FROM pgvec.indexes) known
WHERE i.vectorizer_id = %(vectorizer)s AND known.vectorizer_id = i.vectorizer_id AND i.state <> 'unwanted';

-- name: begun
UPDATE pgvec.indexes
SET state = 'building', started_at = clock_timestamp(), reason = CASE WHEN state = 'built' THEN reason END
WHERE vectorizer_id = %(vectorizer)s AND state <> 'unwanted';

-- name: unfinished
UPDATE pgvec.indexes i
SET state = 'wanted',
    reason = CASE WHEN EXISTS (SELECT FROM pgvec.jobs j WHERE (j.vectorizer_id, j.kind) = (i.vectorizer_id, 'index')
                               AND j.state IN ('queued', 'running')) THEN i.reason ELSE %(reason)s::text END
WHERE i.vectorizer_id = %(vectorizer)s AND i.state IN ('wanted', 'building');

-- name: refused
UPDATE pgvec.indexes SET state = 'refused', reason = %(reason)s WHERE vectorizer_id = %(vectorizer)s AND state <> 'unwanted';

-- name: left
-- Why it is not built yet: nobody else has said so.
UPDATE pgvec.indexes SET reason = %(reason)s
WHERE vectorizer_id = %(vectorizer)s AND state = 'wanted' AND reason IS DISTINCT FROM %(reason)s;

-- name: recalled
UPDATE pgvec.indexes
SET recall = %(recall)s, recall_queries = %(queries)s, recall_at = clock_timestamp(),
    reason = nullif(concat_ws('; ', nullif(regexp_replace(reason, '(; )?recall is not known: .*$', ''), ''), %(reason)s::text), '')
WHERE vectorizer_id = %(vectorizer)s;

-- name: claimable
-- Index jobs whose ranges and sweeps are all done. Of what runs there are few; what is queued is looked at only where nothing
-- runs any more: the queue's index may hold the entries of a million finished ranges, for as long as somebody's snapshot is.
SELECT v.id
FROM pgvec.indexes i
JOIN pgvec.vectorizers v ON v.id = i.vectorizer_id
CROSS JOIN LATERAL (
    SELECT j.id FROM pgvec.jobs j
    WHERE (j.vectorizer_id, j.kind, j.id) >= (v.id, 'index', 0) AND (j.vectorizer_id, j.kind) <= (v.id, 'index')
      AND j.state = 'queued' AND (j.run_after IS NULL OR j.run_after <= clock_timestamp())
    ORDER BY j.vectorizer_id, j.kind, j.id LIMIT 1
) first
WHERE i.state <> 'unwanted' AND v.id <> ALL (%(left)s::bigint[])
  AND NOT v.paused AND NOT v.cancelled AND v.blocked_reason IS NULL AND v.plan_complete
  AND (%(names)s::text[] IS NULL OR v.name = ANY (%(names)s))
  AND CASE WHEN EXISTS (SELECT FROM pgvec.jobs r WHERE r.vectorizer_id = v.id AND r.state = 'running'
                        AND r.kind IN ('range', 'sweep', 'index'))
           THEN false
           ELSE NOT EXISTS (SELECT FROM pgvec.jobs r
                            WHERE (r.vectorizer_id, r.kind) >= (v.id, 'range') AND (r.vectorizer_id, r.kind) <= (v.id, 'sweep')
                              AND r.state = 'queued') END
ORDER BY v.priority DESC, v.id;

-- name: claim
-- Under the job's lock once more: nobody builds while a range is unfinished, and one worker alone does.
WITH picked AS (
    SELECT j.id
    FROM pgvec.jobs j
    WHERE (j.vectorizer_id, j.kind, j.id) >= (%(vectorizer)s::bigint, 'index', 0)
      AND (j.vectorizer_id, j.kind) <= (%(vectorizer)s::bigint, 'index')
      AND j.state = 'queued' AND (j.run_after IS NULL OR j.run_after <= clock_timestamp())
      AND EXISTS (SELECT FROM pgvec.vectorizers v WHERE v.id = j.vectorizer_id AND v.plan_complete
                  AND NOT v.paused AND NOT v.cancelled AND v.blocked_reason IS NULL)
      AND EXISTS (SELECT FROM pgvec.indexes i WHERE i.vectorizer_id = j.vectorizer_id AND i.state <> 'unwanted')
      AND NOT EXISTS (SELECT FROM pgvec.jobs r WHERE r.vectorizer_id = j.vectorizer_id AND r.state = 'running'
                      AND r.kind IN ('range', 'sweep', 'index'))
      AND NOT EXISTS (SELECT FROM pgvec.jobs r
                      WHERE (r.vectorizer_id, r.kind) >= (%(vectorizer)s::bigint, 'range')
                        AND (r.vectorizer_id, r.kind) <= (%(vectorizer)s::bigint, 'sweep') AND r.state = 'queued')
      AND EXISTS (SELECT FROM pgvec.workers w WHERE w.id = %(worker)s AND NOT w.gone)
      AND pgvec.world() = %(world)s
    ORDER BY j.vectorizer_id, j.kind, j.id
    LIMIT 1
    FOR UPDATE SKIP LOCKED
)
UPDATE pgvec.jobs j
SET state = 'running', epoch = j.epoch + 1, worker_id = %(worker)s, claimed_at = clock_timestamp(), run_after = NULL,
    in_hand = false
FROM picked WHERE j.id = picked.id
RETURNING j.id, j.vectorizer_id, j.epoch, j.attempts;

-- name: holds
-- The fence: whether the job is still this worker's; locked until what is written with it is committed.
SELECT FROM pgvec.jobs
WHERE id = %(id)s AND state = 'running' AND epoch = %(epoch)s AND worker_id = %(worker)s AND pgvec.world() = %(world)s
FOR UPDATE;

-- name: advanced
-- A part of it is done for good: whoever died before, or failed, did so of something else.
WITH job AS (
    UPDATE pgvec.jobs SET attempts = 0 WHERE id = %(id)s RETURNING vectorizer_id
)
UPDATE pgvec.indexes i SET failures = 0 FROM job WHERE i.vectorizer_id = job.vectorizer_id AND i.failures > 0;

-- name: done
UPDATE pgvec.jobs SET state = 'done', worker_id = NULL, finished_at = clock_timestamp() WHERE id = %(id)s;

-- name: give_back
-- One that is not wanted any more ends, and so does one in whose place another is queued.
WITH needless AS (
    SELECT j.id FROM pgvec.jobs j
    WHERE j.id = %(id)s
      AND (EXISTS (SELECT FROM pgvec.indexes i WHERE i.vectorizer_id = j.vectorizer_id AND i.state = 'unwanted')
           OR EXISTS (SELECT FROM pgvec.jobs other WHERE (other.vectorizer_id, other.kind) = (j.vectorizer_id, 'index')
                      AND other.state = 'queued'))
), ended AS (
    DELETE FROM pgvec.jobs j USING needless WHERE j.id = needless.id
)
UPDATE pgvec.jobs SET state = 'queued', worker_id = NULL, run_after = clock_timestamp() + make_interval(secs => %(seconds)s)
WHERE id = %(id)s AND NOT EXISTS (SELECT FROM needless);

-- name: failed
-- Goes back to what is wanted, with the reason; returns how often that was.
UPDATE pgvec.indexes SET state = 'wanted', reason = %(reason)s, failures = failures + 1
WHERE vectorizer_id = %(vectorizer)s AND state <> 'unwanted'
RETURNING failures;

-- name: status
SELECT * FROM pgvec.index_status WHERE %(name)s::text IS NULL OR name = %(name)s ORDER BY name;

-- name: sample
-- Some of the vectors, at random: of a large table from some of its pages.
SELECT {embedding}::real[] FROM {table} {sample} WHERE {embedding} IS NOT NULL ORDER BY random() LIMIT %(count)s;

-- name: through
SELECT array_agg(score ORDER BY score DESC)
FROM pgvec.search(%(vectorizer)s, %(query)s::real[], max_hits => %(hits)s, exact => %(exact)s, all_chunks => true);

-- name: prefer_index
-- The planner would not take the index of a small table; JIT would cost more than it saves.
SELECT set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);
