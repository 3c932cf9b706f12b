"""pgvec as a service of a machine: what a systemd unit or a launchd agent of it says, and where its files lie.

A service is a command (``pgvec work``, ``serve`` or ``exporter``), a unit that starts it, an environment file with its
settings, and a file with the address of the database, which may hold a password: it stands in no unit, on no command
line and in no environment. What is in ``deploy/systemd`` and ``deploy/launchd`` is what is made here, for a program in
``/opt/pgvec`` and for a person called ``me``.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
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


def kind_of(unit: str) -> str | None:
    """Returns the kind of service that the text of a unit of ours speaks of."""
    found = re.search(r"pgvec-queue, the (\w+): ", unit)
    return found[1] if found and found[1] in COMMANDS else None


def arguments_of(kind: str, command_line: Sequence[str]) -> tuple[str, ...]:
    """Returns what stands after the command in a service's command line."""
    # The program is one word, or an interpreter with -m.
    program = 3 if list(command_line[1:2]) == ["-m"] else 1
    return tuple(command_line[program + 1 :]) if list(command_line[program : program + 1]) == [COMMANDS[kind]] else ()


@dataclass(frozen=True, slots=True)
class Installed:
    """What a unit of ours says that was written before."""

    kind: str
    arguments: tuple[str, ...]
    account: str | None = None
    """Whom it runs as, where that is an account of the machine's."""


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


class Run(Protocol):
    """Runs a command, and says so; as ``asking.done``."""

    def __call__(
        self, words: Sequence[str], /, *, fine: Container[int] = (), again: Container[int] = (), seconds: float = 0
    ) -> None: ...


class Manager(Protocol):
    """Whoever keeps services on a machine. What changes something there goes through ``run``, which raises
    ``PgvecError`` where a command fails."""

    def layout(self, name: str) -> Layout: ...

    def text(self, service: Service) -> str:
        """Returns what its unit says."""

    def installed(self, name: str) -> Installed | None:
        """Returns what the unit that is there says; None where none of ours is there."""

    def absent(self) -> str | None:
        """Returns why it cannot be asked; None where it can."""

    def unfit(self) -> str | None:
        """Returns why it could not run the unit; None where it could."""

    def start(self, name: str, run: Run, *, anew: bool) -> None:
        """Has the service run with what its files say; ``anew``: even where it runs with that already."""

    def by_hand(self, name: str) -> list[str]:
        """Returns the command that has a service run whose files are written."""

    def stop(self, name: str, run: Run) -> None:
        """Ends the service, and has it not start with the machine."""

    def forget(self, run: Run) -> None:
        """Makes the removal of a unit known."""

    def state(self, name: str) -> State: ...

    def log(self, name: str, lines: int) -> list[str]:
        """Returns the last lines that the service has said."""

    def advice(self, name: str) -> str | None:
        """Returns what a person should know besides."""
