-- A log of both ends: every version that a source row has had, and every time that a document was embedded. Both are
-- written by triggers in the transaction that they are about, so what was rolled back is in neither.

-- name: tables
CREATE TABLE chaos_versions (
    source text, key text, hash bytea,
    wanted boolean,                      -- selected and not blank
    initial boolean DEFAULT false,       -- there before anybody began
    at timestamptz DEFAULT clock_timestamp()
);
CREATE TABLE chaos_embeddings (
    source text, key text, hash bytea, backend integer DEFAULT pg_backend_pid(), at timestamptz DEFAULT clock_timestamp()
);

-- name: functions
CREATE FUNCTION chaos_key(rec jsonb, columns text[]) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT string_agg(rec ->> c.name, '/' ORDER BY c.place) FROM unnest(columns) WITH ORDINALITY c(name, place)
$$;
CREATE FUNCTION chaos_document(rec jsonb) RETURNS text LANGUAGE sql IMMUTABLE AS $$
    SELECT coalesce(rec ->> 'title' || E'\n\n' || (rec ->> 'body'), rec ->> 'title', rec ->> 'body')
$$;
-- A version is new when it was inserted, or when its key, its text or whether it is selected has changed.
CREATE FUNCTION chaos_version() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    now_ jsonb := to_jsonb(NEW);
    was jsonb := CASE WHEN TG_OP = 'UPDATE' THEN to_jsonb(OLD) END;
    document text := chaos_document(now_);
BEGIN
    IF TG_OP = 'INSERT' OR chaos_key(now_, TG_ARGV) <> chaos_key(was, TG_ARGV)
       OR document IS DISTINCT FROM chaos_document(was) OR now_ -> 'hidden' IS DISTINCT FROM was -> 'hidden' THEN
        INSERT INTO chaos_versions VALUES (
            TG_TABLE_NAME, chaos_key(now_, TG_ARGV), substring(sha256(convert_to(document, 'UTF8')) FOR 16),
            btrim(coalesce(document, ''), E' \t\n\r') <> '' AND (now_ ->> 'hidden')::boolean IS NOT TRUE);
    END IF;
    RETURN NULL;
END
$$;
-- A document that is embedded whole, or the first of its chunks.
CREATE FUNCTION chaos_embedding() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    now_ jsonb := to_jsonb(NEW);
BEGIN
    INSERT INTO chaos_embeddings VALUES (
        regexp_replace(TG_TABLE_NAME, '_vectors(_p[0-9]+)?$', ''), chaos_key(now_, TG_ARGV),
        (coalesce(now_ ->> 'source_hash', now_ ->> 'body_hash'))::bytea);
    RETURN NULL;
END
$$;

-- name: source
INSERT INTO chaos_versions
SELECT {name}, chaos_key(r, {columns}::text[]), substring(sha256(convert_to(chaos_document(r), 'UTF8')) FOR 16),
       btrim(coalesce(chaos_document(r), ''), E' \t\n\r') <> '' AND (r ->> 'hidden')::boolean IS NOT TRUE, true
FROM (SELECT to_jsonb(s) AS r FROM {source} s) rows;
CREATE TRIGGER chaos_version AFTER INSERT OR UPDATE ON {source}
FOR EACH ROW EXECUTE FUNCTION chaos_version({arguments});

-- name: held_table
INSERT INTO chaos_embeddings
SELECT {name}, chaos_key(to_jsonb(d), {columns}::text[]), source_hash FROM {destination} d WHERE chunk_index = 0;

-- name: held_column
INSERT INTO chaos_embeddings
SELECT {name}, chaos_key(to_jsonb(d), {columns}::text[]), body_hash FROM {destination} d WHERE embedding IS NOT NULL;

-- name: destination_table
CREATE TRIGGER chaos_embedding AFTER INSERT OR UPDATE ON {destination}
FOR EACH ROW WHEN (NEW.chunk_index = 0) EXECUTE FUNCTION chaos_embedding({arguments});

-- name: destination_column
CREATE TRIGGER chaos_embedding AFTER UPDATE OF embedding ON {destination}
FOR EACH ROW WHEN (NEW.embedding IS NOT NULL) EXECUTE FUNCTION chaos_embedding({arguments});

-- name: totals
SELECT (SELECT count(*) FROM chaos_versions WHERE wanted AND initial),
       (SELECT count(*) FROM chaos_versions WHERE wanted AND NOT initial),
       (SELECT count(*) FROM chaos_embeddings),
       (SELECT count(*) FROM (SELECT FROM chaos_versions v GROUP BY source, key
                              HAVING count(*) = 1 AND bool_and(wanted)) once);

-- name: needless
-- A row that was embedded more often than it has changed since (and with) its beginning.
SELECT e.source, e.key, coalesce(v.times, 0), e.times, v.changed, e.embedded
FROM (SELECT source, key, count(*) AS times,
             string_agg(format('%s by %s', at::time(2), backend), ', ' ORDER BY at) AS embedded
      FROM chaos_embeddings GROUP BY source, key) e
LEFT JOIN (SELECT source, key, count(*) AS times,
                  string_agg(CASE WHEN initial THEN 'at first' ELSE at::time(2)::text END, ', ' ORDER BY at) AS changed
           FROM chaos_versions GROUP BY source, key) v
    USING (source, key)
WHERE e.times > coalesce(v.times, 0)
ORDER BY e.source, e.key;

-- name: twice
-- Embeddings of a text that the row had already been embedded with, though it has not come back to it: a row that
-- changed twice within a second may be in the hands of two workers, with its last text.
SELECT coalesce(sum(e.times - v.times), 0)::integer
FROM (SELECT source, key, hash, count(*) AS times FROM chaos_embeddings GROUP BY source, key, hash) e
JOIN (SELECT source, key, hash, count(*) AS times FROM chaos_versions WHERE wanted GROUP BY source, key, hash) v
    USING (source, key, hash)
WHERE e.times > v.times;
