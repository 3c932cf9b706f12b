"""Metrics in Prometheus's text format over HTTP: ``/metrics``, and ``/health`` for whoever starts processes again.

A metric is declared once, with its name, kind, labels and meaning; documentation and tests go by these declarations.
The server answers each request in a thread of its own, closes the connection then, and gives up a client that is silent
for ten seconds. It has neither TLS nor passwords: what listens beyond 127.0.0.1 belongs behind a firewall.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from pgvec_queue import __version__, listening
from pgvec_queue.errors import SettingsError
from pgvec_queue.log import get_logger

log = get_logger("pgvec.metrics")

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_PLAIN = "text/plain; charset=utf-8"
DEFAULT_HOST = "127.0.0.1"
PROCESS_METRICS = (
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
)
"""What Prometheus's own library tells of a process, where the system has ``/proc``."""
_SILENCE = 10.0
_LOOK = 0.2

Health = Callable[[], tuple[bool, str]]
"""Whether all is well, and a line that says why or why not."""


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as it is exposed."""

    name: str
    kind: str
    """``counter``, ``gauge`` or ``histogram``."""
    help: str
    labels: tuple[str, ...] = ()


class Families:
    """The samples of one scrape; what was declared and has no sample is left out."""

    def __init__(self, declared: Iterable[Metric]) -> None:
        self._declared = {metric.name: metric for metric in declared}
        self._families: dict[str, Family] = {}

    def add(self, name: str, value: float | None, *labels: str) -> None:
        """Adds a sample of a counter or gauge; none where the value is not known. Labels are in declared order."""
        if value is None:
            return
        family = self._family(name)
        assert isinstance(family, CounterMetricFamily | GaugeMetricFamily)
        family.add_metric(labels, float(value))

    def add_histogram(
        self, name: str, bounds: Sequence[float], counts: Sequence[int], total: float, *labels: str
    ) -> None:
        """Adds ``counts`` per bucket, one more than there are upper ``bounds``, and the sum of what was observed."""
        family = self._family(name)
        assert isinstance(family, HistogramMetricFamily)
        names = [*map(str, bounds), "+Inf"]
        below, buckets = 0, []
        for bound, count in zip(names, counts, strict=True):
            below += count
            buckets.append((bound, float(below)))
        family.add_metric(labels, buckets, total)

    def __iter__(self) -> Iterator[Family]:
        return iter(self._families.values())

    def _family(self, name: str) -> Family:
        family = self._families.get(name)
        if family is None:
            family = self._families[name] = _made(self._declared[name])
        return family


def _made(metric: Metric) -> Family:
    if metric.kind == "counter":
        return CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    if metric.kind == "gauge":
        return GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    return HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)


class Server:
    """Serves the metrics of some collectors while inside."""

    def __init__(self, host: str, port: int, collectors: Sequence[Collector], health: Health) -> None:
        """Listens at once; port 0 is any free one. Raises ``SettingsError`` where that address cannot be had."""
        registry = CollectorRegistry()
        for collector in (*collectors, ProcessCollector(registry=None)):
            registry.register(collector)
        self._listener = _listen(host, port)
        self._listener.registry = registry
        self._listener.health = health
        self._thread = threading.Thread(
            target=self._listener.serve_forever, args=(_LOOK,), name="pgvec-metrics", daemon=True
        )

    @property
    def url(self) -> str:
        """Where it is, without a path."""
        host, port = self._listener.server_address[:2]
        return f"http://{listening.named(str(host))}:{port}"

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()


def check(host: str, ports: Iterable[int]) -> None:
    """Raises ``SettingsError`` where one of the ports cannot be listened at."""
    for port in ports:
        _listen(host, port).server_close()


class _Listener(socketserver.ThreadingTCPServer):
    # Not the one of http.server, which asks the name service for this machine's name.
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 32
    registry: CollectorRegistry
    health: Health

    def __init__(self, family: socket.AddressFamily, address: tuple[object, ...]) -> None:
        self.address_family = family
        super().__init__(address, _Handler)  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002
        log.debug("client of the metrics has gone", exc_info=True)


def _listen(host: str, port: int) -> _Listener:
    if port > 65_535:
        raise SettingsError(f"metrics cannot be served at port {port}: there is none above 65535")
    try:
        return _Listener(*listening.find(host, port))
    except (OSError, UnicodeError) as error:
        where = f"metrics cannot be served at {listening.named(host)}:{port}"
        raise SettingsError(f"{where}: {listening.reason(error)}") from error


class _Handler(BaseHTTPRequestHandler):
    server_version = f"pgvec/{__version__}"
    sys_version = ""
    timeout = _SILENCE
    server: _Listener

    def do_GET(self) -> None:
        self._answer(*self._response())

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *arguments: object) -> None:
        log.debug("request is answered", client=self.address_string(), request=format % arguments)

    def _response(self) -> tuple[HTTPStatus, bytes, str]:
        path = urlsplit(self.path).path
        if path == "/metrics":
            try:
                return HTTPStatus.OK, generate_latest(self.server.registry), CONTENT_TYPE
            # The request ends here; the next one may fare better.
            except Exception as error:
                log.exception("metrics could not be collected", error=str(error))
                return HTTPStatus.INTERNAL_SERVER_ERROR, b"the metrics could not be collected; see the log\n", _PLAIN
        if path == "/health":
            well, line = self.server.health()
            return (HTTPStatus.OK if well else HTTPStatus.SERVICE_UNAVAILABLE), f"{line}\n".encode(), _PLAIN
        return HTTPStatus.NOT_FOUND, b"there are /metrics and /health\n", _PLAIN

    def _answer(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
