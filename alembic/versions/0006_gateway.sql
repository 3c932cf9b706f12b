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
CREATE SCHEMA IF NOT EXISTS pgvec_collections;
COMMENT ON SCHEMA pgvec_collections IS 'The texts of the gateway''s collections and their vectors: ordinary tables';

CREATE TABLE pgvec.collections (
    name          text PRIMARY KEY,
    vectorizer_id bigint NOT NULL UNIQUE,
    default_of    text UNIQUE,
    created_at    timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE pgvec.collections IS 'The gateway''s collections; the texts are in the source of the vectorizer. Without that it is none any more';
COMMENT ON COLUMN pgvec.collections.default_of IS 'The model whose texts without a collection go here';

-- Neither refers to the vectorizer or the token by a foreign key: each request would lock their rows.
CREATE TABLE pgvec.tasks (
    id              uuid PRIMARY KEY,
    vectorizer_id   bigint NOT NULL,
    token_id        bigint NOT NULL DEFAULT 0,
    idempotency_key text,
    request_digest  bytea NOT NULL,
    batch_size      integer CHECK (batch_size > 0),
    xid             text NOT NULL,
    texts           integer NOT NULL,
    state           text NOT NULL DEFAULT 'queued' CHECK (state IN ('queued', 'running', 'done', 'failed', 'cancelled')),
    done            integer NOT NULL DEFAULT 0,
    failed          integer NOT NULL DEFAULT 0,
    skipped         integer NOT NULL DEFAULT 0,
    superseded      integer NOT NULL DEFAULT 0,
    cancelled       integer NOT NULL DEFAULT 0,
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    looked_at       timestamptz,
    cancelled_at    timestamptz,
    finished_at     timestamptz
);
CREATE UNIQUE INDEX tasks_idempotency ON pgvec.tasks (token_id, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX tasks_created ON pgvec.tasks (created_at, id);
CREATE INDEX tasks_unfinished ON pgvec.tasks (vectorizer_id, created_at) WHERE finished_at IS NULL;
CREATE INDEX tasks_finished ON pgvec.tasks (finished_at);
COMMENT ON TABLE pgvec.tasks IS 'One request of texts to the gateway; kept for some days after its end';
COMMENT ON COLUMN pgvec.tasks.token_id IS 'Of pgvec.api_tokens; 0 where no tokens are asked for';
COMMENT ON COLUMN pgvec.tasks.xid IS 'The transaction that wrote its texts: whose xmin is another may have been written by somebody else since';
COMMENT ON COLUMN pgvec.tasks.state IS 'As it was last looked at, as are the counts; what is neither done, failed, skipped, superseded nor cancelled waits';
COMMENT ON COLUMN pgvec.tasks.skipped IS 'Texts that have no vector, since they are blank';
COMMENT ON COLUMN pgvec.tasks.superseded IS 'Texts that were updated or deleted before they were embedded';
COMMENT ON COLUMN pgvec.tasks.looked_at IS 'When the gateway''s housekeeping last looked at it';
COMMENT ON COLUMN pgvec.tasks.finished_at IS 'When the last of its texts was embedded, or it was first seen that none is outstanding';

CREATE TABLE pgvec.task_texts (
    task_id     uuid NOT NULL REFERENCES pgvec.tasks (id) ON DELETE CASCADE,
    ordinal     integer NOT NULL,
    text_id     text NOT NULL,
    source_hash bytea NOT NULL,
    blank       boolean NOT NULL,
    cancelled   boolean NOT NULL DEFAULT false,
    PRIMARY KEY (task_id, ordinal)
);
COMMENT ON TABLE pgvec.task_texts IS 'The texts of a task, in the order of the request, from 0';
COMMENT ON COLUMN pgvec.task_texts.source_hash IS 'Of the text as it was posted; with another one in the collection it is superseded';

ALTER TABLE pgvec.jobs ADD COLUMN batch_size integer CHECK (batch_size > 0);
COMMENT ON COLUMN pgvec.jobs.batch_size IS 'Most chunks of this job in one batch of the device; NULL: what suits it';
