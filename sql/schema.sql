-- The schema's own version, and what `pgvec init` does before the migrations.

-- name: version_table
SELECT FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgvec' AND c.relname = 'alembic_version';

-- name: revision
SELECT version_num FROM pgvec.alembic_version;

-- name: oldest_program
SELECT pgvec.oldest_program();

-- name: make_oldest_program
CREATE OR REPLACE FUNCTION pgvec.oldest_program() RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT {oldest}::text $$;
COMMENT ON FUNCTION pgvec.oldest_program() IS 'Programs that are made for this revision of the schema, or a later one, work with it; older ones wait until they are upgraded';

-- name: create_extension
CREATE EXTENSION IF NOT EXISTS vector;

-- name: create_extension_in_public
CREATE EXTENSION IF NOT EXISTS vector SCHEMA public;

-- name: one_at_a_time
-- As prepare does: the rights that an upgrade grants are the same.
SELECT pg_catalog.pg_advisory_xact_lock(2312187183);

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

-- name: as_owner
-- For what is made after the transaction of the migrations, by a member of pgvec_owner.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
               WHERE n.nspname = 'pgvec' AND r.rolname = 'pgvec_owner'
                 AND pg_catalog.pg_has_role(r.oid, CASE WHEN current_setting('server_version_num')::integer < 160000
                                                        THEN 'MEMBER' ELSE 'SET' END)) THEN
        SET ROLE pgvec_owner;
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

-- name: patience
-- Whoever waits for a lock has everybody else queue up behind: workers, and users whose changes are followed.
SELECT pg_catalog.set_config('lock_timeout', %(lock)s, true);

-- name: in_the_way
-- Transactions of others that hold something of ours for long, the oldest first.
SELECT coalesce(nullif(a.application_name, ''), a.usename, 'somebody') || ' (pid ' || a.pid || ')'
FROM pg_catalog.pg_stat_activity a
WHERE a.pid <> pg_catalog.pg_backend_pid() AND a.xact_start < pg_catalog.clock_timestamp() - interval '1 second'
  AND EXISTS (SELECT FROM pg_catalog.pg_locks l
              JOIN pg_catalog.pg_class c ON c.oid = l.relation
              WHERE l.pid = a.pid AND l.granted AND c.relnamespace = 'pgvec'::regnamespace
                AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()))
ORDER BY a.xact_start;

-- name: send_off
-- Workers whose program this schema is not made for claim and write nothing from here on; what they have in hand goes on
-- from its checkpoint, with others, and no attempt is counted. Who does not tell a revision is older than the telling.
WITH old AS (
    UPDATE pgvec.workers SET gone = true
    WHERE NOT gone AND coalesce(revision, '0007') < pgvec.oldest_program()
    RETURNING id, host, pid
), noted AS (
    INSERT INTO pgvec.events (kind, worker_id, host, message)
    SELECT 'gone', id, host, 'pid ' || pid || ': its program is too old for the schema' FROM old
)
UPDATE pgvec.jobs j SET state = 'queued', worker_id = NULL
FROM old WHERE j.state = 'running' AND j.worker_id = old.id;

-- name: index_state
-- Of an index of ours: whether it is finished, and whether somebody is building it. No row: it is not there.
SELECT i.indisvalid, EXISTS (SELECT FROM pg_catalog.pg_stat_progress_create_index p WHERE p.index_relid = i.indexrelid)
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
WHERE c.relnamespace = 'pgvec'::regnamespace AND c.relname = %(name)s;

-- name: drop_index
DROP INDEX CONCURRENTLY IF EXISTS {index};

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
