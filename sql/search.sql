-- Asking pgvec.search, and finding whom to ask.

-- name: search
SELECT key, chunk_index, chunk, score, fused, context_before, context_after, metadata
FROM pgvec.search(%(vectorizer)s, %(query)s::real[], %(query_text)s, %(max_hits)s, %(skip)s, %(threshold)s, %(filter)s::jsonb,
                  %(mode)s, %(exact)s, %(ef_search)s, %(all_chunks)s, %(neighbours)s, %(language)s::regconfig);

-- name: has_rows
SELECT EXISTS (SELECT FROM {destination});

-- name: targets
-- The vectorizers that a request may mean: the one named, or of the collection named; where none is named those called
-- 'default', else all, up to one more than are listed for a person. What waits beside another of a migration has to be named.
SELECT {columns}
FROM (
    SELECT v.*, c.name AS pgvec_collection,
           v.name = 'default' OR coalesce(c.name = 'default', false) AS pgvec_default,
           bool_or(v.name = 'default' OR coalesce(c.name = 'default', false)) OVER () AS pgvec_any_default
    FROM pgvec.vectorizers v LEFT JOIN pgvec.collections c ON c.vectorizer_id = v.id
) v
WHERE CASE
    WHEN %(collection)s::text IS NOT NULL THEN pgvec_collection = %(collection)s
    WHEN %(vectorizer)s::text IS NOT NULL THEN name = %(vectorizer)s
    ELSE (pgvec_default OR NOT pgvec_any_default)
         AND NOT EXISTS (SELECT FROM pgvec.model_migrations m
                         WHERE v.id = CASE WHEN m.switched_at IS NULL THEN m.new_id ELSE m.old_id END)
END
ORDER BY name
LIMIT 11;

-- name: is_vectorizer
SELECT EXISTS (SELECT FROM pgvec.vectorizers WHERE name = %(name)s);
