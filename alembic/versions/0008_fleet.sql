-- The fleet: partitioned destinations, roles, versions side by side.

-- Partitioned destinations.
ALTER TABLE pgvec.vectorizers
    ADD COLUMN partitions integer CHECK (partitions BETWEEN 2 AND 256);
COMMENT ON COLUMN pgvec.vectorizers.partitions IS 'Of the destination that was made for it, by hash of the key; NULL: one table';

-- Versions side by side.
ALTER TABLE pgvec.workers ADD COLUMN revision text;
COMMENT ON COLUMN pgvec.workers.revision IS 'Of the schema that its program is made for; NULL: 0007 or earlier';

-- What workers of a large fleet tell each other with their heartbeats.
ALTER TABLE pgvec.workers
    ADD COLUMN plenty boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN pgvec.workers.plenty IS 'When it last looked, more jobs were queued than two for each worker: idle ones that hear so look at once';

-- Comments that were missing.
COMMENT ON TABLE pgvec.counters IS 'What was done of each vectorizer since it was made, one row per worker, so that none waits for another; worker 0: those that are gone';
COMMENT ON TABLE pgvec.samples IS 'What each worker did in each ten seconds of the last five minutes; rates come from it';
COMMENT ON FUNCTION pgvec.is_input(text, text) IS 'Whether a text can be read as a value of the type';
