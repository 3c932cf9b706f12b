-- What a worker reads of the source. {scope} is a key range; {…} parts come from the vectorizer's fragments.

-- name: local_settings
-- Slices are small and must stay index scans however large the tables grow or how old their statistics are.
SELECT set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),
       set_config('max_parallel_workers_per_gather', '0', true),
       set_config('enable_hashjoin', %(joins)s, true), set_config('enable_mergejoin', %(joins)s, true);

-- name: window
-- The oldest transaction that may still change what the next statement reads, the key that ends the window, and whether
-- there are chunks in the range whose vectors could be kept.
SELECT pg_snapshot_xmin(pg_current_snapshot())::xid::text, w.key, {has_old}
FROM (VALUES (true)) one
LEFT JOIN LATERAL (
    SELECT {key_text} AS key FROM {source} s WHERE {scope} ORDER BY {key} OFFSET %(window)s - 1 LIMIT 1
) w ON true;

-- name: horizon
SELECT pg_snapshot_xmin(pg_current_snapshot())::xid::text;

-- name: read_range
-- The rows of the range that are not settled, in key order, up to %(rows)s of them and %(bytes)s of text; and, where it is
-- asked for, how many rows the filter selects in the whole range, settled ones included.
SELECT key, destination_key, document, hash, xmin, size, template_columns, position,
       CASE WHEN %(count)s THEN (SELECT count(*) FROM {source} s WHERE {scope} AND {selected}) END
FROM (
    SELECT {key_text} AS key, ROW({cast_key}) AS destination_key,
           CASE WHEN octet_length({document}) <= %(max_bytes)s THEN {document} END AS document,
           {hash} AS hash, {xmin}::text AS xmin, octet_length({document}) AS size,
           {template_columns} AS template_columns,
           row_number() OVER before AS position,
           sum(least(octet_length({document}), %(max_bytes)s)) OVER before AS upto
    FROM {source} s
    WHERE {scope} AND {selected} AND NOT {blank} AND NOT {settled}
    WINDOW before AS (ORDER BY {key} ROWS UNBOUNDED PRECEDING)
    ORDER BY {key}
    LIMIT %(rows)s
) counted
WHERE upto - least(size, %(max_bytes)s) <= %(bytes)s;

-- name: read_keys
-- Whoever lists a key may have found that its chunks are not all there: here they are counted.
SELECT key, destination_key, document, hash, xmin, size, template_columns, position
FROM (
    SELECT *, sum(least(size, %(max_bytes)s)) OVER (ORDER BY position) AS upto
    FROM (
        SELECT {key_text} AS key, ROW({cast_key}) AS destination_key,
               CASE WHEN octet_length({document}) <= %(max_bytes)s THEN {document} END AS document,
               {hash} AS hash, {xmin}::text AS xmin, octet_length({document}) AS size,
               {template_columns} AS template_columns,
               u.pgvec_ordinal AS position
        FROM {listed}
        JOIN {source} s ON {listed_is_source}
        WHERE {selected} AND NOT {blank} AND NOT {exact}
        ORDER BY u.pgvec_ordinal
        LIMIT %(rows)s
    ) rows
) counted
WHERE upto - least(size, %(max_bytes)s) <= %(bytes)s
ORDER BY position;

-- name: old_chunks
-- The vectors that documents have before they are written again, by the hash of what each is the vector of.
SELECT u.pgvec_ordinal, pgvec.source_hash({chunk_text}::text), d.{embedding}
FROM {listed} JOIN {destination} d ON {listed_is_destination}
WHERE {chunk_text} IS NOT NULL AND d.{embedding} IS NOT NULL AND {made_here}
LIMIT %(most)s;

-- name: sweep_window
-- The destination key that ends the next part of a sweep.
SELECT {destination_key_text} FROM {destination} d WHERE {scope}
ORDER BY {destination_key} OFFSET %(window)s - 1 LIMIT 1;
