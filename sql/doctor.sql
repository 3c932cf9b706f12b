-- What `pgvec doctor` asks the database. Each statement changes nothing; a role that may not run one is told so.

-- name: session
SELECT current_user::text, pg_is_in_recovery(),
       (SELECT reset_val = 'on' FROM pg_settings WHERE name = 'default_transaction_read_only'),
       (SELECT datname FROM pg_database WHERE datname = current_database())::text;

-- name: clock
SELECT extract(epoch FROM clock_timestamp())::float8;

-- name: backend
SELECT pg_backend_pid();

-- name: encryption
-- Of the server's end of the connection, which behind a pooler is not the client's.
SELECT coalesce(s.ssl, false), s.version, coalesce(g.encrypted, false)
FROM (SELECT pg_backend_pid() AS pid) me
LEFT JOIN pg_stat_ssl s ON s.pid = me.pid
LEFT JOIN pg_stat_gssapi g ON g.pid = me.pid;

-- name: newest_pgvector
SELECT default_version FROM pg_available_extensions WHERE name = 'vector';

-- name: settings
-- As this role's sessions begin with them: what a transaction has set for itself does not count.
SELECT name, reset_val, unit FROM pg_settings WHERE name = ANY (%(names)s);

-- name: who_set
-- Where a setting was made for this role or this database alone.
SELECT split_part(one, '=', 1), substr(one, strpos(one, '=') + 1),
       CASE WHEN s.setrole = 0 THEN NULL ELSE (SELECT rolname::text FROM pg_roles r WHERE r.oid = s.setrole) END,
       CASE WHEN s.setdatabase = 0 THEN NULL ELSE current_database()::text END
FROM pg_db_role_setting s CROSS JOIN LATERAL unnest(s.setconfig) one
WHERE s.setrole IN (0, (SELECT oid FROM pg_roles WHERE rolname = current_user))
  AND s.setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  AND split_part(one, '=', 1) = ANY (%(names)s)
ORDER BY s.setrole <> 0 DESC, s.setdatabase <> 0 DESC;

-- name: connections
SELECT current_setting('max_connections')::integer,
       CASE WHEN r.rolsuper THEN 0
            ELSE current_setting('superuser_reserved_connections')::integer
                 + coalesce(current_setting('reserved_connections', true), '0')::integer END,
       (SELECT sum(numbackends) FROM pg_stat_database)::integer,
       CASE WHEN r.rolsuper THEN -1 ELSE r.rolconnlimit END,
       (SELECT count(*) FROM pg_stat_activity WHERE usename = current_user)::integer,
       CASE WHEN r.rolsuper THEN -1 ELSE d.datconnlimit END,
       (SELECT numbackends FROM pg_stat_database WHERE datname = current_database())::integer
FROM pg_roles r, pg_database d
WHERE r.rolname = current_user AND d.datname = current_database();

-- name: unvacuumed
-- Tables of ours for which autovacuum has been switched off.
SELECT c.relname::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'pgvec' AND c.relkind = 'r'
  AND EXISTS (SELECT FROM pg_options_to_table(c.reloptions) o
              WHERE o.option_name = 'autovacuum_enabled' AND NOT o.option_value::boolean)
ORDER BY 1;

-- name: schema_rights
SELECT has_database_privilege(current_database(), 'CREATE'),
       CASE WHEN n.oid IS NULL THEN NULL ELSE has_schema_privilege(n.oid, 'USAGE') END,
       CASE WHEN n.oid IS NULL THEN NULL ELSE has_schema_privilege(n.oid, 'CREATE') END
FROM (SELECT) one LEFT JOIN pg_namespace n ON n.nspname = 'pgvec';

