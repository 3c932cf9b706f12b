-- Cutting a source into key ranges.

-- name: begin
-- Takes the plan over: whoever plans under an older epoch adds nothing more. What is unfinished stays in the totals;
-- below zero where a job has met more rows than were planned for it, until it ends and says so.
WITH counted AS (
    SELECT coalesce(sum(rows_right), 0) AS rows_right, coalesce(sum(rows_adjusted), 0) AS rows_adjusted
    FROM pgvec.counters WHERE vectorizer_id = %(id)s
)
UPDATE pgvec.vectorizers v
SET plan_epoch = plan_epoch + 1, plan_complete = false, plan_beat_at = clock_timestamp(),
    limited_to = CASE WHEN %(extend)s THEN v.limited_to END,
    rows_planned = CASE WHEN %(extend)s AND v.limited_to IS NOT NULL THEN v.rows_planned
        ELSE v.rows_planned + c.rows_adjusted - v.rows_selected_base - (c.rows_right - v.rows_right_base) END,
    rows_selected_base = CASE WHEN %(extend)s AND v.limited_to IS NOT NULL THEN v.rows_selected_base ELSE c.rows_adjusted END,
    rows_right_base = CASE WHEN %(extend)s AND v.limited_to IS NOT NULL THEN v.rows_right_base ELSE c.rows_right END
FROM counted c
WHERE v.id = %(id)s
RETURNING v.plan_epoch, v.limited_to;

-- name: open_tail
-- A queued range without an upper bound is planned anew: it may have become any size. Its planned rows go with it.
WITH tail AS (
    DELETE FROM pgvec.jobs
    WHERE vectorizer_id = %(id)s AND kind IN ('range', 'sweep') AND state = 'queued' AND upper_key IS NULL
    RETURNING rows - rows_seen AS rows, merged
)
UPDATE pgvec.vectorizers
SET rows_planned = rows_planned - (SELECT coalesce(sum(rows), 0) FROM tail),
    jobs_planned = jobs_planned - (SELECT count(*) FROM tail WHERE merged > 0)
WHERE id = %(id)s;

-- name: unfinished
-- Ranges that will be made right anyway, in key order: what is planned before one of them need not be planned again.
SELECT coalesce(j.checkpoint, j.lower_key), j.upper_key
FROM pgvec.jobs j
WHERE j.vectorizer_id = %(id)s AND j.kind = %(kind)s AND j.state IN ('queued', 'running')
ORDER BY {order};

-- name: hop_first
SELECT {key_text} FROM {source} s WHERE {scope} ORDER BY {key} OFFSET %(rows)s - 1 LIMIT 1;

-- name: hops
-- Up to %(hops)s ends of ranges of %(rows)s rows each, by walking the key's index; typed keys, no filter.
WITH RECURSIVE hops AS (
    SELECT * FROM (
        SELECT 1 AS pgvec_hop, {key} FROM {source} WHERE {scope} ORDER BY {key} OFFSET %(rows)s - 1 LIMIT 1
    ) first
    UNION ALL
    SELECT h.pgvec_hop + 1, {next_key}
    FROM hops h
    CROSS JOIN LATERAL (
        SELECT {key} FROM {source} WHERE {after_hop} AND {upper_scope} ORDER BY {key} OFFSET %(rows)s - 1 LIMIT 1
    ) n
    WHERE h.pgvec_hop < %(hops)s
), added AS (
    INSERT INTO pgvec.jobs (vectorizer_id, kind, lower_key, upper_key, rows)
    SELECT %(id)s, %(kind)s, coalesce(lag(bound) OVER (ORDER BY pgvec_hop), %(lower)s::text[]), bound, %(rows)s
    FROM (SELECT pgvec_hop, {hop_key_text} AS bound FROM hops) ends
    ORDER BY pgvec_hop
)
SELECT pgvec_hop, {hop_key_text} FROM hops ORDER BY pgvec_hop DESC LIMIT 1;

-- name: count_rest
SELECT count(*) FROM {source} WHERE {scope};

-- name: last_limited
-- The last of the next %(rows)s selected rows, within one hop.
SELECT {key_text} FROM {source} s WHERE {scope} AND {selected} ORDER BY {key} OFFSET %(rows)s - 1 LIMIT 1;

-- name: count_selected
SELECT count(*) FROM {source} s WHERE {scope} AND {selected};

-- name: add_job
INSERT INTO pgvec.jobs (vectorizer_id, kind, lower_key, upper_key, rows)
VALUES (%(id)s, %(kind)s, %(lower)s, %(upper)s, %(rows)s);

-- name: advance
-- The planner's fence; no row: somebody else plans now.
UPDATE pgvec.vectorizers
SET rows_planned = rows_planned + %(rows)s, jobs_planned = jobs_planned + %(jobs)s,
    plan_beat_at = clock_timestamp(), limited_to = coalesce(%(limited_to)s, limited_to)
WHERE id = %(id)s AND plan_epoch = %(epoch)s
RETURNING id;

-- name: complete
UPDATE pgvec.vectorizers
SET plan_complete = true, plan_beat_at = clock_timestamp()
WHERE id = %(id)s AND plan_epoch = %(epoch)s
RETURNING id;

-- name: absolve_gone
-- Documents in quarantine whose row is gone, blank, or no longer selected.
DELETE FROM pgvec.failures f
WHERE f.vectorizer_id = %(id)s
  AND NOT EXISTS (SELECT FROM {source} s WHERE {key_is_failures} AND {selected} AND NOT {blank});

-- name: destination_has_rows
SELECT EXISTS (SELECT FROM {destination} d);

-- name: has_unfinished
SELECT EXISTS (SELECT FROM pgvec.jobs WHERE vectorizer_id = %(id)s AND kind = 'range' AND state IN ('queued', 'running'));

-- name: estimated_rows
SELECT sum(greatest(c.reltuples, 0))::bigint
FROM pg_catalog.pg_class source
JOIN pg_catalog.pg_namespace n ON n.oid = source.relnamespace
CROSS JOIN LATERAL (
    SELECT relid FROM pg_catalog.pg_partition_tree(source.oid) WHERE isleaf
    UNION SELECT source.oid WHERE source.relkind IN ('r', 'm')
) part
JOIN pg_catalog.pg_class c ON c.oid = part.relid
WHERE n.nspname = %(schema)s AND source.relname = %(table)s;
