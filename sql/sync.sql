-- Live changes: one function per vectorizer, and four statement triggers on its source and on each partition.

-- name: tables
-- The source, its partitions and its inheritance children, with those of the wanted triggers that each one has.
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree t ON i.inhparent = t.oid
)
SELECT n.nspname, c.relname, c.relkind::text,
       ARRAY(SELECT g.tgname::text FROM pg_catalog.pg_trigger g
             WHERE g.tgrelid = c.oid AND g.tgname = ANY (%(triggers)s) AND g.tgenabled IN ('O', 'A'))
FROM tree t
JOIN pg_catalog.pg_class c ON c.oid = t.oid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
ORDER BY t.oid <> %(oid)s::oid, n.nspname, c.relname;

-- name: is_subscribed
-- Applying logical replication fires no statement trigger.
WITH RECURSIVE tree AS (
    SELECT %(oid)s::oid AS oid
    UNION
    SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN tree t ON i.inhparent = t.oid
)
SELECT EXISTS (SELECT FROM pg_catalog.pg_subscription_rel r JOIN tree t ON r.srrelid = t.oid);

-- name: virtual_columns
-- Computed when read, so a transition table does not hold them.
SELECT attname FROM pg_catalog.pg_attribute
WHERE attrelid = %(oid)s::oid AND attnum > 0 AND NOT attisdropped AND attgenerated = 'v';

-- name: filter_table
-- Named like the source's alias in every statement of a worker, so that the filter may use it.
CREATE TEMPORARY TABLE s (LIKE {source});

-- name: filter_index
-- The predicate of an index has to be immutable and over the row's own columns, which is what a filter needs here.
CREATE INDEX pgvec_filter ON pg_temp.s ({key}) WHERE {selected};

-- name: filter_columns
-- The key's own column among them. No attribute: the row as a whole.
SELECT a.attname
FROM pg_catalog.pg_depend d
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid AND d.refobjsubid > 0
WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = 'pg_temp.pgvec_filter'::regclass
  AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = 'pg_temp.s'::regclass
UNION ALL
SELECT NULL FROM pg_catalog.pg_index
WHERE indexrelid = 'pg_temp.pgvec_filter'::regclass AND indpred::text LIKE '%:varattno 0 %';

-- name: text_changed
{old} COLLATE "C" IS DISTINCT FROM {new} COLLATE "C"

-- name: values_changed
-- Byte by byte, so it takes every type; without the casts the rows would be taken apart by column.
ROW({old})::record *<> ROW({new})::record

-- name: function_schema
-- One that is there stays where it is.
SELECT coalesce(
    (SELECT n.nspname::text FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
     WHERE n.nspname IN ('pgvec', 'pgvec_sync') AND p.proname = %(function)s AND p.pronargs = 0 ORDER BY n.nspname LIMIT 1),
    (SELECT n.nspname::text FROM pg_catalog.pg_namespace n
     WHERE n.nspname = 'pgvec_sync' AND pg_catalog.has_schema_privilege(n.oid, 'CREATE')),
    'pgvec');

-- name: shield_function
-- It acts for whoever made it: on a table with other columns it would run others' casts as that role.
REVOKE EXECUTE ON FUNCTION {function}() FROM PUBLIC;

-- name: function_owner
-- Of a function of that name: whose it is, whether that is this session's role, and whether triggers of the source itself call
-- it: who could make those has the source's rows anyway. No row: there is none.
SELECT pg_catalog.pg_get_userbyid(p.proowner)::text, p.proowner = (SELECT r.oid FROM pg_catalog.pg_roles r WHERE r.rolname = current_user),
       EXISTS (SELECT FROM pg_catalog.pg_trigger g WHERE g.tgfoid = p.oid AND g.tgrelid = %(source)s::oid)
FROM pg_catalog.pg_proc p
WHERE p.pronamespace = pg_catalog.to_regnamespace(%(schema)s) AND p.proname = %(function)s AND p.pronargs = 0;

-- name: create_function
CREATE {replace} FUNCTION {function}() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp{settings}
AS {body};

-- name: settings
-- On these the canonical text of some keys depends.
 SET "TimeZone" = 'UTC' SET "DateStyle" = 'ISO, YMD' SET "IntervalStyle" = 'iso_8601' SET bytea_output = 'hex'
 SET extra_float_digits = 1;

