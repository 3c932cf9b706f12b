-- Removing all that is ours but the destinations.

-- name: vectorizers
SELECT name, destination_kind = 'column', destination_schema || '.' || destination_table,
       destination_roles ->> 'embedding', destination_roles ->> 'source_hash', destination_schema <> 'pgvec'
FROM pgvec.vectorizers ORDER BY name;

-- name: owner
SELECT pg_get_userbyid(nspowner)::text, pg_has_role(nspowner, 'USAGE') FROM pg_catalog.pg_namespace WHERE nspname = 'pgvec';

-- name: triggers
-- On whatever table they are: a partition that was detached keeps its own.
SELECT n.nspname, c.relname, g.tgname, pg_catalog.pg_get_userbyid(c.relowner)::text, pg_catalog.pg_has_role(c.relowner, 'USAGE')
FROM pg_catalog.pg_trigger g
JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
WHERE (pn.nspname = 'pgvec' AND p.proname <> 'keep_definition' OR pn.nspname = 'pgvec_sync' AND p.proname ~ '^sync_[0-9]+$')
  AND NOT g.tgisinternal AND g.tgparentid = 0
ORDER BY 1, 2, 3;

-- name: unfollow
UPDATE pgvec.vectorizers SET sync = false WHERE sync;

-- name: contents
-- What lies in the schema, whoever made it; without what belongs to something else: an extension's members, a column's
-- sequence. Default privileges and publications of the schema are no things of their own.
SELECT i.type, i.identity, coalesce(c.relname, p.proname) AS name
FROM pg_catalog.pg_depend d
JOIN pg_catalog.pg_class k ON k.oid = d.classid
LEFT JOIN pg_catalog.pg_class c ON d.classid = 'pg_catalog.pg_class'::regclass AND c.oid = d.objid
LEFT JOIN pg_catalog.pg_proc p ON d.classid = 'pg_catalog.pg_proc'::regclass AND p.oid = d.objid
CROSS JOIN LATERAL pg_catalog.pg_identify_object(d.classid, d.objid, 0) i
WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass AND d.refobjid = 'pgvec'::regnamespace
  AND k.relname NOT IN ('pg_default_acl', 'pg_publication_namespace')
  AND NOT EXISTS (
      SELECT FROM pg_catalog.pg_depend m
      WHERE m.classid = d.classid AND m.objid = d.objid
        AND (m.deptype IN ('e', 'i')
             OR m.deptype = 'a' AND c.relkind = 'S' AND m.refclassid = 'pg_catalog.pg_class'::regclass))
ORDER BY i.type, i.identity;

-- name: dependents
-- What somebody else has made of ours: a view over pgvec.progress, an index or a default that calls one of our functions.
WITH ours AS (
    SELECT 'pg_catalog.pg_class'::regclass AS classid, oid FROM pg_catalog.pg_class WHERE relnamespace = 'pgvec'::regnamespace
    UNION ALL
    SELECT 'pg_catalog.pg_proc'::regclass, oid FROM pg_catalog.pg_proc WHERE pronamespace = 'pgvec'::regnamespace
    UNION ALL
    SELECT 'pg_catalog.pg_type'::regclass, oid FROM pg_catalog.pg_type WHERE typnamespace = 'pgvec'::regnamespace
), others AS (
    SELECT DISTINCT CASE WHEN r.oid IS NULL THEN d.classid ELSE 'pg_catalog.pg_class'::regclass END AS classid,
           coalesce(r.ev_class, d.objid) AS oid, CASE WHEN r.oid IS NULL THEN d.objsubid ELSE 0 END AS part,
           coalesce(r.ev_class, f.adrelid, c.conrelid, g.tgrelid, p.polrelid, 0) AS of_table, g.oid IS NOT NULL AS is_trigger
    FROM pg_catalog.pg_depend d
    JOIN ours ON ours.classid = d.refclassid AND ours.oid = d.refobjid
    LEFT JOIN pg_catalog.pg_rewrite r ON d.classid = 'pg_catalog.pg_rewrite'::regclass AND r.oid = d.objid
    LEFT JOIN pg_catalog.pg_attrdef f ON d.classid = 'pg_catalog.pg_attrdef'::regclass AND f.oid = d.objid
    LEFT JOIN pg_catalog.pg_constraint c ON d.classid = 'pg_catalog.pg_constraint'::regclass AND c.oid = d.objid
    LEFT JOIN pg_catalog.pg_trigger g ON d.classid = 'pg_catalog.pg_trigger'::regclass AND g.oid = d.objid
    LEFT JOIN pg_catalog.pg_policy p ON d.classid = 'pg_catalog.pg_policy'::regclass AND p.oid = d.objid
    WHERE d.deptype IN ('n', 'a')
)
SELECT pg_catalog.pg_describe_object(o.classid, o.oid, o.part)
FROM others o
WHERE NOT o.is_trigger
  AND NOT EXISTS (SELECT FROM ours WHERE ours.classid = o.classid AND ours.oid = o.oid)
  AND NOT EXISTS (SELECT FROM ours WHERE ours.classid = 'pg_catalog.pg_class'::regclass AND ours.oid = o.of_table)
ORDER BY 1;

-- name: texts
-- Of the gateway's collections: they are the user's.
SELECT EXISTS (SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
               WHERE n.nspname = 'pgvec_collections' AND c.relkind IN ('r', 'p'));

-- name: workers
SELECT host || ' (pid ' || pid || ')' FROM pgvec.workers
WHERE NOT gone AND beat_at > clock_timestamp() - lease ORDER BY host, pid;

-- name: drop_sync_schema
-- The triggers have gone before; what somebody else has made there stays, and the schema with it.
DO $$
DECLARE
    one regprocedure;
BEGIN
    IF to_regnamespace('pgvec_sync') IS NOT NULL THEN
        FOR one IN
            SELECT p.oid FROM pg_catalog.pg_proc p
            WHERE p.pronamespace = to_regnamespace('pgvec_sync') AND p.proname ~ '^sync_[0-9]+$'
        LOOP
            EXECUTE format('DROP FUNCTION %s', one);
        END LOOP;
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.refclassid = 'pg_catalog.pg_namespace'::regclass
                       AND d.refobjid = to_regnamespace('pgvec_sync')) THEN
            DROP SCHEMA pgvec_sync;
        END IF;
    END IF;
END
$$;

-- name: drop_schema
DROP SCHEMA pgvec CASCADE;
