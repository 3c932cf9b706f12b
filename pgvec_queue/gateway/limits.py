"""What one request, one client and all of them together may ask of a gateway."""

from __future__ import annotations

from dataclasses import dataclass

from pgvec_queue.embedders import DEFAULT_MODEL


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one gateway; each has a setting of the same name (``pgvec serve --help``)."""

    models: tuple[str, ...] = (DEFAULT_MODEL,)
    """Those that requests may name, the first where they name none; besides, a collection's own model may be named. No
    other is ever loaded because a request names it."""
    body_bytes: int = 16 * 1024 * 1024
    bodies_bytes: int = 256 * 1024 * 1024
    """Of all requests that are read or answered at the same time; more get 503."""
    texts: int = 1_000
    """In one request."""
    text_bytes: int = 1024 * 1024
    """Of one text, in UTF-8."""
    requests: int = 256
    """At the same time; more get 503."""
    streams: int = 64
    """Of events, at the same time and beside the requests; more get 503."""
    per_minute: int = 6_000
    """Requests of one token, or of one address where no tokens are asked for; more get 429."""
    request_seconds: float = 30.0
    """Longest that a request may take once its body is there, streams aside."""
    body_seconds: float = 20.0
    """Longest that a body may take to arrive."""
    head_seconds: float = 10.0
    """Longest that the head of a request may take to arrive."""
    unread_seconds: float = 30.0
    """Longest that an answer waits for a client that does not read it."""
    connection_seconds: float = 5.0
    """Longest that a request waits for a connection of the pool; then it gets 503."""
    pool_size: int = 10
    queued_rows: int = 1_000_000
    """Of a collection, waiting; above it, new texts get 429."""
    keep_tasks_days: float = 7.0
    """How long an ended task is kept."""
