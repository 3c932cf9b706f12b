"""Which PostgreSQL the tests run on.

``PGVEC_TEST_POSTGRES`` is a major version that the embedded server's wheel brings (18 when not set), or the folder with
the programs of another installation, such as ``/usr/lib/postgresql/14/bin``, which has to have pgvector.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from pgvec_queue import embedded, embedded_programs

VARIABLE = "PGVEC_TEST_POSTGRES"


def chosen() -> tuple[int, Path | None]:
    """Returns the major version, and the folder of its programs; None: those of the wheel."""
    named = os.environ.get(VARIABLE, str(embedded.DEFAULT_VERSION))
    if named.isdigit():
        return int(named), None
    folder = Path(named)
    if not (folder.is_absolute() and (folder / "postgres").is_file()):
        raise ValueError(
            f"{VARIABLE}={named} is neither a version nor the absolute path of a folder with postgres in it"
        )
    _, said = embedded_programs.run(folder / "postgres", "--version", account=None)
    version = re.search(r"\(PostgreSQL\) (\d+)", said)
    if version is None:
        raise ValueError(f"{folder / 'postgres'} does not tell its version: {said.strip()}")
    return int(version[1]), folder


def chosen_server(directory: Path, settings: Mapping[str, str]) -> embedded.Server:
    """Returns the server of a directory, of the version that was chosen; not started."""
    version, folder = chosen()
    return embedded.Server(directory, version=version, settings=settings, folder=folder)
