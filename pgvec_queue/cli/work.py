"""``pgvec work``: a worker in the foreground, or one for each device and a supervisor over them.

One worker runs in this very process. Several are processes that run this same command; ``PGVEC_SUPERVISED_AS`` tells
such a process that it has a supervisor, which shows the progress and sums up in its place.
"""

from __future__ import annotations

import functools
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import FrameType
from typing import NoReturn, Protocol

import click
from click.core import ParameterSource

from pgvec_queue import access, process, progress
from pgvec_queue.cli import processes as several
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.live import Live, relayed
from pgvec_queue.cli.logs import PROCESS, are_json
from pgvec_queue.cli.texts import documents, plain
from pgvec_queue.cli.types import Text, setting
from pgvec_queue.database import Database, one_line
from pgvec_queue.embedders import DeviceOptions
from pgvec_queue.errors import DatabaseError, PgvecError, SchemaMissingError, SchemaOutdatedError, StalledError
from pgvec_queue.log import get_logger, show_texts
from pgvec_queue.worker import Outcome, Worker, WorkerOptions
from pgvec_queue.worker.lifecycle import BY_SUPERVISOR
from pgvec_queue.worker.options import DEFAULT_LEASE, DEFAULT_STALL, check
from pgvec_queue.worker.supervisor import EXIT_AGAIN, EXIT_DIED, Place, Supervisor, leave_with_parent

log = get_logger("pgvec.worker")

EXIT_CODES = {
    Outcome.STOPPED: 0,
    Outcome.COMPLETE: 0,
    Outcome.BLOCKED: 1,
    Outcome.QUARANTINED: 3,
    Outcome.RECYCLED: EXIT_AGAIN,
}
Address = tuple[str, int]
"""Host and port."""
# A live display hides it.
_SHOW_CURSOR = b"\x1b[?25h"


@click.command()
@click.argument("names", nargs=-1, type=Text(), metavar="[NAME]...")
@setting("--device", key="device", help="auto, cpu, mps, cuda (each there is) or cuda:N.  [default: auto]")
@setting("--processes", key="processes", metavar="N", help="Worker processes for each device.  [default: 1]")
@setting("--dtype", key="dtype", help="Precision of the model.  [default: auto]")
@setting("--runtime", key="runtime", help="What computes on a CPU: auto, torch or openvino.  [default: the faster]")
@click.option("--drain", is_flag=True, help="End when nothing is left to claim or to wait for.")
@setting("--lease", key="lease", metavar="SECONDS", help="Silence after which others take over.  [default: 30]")
@setting("--batch-tokens", key="batch_tokens", metavar="N", help="Tokens per device batch.  [default: as measured]")
@setting("--threads", key="threads", metavar="N", help="CPU threads for the model.  [default: as measured]")
@setting("--tokenizers", key="tokenizers", metavar="N", help="Processes that chunk beside it.  [default: by device]")
@setting("--memory", key="memory", metavar="SIZE", help="What loaded models may hold, such as 8G.")
@setting("--cache", key="cache", metavar="SIZE", help="Vectors to remember; 0: none.  [default: 256M, while it pays]")
@setting("--pool-size", key="pool_size", metavar="N", help="Connections, apart from the heartbeat's.  [default: 3]")
@setting(
    "--listen/--no-listen", key="listen", help="Wake on NOTIFY; off behind a transaction-mode pooler.  [default: on]"
)
@setting("--direct-dsn", key="direct_dsn", metavar="DSN", help="The same database past a pooler, for LISTEN.")
@setting("--stall", key="stall", metavar="SECONDS", help="A model's call that takes longer hangs.  [default: 600]")
@setting("--log-text/--no-log-text", key="log_text", help="Show the text of quarantined documents.  [default: off]")
@setting(
    "--metrics-port",
    key="metrics_port",
    metavar="PORT",
    help="Serve /metrics and /health there (0: any free port); of several processes each takes the next.",
)
@setting("--metrics-host", key="metrics_host", metavar="ADDRESS", help="Address for it.  [default: 127.0.0.1]")
@command
def work(
    session: Session,
    *,
    names: tuple[str, ...],
    device: str | None,
    processes: int | None,
    dtype: str | None,
    runtime: str | None,
    drain: bool,
    lease: float | None,
    batch_tokens: int | None,
    threads: int | None,
    tokenizers: int | None,
    memory: int | None,
    cache: int | None,
    pool_size: int | None,
    listen: bool | None,
    direct_dsn: str | None,
    stall: float | None,
    log_text: bool | None,
    metrics_port: int | None,
    metrics_host: str | None,
) -> int:
    """Claim jobs of the vectorizers NAME (default: all), embed and write.

    Stops on SIGINT, SIGTERM or SIGHUP after the slice in hand; a second signal stops at once. With --drain the exit
    code is 0 when every row is done, 3 when documents are in quarantine, 1 when a vectorizer is blocked.

    A worker that is too old or too new for the schema waits until that fits; with --drain it ends with exit code 1.

    Where there are several CUDA devices, or --processes asks for several workers, each is a process of its own that is
    started again when it dies.
    """
    show_texts(bool(log_text))
    if metrics_port is None and _said("metrics_host"):
        raise click.UsageError("--metrics-host needs --metrics-port")
    options = WorkerOptions(
        names=names or None,
        device=DeviceOptions(device or "auto", dtype or "auto", batch_tokens, threads, runtime or "auto"),
        drain=drain,
        lease=lease or DEFAULT_LEASE,
        memory=memory,
        cache=cache,
        pool_size=pool_size or 3,
        listen=True if listen is None else listen,
        stall=stall or DEFAULT_STALL,
        tokenizers=tokenizers,
    )
    direct = Database(direct_dsn) if direct_dsn else None
    metrics = None if metrics_port is None else (metrics_host or "127.0.0.1", metrics_port)
    if PROCESS not in os.environ:
        places = several.places(session, options.device, tokenizers, processes or 1, direct_dsn, metrics_port)
        if len(places) > 1:
            return _supervise(session, options, places, metrics)
    return _work(session, options, direct, metrics)


