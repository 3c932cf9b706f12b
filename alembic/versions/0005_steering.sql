-- Limits beside production, workers that are told to leave, events, and throughput for days.
ALTER TABLE pgvec.vectorizers
    ADD COLUMN rows_per_second_limit double precision CHECK (rows_per_second_limit > 0),
    ADD COLUMN replication_lag_limit interval CHECK (replication_lag_limit > interval '0'),
    ADD COLUMN commit_time_limit interval CHECK (commit_time_limit > interval '0');
COMMENT ON COLUMN pgvec.vectorizers.rows_per_second_limit IS 'Rows of ranges that all workers together may read; NULL: no limit. Live changes are not held back';
COMMENT ON COLUMN pgvec.vectorizers.replication_lag_limit IS 'Nothing of it is claimed or read while a standby is further behind; NULL: no limit';
COMMENT ON COLUMN pgvec.vectorizers.commit_time_limit IS 'A worker whose heartbeat takes longer to commit claims and reads nothing of it; NULL: no limit';

-- Of vectorizers with a limit: until when what was read is spent.
CREATE TABLE pgvec.pace (
    vectorizer_id bigint PRIMARY KEY,
    next_at       timestamptz NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
COMMENT ON TABLE pgvec.pace IS 'When the next rows of a vectorizer with a limit may be read';

ALTER TABLE pgvec.workers
    ADD COLUMN leave boolean NOT NULL DEFAULT false,
    ADD COLUMN commit_seconds real,
    ADD COLUMN lag_seconds real;
COMMENT ON COLUMN pgvec.workers.leave IS 'It has been told to leave, as by SIGTERM';
COMMENT ON COLUMN pgvec.workers.commit_seconds IS 'What its heartbeat before the last one took to commit; NULL: nothing that it works on has a limit';
COMMENT ON COLUMN pgvec.workers.lag_seconds IS 'How far the slowest standby was behind at its last heartbeat; NULL: there is none, or nothing that it works on has a limit';

CREATE TABLE pgvec.events (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at            timestamptz NOT NULL DEFAULT clock_timestamp(),
    kind          text NOT NULL,
    vectorizer_id bigint,
    worker_id     bigint,
    host          text,
    job_id        bigint,
    message       text
);
CREATE INDEX events_at ON pgvec.events (at);
COMMENT ON TABLE pgvec.events IS 'What happened that is rare: reclaimed, quarantined, blocked, paused, resumed, cancelled, retried, altered, started, left, gone. Kept a week, 10,000 at most';

ALTER TABLE pgvec.counters
    ADD COLUMN bytes_written bigint NOT NULL DEFAULT 0;
COMMENT ON COLUMN pgvec.counters.bytes_written IS 'Bytes of chunks, keys and vectors that were sent to the destination';
ALTER TABLE pgvec.samples ADD COLUMN bytes bigint NOT NULL DEFAULT 0;

-- Samples go here by the minute, when the minute is over.
CREATE TABLE pgvec.minutes (
    vectorizer_id bigint NOT NULL,
    worker_id     bigint NOT NULL,
    minute        timestamptz NOT NULL,
    began_at      timestamptz NOT NULL,
    ended_at      timestamptz NOT NULL,
    host          text,
    rows          bigint NOT NULL,
    chunks        bigint NOT NULL,
    tokens        bigint NOT NULL,
    bytes         bigint NOT NULL,
    PRIMARY KEY (vectorizer_id, minute, worker_id)
);
CREATE INDEX minutes_minute ON pgvec.minutes (minute);
COMMENT ON TABLE pgvec.minutes IS 'What each worker did in each minute of the last day, and all together (worker 0) in each of the last week';