-- name: rights_on_ours
-- Per table, view or sequence of ours, what this role lacks of what a worker needs: as pgvec_worker is granted in roles.sql.
SELECT * FROM (
    SELECT c.relname::text, ARRAY(
        SELECT p FROM unnest(string_to_array(need.rights, ' ')) p
        WHERE NOT CASE WHEN c.relkind = 'S' THEN has_sequence_privilege(c.oid, p)
                       WHEN p = 'UPDATE' THEN has_any_column_privilege(c.oid, p)
                       WHEN c.relname = 'tasks' THEN has_any_column_privilege(c.oid, p)
                       ELSE has_table_privilege(c.oid, p) END) AS lacking
    FROM (VALUES ('vectorizers', 'SELECT UPDATE'), ('jobs', 'SELECT INSERT UPDATE DELETE'), ('workers', 'SELECT INSERT UPDATE DELETE'),
                 ('counters', 'SELECT INSERT UPDATE DELETE'), ('samples', 'SELECT INSERT UPDATE DELETE'),
                 ('minutes', 'SELECT INSERT UPDATE DELETE'), ('failures', 'SELECT INSERT UPDATE DELETE'),
                 ('pace', 'SELECT INSERT UPDATE'), ('events', 'SELECT INSERT DELETE'), ('indexes', 'SELECT UPDATE'),
                 ('tasks', 'SELECT'), ('model_migrations', 'SELECT'), ('progress', 'SELECT'), ('index_status', 'SELECT'),
                 ('jobs_id_seq', 'SELECT')) AS need(name, rights)
    JOIN pg_class c ON c.relname = need.name
    JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'pgvec'
) rights WHERE cardinality(lacking) > 0
ORDER BY 1;

-- name: our_roles
-- Those of `pgvec init --roles` that this database has let in, and whether this role is a member of each.
SELECT r.rolname::text, pg_has_role(r.oid, 'USAGE')
FROM pg_namespace n CROSS JOIN LATERAL aclexplode(n.nspacl) a JOIN pg_roles r ON r.oid = a.grantee
WHERE n.nspname = 'pgvec' AND a.privilege_type = 'USAGE' AND r.rolname ~ '^pgvec_(owner|worker|enqueuer|reader|gateway)$'
ORDER BY 1;

-- name: only_works
-- Whether this role is a worker of `pgvec init --roles`, and neither enqueues nor owns.
SELECT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = 'pgvec_worker' AND pg_has_role(r.oid, 'USAGE'))
       AND NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname IN ('pgvec_enqueuer', 'pgvec_owner') AND pg_has_role(r.oid, 'USAGE'));

-- name: filter_runs
-- Nothing is read: rights are looked at before that.
SELECT FROM {source} s WHERE {selected} LIMIT 0;

