-- What `enqueue --dry-run` reads; every statement runs in a READ ONLY transaction.

-- name: relations
-- The source and whatever inherits from it, as far as it holds rows: pages now, and what the last ANALYZE has seen.
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS relid
    UNION
    SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree t ON i.inhparent = t.relid
)
SELECT c.relkind = 'f' AS is_foreign,
       CASE WHEN c.relkind = 'f' THEN 0
            ELSE pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::bigint END AS pages,
       c.relpages::bigint AS analyzed_pages, c.reltuples::float8 AS analyzed_rows,
       coalesce(pg_catalog.pg_stat_get_mod_since_analyze(c.oid), 0) AS changed,
       (SELECT coalesce(sum(pg_catalog.pg_relation_size(i.indexrelid)), 0)::bigint
        FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid) AS index_bytes
FROM tree t JOIN pg_catalog.pg_class c ON c.oid = t.relid
WHERE c.relkind IN ('r', 'm', 'f');

-- name: count
SELECT count(*) FROM {source} s;

-- name: sample_pages
-- Rows by page: how many, and of the selected ones key and size of the text. A stored text tells its size without being read.
SELECT relation, page, count(*) AS rows, array_agg(key) FILTER (WHERE selected), array_agg(size) FILTER (WHERE selected)
FROM (
    SELECT s.tableoid AS relation, (s.ctid::text::point)[0]::bigint AS page,
           {key_text} AS key, {selected} AS selected, ({size})::bigint AS size
    FROM {source} AS s TABLESAMPLE SYSTEM (%(percent)s::real) {repeatable}
) sampled
GROUP BY relation, page
ORDER BY relation, page;

-- name: repeatable
REPEATABLE (%(seed)s);

-- name: walk
-- Up to %(hops)s ends of stretches of %(rows)s rows each, by walking the key's index without the filter, as planning does.
WITH RECURSIVE hops AS (
    SELECT * FROM (
        SELECT 1 AS pgvec_hop, {key} FROM {source} WHERE {scope} ORDER BY {key} OFFSET %(rows)s - 1 LIMIT 1
    ) first
    UNION ALL
    SELECT h.pgvec_hop + 1, {next_key}
    FROM hops h
    CROSS JOIN LATERAL (
        SELECT {key} FROM {source} WHERE {after_hop} AND {any_key} ORDER BY {key} OFFSET %(rows)s - 1 LIMIT 1
    ) n
    WHERE h.pgvec_hop < %(hops)s
)
SELECT {hop_key_text} FROM hops ORDER BY pgvec_hop;

-- name: sample_stretch
SELECT count(*) AS rows, array_agg(key) FILTER (WHERE selected), array_agg(size) FILTER (WHERE selected)
FROM (
    SELECT {key_text} AS key, {selected} AS selected, ({size})::bigint AS size
    FROM {source} s WHERE {scope} ORDER BY {key} OFFSET %(skip)s LIMIT %(rows)s
) sampled;

-- name: documents
-- The drawn rows: what a worker would find of each, and its text where it would be embedded.
SELECT position, state, size, CASE WHEN state IN ('new', 'changed') AND size <= %(max_bytes)s THEN document END,
       template_columns, key_sizes, stored
FROM (
    SELECT u.pgvec_ordinal AS position, {state} AS state, octet_length({document}) AS size, {document} AS document,
           {template_columns} AS template_columns, ARRAY[{key_sizes}]::int[] AS key_sizes, ({stored})::bigint AS stored
    FROM {listed} JOIN {source} s ON {listed_is_source}
) drawn;

-- name: state
-- With a destination that is there.
CASE WHEN {blank} THEN 'blank' WHEN {current} THEN 'unchanged' WHEN {quarantined} THEN 'quarantined'
     WHEN {held} THEN 'changed' ELSE 'new' END;

-- name: state_without_destination
CASE WHEN {blank} THEN 'blank' WHEN {quarantined} THEN 'quarantined' ELSE 'new' END;

