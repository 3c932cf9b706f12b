-- The vectorizers: one row per definition, with the flags that steer it and the plan's bookkeeping.
CREATE TABLE pgvec.vectorizers (
    id                   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name                 text NOT NULL UNIQUE CHECK (name <> ''),
    source_schema        text NOT NULL,
    source_table         text NOT NULL,
    source_is_view       boolean NOT NULL DEFAULT false,
    key_columns          text[] NOT NULL CHECK (cardinality(key_columns) > 0),
    key_types            text[] NOT NULL CHECK (cardinality(key_types) = cardinality(key_columns)),
    text_columns         text[] NOT NULL CHECK (cardinality(text_columns) > 0),
    filter               text,
    destination_kind     text NOT NULL CHECK (destination_kind IN ('table', 'column')),
    destination_schema   text NOT NULL,
    destination_table    text NOT NULL,
    destination_roles    jsonb NOT NULL,
    destination_key_types text[] NOT NULL,
    destination_ordered  boolean NOT NULL,
    destination_created  boolean NOT NULL,
    store                text NOT NULL CHECK (store IN ('vector', 'halfvec')),
    embedder             text NOT NULL,
    model                text NOT NULL,
    revision             text,
    endpoint             text,
    tokenizer            text,
    query_prompt         text,
    document_prompt      text,
    dimensions           integer NOT NULL CHECK (dimensions > 0),
    trust_remote_code    boolean NOT NULL DEFAULT false,
    template             text,
    chunk_size           integer CHECK (chunk_size > 0),
    chunk_overlap        integer CHECK (chunk_overlap >= 0),
    too_long             text NOT NULL CHECK (too_long IN ('quarantine', 'truncate')),
    max_document_bytes   integer NOT NULL DEFAULT 10485760 CHECK (max_document_bytes > 0),
    rows_per_job         integer NOT NULL CHECK (rows_per_job > 0),
    priority             integer NOT NULL DEFAULT 0,
    paused               boolean NOT NULL DEFAULT false,
    cancelled            boolean NOT NULL DEFAULT false,
    blocked_reason       text,
    blocked_at           timestamptz,
    plan_epoch           bigint NOT NULL DEFAULT 0,
    plan_complete        boolean NOT NULL DEFAULT false,
    plan_beat_at         timestamptz,
    limited_to           text[],
    rows_planned         bigint NOT NULL DEFAULT 0,
    jobs_planned         bigint NOT NULL DEFAULT 0,
    rows_selected_base   bigint NOT NULL DEFAULT 0,
    rows_right_base      bigint NOT NULL DEFAULT 0,
    chunks_base          bigint NOT NULL DEFAULT 0,
    created_at           timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE pgvec.vectorizers IS 'One definition each: source, key, text, filter, model, chunking, destination';
COMMENT ON COLUMN pgvec.vectorizers.destination_roles IS 'Role (key, chunk_id, chunk_index, chunk, embedding, source_hash, created_at) to column; key holds an array';
COMMENT ON COLUMN pgvec.vectorizers.destination_ordered IS 'Whether the destination''s key has the source key''s types and collations, so that a key range means the same in both';
COMMENT ON COLUMN pgvec.vectorizers.chunk_size IS 'Tokens of the model''s tokenizer, special tokens included; NULL: documents stay whole';
COMMENT ON COLUMN pgvec.vectorizers.limited_to IS 'The last key selected by enqueue --limit; NULL: no limit was given';
COMMENT ON COLUMN pgvec.vectorizers.plan_epoch IS 'Fencing number of the planner: the latest enqueue alone may add jobs';
COMMENT ON COLUMN pgvec.vectorizers.rows_planned IS 'Source rows in the present plan''s jobs, before the filter; corrected by counters.rows_adjusted as slices are written';

-- The queue: one row per key range, or per list of changed keys.
CREATE TABLE pgvec.jobs (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    vectorizer_id bigint NOT NULL,
    kind          text NOT NULL CHECK (kind IN ('keys', 'range', 'sweep')),
    lower_key     text[],
    upper_key     text[],
    keys          jsonb,
    rows          bigint NOT NULL DEFAULT 0,
    rows_seen     bigint NOT NULL DEFAULT 0,
    checkpoint    text[],
    state         text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'done', 'cancelled')),
    epoch         bigint NOT NULL DEFAULT 0,
    worker_id     bigint,
    attempts      integer NOT NULL DEFAULT 0,
    run_after     timestamptz,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    claimed_at    timestamptz,
    finished_at   timestamptz,
    CHECK ((kind = 'keys') = (keys IS NOT NULL)),
    CHECK (state <> 'running' OR worker_id IS NOT NULL)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
        autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.05);
