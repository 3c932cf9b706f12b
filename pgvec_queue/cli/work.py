"""``pgvec work``: a worker in the foreground."""

from __future__ import annotations

import os
import re
import signal
import sys
from types import FrameType
from typing import Any

import click

from pgvec_queue.cli.common import Session, command, setting
from pgvec_queue.cli.live import Live
from pgvec_queue.embedders import DeviceOptions
from pgvec_queue.worker import Outcome, Worker, WorkerOptions
from pgvec_queue.worker.lifecycle import DEFAULT_LEASE

_EXIT_CODES = {Outcome.STOPPED: 0, Outcome.COMPLETE: 0, Outcome.BLOCKED: 1, Outcome.QUARANTINED: 3}
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


class _Size(click.ParamType):
    """Bytes, such as 800M or 1.5GB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", str(value).strip(), re.IGNORECASE)
        if found is None or not float(found[1]):
            self.fail(f"{value!r} is no size; write it like 800M or 4G", param, ctx)
        return round(float(found[1]) * _UNITS[found[2].upper()])


class _Device(click.ParamType):
    name = "device"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            self.fail(f"{value!r} is none of auto, cpu, mps, cuda, cuda:N", param, ctx)
        return str(value)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@setting("--device", key="device", type=_Device(), help="auto, cpu, mps, cuda or cuda:N.  [default: auto]")
@setting(
    "--dtype",
    key="dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    help="Precision of the model.  [default: auto]",
)
@click.option("--drain", is_flag=True, help="End when nothing is left to claim or to wait for.")
@setting(
    "--lease",
    key="lease",
    type=click.FloatRange(1, 3600),
    metavar="SECONDS",
    help="Silence after which others take over.  [default: 30]",
)
@setting(
    "--batch-tokens", key="batch_tokens", type=click.IntRange(16), help="Tokens per device batch.  [default: by device]"
)
@setting("--threads", key="threads", type=click.IntRange(1), help="CPU threads for the model.  [default: torch's]")
@setting("--memory", key="memory", type=_Size(), metavar="SIZE", help="What loaded models may hold, such as 8G.")
@setting(
    "--pool-size", key="pool_size", type=click.IntRange(1, 64), help="Connections, apart from the heartbeat's.  [default: 3]"
)
@setting(
    "--listen/--no-listen", key="listen", help="Wake on NOTIFY; off behind a transaction-mode pooler.  [default: on]"
)
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
    memory: int | None,
    pool_size: int | None,
    listen: bool | None,
) -> int:
    """Claim jobs of the vectorizers NAME (default: all), embed and write.

    Stops on SIGINT or SIGTERM after the slice in hand; a second signal stops at once. With --drain the exit code is 0 when
    every row is done, 3 when documents are in quarantine, 1 when a vectorizer is blocked.
    """
    options = WorkerOptions(
        names=names or None,
        device=DeviceOptions(device or "auto", dtype or "auto", batch_tokens, threads),
        drain=drain,
        lease=lease or DEFAULT_LEASE,
        memory=memory,
        pool_size=pool_size or 3,
        listen=True if listen is None else listen,
    )
    worker = Worker(session.database, options)
    obey_signals(worker)
    if drain and sys.stderr.isatty():
        with Live(session.database, names or None):
            outcome = worker.run()
    else:
        outcome = worker.run()
    _tell(session, outcome)
    return _EXIT_CODES[outcome]


def obey_signals(worker: Worker) -> None:
    """First SIGINT or SIGTERM: the worker finishes the slice in hand and leaves. Second: the process ends at once."""
    told = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal told
        if told:
            # The lease runs out and others take over; nothing half-written can remain.
            os._exit(128 + number)
        told = True
        os.write(2, b"pgvec: finishing the slice in hand; once more to stop at once\n")
        worker.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)


def _tell(session: Session, outcome: Outcome) -> None:
    from pgvec_queue import progress

    with session.database.connect("work") as connection:
        rows = progress.read(connection)
    if outcome is Outcome.QUARANTINED:
        for one in rows:
            if one.rows_failed:
                click.echo(
                    f"pgvec: {one.name}: {one.rows_failed:,} documents are in quarantine; see `pgvec failures {one.name}`",
                    err=True,
                )
    elif outcome is Outcome.BLOCKED:
        for one in rows:
            if one.reason and one.state in ("blocked", "active"):
                click.echo(f"pgvec: {one.name}: {one.reason}", err=True)