-- name: types
-- How values of these types lie in a row.
SELECT t.typlen::int, t.typalign::text, t.typstorage::text
FROM unnest(%(types)s::text[]) WITH ORDINALITY u(name, position)
JOIN pg_catalog.pg_type t ON t.oid = u.name::regtype
ORDER BY u.position;

-- name: attributes
SELECT a.attname, a.attlen::int, a.attalign::text, a.attstorage::text, a.attnotnull OR a.atthasdef
FROM pg_catalog.pg_attribute a
WHERE a.attrelid = %(oid)s::oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum;

-- name: options
SELECT coalesce((SELECT o.option_value::int FROM pg_catalog.pg_options_to_table(c.reloptions) o
                 WHERE o.option_name = 'toast_tuple_target'), 0),
       coalesce((SELECT o.option_value::int FROM pg_catalog.pg_options_to_table(c.reloptions) o
                 WHERE o.option_name = 'fillfactor'), 100)
FROM pg_catalog.pg_class c
-- A partitioned table is stored as its partitions are, whose options are their own.
WHERE c.oid = coalesce((SELECT t.relid FROM pg_catalog.pg_partition_tree(%(oid)s::oid) t WHERE t.isleaf AND t.level > 0
                        ORDER BY t.relid LIMIT 1), %(oid)s::oid);

-- name: partitions
-- How many partitions hold rows of a table, and which share of them the largest one has.
SELECT count(*), max(size) / nullif(sum(size), 0)
FROM (SELECT pg_catalog.pg_table_size(t.relid)::float8 AS size
      FROM pg_catalog.pg_partition_tree(%(oid)s::oid) t WHERE t.isleaf AND t.relid <> %(oid)s::oid) leaves;

-- name: indexes
-- The columns of each B-tree index of a table, expressions left out; no columns for an index of another kind,
-- HNSW left out, which is told by itself.
SELECT CASE WHEN am.amname = 'btree' THEN
       ARRAY(SELECT a.attname FROM unnest(i.indkey::int2[]) k(attnum)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum)::text[] END
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_am am ON am.oid = c.relam
WHERE i.indrelid = %(oid)s::oid AND am.amname <> 'hnsw';

-- name: settings
SELECT name, setting FROM pg_catalog.pg_settings
WHERE name IN ('block_size', 'full_page_writes', 'wal_level', 'wal_compression', 'maintenance_work_mem');

-- name: unfinished
SELECT count(*) FROM pgvec.jobs WHERE vectorizer_id = %(id)s AND state IN ('queued', 'running');

-- name: paces
-- What all workers together did with this model, by minutes of the last day in which they did something, the latest first.
WITH same AS (
    SELECT id FROM pgvec.vectorizers
    WHERE embedder = %(embedder)s AND model = %(model)s AND endpoint IS NOT DISTINCT FROM %(endpoint)s::text
), parts AS (
    SELECT minute, began_at, ended_at, rows, chunks, tokens, worker_id
    FROM pgvec.minutes
    WHERE minute > clock_timestamp() - interval '1 day' AND vectorizer_id IN (SELECT id FROM same)
    UNION ALL
    SELECT date_trunc('minute', at), at, at + interval '10 seconds', rows, chunks, tokens, worker_id
    FROM pgvec.samples
    WHERE vectorizer_id IN (SELECT id FROM same)
      AND at >= coalesce((SELECT max(minute) + interval '1 minute' FROM pgvec.minutes), '-infinity')
)
SELECT sum(rows)::bigint, sum(chunks)::bigint, sum(tokens)::bigint,
       greatest(extract(epoch FROM max(ended_at) - min(began_at)), 1)::float8, array_agg(DISTINCT worker_id)
FROM parts GROUP BY minute HAVING sum(tokens) > 0 ORDER BY minute DESC LIMIT 60;

-- name: devices
-- The workers that have the model in memory now, and what their devices do alone.
SELECT count(*), coalesce(sum(documents_per_second), 0)::float8
FROM pgvec.workers
WHERE NOT gone AND beat_at > clock_timestamp() - lease AND %(model)s = ANY (models) AND documents_per_second > 0;
