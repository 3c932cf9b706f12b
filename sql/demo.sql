-- The demo's table.

-- name: create_table
CREATE TABLE IF NOT EXISTS pgvec_demo (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name text NOT NULL UNIQUE,
    docstring text NOT NULL
);

-- name: create_staging
CREATE TEMPORARY TABLE pgvec_demo_staging (name text, docstring text) ON COMMIT DROP;

-- name: merge
INSERT INTO pgvec_demo (name, docstring)
SELECT name, docstring FROM pgvec_demo_staging
ON CONFLICT (name) DO UPDATE SET docstring = excluded.docstring WHERE pgvec_demo.docstring <> excluded.docstring;

-- name: count
SELECT count(*) FROM pgvec_demo;

-- name: names
SELECT id::text, name FROM pgvec_demo WHERE id = ANY (%(ids)s::bigint[]);