COMMENT ON TABLE pgvec.jobs IS 'Make the destination right for these keys; doing it twice changes nothing';
COMMENT ON COLUMN pgvec.jobs.kind IS 'range: source keys in (lower_key, upper_key], NULL for no bound; keys: the listed ones; sweep: destination keys in that range that no source row has';
COMMENT ON COLUMN pgvec.jobs.checkpoint IS 'How far it is committed: the last key of a range, or the number of keys done of a list';
COMMENT ON COLUMN pgvec.jobs.epoch IS 'Fencing number, raised at each claim: a write that shows an old one changes nothing';
-- Claiming and finishing move a row in or out of these; a checkpoint touches no indexed column and can be HOT.
CREATE INDEX jobs_queued ON pgvec.jobs (vectorizer_id, kind, id) WHERE state = 'queued';
CREATE INDEX jobs_running ON pgvec.jobs (vectorizer_id, worker_id) WHERE state = 'running';

CREATE TABLE pgvec.workers (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    host          text NOT NULL,
    pid           integer NOT NULL,
    version       text NOT NULL,
    device        text,
    dtype         text,
    models        text[] NOT NULL DEFAULT '{}',
    vectorizers   text[],
    state         text NOT NULL DEFAULT 'starting' CHECK (state IN ('starting', 'idle', 'loading', 'working', 'stopping')),
    lease         interval NOT NULL,
    gone          boolean NOT NULL DEFAULT false,
    memory_bytes  bigint,
    started_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    beat_at       timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
COMMENT ON TABLE pgvec.workers IS 'One row per running worker process; beat_at older than lease means that its jobs may be taken over';
CREATE INDEX workers_alive ON pgvec.workers (id) WHERE NOT gone;

-- Progress, sharded so that no two workers wait for each other; worker 0 holds what finished workers counted.
CREATE TABLE pgvec.counters (
    vectorizer_id  bigint NOT NULL,
    worker_id      bigint NOT NULL,
    rows_right     bigint NOT NULL DEFAULT 0,
    rows_embedded  bigint NOT NULL DEFAULT 0,
    rows_adjusted  bigint NOT NULL DEFAULT 0,
    chunks_written bigint NOT NULL DEFAULT 0,
    chunks_deleted bigint NOT NULL DEFAULT 0,
    tokens         bigint NOT NULL DEFAULT 0,
    truncated      bigint NOT NULL DEFAULT 0,
    jobs_added     bigint NOT NULL DEFAULT 0,
    jobs_done      bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (vectorizer_id, worker_id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
COMMENT ON COLUMN pgvec.counters.rows_right IS 'Selected rows whose chunks were made or found right, blank rows included';
COMMENT ON COLUMN pgvec.counters.rows_adjusted IS 'Rows found selected when a job ended, less those planned for it';

-- Ten-second sums of the last hour, from which rates come.
CREATE TABLE pgvec.samples (
    vectorizer_id bigint NOT NULL,
    worker_id     bigint NOT NULL,
    at            timestamptz NOT NULL,
    rows          bigint NOT NULL DEFAULT 0,
    chunks        bigint NOT NULL DEFAULT 0,
    tokens        bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (vectorizer_id, at, worker_id)
) WITH (fillfactor = 70);

-- The quarantine: documents that could not be embedded as they are now.
CREATE TABLE pgvec.failures (
    vectorizer_id bigint NOT NULL,
    key           text[] NOT NULL,
    source_hash   bytea NOT NULL,
    error_class   text NOT NULL,
    message       text NOT NULL,
    model         text NOT NULL,
    attempts      integer NOT NULL DEFAULT 1,
    first_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at       timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (vectorizer_id, key)
);
COMMENT ON TABLE pgvec.failures IS 'One row per document in quarantine; it is tried again when its text changes';

-- The one place that says which text is blank, and how a document is hashed.
CREATE FUNCTION pgvec.is_blank(document text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE
AS $$ SELECT document IS NULL OR document !~ U&'[^\0009-\000D\001C-\0020\0085\00A0\1680\2000-\200A\2028\2029\202F\205F\3000]' $$;
COMMENT ON FUNCTION pgvec.is_blank(text) IS 'True for NULL and for text of white space alone (Unicode''s White_Space)';

CREATE FUNCTION pgvec.source_hash(document text) RETURNS bytea
LANGUAGE sql STABLE PARALLEL SAFE
AS $$ SELECT substring(sha256(convert_to(document, 'UTF8')) FOR 16) $$;
COMMENT ON FUNCTION pgvec.source_hash(text) IS 'The first 16 bytes of SHA-256 of the text in UTF-8';

-- For destinations whose key has another type than the source's: whether a key can be one of the source at all.
CREATE FUNCTION pgvec.is_input(value text, type text) RETURNS boolean
LANGUAGE plpgsql STABLE PARALLEL RESTRICTED
AS $$
BEGIN
    EXECUTE format('SELECT CAST(%L AS %s)', value, type::regtype);
    RETURN true;
EXCEPTION WHEN data_exception THEN
    RETURN false;
END
$$;
