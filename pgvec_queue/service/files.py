"""The files of a service: written whole or not at all, and readable for whom they are meant.

What is private is never readable for others, not even while it is written.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from pgvec_queue.errors import PgvecError
from pgvec_queue.service import MARK, Layout, Service

PUBLIC, PRIVATE = 0o644, 0o600
_SETTINGS = {
    "worker": ("PGVEC_DEVICE=auto", "PGVEC_PROCESSES=1", "PGVEC_METRICS_PORT=9190", "PGVEC_MEMORY=8G"),
    "gateway": ("PGVEC_GATEWAY_HOST=127.0.0.1", "PGVEC_GATEWAY_PORT=8000"),
    "exporter": ("PGVEC_EXPORTER_HOST=127.0.0.1", "PGVEC_EXPORTER_PORT=9189"),
}


def is_ours(path: Path) -> bool:
    """True for a unit that was written here, or copied from ``deploy/``."""
    try:
        return MARK in path.read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return False


def written(path: Path, text: str, mode: int) -> bool:
    """Makes the file hold ``text``, with ``mode``; returns False where it already does.

    Its directory is made where it is not there. Raises ``PgvecError`` where that may not be.
    """
    try:
        if path.is_file() and path.stat().st_mode & 0o777 == mode and path.read_text("utf-8") == text:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # A temporary file is its owner's alone from the start.
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                os.fchmod(file.fileno(), mode)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise PgvecError(f"{path} cannot be written: {reason}") from error
    return True


def environment(service: Service, files: Layout) -> str:
    """Returns an environment file that sets nothing yet, and says what could be set."""
    return "".join(
        (
            f"# Settings of pgvec-{service.name}, read when it starts: PGVEC_<NAME>=value, as in docs/operations.md.\n",
            f"# Where the database is stands in {files.dsn.name} beside it.\n",
            *(f"#{line}\n" for line in _SETTINGS[service.kind]),
        )
    )
