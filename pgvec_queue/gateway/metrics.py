"""What a gateway counts of itself, as Prometheus's metrics. Counted in the event loop, read in any thread."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal

from prometheus_client.metrics_core import Metric as Family

from pgvec_queue import __version__
from pgvec_queue.exposition import Families, Metric

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
Reason = Literal["host", "origin", "proxy", "token", "rate", "body", "memory", "slow", "busy", "streams", "timeout"]

METRICS = (
    Metric("pgvec_gateway_info", "gauge", "Always 1; the version of the gateway.", ("version",)),
    Metric(
        "pgvec_gateway_requests_total",
        "counter",
        "Requests answered; status 499: the client left before there was an answer.",
        ("route", "method", "status"),
    ),
    Metric(
        "pgvec_gateway_request_duration_seconds",
        "histogram",
        "From the head of a request to the end of its answer, streams aside.",
        ("route",),
    ),
    Metric("pgvec_gateway_requests_in_flight", "gauge", "Requests that are being answered, streams aside."),
    Metric("pgvec_gateway_streams", "gauge", "Streams of events that are open."),
    Metric("pgvec_gateway_bodies_bytes", "gauge", "Bodies of requests in memory."),
    Metric(
        "pgvec_gateway_rejected_total",
        "counter",
        "Requests turned away before they were looked at: host, origin, proxy, token, rate, body, memory, slow, busy,"
        " streams or timeout.",
        ("reason",),
    ),
    Metric("pgvec_gateway_pool_connections", "gauge", "Connections of the pool to the database."),
    Metric("pgvec_gateway_pool_waiting", "gauge", "Requests that wait for one of them."),
)


class Measures:
    """The counters of one gateway."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.streams = 0
        self.bodies_bytes = 0
        self.pool: Callable[[], tuple[int, int]] = lambda: (0, 0)
        """Connections of the pool, and requests that wait for one."""
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str, str]] = Counter()
        self._counts: dict[str, list[int]] = {}
        self._seconds: dict[str, float] = {}
        self._rejected: Counter[str] = Counter()

    def served(self, route: str, method: str, status: int, seconds: float | None) -> None:
        """Counts an answer; ``seconds`` is None for a stream."""
        with self._lock:
            self._requests[route, method if method in METHODS else "other", str(status)] += 1
            if seconds is not None:
                counts = self._counts.setdefault(route, [0] * (len(BOUNDS) + 1))
                counts[bisect_left(BOUNDS, seconds)] += 1
                self._seconds[route] = self._seconds.get(route, 0.0) + seconds

    def rejected(self, reason: Reason) -> None:
        with self._lock:
            self._rejected[reason] += 1

    def collect(self) -> Iterator[Family]:
        families = Families(METRICS)
        families.add("pgvec_gateway_info", 1, __version__)
        with self._lock:
            for (route, method, status), count in self._requests.items():
                families.add("pgvec_gateway_requests_total", count, route, method, status)
            for route, counts in self._counts.items():
                families.add_histogram(
                    "pgvec_gateway_request_duration_seconds", BOUNDS, counts, self._seconds[route], route
                )
            for reason, count in self._rejected.items():
                families.add("pgvec_gateway_rejected_total", count, reason)
        connections, waiting = self.pool()
        families.add("pgvec_gateway_requests_in_flight", self.in_flight)
        families.add("pgvec_gateway_streams", self.streams)
        families.add("pgvec_gateway_bodies_bytes", self.bodies_bytes)
        families.add("pgvec_gateway_pool_connections", connections)
        families.add("pgvec_gateway_pool_waiting", waiting)
        return iter(families)
