"""The processes of one ``pgvec work``: which there are, and the command line and environment of each.

Each runs the command that was given here, for one device. What was said on the command line is said again; what came
from the environment or from ``pgvec.toml`` is found there again. The database's address goes by the environment, since
it may hold a password and every user sees the command lines of all processes.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from urllib.parse import quote

import click
from click.core import ParameterSource

from pgvec_queue.cli.common import Session
from pgvec_queue.cli.logs import PROCESS
from pgvec_queue.embedders import DeviceOptions
from pgvec_queue.settings import DsnSource, secret
from pgvec_queue.worker import devices
from pgvec_queue.worker.supervisor import Place

_DECIDED_HERE = {"dsn", "direct_dsn", "device", "processes", "threads", "tokenizers", "metrics_port"}


def places(
    session: Session,
    wanted: DeviceOptions,
    tokenizers: int | None,
    processes: int,
    direct_dsn: str | None,
    metrics_port: int | None = None,
) -> list[Place]:
    """Returns the places for worker processes: ``processes`` of them on each device that is meant.

    The first serves its metrics at ``metrics_port``, each other one at the port after; 0 is any free one for each.

    Raises ``SettingsError`` where several would not find their device.
    """
    found = devices.each(wanted.device)
    if processes > 1 and len(found) == 1:
        devices.check(found[0])
    environment = _environment(session.source, direct_dsn)
    said = list(_said(click.get_current_context()))
    workers = processes * len(found)
    return [
        Place(
            name := _name(device, number, several_devices=len(found) > 1, processes=processes),
            _command(
                device,
                said,
                threads=wanted.threads or devices.threads_each(device, processes),
                tokenizers=devices.tokenizers_each(device, workers) if tokenizers is None else tokenizers,
                metrics_port=metrics_port and metrics_port + at,
            ),
            {**environment, PROCESS: name},
        )
        for at, (device, number) in enumerate(itertools.product(found, range(1, processes + 1)))
    ]


def _name(device: str, number: int, *, several_devices: bool, processes: int) -> str:
    if not several_devices:
        return str(number)
    return device if processes == 1 else f"{device}/{number}"


def _command(device: str, said: list[str], **shares: int | None) -> list[str]:
    own = [
        word
        for name, share in shares.items()
        if share is not None
        for word in (f"--{name.replace('_', '-')}", str(share))
    ]
    return [sys.executable, "-m", "pgvec_queue", "work", "--device", device, *own, *said]


def _said(context: click.Context) -> Iterator[str]:
    """Yields the options and names of this command line, but for what is decided for each process."""
    for parameter in context.command.params:
        name = parameter.name or ""
        given = context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        if not (given and isinstance(parameter, click.Option)) or name in _DECIDED_HERE:
            continue
        value = context.params[name]
        if parameter.is_flag:
            yield (parameter.opts if value else parameter.secondary_opts)[0]
        else:
            yield from (parameter.opts[0], str(value))
    yield from ("--", *context.params["names"])


def _environment(source: DsnSource, direct_dsn: str | None) -> dict[str, str]:
    environment = dict(os.environ)
    if source.directory is not None:
        environment["PGVEC_DSN"] = f"embedded://{quote(str(source.directory))}"
    # What stands in a file is read there again, and in no environment.
    elif source.dsn and source.origin != "PGVEC_DSN_FILE":
        environment["PGVEC_DSN"] = source.dsn
    if direct_dsn and secret("direct_dsn", environment)[0] != direct_dsn:
        environment["PGVEC_DIRECT_DSN"] = direct_dsn
    return environment