def _said(option: str) -> bool:
    return click.get_current_context().get_parameter_source(option) is ParameterSource.COMMANDLINE


def _work(session: Session, options: WorkerOptions, direct: Database | None, metrics: Address | None) -> int:
    """Is the worker; returns the exit code."""
    supervised = PROCESS in os.environ
    process.settle()
    worker = Worker(session.database, options, direct=direct)
    obey_signals(worker)
    if supervised:
        leave_with_parent(functools.partial(worker.stop, BY_SUPERVISOR))
    try:
        with ExitStack() as stack:
            if metrics is not None:
                stack.enter_context(_measured(worker, *metrics))
            if options.drain and not supervised:
                stack.enter_context(Live(session.database, options.names))
            outcome = _run(worker)
    except Exception as error:
        if not (supervised and _may_pass(error)):
            raise
        debugging = log.isEnabledFor(logging.DEBUG)
        log.error("worker has failed", error_class=type(error).__name__, error=one_line(error), exc_info=debugging)
        return EXIT_DIED
    if supervised:
        return EXIT_CODES[outcome]
    if outcome is Outcome.RECYCLED:
        begin_afresh(worker)
        outcome = Outcome.STOPPED
    tell(session, outcome, options.names)
    return EXIT_CODES[outcome]


def _supervise(session: Session, options: WorkerOptions, places: Sequence[Place], metrics: Address | None) -> int:
    """Has a worker run in each of the places; returns the worst of their exit codes.

    What would be wrong with all of them is found out first, and said once.
    """
    try:
        check(session.database, options)
    except SchemaOutdatedError as error:
        if options.drain or isinstance(error, SchemaMissingError):
            raise
        # Each of them says so and waits.
    if metrics is not None and metrics[1]:
        from pgvec_queue import exposition

        exposition.check(metrics[0], range(metrics[1], metrics[1] + len(places)))
    with ExitStack() as stack:
        if options.drain:
            stack.enter_context(Live(session.database, options.names))
        supervisor = Supervisor(places, stderr=stack.enter_context(relayed()) if options.drain else None)
        obey_signals(supervisor, supervisor.kill)
        code = supervisor.run()
    if options.drain and not supervisor.stopped:
        _remark(session, options.names)
    return code


