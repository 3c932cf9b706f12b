-- The group roles of `pgvec init --roles`, and what each may do: docs/roles.md. All of it may be run again. Who logs in is a
-- member of one of them; none of them logs in itself.

-- name: missing
SELECT name FROM unnest(%(roles)s::text[]) WITH ORDINALITY AS r(name, place)
WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = name) ORDER BY place;

-- name: present
-- Those that this database's schema has let in: a role is the cluster's, and another database may have wanted it.
SELECT r.rolname::text
FROM pg_catalog.pg_namespace n
CROSS JOIN LATERAL pg_catalog.aclexplode(n.nspacl) a
JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
WHERE n.nspname = 'pgvec' AND a.privilege_type = 'USAGE' AND r.rolname = ANY (%(roles)s::text[])
ORDER BY 1;

-- name: create
CREATE ROLE {role} NOLOGIN;

-- name: join_enqueuers
-- A gateway makes collections, and plans what it is asked to.
GRANT pgvec_enqueuer TO pgvec_gateway;

-- name: gateway_enqueues
SELECT pg_catalog.pg_has_role('pgvec_gateway', 'pgvec_enqueuer', 'USAGE');

-- name: may_own
-- Whether this session can take the role, as it has to for handing something over to it, and keeps its rights. Since PostgreSQL 16
-- whoever makes a role is a member who can do neither.
SELECT pg_catalog.pg_has_role('pgvec_owner', 'USAGE')
       AND pg_catalog.pg_has_role('pgvec_owner', CASE WHEN current_setting('server_version_num')::integer < 160000 THEN 'MEMBER' ELSE 'SET' END);

-- name: join_owners
GRANT pgvec_owner TO CURRENT_USER;

-- name: current_user
SELECT pg_catalog.quote_ident(current_user);

-- name: may_serve
SELECT pg_catalog.has_table_privilege('pgvec.api_tokens', 'SELECT') AND pg_catalog.has_table_privilege('pgvec.task_texts', 'INSERT');

-- name: maker
-- Who owns the schema, where that is somebody else than this session and the role, and no superuser.
SELECT pg_catalog.quote_ident(r.rolname)
FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
WHERE n.nspname = 'pgvec' AND r.rolname NOT IN ('pgvec_owner', current_user) AND NOT r.rolsuper;

-- name: keep_rights
-- Whoever has made the schema keeps what they may, as a member of its new owner: their workers run, and their trigger functions act
-- for them. Whoever else a trigger acts for becomes an enqueuer: else every change of their sources would be refused.
DO $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT r.oid, r.rolname, 'pgvec_owner' AS group_role
        FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_roles r ON r.oid = n.nspowner
        WHERE n.nspname = 'pgvec' AND r.rolname <> 'pgvec_owner'
        UNION
        SELECT r.oid, r.rolname, 'pgvec_enqueuer'
        FROM pg_catalog.pg_proc p
        JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
        JOIN pg_catalog.pg_roles r ON r.oid = p.proowner
        WHERE n.nspname IN ('pgvec', 'pgvec_sync') AND p.proname ~ '^sync_[0-9]+$'
          AND EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgfoid = p.oid)
          AND p.proowner <> (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'pgvec')
          AND NOT pg_catalog.pg_has_role(p.proowner, 'pgvec_owner', 'USAGE')
    LOOP
        IF NOT pg_catalog.pg_has_role(one.oid, one.group_role, 'USAGE') THEN
            EXECUTE pg_catalog.format('GRANT %I TO %I', one.group_role, one.rolname);
        END IF;
    END LOOP;
END
$$;

-- name: keeping
-- The same as statements, for somebody who may run them.
SELECT DISTINCT pg_catalog.format('GRANT pgvec_enqueuer TO %I', r.rolname)
FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_roles r ON r.oid = p.proowner
WHERE n.nspname IN ('pgvec', 'pgvec_sync') AND p.proname ~ '^sync_[0-9]+$'
  AND EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgfoid = p.oid)
  AND p.proowner <> (SELECT nspowner FROM pg_catalog.pg_namespace WHERE nspname = 'pgvec')
  AND NOT pg_catalog.pg_has_role(r.oid, 'pgvec_enqueuer', 'USAGE') AND NOT pg_catalog.pg_has_role(r.oid, 'pgvec_owner', 'USAGE')
