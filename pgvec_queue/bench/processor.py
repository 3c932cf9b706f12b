"""How much processor time the database takes, read from ``/proc`` where its server runs on this machine under Linux."""

from __future__ import annotations

import os
import time
from pathlib import Path
from types import TracebackType

from pgvec_queue.bench.database import Arena
from pgvec_queue.database import statement

_PROC = Path("/proc")
_LOCAL = ("localhost", "127.0.0.1", "::1")
# Fields of /proc/PID/stat, counted from the state that follows the name: parent, user, system, and those of children.
_PARENT, _USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM = 1, 11, 12, 13, 14


class ServerClock:
    """Counts what all processes of the arena's server, ended ones too, take while inside."""

    def __init__(self, own: Arena) -> None:
        self._server = _server(own)
        self._started = 0.0
        self._ticks = 0
        self.cores: float | None = None
        """Processors kept busy on average; None where they cannot be seen."""

    def __enter__(self) -> ServerClock:
        self._started = time.monotonic()
        self._ticks = _ticks(self._server) if self._server else 0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._server and kind is None:
            seconds = (_ticks(self._server) - self._ticks) / os.sysconf("SC_CLK_TCK")
            self.cores = seconds / (time.monotonic() - self._started)


def process_seconds(process: int) -> float | None:
    """Returns the processor time that one process has taken; None where it cannot be seen."""
    stat = _stat(process)
    if stat is None:
        return None
    return (int(stat[1][_USER]) + int(stat[1][_SYSTEM])) / os.sysconf("SC_CLK_TCK")


def _server(own: Arena) -> int | None:
    """Returns the process id of the server, if it is a process of this machine that may be looked at."""
    host = own.connection.info.host
    if not host.startswith("/") and host not in _LOCAL:
        return None
    row = own.connection.execute(statement("bench", "backend")).fetchone()
    backend = _stat(row[0]) if row else None
    # Through a tunnel or out of a container, the number may be somebody else's here.
    if backend is None or "postgres" not in backend[0]:
        return None
    return int(backend[1][_PARENT])


def _ticks(server: int) -> int:
    total = 0
    for folder in _PROC.iterdir():
        stat = _stat(int(folder.name)) if folder.name.isdecimal() else None
        if stat is None:
            continue
        fields = stat[1]
        if folder.name == str(server):
            total += sum(int(fields[i]) for i in (_USER, _SYSTEM, _CHILDREN_USER, _CHILDREN_SYSTEM))
        elif int(fields[_PARENT]) == server:
            total += int(fields[_USER]) + int(fields[_SYSTEM])
    return total


def _stat(process: int) -> tuple[str, list[str]] | None:
    """Returns the name of a process and what follows it in its ``stat``; None where there is none."""
    try:
        text = (_PROC / str(process) / "stat").read_text()
    except OSError:
        return None
    # The name is in parentheses and may hold any of them.
    before, _, after = text.rpartition(")")
    return before.partition("(")[2], after.split()
