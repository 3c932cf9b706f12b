-- Nearest chunks by cosine distance; through an index where there is one.

-- name: breadth
-- An HNSW index alone returns no more rows than hnsw.ef_search (40 where nobody set it, 1,000 at most), dead ones among
-- them; from pgvector 0.8 on it can go on until there are enough.
SELECT set_config('hnsw.ef_search', least(greatest(
           %(limit)s::int, coalesce(nullif(current_setting('hnsw.ef_search', true), '')::int, 40)), 1000)::text, true),
       CASE WHEN string_to_array(extversion, '.')::int[] >= '{0,8}'
            THEN set_config('hnsw.iterative_scan', 'strict_order', true) END
FROM pg_extension WHERE extname = 'vector';

-- name: chunks
SELECT {destination_key_text} AS key, {chunk_index} AS chunk_index, {chunk} AS chunk,
       1 - (d.{embedding} OPERATOR({schema}.<=>) %(query)s::{type}) AS score
FROM {destination} d
WHERE d.{embedding} IS NOT NULL
ORDER BY d.{embedding} OPERATOR({schema}.<=>) %(query)s::{type}
LIMIT %(limit)s;

-- name: chunks_of_source
-- For a destination that holds no text: the document itself.
SELECT {key_text} AS key, NULL::int AS chunk_index, {document} AS chunk, d.score
FROM (
    SELECT {destination_key}, 1 - ({embedding} OPERATOR({schema}.<=>) %(query)s::{type}) AS score
    FROM {destination} d
    WHERE {embedding} IS NOT NULL
    ORDER BY {embedding} OPERATOR({schema}.<=>) %(query)s::{type}
    LIMIT %(limit)s
) d
JOIN {source} s ON {matches_destination}
ORDER BY d.score DESC;