ORDER BY 1;

-- name: hand_over
-- Everything that `pgvec init` makes, whoever did, apart from trigger functions, which act for whoever enqueued.
DO $$
DECLARE
    one record;
    names name[] := {names};
BEGIN
    ALTER SCHEMA pgvec OWNER TO pgvec_owner;
    IF pg_catalog.to_regnamespace('pgvec_collections') IS NOT NULL THEN
        ALTER SCHEMA pgvec_collections OWNER TO pgvec_owner;
    END IF;
    IF pg_catalog.to_regnamespace('pgvec_sync') IS NULL THEN
        CREATE SCHEMA pgvec_sync;
    END IF;
    ALTER SCHEMA pgvec_sync OWNER TO pgvec_owner;
    FOR one IN
        SELECT pg_catalog.format('ALTER %s pgvec.%I OWNER TO pgvec_owner', CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, c.relname) AS statement
        FROM pg_catalog.pg_class c
        WHERE c.relnamespace = 'pgvec'::pg_catalog.regnamespace AND c.relkind IN ('r', 'p', 'v') AND c.relname = ANY (names)
          AND c.relowner <> 'pgvec_owner'::pg_catalog.regrole
        UNION ALL
        SELECT pg_catalog.format('ALTER FUNCTION %s OWNER TO pgvec_owner', p.oid::pg_catalog.regprocedure)
        FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'pgvec'::pg_catalog.regnamespace AND p.proname = ANY (names)
          AND p.proowner <> 'pgvec_owner'::pg_catalog.regrole
    LOOP
        EXECUTE one.statement;
    END LOOP;
END
$$;
COMMENT ON SCHEMA pgvec_sync IS 'Trigger functions of live changes, each owned by whoever enqueued: only enqueuers create here, and nobody looks anything up here';

-- name: pgvec_owner
-- It owns the schema where that could be handed over; these are for where it could not.
GRANT ALL ON SCHEMA pgvec, pgvec_collections TO pgvec_owner;
GRANT ALL ON ALL TABLES IN SCHEMA pgvec TO pgvec_owner;
GRANT SELECT ON ALL SEQUENCES IN SCHEMA pgvec TO pgvec_owner;

-- name: pgvec_worker
-- Jobs and what is known of them; of a vectorizer it may change nothing but why it is blocked.
GRANT USAGE ON SCHEMA pgvec, pgvec_collections TO pgvec_worker;
GRANT SELECT ON pgvec.alembic_version, pgvec.vectorizers, pgvec.model_migrations, pgvec.progress, pgvec.worker_status,
    pgvec.throughput, pgvec.recent_minutes, pgvec.recent_events, pgvec.index_status, pgvec.jobs_id_seq TO pgvec_worker;
GRANT UPDATE (blocked_reason, blocked_at) ON pgvec.vectorizers TO pgvec_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON pgvec.jobs, pgvec.workers, pgvec.counters, pgvec.samples, pgvec.minutes,
    pgvec.failures TO pgvec_worker;
GRANT SELECT, INSERT, UPDATE ON pgvec.pace TO pgvec_worker;
GRANT SELECT, INSERT, DELETE ON pgvec.events TO pgvec_worker;
GRANT SELECT, UPDATE ON pgvec.indexes TO pgvec_worker;
GRANT SELECT (vectorizer_id, finished_at) ON pgvec.tasks TO pgvec_worker;

-- name: pgvec_enqueuer
-- Definitions and their plans; no tokens, and of the gateway's tasks only that they move with their vectorizer.
GRANT USAGE ON SCHEMA pgvec, pgvec_collections TO pgvec_enqueuer;
GRANT SELECT ON pgvec.alembic_version, pgvec.workers, pgvec.collections, pgvec.progress, pgvec.worker_status, pgvec.throughput,
    pgvec.recent_minutes, pgvec.recent_events, pgvec.index_status TO pgvec_enqueuer;
