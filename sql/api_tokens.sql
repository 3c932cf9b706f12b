-- Who may use the gateway. Only digests are here: a token is shown once, when it is made.

-- name: create
INSERT INTO pgvec.api_tokens (name, role, digest, expires_at)
VALUES (%(name)s, %(role)s, %(digest)s, clock_timestamp() + make_interval(secs => %(seconds)s::float8))
ON CONFLICT (name) DO NOTHING
RETURNING id;

-- name: count
SELECT count(*) FROM pgvec.api_tokens WHERE revoked_at IS NULL;

-- name: list
SELECT name, role, created_at, expires_at, revoked_at, last_used_at,
       CASE WHEN revoked_at IS NOT NULL THEN 'revoked'
            WHEN expires_at <= clock_timestamp() THEN 'expired'
            ELSE 'valid' END
FROM pgvec.api_tokens
ORDER BY name;

-- name: revoke
UPDATE pgvec.api_tokens
SET revoked_at = coalesce(revoked_at, clock_timestamp())
WHERE name = %(name)s
RETURNING name;

-- name: any
-- Revoked ones too: a gateway that has asked for tokens does not fall open when the last one ends.
SELECT EXISTS (SELECT FROM pgvec.api_tokens);

-- name: valid
SELECT id, name, role, digest, extract(epoch FROM expires_at - clock_timestamp())::float8,
       last_used_at IS NOT DISTINCT FROM date_trunc('minute', clock_timestamp())
FROM pgvec.api_tokens
WHERE revoked_at IS NULL AND (expires_at IS NULL OR expires_at > clock_timestamp());

-- name: used
-- Another gateway may be writing the same just now.
UPDATE pgvec.api_tokens
SET last_used_at = date_trunc('minute', clock_timestamp())
WHERE id IN (SELECT id FROM pgvec.api_tokens WHERE id = %(id)s FOR NO KEY UPDATE SKIP LOCKED);
