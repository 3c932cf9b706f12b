-- What the catalog says of a user's tables.

-- name: relation
-- The relation of that name: an exact match before a folded one, one in the named schema or on the search path.
SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relispartition
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')
  AND (c.relname = %(name)s OR c.relname = %(folded_name)s)
  AND CASE WHEN %(schema)s::text IS NULL THEN pg_catalog.pg_table_is_visible(c.oid)
           ELSE n.nspname = %(schema)s OR n.nspname = %(folded_schema)s END
ORDER BY c.relname = %(name)s DESC, n.nspname IS NOT DISTINCT FROM %(schema)s DESC
LIMIT 1;

-- name: similar
-- Tables that the user may have meant.
SELECT n.nspname || '.' || c.relname
FROM pg_catalog.pg_class c
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm') AND lower(c.relname) = lower(%(name)s)
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast', 'pgvec')
ORDER BY 1 LIMIT 3;

-- name: columns
SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) AS type,
       -- A worker's search path may be another: a type of the user's own needs its schema.
       CASE WHEN tn.nspname = 'pg_catalog' THEN pg_catalog.format_type(a.atttypid, -1)
            ELSE pg_catalog.quote_ident(tn.nspname) || '.' || pg_catalog.quote_ident(t.typname) END AS base_type,
       t.typcategory::text AS category, t.typname, tn.nspname AS type_schema, a.atttypmod AS typmod,
       a.attnotnull AS not_null, a.attcollation::bigint AS collation,
       (SELECT pg_catalog.quote_ident(cn.nspname) || '.' || pg_catalog.quote_ident(co.collname)
        FROM pg_catalog.pg_collation co JOIN pg_catalog.pg_namespace cn ON cn.oid = co.collnamespace
        WHERE co.oid = a.attcollation AND a.attcollation <> t.typcollation) AS collation_name,
       a.atthasdef OR a.attidentity <> '' OR a.attgenerated <> '' AS has_default
FROM pg_catalog.pg_attribute a
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid
JOIN pg_catalog.pg_namespace tn ON tn.oid = t.typnamespace
WHERE a.attrelid = %(oid)s::oid AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum;

-- name: unique_keys
-- Usable unique keys, the primary key first: complete, immediate, valid, over plain columns.
SELECT i.indisprimary,
       ARRAY(SELECT a.attname FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, position)
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
             WHERE k.position <= i.indnkeyatts ORDER BY k.position)::text[]
FROM pg_catalog.pg_index i
JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
JOIN pg_catalog.pg_am am ON am.oid = c.relam
WHERE i.indrelid = %(oid)s::oid AND i.indisunique AND i.indisvalid AND i.indimmediate
  AND i.indpred IS NULL AND i.indexprs IS NULL AND am.amname = 'btree'
ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid;

-- name: leading_index
-- Whether an index's first columns are these, in any order.
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_index i
    JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    JOIN pg_catalog.pg_am am ON am.oid = c.relam
    WHERE i.indrelid = %(oid)s::oid AND i.indisvalid AND i.indpred IS NULL AND am.amname = 'btree'
      AND ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, position)
                JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum
                WHERE k.position <= least(cardinality(%(columns)s::text[]), i.indnkeyatts))
          @> %(columns)s::text[]);

-- name: schema_exists
SELECT EXISTS (SELECT FROM pg_catalog.pg_namespace WHERE nspname = %(name)s);

-- name: check_filter
-- Fails where the filter is no condition over the row's own columns. With a parameter PostgreSQL takes one statement, no more.
SELECT FROM {source} s WHERE {selected} LIMIT %(none)s::bigint;

-- name: check_brackets
-- What ends the parentheses that it is put into, and opens others, does not fit between brackets of another kind.
SELECT ARRAY[{filter}
] FROM {source} s LIMIT %(none)s::bigint;

-- name: check_cast
SELECT CAST(NULL::{from_type} AS {to_type});

-- name: cast_rounds
-- Whether two keys may become one: PostgreSQL casts implicitly only what loses nothing, and a narrower integer overflows.
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_cast c
    JOIN pg_catalog.pg_type t ON t.oid = c.casttarget
    WHERE c.castsource = %(from_type)s::regtype AND c.casttarget = %(to_type)s::regtype
      AND c.castcontext <> 'i' AND t.typcategory <> 'S'
      AND NOT (ARRAY[c.castsource, c.casttarget] <@ ARRAY['int2', 'int4', 'int8']::regtype[]::oid[]));

-- name: explain_hop
EXPLAIN (FORMAT JSON) SELECT {key} FROM {source} s WHERE {scope} ORDER BY {key} OFFSET 999 LIMIT 1;

-- name: prefer_indexes
SELECT set_config('enable_seqscan', 'off', true), set_config('enable_sort', 'off', true),
       set_config('jit', 'off', true);

-- name: destination_taken
SELECT name FROM pgvec.vectorizers
WHERE destination_schema = %(schema)s AND destination_table = %(table)s AND destination_kind = %(kind)s
  AND (%(kind)s = 'table' OR destination_roles ->> 'embedding' = %(embedding)s
       OR destination_roles ->> 'source_hash' = %(source_hash)s);
