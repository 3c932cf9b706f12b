"""Logs to stderr: a line per event, as text for people or JSON for machines.

Where several processes of one ``pgvec work`` share stderr, each line names its process.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from datetime import UTC, datetime

from pgvec_queue.cli.texts import plain

PROCESS = "PGVEC_SUPERVISED_AS"
"""The variable that names a process which ``pgvec work`` has started, such as ``cuda:1``."""


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            **({"process": os.environ[PROCESS]} if PROCESS in os.environ else {}),
            "event": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        process = f"[{os.environ[PROCESS]}] " if PROCESS in os.environ else ""
        text = f"{clock} {process}{level}{plain(record.getMessage())}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text


class _Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """Writes to what stderr is at that moment, which a live display or a test may have replaced."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> object:
        return sys.stderr


def configure(level: str, form: str, *, debug: bool) -> None:
    """Sets our own loggers' level and format; other libraries speak from warning on."""
    handler = _Stderr()
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pgvec").setLevel(logging.DEBUG if debug else level.upper())
