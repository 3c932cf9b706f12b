-- What computes on a worker's device, and how much of it is padding.
ALTER TABLE pgvec.workers
    ADD COLUMN runtime text,
    ADD COLUMN padding real;
COMMENT ON COLUMN pgvec.workers.runtime IS 'What computes: torch or openvino; NULL: not on this machine, or without a model';
COMMENT ON COLUMN pgvec.workers.padding IS 'Share, 0 to 1, of the tokens that the model used last has computed and that were padding';
