-- The fleet: partitioned destinations, roles, versions side by side.

-- Partitioned destinations.
ALTER TABLE pgvec.vectorizers
    ADD COLUMN partitions integer CHECK (partitions BETWEEN 2 AND 1024);
COMMENT ON COLUMN pgvec.vectorizers.partitions IS 'Of the destination that was made for it, by hash of the key; NULL: one table';

-- Comments that were missing.
COMMENT ON TABLE pgvec.counters IS 'What was done of each vectorizer since it was made, one row per worker, so that none waits for another; worker 0: those that are gone';
COMMENT ON TABLE pgvec.samples IS 'What each worker did in each ten seconds of the last hour; rates come from it';
COMMENT ON FUNCTION pgvec.is_input(text, text) IS 'Whether a text can be read as a value of the type';
