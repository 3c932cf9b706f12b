-- What people look at.

-- name: progress
SELECT p.*, index.told AS index
FROM pgvec.progress p
LEFT JOIN LATERAL (
    SELECT jsonb_build_object(
               'state', i.state, 'reason', i.reason, 'name', i.index_name, 'm', i.m, 'ef_construction', i.ef_construction,
               'store', i.store, 'phase', i.phase, 'share', round(i.share::numeric, 3), 'waiting_for', i.waiting_for,
               'seconds', round(i.seconds::numeric, 1), 'size_bytes', i.size_bytes,
               'recall', round(i.recall::numeric, 4), 'recall_queries', i.recall_queries,
               'partitions', i.partitions, 'partitions_built', i.partitions_built) AS told
    FROM pgvec.index_status i WHERE i.vectorizer_id = p.vectorizer_id
) index ON true
WHERE %(name)s::text IS NULL OR p.name = %(name)s
ORDER BY p.name;

-- name: failures
SELECT key, error_class, message, model, attempts, first_at, last_at
FROM pgvec.failures WHERE vectorizer_id = %(id)s ORDER BY first_at, key;

-- name: workers
SELECT * FROM pgvec.worker_status ORDER BY host, pid;
