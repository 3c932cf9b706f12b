-- Live changes, deaths at a checkpoint, the world that a worker belongs to, and what was made in vain.
ALTER TABLE pgvec.vectorizers ADD COLUMN sync boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN pgvec.vectorizers.sync IS 'Triggers of the source queue every change of its text, its key or what the filter reads';

ALTER TABLE pgvec.jobs
    ADD COLUMN key_count integer NOT NULL DEFAULT 0,
    ADD COLUMN merged integer NOT NULL DEFAULT 1,
    ADD COLUMN alone boolean NOT NULL DEFAULT false,
    ADD COLUMN in_hand boolean NOT NULL DEFAULT false;
UPDATE pgvec.jobs SET key_count = jsonb_array_length(keys) WHERE kind = 'keys' AND state IN ('queued', 'running');
COMMENT ON COLUMN pgvec.jobs.rows IS 'Rows that the totals expect of this job; 0 for a list that a trigger made';
COMMENT ON COLUMN pgvec.jobs.attempts IS 'Workers that died on it since its checkpoint last moved; once it runs alone, only with a document in hand';
COMMENT ON COLUMN pgvec.jobs.merged IS 'Lists of keys that one claim has made into this one';
COMMENT ON COLUMN pgvec.jobs.alone IS 'It has cost two workers: it runs by itself, one document per slice';
COMMENT ON COLUMN pgvec.jobs.in_hand IS 'It runs alone, and its next document has been given to the model';

ALTER TABLE pgvec.workers ADD COLUMN waiting_for text;
COMMENT ON COLUMN pgvec.workers.waiting_for IS 'Why it makes no progress at present: an endpoint that is down, a lock, a model that it holds for sick';

ALTER TABLE pgvec.counters
    ADD COLUMN rows_wasted bigint NOT NULL DEFAULT 0,
    ADD COLUMN writes_refused bigint NOT NULL DEFAULT 0,
    ADD COLUMN jobs_reclaimed bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN pgvec.counters.rows_wasted IS 'Rows embedded whose vectors were thrown away: they had changed, or the job was lost';
COMMENT ON COLUMN pgvec.counters.writes_refused IS 'Writes of workers that had lost their job';
COMMENT ON COLUMN pgvec.counters.jobs_reclaimed IS 'Jobs taken back from workers that were gone';

-- Which history of which database this is. A worker whose connections end up elsewhere (a standby was promoted, a dump
-- restored) meets rows that look like its own and are not: everything that it claims or writes shows this.
CREATE FUNCTION pgvec.world() RETURNS text
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS $$
DECLARE
    cluster text := '';
    timeline text := '';
BEGIN
    -- Some providers keep these functions to themselves; a standby has no position of its own.
    BEGIN
        cluster := (SELECT system_identifier FROM pg_catalog.pg_control_system());
    EXCEPTION WHEN insufficient_privilege OR undefined_function OR feature_not_supported THEN NULL;
    END;
    BEGIN
        timeline := pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8);
    EXCEPTION WHEN insufficient_privilege OR undefined_function OR feature_not_supported
                   OR object_not_in_prerequisite_state THEN NULL;
    END;
    RETURN pg_catalog.concat_ws('/', cluster, timeline,
        (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()),
        'pgvec.jobs'::pg_catalog.regclass::pg_catalog.oid);
END
$$;
COMMENT ON FUNCTION pgvec.world() IS 'Cluster, timeline, database and table of jobs: another value means another history';

-- Most texts begin with a character that is plainly none: the expression, which converts the whole text, is not needed.
CREATE OR REPLACE FUNCTION pgvec.is_blank(document text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT document IS NULL OR (ascii(document) NOT BETWEEN 33 AND 126 AND document !~ U&'[^\0009-\000D\001C-\0020\0085\00A0\1680\2000-\200A\2028\2029\202F\205F\3000]') $$;
