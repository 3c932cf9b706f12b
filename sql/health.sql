-- name: queue
-- Whether the role may read and write the queue, and whether the server takes writes at all.
SELECT pg_catalog.pg_is_in_recovery(),
       pg_catalog.has_table_privilege('pgvec.jobs', 'SELECT, INSERT'),
       EXISTS (SELECT FROM pgvec.jobs);
