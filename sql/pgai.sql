-- What a pgai installation in this database says of itself. Whole rows as JSON: their columns differ from version to version.

-- name: installed
SELECT to_regclass('ai.vectorizer') IS NOT NULL;

-- name: vectorizers
SELECT to_jsonb(v) FROM ai.vectorizer v ORDER BY v.id;

-- name: pending
SELECT count(*) FROM (SELECT FROM {queue} LIMIT 10001) waiting;

-- name: is_pending
-- Rows that pgai would have embedded anew: their vectors may be of an older text, which nothing else tells.
EXISTS (SELECT FROM {queue} q WHERE {same_key})

-- name: busy
-- Its workers, while they write this one.
SELECT pid FROM pg_catalog.pg_stat_activity
WHERE datname = current_database() AND application_name LIKE format('pgai-worker[%%s]%%%%', %(id)s::integer)
ORDER BY pid;
