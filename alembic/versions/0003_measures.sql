-- How far an owner has read, what a worker's device does, and which vectorizers share a model.
ALTER TABLE pgvec.jobs ADD COLUMN read_to text[];
COMMENT ON COLUMN pgvec.jobs.read_to IS 'How far the owner of a range had read when it last wrote; {}: all of it; NULL: not known';

ALTER TABLE pgvec.workers
    ADD COLUMN busy real,
    ADD COLUMN documents_per_second real,
    ADD COLUMN loads integer NOT NULL DEFAULT 0,
    ADD COLUMN batch_tokens integer;
COMMENT ON COLUMN pgvec.workers.busy IS 'Share, 0 to 1, of the time with a job in hand in which the device worked; of the last minute of such time';
COMMENT ON COLUMN pgvec.workers.documents_per_second IS 'Of the device alone';
COMMENT ON COLUMN pgvec.workers.loads IS 'Models that it has loaded';
COMMENT ON COLUMN pgvec.workers.batch_tokens IS 'Tokens that the model used last takes at a time, padding included';

ALTER TABLE pgvec.counters ADD COLUMN chunks_reused bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN pgvec.counters.chunks_reused IS 'Chunks that took the vector of an identical one beside them';

CREATE FUNCTION pgvec.model_of(v pgvec.vectorizers) RETURNS text
LANGUAGE sql STABLE PARALLEL SAFE
AS $$
    SELECT pg_catalog.jsonb_build_array(v.embedder, v.model, v.revision, v.endpoint, v.query_prompt, v.document_prompt,
                                        v.dimensions, v.trust_remote_code, v.tokenizer)::pg_catalog.text
$$;
COMMENT ON FUNCTION pgvec.model_of(pgvec.vectorizers) IS 'What a worker loads for it: the same for vectorizers that share one in memory';
