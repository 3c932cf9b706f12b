-- What people look at.

-- name: progress
SELECT * FROM pgvec.progress WHERE %(name)s::text IS NULL OR name = %(name)s ORDER BY name;

-- name: failures
SELECT key, error_class, message, model, attempts, first_at, last_at
FROM pgvec.failures WHERE vectorizer_id = %(id)s ORDER BY first_at, key;

-- name: workers
SELECT * FROM pgvec.worker_status ORDER BY host, pid;
