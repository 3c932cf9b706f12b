-- What every connection needs, whatever it is for.

-- name: transaction_settings
-- Keys are compared as text only in this form; a pooler's next client must not inherit any of it, hence local.
SELECT set_config('TimeZone', 'UTC', true),
       set_config('DateStyle', 'ISO, YMD', true),
       set_config('IntervalStyle', 'iso_8601', true),
       set_config('bytea_output', 'hex', true),
       set_config('extra_float_digits', '1', true),
       set_config('statement_timeout', %(statement_timeout)s, true),
       set_config('lock_timeout', %(lock_timeout)s, true),
       -- A worker that is stopped in the middle of a write keeps its job's row locked for no longer.
       set_config('idle_in_transaction_session_timeout', '10s', true),
       -- A backend that waits for a lock does not see its client die otherwise, and keeps the job's row locked meanwhile.
       CASE WHEN version() LIKE '%%linux%%' THEN set_config('client_connection_check_interval', '1s', true) END,
       set_config('application_name', coalesce(%(application_name)s, current_setting('application_name')), true),
       set_config('transaction_read_only', %(read_only)s, true);

-- name: timeouts
-- For a statement by itself. Between it and its COMMIT there is nothing to wait for: a worker whose network is cut just then,
-- in the middle of a beat, would keep its row locked, and nobody could declare it gone.
SELECT set_config('statement_timeout', '60s', true), set_config('lock_timeout', '5s', true),
       set_config('idle_in_transaction_session_timeout', '5s', true);

-- name: pgvector
SELECT n.nspname, e.extversion
FROM pg_catalog.pg_extension e
JOIN pg_catalog.pg_namespace n ON n.oid = e.extnamespace
WHERE e.extname = 'vector';