-- name: rights_on_table
-- Columns that are not there, columns that may not be read, columns that may not be written, other rights that this role
-- lacks, and whether row-level security hides rows from it, or applies to it at all.
SELECT has_schema_privilege(n.oid, 'USAGE'),
       ARRAY(SELECT w FROM unnest(%(read)s::text[] || %(written)s::text[]) w
             WHERE NOT EXISTS (SELECT FROM pg_attribute a
                               WHERE a.attrelid = c.oid AND a.attname = w AND (a.attnum > 0 OR w = 'xmin') AND NOT a.attisdropped)),
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attname = ANY (%(read)s::text[])
               AND (a.attnum > 0 OR a.attname = 'xmin') AND NOT a.attisdropped
               AND NOT has_column_privilege(c.oid, a.attnum, 'SELECT') ORDER BY a.attnum),
       ARRAY(SELECT a.attname::text FROM pg_attribute a
             WHERE a.attrelid = c.oid AND a.attname = ANY (%(written)s::text[]) AND a.attnum > 0 AND NOT a.attisdropped
               AND NOT has_column_privilege(c.oid, a.attnum, 'UPDATE') ORDER BY a.attnum),
       ARRAY(SELECT p FROM unnest(%(wanted)s::text[]) p WHERE NOT has_table_privilege(c.oid, p)),
       pgvec.hides_rows(c.oid, cardinality(%(written)s::text[]) > 0), row_security_active(c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s;

-- name: follower
-- For whom the trigger function of a vectorizer acts, where that role could not queue a change. No row: it can, or there is none.
SELECT o.rolname::text
FROM pg_proc p
JOIN pg_namespace n ON n.oid = p.pronamespace AND n.nspname IN ('pgvec', 'pgvec_sync')
JOIN pg_roles o ON o.oid = p.proowner
WHERE p.proname = %(function)s AND p.pronargs = 0
  AND NOT (has_schema_privilege(o.oid, 'pgvec', 'USAGE') AND has_table_privilege(o.oid, 'pgvec.jobs', 'SELECT')
           AND has_table_privilege(o.oid, 'pgvec.jobs', 'INSERT')
           AND has_column_privilege(o.oid, 'pgvec.vectorizers', 'blocked_reason', 'UPDATE'));

-- name: may_see_statistics
SELECT pg_has_role('pg_read_all_stats', 'USAGE');

-- name: limited_by_standbys
SELECT name FROM pgvec.vectorizers WHERE replication_lag_limit IS NOT NULL ORDER BY name;

-- name: workers
-- Those that live, and those whose lease ran out without anybody taking their jobs over.
SELECT w.id, w.host, w.pid, extract(epoch FROM clock_timestamp() - w.beat_at)::float8,
       w.beat_at >= clock_timestamp() - w.lease,
       (SELECT count(*) FROM pgvec.jobs j WHERE j.state = 'running' AND j.worker_id = w.id)
FROM pgvec.workers w WHERE NOT w.gone ORDER BY w.id;

-- name: long_transactions
-- Of this database; an older snapshot elsewhere holds nothing back here.
SELECT format('%%s (pid %%s)', coalesce(nullif(a.application_name, ''), a.usename::text, 'somebody'), a.pid),
       extract(epoch FROM clock_timestamp() - a.xact_start)::float8, format('SELECT pg_terminate_backend(%%s)', a.pid)
FROM pg_stat_activity a
WHERE a.datname = current_database() AND a.pid <> pg_backend_pid() AND a.backend_type = 'client backend'
  AND a.xact_start < clock_timestamp() - make_interval(secs => %(seconds)s)
  AND (a.backend_xid IS NOT NULL OR a.backend_xmin IS NOT NULL)
UNION ALL
SELECT format('the prepared transaction %%s of %%s', p.gid, p.owner),
       extract(epoch FROM clock_timestamp() - p.prepared)::float8, format('ROLLBACK PREPARED %%L', p.gid)
FROM pg_prepared_xacts p
WHERE p.database = current_database() AND p.prepared < clock_timestamp() - make_interval(secs => %(seconds)s)
ORDER BY 2 DESC;

-- name: hidden_sessions
-- Other roles' sessions in this database of which this role may see nothing.
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND query = '<insufficient privilege>';

-- name: slots
-- What each replication slot keeps of the log, in bytes, and of dead rows, in transactions.
SELECT slot_name::text, active,
       pg_wal_lsn_diff(CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_lsn() END,
                       restart_lsn)::float8,
       greatest(age(xmin), age(catalog_xmin))
FROM pg_replication_slots ORDER BY 1;

-- name: size
-- Bytes of a destination with its indexes and long values.
SELECT coalesce(nullif(pg_total_relation_size(c.oid), 0),
                -- A partitioned table has nothing of its own.
                (SELECT sum(pg_total_relation_size(t.relid))::bigint FROM pg_partition_tree(c.oid) t), 0)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %(schema)s AND c.relname = %(table)s;

-- name: partitions
-- Of each destination in partitions: how many hold rows, which share the largest has, and how many tables and indexes a search locks.
SELECT v.name::text, count(*) FILTER (WHERE t.isleaf)::integer,
       coalesce(max(own.bytes) / nullif(sum(own.bytes), 0), 1.0)::float8, (count(*) + sum(own.indexes))::integer
FROM pgvec.vectorizers v
JOIN pg_namespace n ON n.nspname = v.destination_schema
JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = v.destination_table AND c.relkind = 'p'
CROSS JOIN LATERAL pg_partition_tree(c.oid) t
CROSS JOIN LATERAL (SELECT pg_table_size(t.relid)::float8 AS bytes,
                           (SELECT count(*) FROM pg_index i WHERE i.indrelid = t.relid) AS indexes) own
GROUP BY v.id, v.name ORDER BY v.name;

-- name: text_width
-- Bytes of the text columns of a row on average, as ANALYZE has found; NULL where it has not looked.
SELECT sum(avg_width)::float8 FROM pg_stats
WHERE schemaname = %(schema)s AND tablename = %(table)s AND attname = ANY (%(columns)s::text[]);

-- name: data_directory
-- NULL for a role that may not know.
SELECT (SELECT reset_val FROM pg_settings WHERE name = 'data_directory');

-- name: system_identifier
SELECT system_identifier FROM pg_control_system();

-- name: world
SELECT pgvec.world();
