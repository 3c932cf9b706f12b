-- The schema's own version, and what `pgvec init` does before the migrations.

-- name: version_table
SELECT FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgvec' AND c.relname = 'alembic_version';

-- name: revision
SELECT version_num FROM pgvec.alembic_version;

-- name: create_extension
CREATE EXTENSION IF NOT EXISTS vector;

-- name: create_extension_in_public
CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;

-- name: prepare
-- Two at once take turns; the number is the CRC-32 of 'pgvec.init'.
SELECT pg_catalog.pg_advisory_xact_lock(2312187183);
CREATE SCHEMA IF NOT EXISTS pgvec;

-- name: rights
-- On views, of whoever is not the owner.
SELECT c.relname, a.privilege_type, r.rolname, a.is_grantable
FROM pg_catalog.pg_class c
CROSS JOIN LATERAL pg_catalog.aclexplode(c.relacl) a
LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
WHERE c.relnamespace = 'pgvec'::regnamespace AND c.relkind = 'v' AND c.relname = ANY (%(names)s)
  AND a.grantee <> c.relowner;

-- name: drop_views
DROP VIEW IF EXISTS {views};

-- name: grant
GRANT {right} ON {view} TO {grantee} {option};
