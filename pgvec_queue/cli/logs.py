"""Logs to stderr: a line per event, as text for people or JSON for machines. docs/logs.md lists events and keys.

What other libraries say through the standard logging goes the same way. No line holds a secret. Where several processes
of one ``pgvec work`` share stderr, each line names its process. Where stderr is gone, the program goes on without it.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from collections.abc import MutableMapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pgvec_queue.cli.texts import plain
from pgvec_queue.masking import secrets_of, without_secrets
from pgvec_queue.settings import environment_with_key

if TYPE_CHECKING:
    from structlog.stdlib import ProcessorFormatter

PROCESS = "PGVEC_SUPERVISED_AS"
"""The variable that names a process which ``pgvec work`` has started, such as ``cuda:1``."""
REQUEST = "request_id"
"""The key that tells which request to the gateway a line is about."""

Keys = MutableMapping[str, Any]


class Lines(logging.Formatter):
    """Makes a line of each record. structlog is loaded with the first one: most commands log nothing."""

    def __init__(self, form: str, secrets: Sequence[str] = ()) -> None:
        """``form`` is ``text`` or ``json``; of ``secrets`` none is shown."""
        super().__init__()
        self.form = form
        self._secrets = secrets

    def format(self, record: logging.LogRecord) -> str:
        return self._formatter.format(record)

    @functools.cached_property
    def _formatter(self) -> ProcessorFormatter:
        from structlog.contextvars import get_contextvars, merge_contextvars
        from structlog.processors import JSONRenderer, format_exc_info
        from structlog.stdlib import ProcessorFormatter

        def request(_logger: Any, _method: str, keys: Keys) -> Keys:
            found = get_contextvars().get(REQUEST)
            return keys if found is None else {**keys, REQUEST: found}

        # A person knows whose lines these are; a machine may get those of many workers.
        context, render = (merge_contextvars, JSONRenderer()) if self.form == "json" else (request, _text)
        return ProcessorFormatter(processors=[context, format_exc_info, _common_keys, self._without_secrets, render])

    def _without_secrets(self, _logger: Any, _method: str, keys: Keys) -> Keys:
        return {key: self._masked(value) for key, value in keys.items()}

    def _masked(self, value: Any) -> Any:
        if isinstance(value, str):
            return without_secrets(value, self._secrets)
        if isinstance(value, list | tuple):
            return [self._masked(one) for one in value]
        return value


def _common_keys(_logger: Any, _method: str, keys: Keys) -> Keys:
    """The keys of every line first, and none of structlog's own."""
    record = keys.pop("_record")
    own = {"event", "exception", "stack_info", "_from_structlog"}
    traceback = keys.get("exception")
    return {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
        "level": record.levelname.lower(),
        "logger": record.name,
        **({"process": os.environ[PROCESS]} if PROCESS in os.environ else {}),
        "event": keys["event"],
        **{key: value for key, value in keys.items() if key not in own},
        **({"traceback": traceback} if traceback else {}),
    }


def _text(_logger: Any, _method: str, keys: Keys) -> str:
    from pgvec_queue.log import in_words

    clock = datetime.fromisoformat(keys.pop("time")).astimezone().strftime("%H:%M:%S")
    level = keys.pop("level")
    traceback = keys.pop("traceback", None)
    process = keys.pop("process", None)
    del keys["logger"]
    whose = f"[{plain(process)}] " if process is not None else ""
    line = f"{clock} {whose}{'' if level == 'info' else f'{level}: '}{plain(in_words(keys))}"
    return f"{line}\n{traceback}" if traceback else line


class _Stderr(logging.Handler):
    """Writes to what stderr is at that moment, which a live display or a test may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - a line that cannot be made is told of, and stops nobody
            self.handleError(record)
            return
        try:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        except BlockingIOError:
            return
        except (OSError, ValueError):
            # Whoever read it is gone, or it was closed. What is in its buffer would be tried again at the end of the
            # process, and change the exit code.
            sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def are_json() -> bool:
    """Whether lines are for machines, so that nothing else should stand between them."""
    return any(
        isinstance(one.formatter, Lines) and one.formatter.form == "json" for one in logging.getLogger().handlers
    )


def configure(level: str, form: str, *, debug: bool) -> None:
    """Sets our own loggers' level and format; other libraries speak from warning on."""
    handler = _Stderr()
    handler.setFormatter(Lines(form, secrets_of(environment_with_key())))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("pgvec").setLevel(logging.DEBUG if debug else level.upper())
    # Our own lines tell of a database that is away; the pool would do so at each of its tries.
    logging.getLogger("psycopg.pool").setLevel(logging.NOTSET if debug else logging.ERROR)