@contextmanager
def _measured(worker: Worker, host: str, port: int) -> Iterator[None]:
    """Serves the worker's metrics and its health."""
    from pgvec_queue.exposition import Server
    from pgvec_queue.worker.metrics import WorkerCollector, health

    def well() -> tuple[bool, str]:
        fine, line = health(worker)
        return fine, plain(line)

    with Server(host, port, [WorkerCollector(worker)], well) as server:
        log.info("metrics are served", url=f"{server.url}/metrics")
        yield


def _may_pass(error: Exception) -> bool:
    """True for what a fresh process may not meet again: an outage, a call that hung, a device that failed."""
    if isinstance(error, PgvecError):
        return isinstance(error, StalledError | DatabaseError) and not isinstance(error, SchemaOutdatedError)
    return True


def begin_afresh(worker: Worker) -> None:
    """Replaces this process by a fresh one of the same command line, whose process id stays.

    Returns only if the worker was told to stop since it has left.
    """
    log.info("process begins afresh")
    logging.shutdown()
    if not worker.stopped:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def _run(worker: Worker) -> Outcome:
    """Runs the worker. Where a call hangs that nothing can end, the process ends here, without waiting for it."""
    try:
        outcome = worker.run()
    except PgvecError as error:
        if worker.hung:
            _leave_at_once(EXIT_DIED if PROCESS in os.environ else 1, str(error))
        raise
    # A process that begins afresh leaves everything behind.
    if worker.hung and (outcome is not Outcome.RECYCLED or PROCESS in os.environ):
        _leave_at_once(EXIT_CODES[outcome], "what was in hand is left to other workers")
    return outcome


def _leave_at_once(code: int, message: str) -> NoReturn:
    if are_json():
        log.error("command has failed", error=message)
    else:
        _say(f"pgvec: {message}\n".encode())
    logging.shutdown()
    os._exit(code)


def _say(text: bytes) -> None:
    # The terminal may be closed, which may be why we leave.
    with suppress(OSError):
        os.write(2, text)


class _Stoppable(Protocol):
    def stop(self) -> None: ...


def obey_signals(worker: _Stoppable, kill: Callable[[], None] | None = None) -> None:
    """First SIGINT, SIGTERM or SIGHUP: the worker finishes the slice in hand and leaves. Second: it ends at once.

    ``kill`` ends what would outlive this process.
    """
    told = False
    # The log tells of it as soon as it may: a signal's handler may not.
    in_json = are_json()

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal told
        if told:
            # The lease runs out and others take over; nothing half-written can remain.
            if kill is not None:
                kill()
            if os.isatty(2):
                _say(_SHOW_CURSOR)
            os._exit(128 + number)
        told = True
        if not in_json:
            _say(b"pgvec: finishing the slice in hand; once more to stop at once\n")
        worker.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)


def tell(session: Session, outcome: Outcome, names: Sequence[str] | None) -> None:
    """Says on stderr what a drained worker left undone, and what to do about it."""
    if outcome is not Outcome.STOPPED:
        _remark(session, names)


def _remark(session: Session, names: Sequence[str] | None) -> None:
    with session.database.connect("work") as connection:
        rows = [one for one in progress.read(connection) if names is None or one.name in names]
    for one in rows:
        for remark in _remarks(one):
            if are_json():
                log.warning("vectorizer is not done", vectorizer=one.name, error=remark)
                continue
            # Nobody may be there to read it; the exit code tells it as well.
            with suppress(OSError):
                click.echo(f"pgvec: {plain(remark)}", err=True)


def _remarks(one: progress.Progress) -> Iterator[str]:
    if one.rows_failed:
        yield f"{one.name}: {documents(one.rows_failed)} in quarantine; see `pgvec failures {one.name}`"
    if one.state == "blocked":
        remedy = access.remedy(one.name, one.reason)
        yield f"{one.name} is blocked: {one.reason}; {remedy}, then run `pgvec resume {one.name}`"
    elif one.state in ("paused", "cancelled"):
        yield f"{one.name} is {one.state}; `pgvec resume {one.name}` lets it go on"
    elif not one.plan_complete:
        yield f"{one.name} is not planned to its end; run the `pgvec enqueue` that was stopped again"
