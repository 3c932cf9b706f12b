"""Finds the files that ship with the package but stand at the top of the source tree: ``sql/`` and ``alembic/``.

In a wheel they lie below ``pgvec_queue/``; in a checkout (editable install) beside it. This is the only place that
knows.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent
_NAME = re.compile(r"^-- name: *([a-z][a-z0-9_]*) *$", re.MULTILINE)
_OBJECT = re.compile(r"^ *CREATE (?:OR REPLACE )?(TABLE|VIEW|FUNCTION) pgvec\.(\w+)", re.MULTILINE)


def directory(name: str) -> Path:
    """Returns the folder ``sql`` or ``alembic``, whichever way the package was installed."""
    for parent in (_PACKAGE.parent, _PACKAGE):
        found = parent / name
        # site-packages/alembic is the library: only a checkout has our pyproject.toml beside the package.
        if found.is_dir() and (parent == _PACKAGE or (parent / "pyproject.toml").is_file()):
            return found
    raise FileNotFoundError(f"{name}/ is missing from the installation at {_PACKAGE}; reinstall pgvec-queue")


@functools.cache
def statements(file: str) -> dict[str, str]:
    """Returns the statements of ``sql/<file>.sql`` by the name in the ``-- name: x`` line above each."""
    text = (directory("sql") / f"{file}.sql").read_text("utf-8")
    parts = _NAME.split(text)
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def objects() -> set[tuple[str, str]]:
    """Returns kind (table, view or function) and name of all that `pgvec init` makes in the schema."""
    texts = [file.read_text("utf-8") for file in (directory("alembic") / "versions").glob("*.sql")]
    for file in ("schema", "views", "control", "search_function"):
        texts.extend(statements(file).values())
    made = {(kind.lower(), name) for text in texts for kind, name in _OBJECT.findall(text)}
    return made | {("table", "alembic_version")}
