-- The gateway: tokens, collections, tasks, and jobs that bound the device's batch.
CREATE TABLE pgvec.api_tokens (
    id           bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name         text NOT NULL UNIQUE CHECK (name <> ''),
    role         text NOT NULL CHECK (role IN ('read', 'write', 'admin')),
    digest       bytea NOT NULL UNIQUE,
    created_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    last_used_at timestamptz
);
COMMENT ON TABLE pgvec.api_tokens IS 'Who may use the gateway; the tokens themselves are nowhere, only the SHA-256 of each';
COMMENT ON COLUMN pgvec.api_tokens.role IS 'read: search and look; write: add and delete texts as well; admin: everything';
COMMENT ON COLUMN pgvec.api_tokens.last_used_at IS 'To the minute';

-- Tables of texts that the gateway keeps for its clients: an ordinary table, its vectorizer, and live changes between.
CREATE TABLE pgvec.collections (
    name          text PRIMARY KEY,
    vectorizer_id bigint NOT NULL UNIQUE REFERENCES pgvec.vectorizers (id) ON DELETE CASCADE,
    default_of    text,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE UNIQUE INDEX collections_default_of ON pgvec.collections (default_of);
COMMENT ON TABLE pgvec.collections IS 'The gateway''s collections; the texts are in the source of the vectorizer';
COMMENT ON COLUMN pgvec.collections.default_of IS 'The model whose texts without a collection go here';

CREATE TABLE pgvec.tasks (
    id              uuid PRIMARY KEY,
    collection      text NOT NULL,
    vectorizer_id   bigint NOT NULL REFERENCES pgvec.vectorizers (id) ON DELETE CASCADE,
    token_id        bigint REFERENCES pgvec.api_tokens (id) ON DELETE SET NULL,
    idempotency_key text,
    request_digest  bytea NOT NULL,
    batch_size      integer CHECK (batch_size > 0),
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    cancelled_at    timestamptz,
    finished_at     timestamptz
);
CREATE UNIQUE INDEX tasks_idempotency ON pgvec.tasks (coalesce(token_id, 0), idempotency_key);
CREATE INDEX tasks_created ON pgvec.tasks (created_at);
COMMENT ON TABLE pgvec.tasks IS 'One request of texts to the gateway; kept for some days after its end';
COMMENT ON COLUMN pgvec.tasks.finished_at IS 'When it was first seen to have neither vectors nor failures outstanding';

CREATE TABLE pgvec.task_texts (
    task_id     uuid NOT NULL REFERENCES pgvec.tasks (id) ON DELETE CASCADE,
    ordinal     integer NOT NULL,
    text_id     text NOT NULL,
    source_hash bytea,
    PRIMARY KEY (task_id, ordinal)
);
COMMENT ON TABLE pgvec.task_texts IS 'The texts of a task, in the order of the request';

ALTER TABLE pgvec.jobs ADD COLUMN batch_size integer CHECK (batch_size > 0);
COMMENT ON COLUMN pgvec.jobs.batch_size IS 'Most chunks of this job in one batch of the device; NULL: what suits it';
