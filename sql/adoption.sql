-- Taking over vectors that were there before. In each, pgvec_… names of d keep out of the way of the operator's filter.

-- name: held_chunks
-- What the destination holds for a row of s: its chunks in order, and whether anything is known of their text.
SELECT array_agg(c.chunk ORDER BY c.place) FILTER (WHERE c.chunk IS NOT NULL) AS pgvec_chunks,
       coalesce(sum(octet_length(c.chunk)), 0) AS pgvec_bytes,
       count(*) AS pgvec_count,
       pgvec.source_hash(string_agg(coalesce(c.chunk, ''), E'\x1f' ORDER BY c.place)) AS pgvec_digest,
       bool_and(c.hash IS NULL) AS pgvec_unknown,
       bool_and(c.there AND c.number IS NOT DISTINCT FROM c.place - 1) AS pgvec_complete
FROM (
    SELECT {stored} AS chunk, {number} AS number, {place} AS place, {known_hash} AS hash, d.{embedding} IS NOT NULL AS there
    FROM {destination} d WHERE {matches_destination}
) c

-- name: held_vector
-- The same for a vector column of s.
SELECT NULL::text[] AS pgvec_chunks, 0::bigint AS pgvec_bytes, 1::bigint AS pgvec_count, NULL::bytea AS pgvec_digest,
       s.{embedding} IS NOT NULL AND s.{source_hash} IS NULL AS pgvec_unknown, true AS pgvec_complete

-- name: held_unknown
-- Where no index leads from a key to its chunks, nobody looks them up.
SELECT NULL::text[] AS pgvec_chunks, 0::bigint AS pgvec_bytes, 0::bigint AS pgvec_count, NULL::bytea AS pgvec_digest,
       NULL::boolean AS pgvec_unknown, NULL::boolean AS pgvec_complete

-- name: vector_indexes
-- What an update of every row has to add its vectors to once more.
SELECT i.indexrelid::regclass::text
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_am am ON am.oid = c.relam
WHERE (i.indrelid = to_regclass(%(table)s)
       -- Of partitions those that are no part of the table's own.
       OR NOT c.relispartition
          AND i.indrelid IN (SELECT t.relid FROM pg_catalog.pg_partition_tree(to_regclass(%(table)s)) t))
  AND am.amname IN ('hnsw', 'ivfflat', 'diskann')
ORDER BY 1;

-- name: window
-- The key that ends the next range: so many rows further on.
SELECT {key_text} FROM {source} s WHERE {scope} ORDER BY {key} OFFSET %(rows)s - 1 LIMIT 1;

-- name: candidates
-- Rows of the range that have vectors of which nothing is known, with their text and their chunks; up to %(bytes)s of both.
SELECT key, hash, document, template_columns, chunks, pieces, complete, digest, size
FROM (
    SELECT {key_text} AS key, {hash} AS hash,
           CASE WHEN octet_length({document}) <= %(max_bytes)s AND d.pgvec_bytes <= 8 * %(max_bytes)s::bigint
                THEN {document} END AS document,
           {template_columns} AS template_columns,
           CASE WHEN d.pgvec_bytes <= 8 * %(max_bytes)s::bigint THEN d.pgvec_chunks END AS chunks,
           d.pgvec_count AS pieces, d.pgvec_complete AS complete, d.pgvec_digest AS digest,
           least(octet_length({document}), %(max_bytes)s) + least(d.pgvec_bytes, 8 * %(max_bytes)s::bigint) AS size,
           row_number() OVER before AS position,
           sum(least(octet_length({document}), %(max_bytes)s) + least(d.pgvec_bytes, 8 * %(max_bytes)s::bigint)) OVER before AS upto
    FROM {source} s CROSS JOIN LATERAL ({held}) d
    WHERE {scope} AND {selected} AND NOT {blank} AND d.pgvec_unknown AND NOT {excepted}
    WINDOW before AS (ORDER BY {key} ROWS UNBOUNDED PRECEDING)
    ORDER BY {key}
    LIMIT %(rows)s
) counted
WHERE upto - size <= %(bytes)s
ORDER BY position;

-- name: take_over
-- Whose text and chunks are still those that were compared gets its hash; tells which of the list.
WITH same AS (
    SELECT u.pgvec_ordinal
    FROM {listed} JOIN {source} s ON {listed_is_source} CROSS JOIN LATERAL ({held}) d
    WHERE {selected} AND {hash} = u.pgvec_hash AND d.pgvec_unknown AND d.pgvec_digest = u.pgvec_digest
), taken AS (
    UPDATE {destination} d SET {source_hash} = u.pgvec_hash
    FROM {listed} JOIN same USING (pgvec_ordinal)
    WHERE {listed_is_destination}
    RETURNING pgvec_ordinal
)
SELECT DISTINCT pgvec_ordinal FROM taken;

-- name: take_over_column
-- The rows are locked by then.
UPDATE {source} s SET {source_hash} = u.pgvec_hash
FROM {listed}
WHERE {listed_is_source} AND {selected} AND {hash} = u.pgvec_hash
  AND s.{source_hash} IS NULL AND s.{embedding} IS NOT NULL
RETURNING u.pgvec_ordinal;

-- name: count
INSERT INTO pgvec.counters AS c (vectorizer_id, worker_id, rows_adopted) VALUES (%(id)s, 0, %(rows)s)
ON CONFLICT (vectorizer_id, worker_id) DO UPDATE SET rows_adopted = c.rows_adopted + excluded.rows_adopted;

-- name: sample_chunks
-- Stored chunks from pages all over the table, with their vectors, and the rows that they belong to.
SELECT d.pgvec_key, d.pgvec_chunk, d.pgvec_vector, r.document, r.template_columns, r.chunks, r.pieces, r.complete
FROM (
    SELECT {destination_key}, {destination_key_text} AS pgvec_key, {stored} AS pgvec_chunk,
           d.{embedding}::{vector}::real[] AS pgvec_vector
    FROM {destination} d TABLESAMPLE SYSTEM (%(percent)s::real)
    WHERE d.{embedding} IS NOT NULL
    ORDER BY random() LIMIT %(count)s
) d
LEFT JOIN LATERAL (
    SELECT CASE WHEN octet_length({document}) <= %(most_bytes)s THEN {document} END AS document,
           {template_columns} AS template_columns,
           CASE WHEN h.pgvec_bytes <= 8 * %(most_bytes)s THEN h.pgvec_chunks END AS chunks,
           h.pgvec_count AS pieces, h.pgvec_complete AS complete
    FROM {source} s CROSS JOIN LATERAL ({held}) h
    WHERE {key_from_destination} AND {matches_destination} AND {selected} AND NOT {blank} AND NOT {excepted}
) r ON true;

-- name: sample_column
SELECT key, NULL::text, vector, document, template_columns, NULL::text[], 1, true
FROM (
    SELECT {key_text} AS key, s.{embedding}::{vector}::real[] AS vector,
           CASE WHEN octet_length({document}) <= %(most_bytes)s THEN {document} END AS document,
           {template_columns} AS template_columns
    FROM {source} AS s TABLESAMPLE SYSTEM (%(percent)s::real)
    WHERE {selected} AND NOT {blank} AND s.{embedding} IS NOT NULL AND NOT {excepted}
    ORDER BY random() LIMIT %(count)s
) sampled;

-- name: local_settings
-- A sample reads its pages; the rows are looked up by key.
SELECT set_config('jit', 'off', true), set_config('max_parallel_workers_per_gather', '0', true),
       set_config('enable_hashjoin', %(joins)s, true), set_config('enable_mergejoin', %(joins)s, true);
