"""pgvec as a service of a machine: what a systemd unit or a launchd agent of it says, and where its files lie.

A service is a command (``pgvec work``, ``serve`` or ``exporter``), a unit that starts it, an environment file with its
settings, and a file with the address of the database, which may hold a password: it stands in no unit, on no command
line and in no environment. What is in ``deploy/systemd`` and ``deploy/launchd`` is what is made here, for a program in
``/opt/pgvec`` and for a person called ``me``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

COMMANDS: Mapping[str, str] = {"worker": "work", "gateway": "serve", "exporter": "exporter"}
"""The command that each kind of service runs."""

MARK = "as `pgvec service install` writes it"
"""Stands in every unit of ours; a file without it is somebody else's."""

STOP_SECONDS = 30
"""How long a service may take to stop: several workers have 15 s (``LEAVE_PATIENCE``), one needs 8."""


@dataclass(frozen=True, slots=True)
class Service:
    """A service on one machine."""

    kind: str
    """``worker``, ``gateway`` or ``exporter``."""
    name: str
    """What the unit is called, after ``pgvec-``."""
    program: tuple[str, ...]
    """The words that start ``pgvec``."""
    arguments: tuple[str, ...] = ()
    """Given to the command."""

    @property
    def command_line(self) -> tuple[str, ...]:
        return (*self.program, COMMANDS[self.kind], *self.arguments)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the files of one service lie."""

    unit: Path
    environment: Path
    """``NAME=value`` lines, for a person to edit."""
    dsn: Path
    """One line: where the database is."""
    log: Path | None = None
    """Where its output goes, where that is a file."""


@dataclass(frozen=True, slots=True)
class State:
    """What a service does at the moment."""

    running: bool
    said: str
    """For a person, in a few words."""


class Manager(Protocol):
    """Whoever keeps services on a machine. Each command of the lists is run in turn; all have to succeed."""

    def layout(self, name: str) -> Layout: ...

    def text(self, service: Service) -> str:
        """Returns what its unit says."""

    def refuse_where_absent(self) -> None:
        """Raises ``PgvecError`` where it cannot be asked."""

    def starting(self, name: str, *, changed: bool) -> list[list[str]]:
        """Returns the commands that have the service run, anew where a file of it has ``changed``."""

    def stopping(self, name: str) -> list[list[str]]:
        """Returns the commands that end the service, and have it not start with the machine."""

    def afterwards(self) -> list[list[str]]:
        """Returns the commands that make the removal of a unit known."""

    def state(self, name: str) -> State: ...

    def log(self, name: str, lines: int) -> list[str]:
        """Returns the last lines that the service has said."""

    def advice(self, name: str) -> str | None:
        """Returns what a person should know besides."""
