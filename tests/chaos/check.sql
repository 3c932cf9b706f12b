-- The independent check: what each destination has to hold, and how far what it holds is from that.
--
-- Written from the definition alone ("for each selected source row, exactly the chunks of its present text, and nothing
-- else; rows that could not be embedded are in quarantine"). The one thing that comes from outside is the temporary table
-- chaos_expected (source, key, chunk_index, embedding): the vectors of the present texts, computed apart.

-- name: documents
-- Every source row: its text, and whether it is to be embedded.
CREATE TEMP VIEW chaos_documents AS
SELECT source, key, document, substring(sha256(convert_to(document, 'UTF8')) FOR 16) AS hash,
       wanted AND btrim(coalesce(document, ''), E' \t\n\r') <> '' AS wanted,
       coalesce(document, '') ~ 'poison(refuse|nan|inf|shape|kill)' AS poison
FROM (
    SELECT 'docs' AS source, id::text AS key, NOT hidden AS wanted,
           CASE WHEN title IS NULL THEN body WHEN body IS NULL THEN title ELSE title || E'\n\n' || body END AS document
    FROM docs
    UNION ALL
    SELECT 'places', tenant::text || '/' || code, true, body FROM places
    UNION ALL
    SELECT 'cards', id::text, true, body FROM cards
    UNION ALL
    SELECT 'tags', id::text, true, body FROM tags
) every;

-- name: held
-- Every vector that is there.
CREATE TEMP VIEW chaos_held AS
SELECT 'docs' AS source, id::text AS key, chunk_index, source_hash AS hash, embedding FROM docs_vectors
UNION ALL
SELECT 'places', tenant::text || '/' || code, chunk_index, source_hash, embedding FROM places_vectors
UNION ALL
SELECT 'cards', id::text, 0, body_hash, embedding FROM cards WHERE embedding IS NOT NULL
UNION ALL
SELECT 'tags', id::text, chunk_index, source_hash, embedding FROM tags_vectors;

-- name: quarantined
CREATE TEMP VIEW chaos_quarantined AS
SELECT v.name AS source, array_to_string(f.key, '/') AS key, f.source_hash AS hash, f.error_class, f.message
FROM pgvec.failures f JOIN pgvec.vectorizers v ON v.id = f.vectorizer_id;

-- name: problems
-- One row per thing that is wrong.
CREATE TEMP TABLE chaos_problems AS
WITH documents AS MATERIALIZED (SELECT * FROM chaos_documents),
     held AS MATERIALIZED (SELECT * FROM chaos_held),
     quarantined AS MATERIALIZED (SELECT * FROM chaos_quarantined),
     expected AS MATERIALIZED (
         SELECT e.* FROM chaos_expected e JOIN documents d USING (source, key) WHERE d.wanted AND NOT d.poison)
-- A document of which a vector of the present text is missing.
SELECT 'lost' AS problem, e.source, e.key, 'chunks ' || array_agg(e.chunk_index ORDER BY e.chunk_index)::text AS detail
FROM expected e JOIN documents d USING (source, key)
WHERE NOT EXISTS (SELECT FROM held h WHERE (h.source, h.key, h.chunk_index, h.hash)
                                         = (e.source, e.key, e.chunk_index, d.hash))
GROUP BY e.source, e.key
UNION ALL
SELECT 'lost', d.source, d.key, 'no expected vector was computed'
FROM documents d WHERE d.wanted AND NOT d.poison
  AND NOT EXISTS (SELECT FROM expected e WHERE (e.source, e.key) = (d.source, d.key))
UNION ALL
-- A chunk that is there twice.
SELECT 'duplicate', h.source, h.key, format('chunk %s is there %s times', h.chunk_index, count(*))
FROM held h GROUP BY h.source, h.key, h.chunk_index HAVING count(*) > 1
UNION ALL
-- More chunks than the text has.
SELECT 'duplicate', h.source, h.key, format('chunk %s is one too many', h.chunk_index)
FROM held h JOIN documents d USING (source, key, hash)
WHERE d.wanted AND NOT d.poison
  AND NOT EXISTS (SELECT FROM expected e WHERE (e.source, e.key, e.chunk_index) = (h.source, h.key, h.chunk_index))
UNION ALL
-- A vector of another text than the present one, whatever its hash says.
SELECT 'stale', h.source, h.key, format('chunk %s has the hash of another text', h.chunk_index)
FROM held h JOIN documents d USING (source, key)
WHERE d.wanted AND h.hash IS DISTINCT FROM d.hash
UNION ALL
SELECT 'stale', h.source, h.key, format('chunk %s has the vector of another text', h.chunk_index)
FROM held h JOIN documents d USING (source, key, hash) JOIN expected e USING (source, key, chunk_index)
WHERE h.embedding <> e.embedding
UNION ALL
-- A poisonous text has no vector.
SELECT 'stale', h.source, h.key, format('chunk %s of a text that cannot be embedded', h.chunk_index)
FROM held h JOIN documents d USING (source, key, hash)
WHERE d.wanted AND d.poison
UNION ALL
-- A vector without a row, or of a row that is not to be embedded.
SELECT 'orphaned', h.source, h.key, format('chunk %s', h.chunk_index)
FROM held h LEFT JOIN documents d USING (source, key)
WHERE d.wanted IS NOT TRUE
UNION ALL
-- Poison that is not in quarantine with its present text.
SELECT 'poison missed', d.source, d.key, left(d.document, 80)
FROM documents d
WHERE d.wanted AND d.poison
  AND NOT EXISTS (SELECT FROM quarantined q WHERE (q.source, q.key, q.hash) = (d.source, d.key, d.hash))
UNION ALL
-- Something else in quarantine.
SELECT 'poison false', q.source, q.key,
       format('%s: %s; now: %s', q.error_class, q.message,
              coalesce((SELECT CASE WHEN d.wanted THEN left(d.document, 80) ELSE 'blank or not selected' END
                        FROM documents d WHERE (d.source, d.key) = (q.source, q.key)), 'no row'))
FROM quarantined q
WHERE NOT EXISTS (SELECT FROM documents d WHERE (d.source, d.key, d.hash) = (q.source, q.key, q.hash)
                                            AND d.wanted AND d.poison);

-- name: totals
SELECT (SELECT count(*) FROM chaos_documents), (SELECT count(*) FROM chaos_documents WHERE wanted),
       (SELECT count(*) FROM chaos_held), (SELECT count(*) FROM chaos_documents WHERE wanted AND poison),
       (SELECT count(*) FROM chaos_quarantined);

-- name: found
SELECT problem, source, key, detail FROM chaos_problems ORDER BY problem, source, key, detail;

-- name: unfinished
SELECT count(*) FROM pgvec.jobs WHERE state IN ('queued', 'running');
