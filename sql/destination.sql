-- Making destinations.

-- name: create_table
CREATE TABLE {destination} ({columns}, UNIQUE ({unique}));

-- name: create_partitioned
CREATE TABLE {destination} ({columns}, UNIQUE ({unique})) PARTITION BY HASH ({key});

-- name: create_partition
-- What a table is stored by is a partition's own: the partitioned table has nothing of it to hand down.
CREATE TABLE {partition} PARTITION OF {destination} FOR VALUES WITH (MODULUS {count}, REMAINDER {number});

-- name: create_chunk_id_index
-- In the place of a unique one, which would have to hold the columns that the table is partitioned by.
CREATE INDEX ON {destination} ({chunk_id});

-- name: check_hash
-- Fails where a type cannot be hashed.
SELECT pg_catalog.hash_array_extended(ARRAY[]::{type}[], 0);

-- name: set_toast_target
-- Keeps vectors in the row where three rows fit a page: no second look-up per vector.
ALTER TABLE {destination} SET (toast_tuple_target = 8160);

-- name: add_column
ALTER TABLE {destination} ADD COLUMN {column} {type};

-- name: create_index
CREATE INDEX CONCURRENTLY IF NOT EXISTS {index} ON {destination} ({columns});

-- name: index_build
-- A build goes on after its client has died.
SELECT FROM pg_catalog.pg_stat_progress_create_index WHERE relid = %(oid)s::oid AND datname = current_database();

-- name: no_timeouts
-- A build of any length runs outside a transaction, where SET LOCAL has no effect.
SELECT set_config('statement_timeout', '0', false), set_config('lock_timeout', '0', false);

-- name: usual_timeouts
RESET statement_timeout; RESET lock_timeout;

-- name: drop_invalid_index
SELECT pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(c.relname)
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE i.indrelid = %(oid)s::oid AND c.relname = %(name)s AND NOT i.indisvalid;

-- name: count
SELECT count(*) FROM {destination};

-- name: count_vectors
SELECT count({embedding}) FROM {destination};
