-- Another model: two vectorizers over the same rows, of which one is to take the other's name.

-- name: of
-- The migration that a vectorizer is a part of.
SELECT old_id, new_id, created_at, switched_at FROM pgvec.model_migrations WHERE %(id)s IN (old_id, new_id);

-- name: lock
-- Held, neither of the two can be swapped, renamed or dropped by somebody else.
SELECT m.old_id, m.new_id, m.switched_at IS NOT NULL AS switched, v.name AS dropped
FROM pgvec.model_migrations m JOIN pgvec.vectorizers v ON v.id = %(dropped)s
WHERE m.old_id = %(old)s AND m.new_id = %(new)s FOR UPDATE OF m, v;

-- name: collection
-- The gateway's collection whose texts it embeds.
SELECT name FROM pgvec.collections WHERE vectorizer_id = %(id)s;

-- name: synced_over
-- Who follows the changes of a table, of its partitions, or of what it is a partition of.
WITH RECURSIVE parts AS (
    SELECT to_regclass(%(table)s)::oid AS oid
    UNION
    SELECT CASE WHEN i.inhparent = t.oid THEN i.inhrelid ELSE i.inhparent END
    FROM pg_catalog.pg_inherits i JOIN parts t ON t.oid IN (i.inhparent, i.inhrelid)
)
SELECT v.id FROM pgvec.vectorizers v
WHERE v.sync AND to_regclass(pg_catalog.format('%%I.%%I', v.source_schema, v.source_table)) IN (SELECT oid FROM parts)
ORDER BY v.id;

-- name: begin
-- The new one gives way to the changes of the one that is read, and has its limits.
WITH begun AS (
    INSERT INTO pgvec.model_migrations (old_id, new_id) VALUES (%(old)s, %(new)s) ON CONFLICT DO NOTHING
    RETURNING old_id, new_id
), event AS (
    INSERT INTO pgvec.events (kind, vectorizer_id, message)
    SELECT 'migration begun', b.old_id, 'to ' || v.model FROM begun b JOIN pgvec.vectorizers v ON v.id = b.new_id
)
UPDATE pgvec.vectorizers n
SET priority = o.priority - 1, rows_per_second_limit = o.rows_per_second_limit,
    replication_lag_limit = o.replication_lag_limit, commit_time_limit = o.commit_time_limit
FROM begun b JOIN pgvec.vectorizers o ON o.id = b.old_id
WHERE n.id = b.new_id;

-- name: switch
SELECT pgvec.switch_model(%(name)s);

-- name: roll_back
SELECT pgvec.roll_back_model(%(name)s);

-- name: lock_jobs
-- Whoever writes one of them ends first, and nobody begins: the same order of locks as a worker's.
SELECT count(*) FROM (
    SELECT FROM pgvec.jobs WHERE vectorizer_id = %(id)s AND state IN ('queued', 'running') ORDER BY id FOR UPDATE
) locked;

-- name: lock_table
LOCK TABLE {destination} IN ACCESS EXCLUSIVE MODE;

-- name: drop_table
DROP TABLE IF EXISTS {destination} RESTRICT;

-- name: drop_columns
ALTER TABLE {destination} {columns};

-- name: drop_column
DROP COLUMN IF EXISTS {column} RESTRICT

-- name: finished
INSERT INTO pgvec.events (kind, vectorizer_id, message) VALUES (%(kind)s, %(id)s, %(message)s);

-- name: partner
-- The other vectorizer of an open migration.
SELECT v.name, v.destination_schema, v.destination_table, v.destination_kind = 'table' AND v.destination_created AS made
FROM pgvec.model_migrations m JOIN pgvec.vectorizers v ON v.id IN (m.old_id, m.new_id) AND v.id <> %(id)s
WHERE %(id)s IN (m.old_id, m.new_id);

-- name: all
-- What is read and what waits beside it, for whoever shows all vectorizers.
SELECT r.name AS reads, w.name AS waits, n.model, m.switched_at IS NOT NULL AS switched
FROM pgvec.model_migrations m
JOIN pgvec.vectorizers n ON n.id = m.new_id
JOIN pgvec.vectorizers r ON r.id = CASE WHEN m.switched_at IS NULL THEN m.old_id ELSE m.new_id END
JOIN pgvec.vectorizers w ON w.id = CASE WHEN m.switched_at IS NULL THEN m.new_id ELSE m.old_id END
ORDER BY r.name;

-- name: filled
-- Both vectorizers of each migration that may be switched at any time, or has been.
SELECT pgvec_migration, {columns}
FROM (
    SELECT v.*, m.old_id AS pgvec_migration
    FROM pgvec.model_migrations m
    JOIN pgvec.vectorizers n ON n.id = m.new_id
    JOIN pgvec.vectorizers v ON v.id IN (m.old_id, m.new_id)
    WHERE m.switched_at IS NOT NULL
       OR (n.plan_complete AND NOT EXISTS (SELECT FROM pgvec.jobs j WHERE j.vectorizer_id = n.id
                                           AND j.state IN ('queued', 'running') AND j.kind <> 'keys'))
) v;

-- name: queue
-- What of a vectorizer is unfinished: jobs of its backfill, and keys of live changes.
SELECT count(*) FILTER (WHERE kind <> 'keys') AS jobs,
       coalesce(sum(key_count) FILTER (WHERE kind = 'keys'), 0)::bigint AS changes
FROM pgvec.jobs WHERE vectorizer_id = %(id)s AND state IN ('queued', 'running');

-- name: sizes
-- Bytes of the table, TOAST included, of all its indexes, and of those on the vectors; with its partitions.
WITH tables AS (
    SELECT to_regclass({destination}) AS oid
    UNION SELECT relid FROM pg_catalog.pg_partition_tree(to_regclass({destination}))
)
SELECT coalesce(sum(pg_catalog.pg_table_size(t.oid)), 0)::bigint AS table_bytes,
       coalesce(sum(pg_catalog.pg_indexes_size(t.oid)), 0)::bigint AS index_bytes,
       (SELECT coalesce(sum(pg_catalog.pg_relation_size(i.indexrelid)), 0)::bigint
        FROM tables p
        JOIN pg_catalog.pg_index i ON i.indrelid = p.oid
        JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey)
        WHERE a.attname = %(embedding)s) AS own_index_bytes
FROM tables t;

-- name: indexed
-- Whether searches by these vectors can go through an index.
SELECT EXISTS (
    SELECT FROM (
        SELECT to_regclass({destination}) AS oid
        UNION SELECT relid FROM pg_catalog.pg_partition_tree(to_regclass({destination}))
    ) t
    JOIN pg_catalog.pg_index i ON i.indrelid = t.oid AND i.indisvalid
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_am m ON m.oid = c.relam AND m.amname IN ('hnsw', 'ivfflat')
    JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attname = %(embedding)s
    WHERE a.attnum = ANY (i.indkey)
       -- An index on a cast has no columns of its own.
       OR pg_catalog.pg_get_expr(i.indexprs, i.indrelid) LIKE '%%' || pg_catalog.quote_ident(a.attname) || '%%');

-- name: sample
-- Texts to ask with, from a few pages of a large table, from all of a small one.
SELECT left(t.text, 1000)
FROM (SELECT {text} AS text FROM {table} s {pages} WHERE {there}) t
WHERE NOT pgvec.is_blank(t.text)
ORDER BY random() LIMIT %(count)s;

-- name: sample_pages
 TABLESAMPLE SYSTEM ({percent})

-- name: report
UPDATE pgvec.model_migrations SET report = %(report)s, reported_at = clock_timestamp() WHERE old_id = %(old)s AND new_id = %(new)s;
