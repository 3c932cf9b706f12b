"""``pgvec work``: a worker in the foreground."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress
from types import FrameType
from typing import NoReturn

import click

from pgvec_queue import progress
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.live import Live
from pgvec_queue.cli.texts import documents, plain
from pgvec_queue.cli.types import Text, setting
from pgvec_queue.database import Database
from pgvec_queue.embedders import DeviceOptions
from pgvec_queue.errors import PgvecError
from pgvec_queue.worker import Outcome, Worker, WorkerOptions
from pgvec_queue.worker.lifecycle import DEFAULT_LEASE, DEFAULT_STALL

EXIT_CODES = {Outcome.STOPPED: 0, Outcome.COMPLETE: 0, Outcome.BLOCKED: 1, Outcome.QUARANTINED: 3}
# A live display hides it.
_SHOW_CURSOR = b"\x1b[?25h"


@click.command()
@click.argument("names", nargs=-1, type=Text(), metavar="[NAME]...")
@setting("--device", key="device", help="auto, cpu, mps, cuda or cuda:N.  [default: auto]")
@setting("--dtype", key="dtype", help="Precision of the model.  [default: auto]")
@click.option("--drain", is_flag=True, help="End when nothing is left to claim or to wait for.")
@setting("--lease", key="lease", metavar="SECONDS", help="Silence after which others take over.  [default: 30]")
@setting("--batch-tokens", key="batch_tokens", metavar="N", help="Tokens per device batch.  [default: as measured]")
@setting("--threads", key="threads", metavar="N", help="CPU threads for the model.  [default: as measured]")
@setting("--tokenizers", key="tokenizers", metavar="N", help="Processes that chunk beside it.  [default: by device]")
@setting("--memory", key="memory", metavar="SIZE", help="What loaded models may hold, such as 8G.")
@setting("--pool-size", key="pool_size", metavar="N", help="Connections, apart from the heartbeat's.  [default: 3]")
@setting(
    "--listen/--no-listen", key="listen", help="Wake on NOTIFY; off behind a transaction-mode pooler.  [default: on]"
)
@setting("--direct-dsn", key="direct_dsn", metavar="DSN", help="The same database past a pooler, for LISTEN.")
@setting("--stall", key="stall", metavar="SECONDS", help="A model's call that takes longer hangs.  [default: 600]")
@command
def work(
    session: Session,
    *,
    names: tuple[str, ...],
    device: str | None,
    dtype: str | None,
    drain: bool,
    lease: float | None,
    batch_tokens: int | None,
    threads: int | None,
    tokenizers: int | None,
    memory: int | None,
    pool_size: int | None,
    listen: bool | None,
    direct_dsn: str | None,
    stall: float | None,
) -> int:
    """Claim jobs of the vectorizers NAME (default: all), embed and write.

    Stops on SIGINT, SIGTERM or SIGHUP after the slice in hand; a second signal stops at once. With --drain the exit
    code is 0 when every row is done, 3 when documents are in quarantine, 1 when a vectorizer is blocked.
    """
    options = WorkerOptions(
        names=names or None,
        device=DeviceOptions(device or "auto", dtype or "auto", batch_tokens, threads),
        drain=drain,
        lease=lease or DEFAULT_LEASE,
        memory=memory,
        pool_size=pool_size or 3,
        listen=True if listen is None else listen,
        stall=stall or DEFAULT_STALL,
        tokenizers=tokenizers,
    )
    direct = Database(direct_dsn) if direct_dsn else None
    worker = Worker(session.database, options, direct=direct)
    obey_signals(worker)
    with Live(session.database, names or None) if drain else nullcontext():
        outcome = _run(worker)
    tell(session, outcome, names or None)
    return EXIT_CODES[outcome]


def _run(worker: Worker) -> Outcome:
    """Runs the worker. Where a call hangs that nothing can end, the process ends here, without waiting for it."""
    try:
        outcome = worker.run()
    except PgvecError as error:
        if worker.hung:
            _leave_at_once(1, f"pgvec: {error}")
        raise
    if worker.hung:
        _leave_at_once(EXIT_CODES[outcome], "pgvec: what was in hand is left to other workers")
    return outcome


def _leave_at_once(code: int, message: str) -> NoReturn:
    _say(f"{message}\n".encode())
    logging.shutdown()
    os._exit(code)


def _say(text: bytes) -> None:
    # The terminal may be closed, which may be why we leave.
    with suppress(OSError):
        os.write(2, text)


def obey_signals(worker: Worker) -> None:
    """First SIGINT, SIGTERM or SIGHUP: the worker finishes the slice in hand and leaves. Second: it ends at once."""
    told = False

    def on_signal(number: int, _: FrameType | None) -> None:
        nonlocal told
        if told:
            # The lease runs out and others take over; nothing half-written can remain.
            if os.isatty(2):
                _say(_SHOW_CURSOR)
            os._exit(128 + number)
        told = True
        _say(b"pgvec: finishing the slice in hand; once more to stop at once\n")
        worker.stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)


def tell(session: Session, outcome: Outcome, names: Sequence[str] | None) -> None:
    """Says on stderr what a drained worker left undone, and what to do about it."""
    if outcome is Outcome.STOPPED:
        return
    with session.database.connect("work") as connection:
        rows = [one for one in progress.read(connection) if names is None or one.name in names]
    for one in rows:
        for remark in _remarks(one):
            click.echo(f"pgvec: {plain(remark)}", err=True)


def _remarks(one: progress.Progress) -> Iterator[str]:
    if one.rows_failed:
        yield f"{one.name}: {documents(one.rows_failed)} in quarantine; see `pgvec failures {one.name}`"
    if one.state == "blocked":
        yield f"{one.name} is blocked: {one.reason}; mend that, then run `pgvec resume {one.name}`"
    elif one.state in ("paused", "cancelled"):
        yield f"{one.name} is {one.state}; `pgvec resume {one.name}` lets it go on"
    elif not one.plan_complete:
        yield f"{one.name} is not planned to its end; run the `pgvec enqueue` that was stopped again"
