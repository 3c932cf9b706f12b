-- The long run: what is not embedded twice, indexes, another model, moving in.

-- Nothing twice: what each way of knowing a vector already has saved.
ALTER TABLE pgvec.counters
    ADD COLUMN rows_unchanged bigint NOT NULL DEFAULT 0,
    ADD COLUMN chunks_kept bigint NOT NULL DEFAULT 0,
    ADD COLUMN chunks_cached bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN pgvec.counters.rows_unchanged IS 'Selected rows that were found as they were when they were embedded, and blank ones';
COMMENT ON COLUMN pgvec.counters.chunks_kept IS 'Chunks of changed documents that kept the vector that they had';
COMMENT ON COLUMN pgvec.counters.chunks_cached IS 'Chunks that took their vector from a worker''s cache';

ALTER TABLE pgvec.workers
    ADD COLUMN cache_chunks integer,
    ADD COLUMN cache_bytes bigint,
    ADD COLUMN cache_lookups bigint,
    ADD COLUMN cache_hits bigint;
COMMENT ON COLUMN pgvec.workers.cache_chunks IS 'Vectors in its cache; NULL: it has none, or has switched it off since it did not pay';

-- Indexes: what is wanted, and what became of it.
ALTER TABLE pgvec.jobs DROP CONSTRAINT jobs_kind_check;
ALTER TABLE pgvec.jobs ADD CONSTRAINT jobs_kind_check CHECK (kind IN ('keys', 'range', 'sweep', 'index')) NOT VALID;
COMMENT ON COLUMN pgvec.jobs.kind IS 'range: source keys in (lower_key, upper_key], NULL for no bound; keys: the listed ones; sweep: destination keys in that range that no source row has; index: the vectors'' index, when no range is left';

CREATE TABLE pgvec.indexes (
    vectorizer_id   bigint PRIMARY KEY,
    m               integer NOT NULL CHECK (m BETWEEN 2 AND 100),
    ef_construction integer NOT NULL CHECK (ef_construction BETWEEN 4 AND 1000),
    store           text NOT NULL CHECK (store IN ('vector', 'halfvec')),
    memory_bytes    bigint CHECK (memory_bytes > 0),
    parallel_workers integer CHECK (parallel_workers >= 0),
    anyway          boolean NOT NULL DEFAULT false,
    state           text NOT NULL DEFAULT 'wanted' CHECK (state IN ('unwanted', 'wanted', 'building', 'built', 'refused')),
    reason          text,
    failures        integer NOT NULL DEFAULT 0,
    index_name      text,
    started_at      timestamptz,
    built_at        timestamptz,
    seconds         double precision,
    size_bytes      bigint,
    recall          double precision,
    recall_queries  integer,
    recall_at       timestamptz
);
COMMENT ON TABLE pgvec.indexes IS 'The index on each vectorizer''s vectors: what is wanted, and what became of it';
COMMENT ON COLUMN pgvec.indexes.store IS 'What is indexed: the vectors as they are, or cast to halfvec';
COMMENT ON COLUMN pgvec.indexes.memory_bytes IS 'What a build may take; NULL: what suits the server';
COMMENT ON COLUMN pgvec.indexes.parallel_workers IS 'Processes beside the first one of a build; NULL: as many as suit the server';
COMMENT ON COLUMN pgvec.indexes.anyway IS 'To be built though its graph does not fit into memory';
COMMENT ON COLUMN pgvec.indexes.reason IS 'Why it is refused, or not built yet; of a built one, what is worth knowing';
COMMENT ON COLUMN pgvec.indexes.failures IS 'How often a build has failed for something that may pass';
COMMENT ON COLUMN pgvec.indexes.index_name IS 'Schema and name, quoted as in SQL';
COMMENT ON COLUMN pgvec.indexes.seconds IS 'What its build took; NULL: it was there';
COMMENT ON COLUMN pgvec.indexes.recall IS 'Share of the ten nearest, by exact search, that a search through the index finds, on a sample';

-- Another model: two vectorizers of which one is to take the place, and the name, of the other.
-- Two names are swapped in one UPDATE, which is one with itself only when it has ended.
ALTER TABLE pgvec.vectorizers DROP CONSTRAINT vectorizers_name_key;
ALTER TABLE pgvec.vectorizers ADD CONSTRAINT vectorizers_name_key UNIQUE (name) DEFERRABLE INITIALLY IMMEDIATE;

CREATE TABLE pgvec.model_migrations (
    old_id      bigint PRIMARY KEY,
    new_id      bigint NOT NULL UNIQUE CHECK (new_id <> old_id),
    created_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    switched_at timestamptz,
    report      jsonb,
    reported_at timestamptz
);
COMMENT ON TABLE pgvec.model_migrations IS 'Vectorizers that are on their way to another model: the old one and the new one, until the old one is dropped';
COMMENT ON COLUMN pgvec.model_migrations.switched_at IS 'When the new one took the name of the old one; NULL: it has not, or was rolled back';
COMMENT ON COLUMN pgvec.model_migrations.report IS 'What `pgvec migrate-model` showed last, at reported_at: coverage, recall, agreement, size';
COMMENT ON TABLE pgvec.events IS 'What happened that is rare: reclaimed, quarantined, blocked, paused, resumed, cancelled, retried, altered, started, left, gone, migration begun, switched, rolled back, migration finished, migration given up. Kept a week, 10,000 at most';

-- Moving in: what was taken over as it was.
ALTER TABLE pgvec.counters
    ADD COLUMN rows_adopted bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN pgvec.counters.rows_adopted IS 'Rows whose vectors were there before, and were taken over';
