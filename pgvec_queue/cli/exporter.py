"""``pgvec exporter``: metrics of the whole queue, for Prometheus."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager

import click

from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.types import setting
from pgvec_queue.exposition import DEFAULT_HOST, Server
from pgvec_queue.log import get_logger
from pgvec_queue.metrics import QueueCollector

log = get_logger("pgvec.metrics")

DEFAULT_PORT = 9189
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@click.command()
@setting("--host", key="exporter_host", metavar="ADDRESS", help="Address to listen at.  [default: 127.0.0.1]")
@setting("--port", key="exporter_port", metavar="PORT", help="Port; 0: any that is free.  [default: 9189]")
@command
def exporter(session: Session, *, host: str | None, port: int | None) -> None:
    """Serve metrics of the whole queue to Prometheus, at /metrics, until SIGINT or SIGTERM.

    The database is asked at each scrape. While it cannot be reached, pgvec_up is 0. One exporter per database is
    enough; workers have metrics of their own: pgvec work --metrics-port.
    """
    with (
        closing(QueueCollector(session.database)) as collector,
        _signals_wait(),
        Server(host or DEFAULT_HOST, DEFAULT_PORT if port is None else port, [collector], _health) as server,
    ):
        log.info("metrics are served", url=f"{server.url}/metrics")
        signal.sigwait(_SIGNALS)


def _health() -> tuple[bool, str]:
    return True, "the exporter runs; pgvec_up says whether the database can be read"


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Keeps the signals that end the command for ``sigwait``: in this thread, and in those that it starts."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
