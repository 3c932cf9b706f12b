-- What people do to a vectorizer or a worker, from psql as from the command line; created again by every `pgvec init`.
-- Each is one short transaction, wakes the workers, and leaves an event.

-- name: vectorizer_id
CREATE OR REPLACE FUNCTION pgvec.vectorizer_id(vectorizer text) RETURNS bigint
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found bigint := (SELECT v.id FROM pgvec.vectorizers v WHERE v.name = vectorizer);
    there text := (SELECT string_agg(v.name, ', ' ORDER BY v.name) FROM pgvec.vectorizers v);
BEGIN
    IF found IS NULL THEN
        RAISE EXCEPTION 'no vectorizer is called %; %', quote_nullable(vectorizer),
            coalesce('there are: ' || there, 'there is none yet; make one with `pgvec enqueue`') USING ERRCODE = 'no_data_found';
    END IF;
    RETURN found;
END
$$;
COMMENT ON FUNCTION pgvec.vectorizer_id(text) IS 'The id of the vectorizer of that name; an error that lists the others where there is none';

-- name: pause
CREATE OR REPLACE FUNCTION pgvec.pause(vectorizer text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    its_id bigint := pgvec.vectorizer_id(vectorizer);
BEGIN
    UPDATE pgvec.vectorizers SET paused = true WHERE id = its_id AND NOT paused;
    IF FOUND THEN
        INSERT INTO pgvec.events (kind, vectorizer_id) VALUES ('paused', its_id);
    END IF;
    PERFORM pg_notify('pgvec_jobs', 'steer');
END
$$;
COMMENT ON FUNCTION pgvec.pause(text) IS 'Workers claim no more of its jobs, and give back the ones they have, within two seconds';

-- name: resume
CREATE OR REPLACE FUNCTION pgvec.resume(vectorizer text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    its_id bigint := pgvec.vectorizer_id(vectorizer);
BEGIN
    UPDATE pgvec.vectorizers SET paused = false, cancelled = false, blocked_reason = NULL, blocked_at = NULL
    WHERE id = its_id AND (paused OR cancelled OR blocked_reason IS NOT NULL);
    IF FOUND THEN
        INSERT INTO pgvec.events (kind, vectorizer_id) VALUES ('resumed', its_id);
    END IF;
    PERFORM pg_notify('pgvec_jobs', 'steer');
END
$$;
COMMENT ON FUNCTION pgvec.resume(text) IS 'Lets it go on after a pause, a block or a cancellation';

-- name: cancel
CREATE OR REPLACE FUNCTION pgvec.cancel(vectorizer text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    its_id bigint := pgvec.vectorizer_id(vectorizer);
BEGIN
    UPDATE pgvec.vectorizers SET cancelled = true WHERE id = its_id AND NOT cancelled;
    IF FOUND THEN
        INSERT INTO pgvec.events (kind, vectorizer_id) VALUES ('cancelled', its_id);
    END IF;
    PERFORM pg_notify('pgvec_jobs', 'steer');
END
$$;
COMMENT ON FUNCTION pgvec.cancel(text) IS 'Gives up its unfinished jobs; what is written stays';

-- name: retry_documents
-- Documents leave the quarantine and become lists of keys; until they are done they count as right no longer.
CREATE OR REPLACE FUNCTION pgvec.retry_documents(vectorizer bigint, only_class text, only_keys jsonb) RETURNS bigint
LANGUAGE sql SET search_path = pg_catalog, pg_temp
AS $$
    WITH freed AS (
        DELETE FROM pgvec.failures f
        WHERE f.vectorizer_id = retry_documents.vectorizer
          AND (retry_documents.only_class IS NULL OR f.error_class = retry_documents.only_class)
          AND (retry_documents.only_keys IS NULL OR to_jsonb(f.key) IN (SELECT jsonb_array_elements(retry_documents.only_keys)))
        RETURNING f.key
    ), numbered AS (
        SELECT key, (row_number() OVER () - 1) / 1000 AS part FROM freed
    ), lists AS (
        INSERT INTO pgvec.jobs (vectorizer_id, kind, keys, key_count, rows)
        SELECT retry_documents.vectorizer, 'keys', jsonb_agg(to_jsonb(key)), count(*), count(*) FROM numbered GROUP BY part
        RETURNING rows
    ), counted AS (
        INSERT INTO pgvec.counters AS c (vectorizer_id, worker_id, rows_right)
        SELECT retry_documents.vectorizer, 0, -sum(rows) FROM lists HAVING count(*) > 0
        ON CONFLICT (vectorizer_id, worker_id) DO UPDATE SET rows_right = c.rows_right + excluded.rows_right
    )
    SELECT coalesce(sum(rows), 0)::bigint FROM lists
$$;
COMMENT ON FUNCTION pgvec.retry_documents(bigint, text, jsonb) IS 'Takes documents of a vectorizer out of quarantine (of one error class, or those whose keys are listed) and queues them; returns how many';

-- name: retry
CREATE OR REPLACE FUNCTION pgvec.retry(vectorizer text, error_class text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found bigint := pgvec.vectorizer_id(vectorizer);
    freed bigint := pgvec.retry_documents(found, error_class, NULL);
BEGIN
    IF freed > 0 THEN
        INSERT INTO pgvec.events (kind, vectorizer_id, message) VALUES ('retried', found, freed || ' documents');
    END IF;
    PERFORM pg_notify('pgvec_jobs', 'steer');
    RETURN freed;
END
$$;
COMMENT ON FUNCTION pgvec.retry(text, text) IS 'Takes its documents (of one error class) out of quarantine and queues them; returns how many';

-- name: alter_vectorizer
-- NULL: as it is. A limit of 0 is none.
CREATE OR REPLACE FUNCTION pgvec.alter_vectorizer(
    vectorizer text, new_name text DEFAULT NULL, priority integer DEFAULT NULL, rows_per_job integer DEFAULT NULL,
    rows_per_second_limit double precision DEFAULT NULL, replication_lag_limit interval DEFAULT NULL,
    commit_time_limit interval DEFAULT NULL) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
#variable_conflict use_column
DECLARE
    found bigint := pgvec.vectorizer_id(alter_vectorizer.vectorizer);
BEGIN
    UPDATE pgvec.vectorizers v
    SET name = coalesce(alter_vectorizer.new_name, v.name),
        priority = coalesce(alter_vectorizer.priority, v.priority),
        rows_per_job = coalesce(alter_vectorizer.rows_per_job, v.rows_per_job),
        rows_per_second_limit = nullif(coalesce(alter_vectorizer.rows_per_second_limit, v.rows_per_second_limit), 0),
        replication_lag_limit = nullif(coalesce(alter_vectorizer.replication_lag_limit, v.replication_lag_limit), interval '0'),
        commit_time_limit = nullif(coalesce(alter_vectorizer.commit_time_limit, v.commit_time_limit), interval '0')
    WHERE v.id = found;
    -- What another limit has spent is not owed to this one.
    DELETE FROM pgvec.pace p WHERE p.vectorizer_id = found AND alter_vectorizer.rows_per_second_limit IS NOT NULL;
    INSERT INTO pgvec.events (kind, vectorizer_id, message)
    VALUES ('altered', found, concat_ws(', ', 'name ' || new_name, 'priority ' || alter_vectorizer.priority,
            'rows per job ' || alter_vectorizer.rows_per_job,
            'rows/s ' || alter_vectorizer.rows_per_second_limit, 'replication lag ' || alter_vectorizer.replication_lag_limit,
            'commit time ' || alter_vectorizer.commit_time_limit));
    PERFORM pg_notify('pgvec_jobs', 'steer');
END
$$;
COMMENT ON FUNCTION pgvec.alter_vectorizer(text, text, integer, integer, double precision, interval, interval) IS 'Changes what needs no new vectors; NULL leaves a thing as it is, 0 takes a limit away';

-- name: drop_vectorizer
-- It waits for the source's lock as long as its caller does: a SET of its own would go before that.
CREATE OR REPLACE FUNCTION pgvec.drop_vectorizer(vectorizer text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    found bigint := pgvec.vectorizer_id(vectorizer);
    func text := 'sync_' || found;
    patient boolean := current_setting('lock_timeout') = '0';
    one record;
BEGIN
    IF patient THEN
        PERFORM set_config('lock_timeout', '5s', true);
    END IF;
    FOR one IN
        SELECT g.tgname, g.tgrelid::regclass::text AS on_table
        FROM pg_trigger g JOIN pg_proc p ON p.oid = g.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname IN ('pgvec', 'pgvec_sync') AND p.proname = func AND NOT g.tgisinternal
        ORDER BY g.tgrelid, g.tgname
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', one.tgname, one.on_table);
    END LOOP;
    FOR one IN
        SELECT p.oid::regprocedure::text AS label FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE n.nspname IN ('pgvec', 'pgvec_sync') AND p.proname = func AND p.pronargs = 0
    LOOP
        EXECUTE format('DROP FUNCTION %s', one.label);
    END LOOP;
    DELETE FROM pgvec.vectorizers WHERE id = found;
    DELETE FROM pgvec.jobs WHERE vectorizer_id = found;
    DELETE FROM pgvec.failures WHERE vectorizer_id = found;
    DELETE FROM pgvec.samples WHERE vectorizer_id = found;
    DELETE FROM pgvec.minutes WHERE vectorizer_id = found;
    DELETE FROM pgvec.counters WHERE vectorizer_id = found;
    DELETE FROM pgvec.pace WHERE vectorizer_id = found;
    DELETE FROM pgvec.indexes WHERE vectorizer_id = found;
    DELETE FROM pgvec.model_migrations WHERE found IN (old_id, new_id);
    INSERT INTO pgvec.events (kind, message) VALUES ('dropped', vectorizer);
    PERFORM pg_notify('pgvec_jobs', 'steer');
    IF patient THEN
        PERFORM set_config('lock_timeout', '0', true);
    END IF;
END
$$;
COMMENT ON FUNCTION pgvec.drop_vectorizer(text) IS 'Removes the vectorizer with its jobs and triggers; its destination and the vectors in it stay';

-- name: swap_models
-- In one UPDATE each of the two takes the other's name and priority, so that whoever asks for the name finds one or the
-- other, never none. A collection and its tasks move along; a task that is being written waits for the lock, or is waited for.
CREATE OR REPLACE FUNCTION pgvec.swap_models(vectorizer text, forward boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s'
AS $$
DECLARE
    found bigint := pgvec.vectorizer_id(vectorizer);
    migration pgvec.model_migrations;
    from_id bigint;
    to_id bigint;
    swapped integer;
BEGIN
    SELECT * INTO migration FROM pgvec.model_migrations m WHERE found IN (m.old_id, m.new_id) FOR UPDATE;
    IF migration.old_id IS NULL THEN
        RAISE EXCEPTION '% is on its way to no other model; begin with: pgvec migrate-model % --model MODEL', vectorizer, vectorizer
            USING ERRCODE = 'no_data_found';
    ELSIF forward AND migration.switched_at IS NOT NULL THEN
        RAISE EXCEPTION '% has been switched to the new model already; roll back, or finish', vectorizer
            USING ERRCODE = 'object_not_in_prerequisite_state';
    ELSIF NOT forward AND migration.switched_at IS NULL THEN
        RAISE EXCEPTION 'nothing of % was switched, so there is nothing to roll back', vectorizer
            USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    IF EXISTS (SELECT FROM pgvec.collections WHERE vectorizer_id IN (migration.old_id, migration.new_id)) THEN
        LOCK TABLE pgvec.tasks IN SHARE ROW EXCLUSIVE MODE;
    END IF;
    from_id := CASE WHEN forward THEN migration.old_id ELSE migration.new_id END;
    to_id := CASE WHEN forward THEN migration.new_id ELSE migration.old_id END;
    UPDATE pgvec.vectorizers v SET name = other.name, priority = other.priority
    FROM pgvec.vectorizers other
    WHERE v.id IN (from_id, to_id) AND other.id IN (from_id, to_id) AND other.id <> v.id;
    GET DIAGNOSTICS swapped = ROW_COUNT;
    IF swapped <> 2 THEN
        RAISE EXCEPTION 'one of the two vectorizers of % is gone', vectorizer USING ERRCODE = 'object_not_in_prerequisite_state';
    END IF;
    UPDATE pgvec.collections SET vectorizer_id = to_id WHERE vectorizer_id = from_id;
    UPDATE pgvec.tasks SET vectorizer_id = to_id WHERE vectorizer_id = from_id;
    UPDATE pgvec.model_migrations SET switched_at = CASE WHEN forward THEN clock_timestamp() END WHERE old_id = migration.old_id;
    INSERT INTO pgvec.events (kind, vectorizer_id, message)
    SELECT CASE WHEN forward THEN 'switched' ELSE 'rolled back' END, v.id, 'to ' || v.model FROM pgvec.vectorizers v WHERE v.id = to_id;
    PERFORM pg_notify('pgvec_jobs', 'steer');
END
$$;
COMMENT ON FUNCTION pgvec.swap_models(text, boolean) IS 'What pgvec.switch_model and pgvec.roll_back_model do';

-- name: switch_model
CREATE OR REPLACE FUNCTION pgvec.switch_model(vectorizer text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
AS $$ SELECT pgvec.swap_models(vectorizer, true) $$;
COMMENT ON FUNCTION pgvec.switch_model(text) IS 'From now on its name means the vectorizer of the new model; looks at nothing: `pgvec migrate-model` tells whether that is complete';

-- name: roll_back_model
CREATE OR REPLACE FUNCTION pgvec.roll_back_model(vectorizer text) RETURNS void
LANGUAGE sql SET search_path = pg_catalog, pg_temp
AS $$ SELECT pgvec.swap_models(vectorizer, false) $$;
COMMENT ON FUNCTION pgvec.roll_back_model(text) IS 'Its name means the vectorizer of the old model again, which was kept in sync meanwhile';

-- name: stop_workers
CREATE OR REPLACE FUNCTION pgvec.stop_workers(on_host text DEFAULT NULL) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
    told bigint;
BEGIN
    UPDATE pgvec.workers w SET leave = true
    WHERE NOT w.gone AND NOT w.leave AND (on_host IS NULL OR w.host = on_host);
    GET DIAGNOSTICS told = ROW_COUNT;
    PERFORM pg_notify('pgvec_jobs', 'steer');
    RETURN told;
END
$$;
COMMENT ON FUNCTION pgvec.stop_workers(text) IS 'Tells the workers of a host, or all, to leave as by SIGTERM; returns how many';

-- name: hides_rows
-- Whether row-level security keeps rows of a table from this role: all that it may not read, or not update. A policy of which
-- the condition is plainly true keeps none. Partitions are read through their parent, whose policies count.
CREATE OR REPLACE FUNCTION pgvec.hides_rows(relation regclass, updates boolean DEFAULT false) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
    SELECT row_security_active(relation) AND EXISTS (
        SELECT FROM (VALUES ('r'), ('w')) AS wanted(command)
        WHERE (command = 'r' OR updates) AND (
            NOT EXISTS (
                SELECT FROM pg_policy p
                WHERE p.polrelid = relation AND p.polcmd::text IN ('*', command) AND p.polpermissive
                  AND EXISTS (SELECT FROM unnest(p.polroles) AS u(role) WHERE role = 0 OR pg_has_role(role, 'USAGE'))
                  AND pg_get_expr(p.polqual, p.polrelid) = 'true'
                  AND (command = 'r' OR p.polwithcheck IS NULL OR pg_get_expr(p.polwithcheck, p.polrelid) = 'true'))
            OR EXISTS (
                SELECT FROM pg_policy p
                WHERE p.polrelid = relation AND p.polcmd::text IN ('*', command) AND NOT p.polpermissive
                  AND EXISTS (SELECT FROM unnest(p.polroles) AS u(role) WHERE role = 0 OR pg_has_role(role, 'USAGE'))
                  AND (coalesce(pg_get_expr(p.polqual, p.polrelid), 'true') <> 'true'
                       OR command = 'w' AND coalesce(pg_get_expr(p.polwithcheck, p.polrelid), 'true') <> 'true'))))
$$;
COMMENT ON FUNCTION pgvec.hides_rows(regclass, boolean) IS 'Whether row-level security may keep rows of a table from this role, when it reads them or also when it updates them';

-- name: refuse_hidden
CREATE OR REPLACE FUNCTION pgvec.refuse_hidden(source regclass, destination regclass) RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
    -- What a worker does not see it would take for gone.
    IF pgvec.hides_rows(source, source = destination) THEN
        RAISE EXCEPTION 'row-level security may hide rows of % from the role %, which would lose their vectors; give it a policy with USING (true), or BYPASSRLS',
            source, current_user USING ERRCODE = 'insufficient_privilege';
    -- Nothing is copied where policies apply, whatever they say.
    ELSIF source <> destination AND row_security_active(destination) THEN
        RAISE EXCEPTION 'row-level security of % applies to the role %, which has to write all of it; give it BYPASSRLS, or make it a member of the owner',
            destination, current_user USING ERRCODE = 'insufficient_privilege';
    END IF;
END
$$;
COMMENT ON FUNCTION pgvec.refuse_hidden(regclass, regclass) IS 'An error where row-level security keeps this role from seeing all of a source, or from writing all of a destination (the source again where the vectors are a column of it)';
