"""``pgvec doctor``: whether database, models and settings are fit for work, and where each setting came from."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import click

from pgvec_queue import doctor as doctors
from pgvec_queue.cli.common import Session, command
from pgvec_queue.cli.texts import plain
from pgvec_queue.cli.types import SETTINGS, Number, setting
from pgvec_queue.doctor import Finding, Question
from pgvec_queue.errors import DatabaseError, SettingsError
from pgvec_queue.masking import secrets_of, without_secrets
from pgvec_queue.settings import SECRETS, environment_with_key, secret

_WAITED_FOR = {"database", "pgvector", "schema"}


@dataclass(frozen=True, slots=True)
class _Setting:
    """One that is not at its default."""

    name: str
    value: Any
    shown: str
    origin: str


@click.command()
@setting("--device", key="device", help="Look at what models would run on: auto, cpu, mps, cuda or cuda:N.")
@click.option("--probe-endpoint", is_flag=True, help="Have each endpoint make one tiny embedding.")
@click.option("--wait", type=Number(0), default=0, metavar="SECONDS", help="Wait this long for database and schema.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per finding and line.")
@command
def doctor(session: Session, *, device: str | None, probe_endpoint: bool, wait: float, as_json: bool) -> int:
    """Check the database, the models and the settings; exit code 1 where something would fail.

    Each line is a finding: ok, a note, a warning (it works, and badly) or an error (something would fail), with what
    to do. Nothing is changed.
    """
    changed = list(_changed(session))
    deadline = time.monotonic() + wait
    settings = {one.name: one.value for one in changed}
    while True:
        try:
            findings = list(_findings(session, settings, device, probe_endpoint))
        except DatabaseError:
            # There is nothing to ask: the address cannot be read, or the embedded server does not start.
            if time.monotonic() >= deadline:
                raise
        else:
            is_there = not any(one.level == "error" and one.check in _WAITED_FOR for one in findings)
            if is_there or time.monotonic() >= deadline:
                break
        time.sleep(min(0.5, max(deadline - time.monotonic(), 0)))
    for finding in map(_masked, findings):
        click.echo(json.dumps(finding.as_json()) if as_json else _as_text(finding))
    for line in _settings(changed, as_json=as_json):
        click.echo(line)
    return 1 if any(finding.level == "error" for finding in findings) else 0


def _findings(
    session: Session, settings: Mapping[str, Any], device: str | None, probe_endpoint: bool
) -> Iterator[Finding]:
    source = session.source
    yield from doctors.examine(
        Question(
            session.database, source.directory, source.origin, settings, device=device, probe_endpoint=probe_endpoint
        )
    )


def _masked(finding: Finding) -> Finding:
    secrets = secrets_of(environment_with_key())
    remedy = finding.remedy and without_secrets(finding.remedy, secrets)
    return replace(finding, message=without_secrets(finding.message, secrets), remedy=remedy)


def _as_text(finding: Finding) -> str:
    name = finding.vectorizer
    whose = f"{name}: " if name and not finding.message.startswith(f"{name} ") else ""
    remedy = f"; {finding.remedy}" if finding.remedy else ""
    return f"{finding.level:<8} {finding.check:<17} {plain(f'{whose}{finding.message}{remedy}')}"


def _settings(changed: list[_Setting], *, as_json: bool) -> Iterator[str]:
    for one in changed:
        said = f"{one.name} = {one.shown} (from {one.origin})"
        yield json.dumps(Finding("ok", "setting", said).as_json()) if as_json else plain(said)
    if not as_json:
        yield f"settings: all{' others' if changed else ''} at their defaults"


def _changed(session: Session) -> Iterator[_Setting]:
    """Yields each setting that is not at its default. Raises ``SettingsError`` for a value of no use."""
    for name, type_ in SETTINGS.items():
        variable = f"PGVEC_{name.upper()}"
        value: Any
        value, origin = secret(name, os.environ) if name in SECRETS else (os.environ.get(variable), variable)
        if not value and name in session.file.values:
            value, origin = session.file.values[name], str(session.file.path)
        elif not value:
            continue
        try:
            converted = type_.convert(value, None, None)
        except click.BadParameter as error:
            raise SettingsError(f"{name} (from {origin}): {error.message}") from error
        yield _Setting(name, converted, without_secrets(str(value)), origin)
