"""The command line inside the test's own process: what ``main`` runs, and all that it printed."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pgvec_queue import embedded_programs
from pgvec_queue.cli import run
from tests.support import Ran

PASSWORD = "s3cret-Pa55"


class CommandLine:
    """Runs ``pgvec`` with arguments; the database is what ``PGVEC_DSN`` says, as for a user."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(self, *arguments: str) -> Ran:
        self._capture.readouterr()
        code = run(arguments)
        return Ran(code, *self._capture.readouterr())

    def refused(self, *arguments: str) -> str:
        """Runs what has to fail; returns the one line that says why."""
        ran = self(*arguments)
        assert ran.code == 1, ran
        assert_one_line(ran)
        return ran.err.removeprefix("pgvec: ").rstrip("\n")

    def misused(self, *arguments: str) -> str:
        """Runs what cannot be meant; returns the last line of the usage message."""
        ran = self(*arguments)
        assert ran.code == 2, ran
        assert ran.out == ""
        assert ran.err.startswith("Usage: pgvec ")
        assert "Traceback" not in ran.err
        return ran.err.rstrip("\n").rpartition("\n")[2].removeprefix("Error: ")


def assert_one_line(ran: Ran) -> None:
    """An error is one line that begins with the program's name; no password in it, and no result beside it."""
    assert ran.out == ""
    assert ran.err.startswith("pgvec: ")
    assert ran.err.endswith("\n")
    assert ran.err.count("\n") == 1, ran.err
    assert PASSWORD not in ran.err


def isolate(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Gives the process an empty home and working directory, and the embedded server a default directory beside."""
    home, here = directory / "home", directory / "here"
    home.mkdir()
    here.mkdir()
    for variable, value in (("HOME", home), ("XDG_CONFIG_HOME", home / "config"), ("XDG_DATA_HOME", home / "data")):
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setattr(embedded_programs, "SYSTEM_DIRECTORY", directory / "system")
    monkeypatch.chdir(here)


@contextmanager
def undone() -> Iterator[None]:
    """Puts back what a command sets for the whole process: signal handlers and logging."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    loggers = {logger: logger.level for logger in map(logging.getLogger, (None, "pgvec", "psycopg.pool"))}
    shown = list(logging.getLogger().handlers)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for logger, level in loggers.items():
            logger.setLevel(level)
        logging.getLogger().handlers[:] = shown
