-- Nearest chunks by cosine distance; through an index where there is one.

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
