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

-- Whose definition it is: enqueuers steer each other's vectorizers, and nobody else says what these read and where it goes.
ALTER TABLE pgvec.vectorizers ADD COLUMN maker name;
COMMENT ON COLUMN pgvec.vectorizers.maker IS 'The role that enqueued it, whose members may change the definition, as may the table''s owner; NULL: it is older than roles';

CREATE FUNCTION pgvec.keep_definition() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    IF pg_has_role((SELECT relowner FROM pg_class WHERE oid = TG_RELID), 'USAGE') THEN
        IF TG_OP = 'INSERT' THEN
            NEW.maker := coalesce(NEW.maker, current_user);
        END IF;
    ELSIF TG_OP = 'INSERT' THEN
        NEW.maker := current_user;
    ELSIF NEW.maker IS DISTINCT FROM OLD.maker
          OR NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = OLD.maker AND pg_has_role(r.oid, 'USAGE')) THEN
        RAISE EXCEPTION 'the definition of % belongs to %', OLD.name, coalesce(OLD.maker, 'the owner of the schema pgvec')
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION pgvec.keep_definition() IS 'Keeps who made a vectorizer, and refuses changes of its definition by others; steering and bookkeeping are free';
REVOKE EXECUTE ON FUNCTION pgvec.keep_definition() FROM PUBLIC;

CREATE TRIGGER keep_maker BEFORE INSERT ON pgvec.vectorizers FOR EACH ROW EXECUTE FUNCTION pgvec.keep_definition();
CREATE TRIGGER keep_definition BEFORE UPDATE OF
    id, source_schema, source_table, source_is_view, key_columns, key_types, text_columns, filter, destination_kind, destination_schema,
    destination_table, destination_roles, destination_key_types, destination_ordered, destination_created, store, embedder, model,
    revision, endpoint, tokenizer, query_prompt, document_prompt, dimensions, trust_remote_code, template, chunk_size, chunk_overlap,
    too_long, max_document_bytes, partitions, maker
ON pgvec.vectorizers FOR EACH ROW EXECUTE FUNCTION pgvec.keep_definition();
