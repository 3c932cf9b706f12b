-- Comparing a source with its destination, range by range. Each comparison returns one row: the rows compared, how many
-- are in quarantine, and the keys of those missing, stale and orphaned. In it s.hash is NULL where the destination may hold
-- nothing for a row (it is blank, or not selected), and place is a chunk's place among those of its document, from 1.

-- name: begin
SELECT v.limited_to,
       (SELECT count(*) FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.state = 'queued' AND j.kind <> 'index')
       + (SELECT count(*) FROM pgvec.jobs j WHERE j.vectorizer_id = v.id AND j.state = 'running' AND j.kind <> 'index')
FROM pgvec.vectorizers v
WHERE v.id = %(id)s;

-- name: local_settings
-- Both sides of a range come in the order of their indexes: merging them costs less than a hash table, and no memory.
SELECT set_config('enable_hashjoin', 'off', true);

-- name: window_source
-- The key that ends the next range: so many rows further on.
SELECT {key_text} FROM {source} s WHERE {scope} ORDER BY {key} OFFSET %(rows)s - 1 LIMIT 1;

-- name: window_both
-- The same, or so many of the destination's rows further on, whichever comes first.
SELECT {end_key_text}
FROM (
    (SELECT {key} FROM {source} s WHERE {scope} ORDER BY {key} OFFSET %(rows)s - 1 LIMIT 1)
    UNION ALL
    (SELECT {destination_key} FROM {destination} d WHERE {destination_scope}
     ORDER BY {destination_key} OFFSET %(rows)s - 1 LIMIT 1)
) e
ORDER BY {end_key}
LIMIT 1;

-- name: window_destination
SELECT {destination_key_text} FROM {destination} d WHERE {destination_scope}
ORDER BY {destination_key} OFFSET %(rows)s - 1 LIMIT 1;

-- name: destination_has_rows
SELECT EXISTS (SELECT FROM {destination} d WHERE {destination_scope});

-- name: quarantined
EXISTS (SELECT FROM pgvec.failures f
        WHERE f.vectorizer_id = {id} AND f.key = {row_key_text} AND f.source_hash = s.hash)

-- name: compare_ordered
-- A table of chunks whose keys are ordered as the source's. OFFSET 0 keeps the hash from being computed once per chunk.
SELECT count(s.selected) FILTER (WHERE coalesce(d.place, 1) = 1),
       count(*) FILTER (WHERE d.place IS NULL AND s.hash IS NOT NULL AND {quarantined}),
       array_agg({row_key_text}) FILTER
           (WHERE d.place IS NULL AND s.hash IS NOT NULL AND %(planned)s::boolean AND NOT {quarantined}),
       array_agg({row_key_text}) FILTER (WHERE d.place IS NOT NULL AND s.hash IS NOT NULL AND {wrong}),
       array_agg({chunk_key_text}) FILTER (WHERE d.place IS NOT NULL AND s.hash IS NULL)
FROM (
    SELECT {row_key}, true AS selected, CASE WHEN NOT {blank} THEN {hash} END AS hash
    FROM {source} s
    WHERE {scope} AND {selected}
    ORDER BY {key} OFFSET 0
) s
FULL JOIN (
    SELECT {chunk_key}, {chunk}, row_number() OVER (PARTITION BY {destination_key} ORDER BY {chunk_order}) AS place
    FROM {destination} d
    WHERE {destination_scope}
) d ON {same_key};

-- name: compare_unordered
-- A table of chunks whose key has another type: chunks are looked up row by row; `orphans` finds those without a row.
SELECT count(*) FILTER (WHERE coalesce(d.place, 1) = 1),
       count(*) FILTER (WHERE d.place IS NULL AND s.hash IS NOT NULL AND {quarantined}),
       array_agg({row_key_text}) FILTER
           (WHERE d.place IS NULL AND s.hash IS NOT NULL AND %(planned)s::boolean AND NOT {quarantined}),
       array_agg({row_key_text}) FILTER (WHERE d.place IS NOT NULL AND s.hash IS NOT NULL AND {wrong}),
       NULL
FROM (
    SELECT {row_key}, CASE WHEN NOT {blank} THEN {hash} END AS hash
    FROM {source} s
    WHERE {scope} AND {selected}
    OFFSET 0
) s
LEFT JOIN LATERAL (
    SELECT {chunk}, row_number() OVER (ORDER BY {chunk_order}) AS place
    FROM {destination} d
    WHERE {same_key}
) d ON true;

-- name: compare_column
-- A vector column of the source.
SELECT count(*) FILTER (WHERE s.selected),
       count(*) FILTER (WHERE s.hash IS NOT NULL AND NOT s.there AND {quarantined}),
       array_agg({row_key_text}) FILTER
           (WHERE s.hash IS NOT NULL AND NOT s.there AND %(planned)s::boolean AND NOT {quarantined}),
       array_agg({row_key_text}) FILTER (WHERE s.hash IS NOT NULL AND s.there AND {wrong}),
       array_agg({row_key_text}) FILTER (WHERE s.hash IS NULL AND s.there)
FROM (
    SELECT {row_key}, {selected} AS selected, s.{embedding} IS NOT NULL AS there, {held_hash} AS held_hash,
           CASE WHEN {selected} AND NOT {blank} THEN {hash} END AS hash
    FROM {source} s
    WHERE {scope}
    OFFSET 0
) s;

-- name: orphans
-- For a destination whose key has another type than the source's: its own keys, looked up in the source as a sweep does.
SELECT array_agg({destination_key_text})
FROM {destination} d
WHERE {destination_scope}
  AND NOT EXISTS (SELECT FROM {source} s WHERE {key_from_destination} AND {matches_destination} AND {selected} AND NOT {blank});

-- name: without_key
SELECT count(*) FROM {destination} d WHERE {without_key};

-- name: delete_without_key
-- No job can name these rows. All of them go, so that a ctid which two partitions share does no harm.
WITH gone AS (
    DELETE FROM {destination} d
    WHERE d.ctid = ANY (ARRAY(SELECT d.ctid FROM {destination} d WHERE {without_key} LIMIT %(rows)s)) AND {without_key}
    RETURNING 1
), counted AS (
    INSERT INTO pgvec.counters AS c (vectorizer_id, worker_id, chunks_deleted)
    SELECT %(id)s, 0, count(*) FROM gone HAVING count(*) > 0
    ON CONFLICT (vectorizer_id, worker_id) DO UPDATE SET chunks_deleted = c.chunks_deleted + excluded.chunks_deleted
)
SELECT count(*) FROM gone;

-- name: add_keys
-- No rows: as for a list that a trigger made, the totals expect none of it. No row returned: the vectorizer is gone.
INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, key_count, rows)
SELECT v.id, 'keys', %(keys)s, %(key_count)s, 0 FROM pgvec.vectorizers v WHERE v.id = %(id)s
RETURNING id;

-- name: add_sweep
-- merged: it is no part of a plan.
INSERT INTO pgvec.jobs (vectorizer_id, kind, lower_key, upper_key, merged)
SELECT v.id, 'sweep', %(lower)s, %(upper)s, 0 FROM pgvec.vectorizers v WHERE v.id = %(id)s
RETURNING id;
