"""Runs the programs that a machine's services are kept with: systemctl, journalctl, launchctl."""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Container, Sequence

from pgvec_queue.errors import PgvecError

_PATIENCE = 90.0
"""Seconds; a service that is stopped may take 30 of them."""
PAUSE = 0.2
"""Seconds between two looks."""


def asked(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, whatever that is. Raises ``PgvecError`` where there is no such program."""
    try:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_PATIENCE,
            # What is said is looked into, and shown.
            env={**os.environ, "LC_ALL": "C", "SYSTEMD_COLORS": "0"},
        )
    except FileNotFoundError as error:
        raise PgvecError(f"{command[0]} is not installed here") from error
    except subprocess.TimeoutExpired as error:
        raise PgvecError(f"{shlex.join(command)} does not come back") from error


def done(command: Sequence[str], *, fine: Container[int] = (), again: Container[int] = (), seconds: float = 0) -> None:
    """Runs a command; raises ``PgvecError`` with what it says where it fails.

    The exit codes in ``fine`` are no failure; after those in ``again`` it is tried again, for so many ``seconds``.
    """
    ends = time.monotonic() + seconds
    while (ran := asked(command)).returncode in again and time.monotonic() < ends:
        time.sleep(PAUSE)
    if ran.returncode and ran.returncode not in fine:
        said = " ".join(ran.stderr.split()) or f"exit code {ran.returncode}"
        raise PgvecError(f"{shlex.join(command)} has failed: {said}")