GRANT SELECT, INSERT, UPDATE, DELETE ON pgvec.vectorizers, pgvec.jobs, pgvec.failures, pgvec.counters, pgvec.indexes,
    pgvec.model_migrations, pgvec.pace TO pgvec_enqueuer;
GRANT SELECT, DELETE ON pgvec.samples, pgvec.minutes TO pgvec_enqueuer;
GRANT SELECT, INSERT ON pgvec.events TO pgvec_enqueuer;
GRANT UPDATE (leave) ON pgvec.workers TO pgvec_enqueuer;
GRANT UPDATE (vectorizer_id) ON pgvec.collections TO pgvec_enqueuer;
GRANT SELECT (vectorizer_id), UPDATE (vectorizer_id) ON pgvec.tasks TO pgvec_enqueuer;

-- name: pgvec_reader
-- What is known of vectorizers, jobs and workers; the vectors by grants on each destination.
GRANT USAGE ON SCHEMA pgvec, pgvec_collections TO pgvec_reader;
GRANT SELECT ON pgvec.alembic_version, pgvec.vectorizers, pgvec.jobs, pgvec.workers, pgvec.counters, pgvec.samples, pgvec.minutes,
    pgvec.events, pgvec.failures, pgvec.indexes, pgvec.collections, pgvec.model_migrations, pgvec.progress, pgvec.worker_status,
    pgvec.throughput, pgvec.recent_minutes, pgvec.recent_events, pgvec.index_status TO pgvec_reader;

-- name: pgvec_gateway
-- As an enqueuer, and its own tables; of tokens it learns the digests, and notes when each was used.
GRANT USAGE ON SCHEMA pgvec TO pgvec_gateway;
GRANT USAGE, CREATE ON SCHEMA pgvec_collections TO pgvec_gateway;
GRANT SELECT, INSERT, UPDATE, DELETE ON pgvec.collections, pgvec.tasks, pgvec.task_texts TO pgvec_gateway;
GRANT SELECT ON pgvec.api_tokens TO pgvec_gateway;
GRANT UPDATE (last_used_at) ON pgvec.api_tokens TO pgvec_gateway;

-- name: share_functions
-- Those that steer are taken from everybody; who may call what is granted to those that lack it: the other functions as well, where
-- somebody has taken away that everybody may.
DO $$
DECLARE
    one record;
BEGIN
    FOR one IN
        SELECT p.oid::pg_catalog.regprocedure AS label FROM pg_catalog.pg_proc p
        WHERE p.pronamespace = 'pgvec'::pg_catalog.regnamespace AND p.proname = ANY ({steering})
    LOOP
        EXECUTE pg_catalog.format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', one.label);
    END LOOP;
    FOR one IN
        SELECT p.oid::pg_catalog.regprocedure AS label, r.rolname
        FROM unnest({functions}, {callers}) AS may(function, caller)
        JOIN pg_catalog.pg_proc p ON p.pronamespace = 'pgvec'::pg_catalog.regnamespace AND p.proname = may.function
        JOIN pg_catalog.pg_roles r ON r.rolname = may.caller
        WHERE pg_catalog.has_schema_privilege(r.oid, 'pgvec', 'USAGE') AND NOT pg_catalog.has_function_privilege(r.oid, p.oid, 'EXECUTE')
    LOOP
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO %I', one.label, one.rolname);
    END LOOP;
END
$$;

-- name: sync_schema
-- Apart from the schema pgvec: whoever could create there could overload a function that others call.
GRANT USAGE, CREATE ON SCHEMA pgvec_sync TO pgvec_enqueuer;

-- name: has_sync_schema
SELECT pg_catalog.to_regnamespace('pgvec_sync') IS NOT NULL;

-- name: create_sync_schema
CREATE SCHEMA pgvec_sync;

-- name: share_types
-- The extension's types, where not everybody may use its schema.
GRANT USAGE ON SCHEMA {schema} TO {role};