-- name: body
-- The keys are collected apart from where they are written: there the user's statement is shielded from a definition
-- that no longer fits the table, and a block that writes would cost every statement a subtransaction's number.
-- Old and new rows meet in a FULL JOIN, which is planned as a hash or merge join whatever it was first planned for.
#variable_conflict use_column
DECLARE
    pgvec_lists jsonb[];
    pgvec_sizes integer[];
    pgvec_problem text;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO pgvec.jobs (vectorizer_id, kind, merged)
        SELECT {id}, 'sweep', 0
        -- A statement that truncates several partitions fires for each.
        WHERE NOT EXISTS (SELECT FROM pgvec.jobs
                          WHERE vectorizer_id = {id} AND kind = 'sweep' AND state = 'queued' AND merged = 0
                            AND xmin = pg_current_xact_id()::xid);
        RETURN NULL;
    END IF;
    BEGIN
        IF TG_OP = 'INSERT' THEN
            SELECT array_agg(pgvec_l.pgvec_keys), array_agg(pgvec_l.pgvec_size) INTO pgvec_lists, pgvec_sizes
            FROM (SELECT jsonb_agg(jsonb_build_array({keys})) AS pgvec_keys, count(*)::integer AS pgvec_size
                  FROM (SELECT {new_keys}, (row_number() OVER () - 1) / 1000 AS pgvec_part
                        FROM pgvec_new pgvec_n) pgvec_k
                  GROUP BY pgvec_k.pgvec_part) pgvec_l;
        ELSIF TG_OP = 'DELETE' THEN
            SELECT array_agg(pgvec_l.pgvec_keys), array_agg(pgvec_l.pgvec_size) INTO pgvec_lists, pgvec_sizes
            FROM (SELECT jsonb_agg(jsonb_build_array({keys})) AS pgvec_keys, count(*)::integer AS pgvec_size
                  FROM (SELECT {old_keys}, (row_number() OVER () - 1) / 1000 AS pgvec_part
                        FROM pgvec_old pgvec_o) pgvec_k
                  GROUP BY pgvec_k.pgvec_part) pgvec_l;
        ELSE
            SELECT array_agg(pgvec_l.pgvec_keys), array_agg(pgvec_l.pgvec_size) INTO pgvec_lists, pgvec_sizes
            FROM (SELECT jsonb_agg(jsonb_build_array({keys})) AS pgvec_keys, count(*)::integer AS pgvec_size
                  FROM (SELECT {either_keys}, (row_number() OVER () - 1) / 1000 AS pgvec_part
                        FROM pgvec_old pgvec_o FULL JOIN pgvec_new pgvec_n ON {same_key}
                        WHERE {no_old} OR {no_new} OR {changed}) pgvec_k
                  GROUP BY pgvec_k.pgvec_part) pgvec_l;
        END IF;
    EXCEPTION WHEN syntax_error_or_access_rule_violation THEN
        GET STACKED DIAGNOSTICS pgvec_problem = MESSAGE_TEXT;
        UPDATE pgvec.vectorizers
        SET blocked_at = clock_timestamp(), blocked_reason = format(
            'changes of %s.%s can no longer be followed (%s); mend that, then run `pgvec enqueue` again',
            TG_TABLE_SCHEMA, TG_TABLE_NAME, pgvec_problem)
        WHERE id = {id} AND blocked_reason IS NULL;
        RAISE WARNING 'pgvec: the vectorizer % is blocked, since this change could not be queued: %', {id}, pgvec_problem;
        RETURN NULL;
    END;
    -- Whoever bounds the device's batch says so by SET LOCAL pgvec.batch_size; what is no number there stops nobody.
    INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, key_count, batch_size)
    SELECT {id}, 'keys', pgvec_l.pgvec_keys, pgvec_l.pgvec_size,
           substring(current_setting('pgvec.batch_size', true) FROM '^[1-9][0-9]{{0,8}}$')::integer
    FROM unnest(pgvec_lists, pgvec_sizes) AS pgvec_l(pgvec_keys, pgvec_size);
    RETURN NULL;
END

-- name: create_trigger
CREATE OR REPLACE TRIGGER {trigger} AFTER {event} ON {table}{referencing}
FOR EACH STATEMENT EXECUTE FUNCTION {function}();

-- name: triggers
-- Wherever they are: a partition that was detached keeps its own.
SELECT n.nspname, c.relname, g.tgname, pg_catalog.pg_get_userbyid(c.relowner)::text, pg_catalog.pg_has_role(c.relowner, 'USAGE')
FROM pg_catalog.pg_trigger g
JOIN pg_catalog.pg_class c ON c.oid = g.tgrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
JOIN pg_catalog.pg_proc p ON p.oid = g.tgfoid
JOIN pg_catalog.pg_namespace pn ON pn.oid = p.pronamespace
WHERE pn.nspname IN ('pgvec', 'pgvec_sync') AND p.proname = %(function)s
ORDER BY 1, 2, 3;

-- name: drop_trigger
DROP TRIGGER IF EXISTS {trigger} ON {table};

-- name: drop_function
DROP FUNCTION IF EXISTS {function}();

-- name: set_sync
UPDATE pgvec.vectorizers SET sync = %(sync)s WHERE id = %(id)s;

-- name: synced
SELECT name FROM pgvec.vectorizers WHERE sync ORDER BY name;

-- name: holders
-- Who keeps a table from being locked.
SELECT string_agg(DISTINCT format('%%s (pid %%s)', coalesce(nullif(a.application_name, ''), a.usename::text), a.pid), ', ')
FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
WHERE l.relation = %(oid)s::oid AND l.granted AND l.pid <> pg_backend_pid()
  AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database());
