-- The fleet: partitioned destinations, roles, versions side by side.

-- Partitioned destinations.
ALTER TABLE pgvec.vectorizers
    ADD COLUMN partitions integer CHECK (partitions BETWEEN 2 AND 1024);
COMMENT ON COLUMN pgvec.vectorizers.partitions IS 'Of the destination that was made for it, by hash of the key; NULL: one table';

-- What workers of a large fleet tell each other with their heartbeats.
ALTER TABLE pgvec.workers
    ADD COLUMN plenty boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN pgvec.workers.plenty IS 'When it last looked, more jobs were queued than two for each worker: idle ones that hear so look at once';