-- name: lacks_schema
SELECT NOT pg_catalog.has_schema_privilege(%(role)s, n.oid, 'USAGE') FROM pg_catalog.pg_namespace n WHERE n.nspname = %(schema)s;

-- name: lacking
-- Of a table: whether the role lacks a right on the whole of it, or on which of these columns.
SELECT CASE WHEN %(columns)s::text[] IS NULL THEN NOT pg_catalog.has_table_privilege(%(role)s, c.oid, %(right)s) ELSE false END,
       ARRAY(SELECT u.name FROM unnest(%(columns)s::text[]) AS u(name)
             WHERE NOT pg_catalog.has_column_privilege(%(role)s, c.oid, u.name, %(right)s)),
       c.relrowsecurity
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s;

-- name: granted
-- What roles of ours still may on the tables of a vectorizer (NULL: of all), where no other one needs it: as statements that end it.
-- Revoking from the table revokes from its columns.
SELECT DISTINCT pg_catalog.format('REVOKE ALL ON %%I.%%I FROM %%I', n.nspname, c.relname, r.rolname)
FROM pgvec.vectorizers v
JOIN pg_catalog.pg_namespace n ON n.nspname IN (v.source_schema, v.destination_schema)
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid
 AND (n.nspname, c.relname) IN ((v.source_schema, v.source_table), (v.destination_schema, v.destination_table))
JOIN pg_catalog.pg_roles r ON r.rolname = ANY (%(roles)s::text[])
WHERE (%(id)s::bigint IS NULL OR v.id = %(id)s)
  AND (EXISTS (SELECT FROM pg_catalog.aclexplode(c.relacl) a WHERE a.grantee = r.oid)
       OR EXISTS (SELECT FROM pg_catalog.pg_attribute t, pg_catalog.aclexplode(t.attacl) a WHERE t.attrelid = c.oid AND a.grantee = r.oid))
  AND NOT EXISTS (SELECT FROM pgvec.vectorizers o
                  WHERE o.id <> %(id)s AND (n.nspname, c.relname) IN ((o.source_schema, o.source_table),
                                                                      (o.destination_schema, o.destination_table)))
ORDER BY 1;

-- name: maker_lacks
-- Who made a vectorizer, where they lack such a right themselves. A row's xmin is no secret.
SELECT r.rolname::text
FROM pgvec.vectorizers v
JOIN pg_catalog.pg_roles r ON r.rolname = v.maker
JOIN pg_catalog.pg_namespace n ON n.nspname = %(schema)s
JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = %(table)s
WHERE v.id = %(id)s
  AND NOT (pg_catalog.has_schema_privilege(r.oid, n.oid, 'USAGE')
           AND CASE WHEN %(columns)s::text[] IS NULL THEN pg_catalog.has_table_privilege(r.oid, c.oid, %(right)s)
               ELSE NOT EXISTS (SELECT FROM unnest(%(columns)s::text[]) AS u(name)
                                WHERE u.name <> 'xmin' AND NOT pg_catalog.has_column_privilege(r.oid, c.oid, u.name, %(right)s)) END);

-- name: grant_schema
GRANT USAGE ON SCHEMA {schema} TO {role};

-- name: grant_table
GRANT {right} ON {table} TO {role};

-- name: grant_columns
GRANT {right} ({columns}) ON {table} TO {role};

-- name: filter_view
-- PostgreSQL notes of a view which columns it reads, of other tables too.
CREATE TEMPORARY VIEW pgvec_filter AS SELECT 1 AS one FROM {source} s WHERE {selected};

-- name: filter_reads
-- No attribute: a row as a whole.
SELECT DISTINCT n.nspname::text, c.relname::text, a.attname::text
FROM pg_catalog.pg_rewrite r
JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::pg_catalog.regclass AND d.objid = r.oid
                           AND d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid <> r.ev_class
JOIN pg_catalog.pg_class c ON c.oid = d.refobjid AND c.relkind IN ('r', 'p', 'v', 'm', 'f')
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = d.refobjsubid AND d.refobjsubid > 0
WHERE r.ev_class = 'pg_temp.pgvec_filter'::pg_catalog.regclass
ORDER BY 1, 2, 3;
