"""How this program says what has happened: an event in words, and keys, through structlog to the standard logging.

``get_logger`` gives each module its logger. The records that come of it belong to whoever has configured the standard
logging: the command line (``cli.logs``) makes text or JSON of the keys; any other handler gets a line in words.

Whoever has a document in hand gives its text as ``text``, and what went wrong with it as ``error``: the text goes no
further than here, nor does what the error repeats of it, unless ``show_texts`` has asked for them.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, MutableMapping
from typing import Any

import structlog
from structlog.stdlib import BoundLogger, ProcessorFormatter

from pgvec_queue.masking import without_text

LONGEST_TEXT = 2_000
"""Characters of a document's text in a line that may show it."""
_LONGEST_ERROR = 500

_texts_shown = False


def get_logger(name: str) -> BoundLogger:
    """Returns the logger of this name, such as ``pgvec.worker``: ``log.info("job is stolen", job=7)``."""
    logger: BoundLogger = structlog.wrap_logger(
        logging.getLogger(name),
        processors=[structlog.stdlib.filter_by_level, _without_text, _to_record],
        wrapper_class=BoundLogger,
    ).bind()
    return logger


def show_texts(shown: bool) -> None:
    """Says, when the process starts, whether lines may show the text of a document that they are about."""
    global _texts_shown
    _texts_shown = shown


def hidden(error: str, text: str) -> str:
    """Returns what went wrong without what it repeats of a document's text, unless texts may be shown."""
    return error if _texts_shown else without_text(error[:_LONGEST_ERROR], text)


def hidden_data(error: str) -> str:
    """The same for an error of the database about a value that it quotes, where the document is not known."""
    return error if _texts_shown else re.sub(r': ".*"', ': "…"', error, flags=re.DOTALL)


def in_words(keys: Mapping[str, Any]) -> str:
    """Returns an event as a person reads it: its words, ``key=value`` for each key, and last what went wrong."""
    said = [str(keys["event"])]
    said += [f"{key}={_value(value)}" for key, value in keys.items() if key not in ("event", "error", "exc_info")]
    error = keys.get("error")
    return f"{' '.join(said)}: {error}" if error else " ".join(said)


class _Event(dict[str, Any]):
    """The keys of a record; as a string, a line in words."""

    def __str__(self) -> str:
        return in_words(self)


def _without_text(_logger: Any, _method: str, keys: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    text = keys.pop("text", None)
    if text is None:
        return keys
    if _texts_shown:
        keys["text"] = text[:LONGEST_TEXT]
    elif "error" in keys:
        keys["error"] = hidden(str(keys["error"]), text)
    return keys


def _to_record(logger: Any, method: str, keys: MutableMapping[str, Any]) -> Any:
    """What is not known is left out."""
    event = _Event({key: value for key, value in keys.items() if value is not None})
    return ProcessorFormatter.wrap_for_formatter(logger, method, event)


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    text = str(value)
    return f'"{text}"' if not text or any(c.isspace() or c in '"=' for c in text) else text
