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
-- Two at once take turns; the number is the CRC-32 of 'pgvec.init'. A member of pgvec_owner makes what belongs to all of them, and
-- needs no right to create schemas where ours is there.
SELECT pg_catalog.pg_advisory_xact_lock(2312187183);
DO $$
BEGIN
    IF pg_catalog.to_regnamespace('pgvec') IS NULL THEN
        CREATE SCHEMA pgvec;
    ELSIF EXISTS (SELECT FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
                  WHERE n.nspname = 'pgvec' AND r.rolname = 'pgvec_owner'
                    AND pg_catalog.pg_has_role(r.oid, CASE WHEN current_setting('server_version_num')::integer < 160000
                                                           THEN 'MEMBER' ELSE 'SET' END)) THEN
        SET LOCAL ROLE pgvec_owner;
    END IF;
END
$$;

-- name: shield_triggers
-- A trigger function acts for whoever enqueued: nobody else may make a trigger of it, on a table with columns of their own.
DO $$
DECLARE
    one regprocedure;
BEGIN
    FOR one IN
        SELECT p.oid FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname IN ('pgvec', 'pgvec_sync') AND p.proname ~ '^sync_[0-9]+$' AND pg_catalog.pg_has_role(p.proowner, 'USAGE')
    LOOP
        EXECUTE pg_catalog.format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', one);
    END LOOP;
END
$$;

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
