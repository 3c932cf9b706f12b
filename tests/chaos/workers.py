"""Worker processes, each behind a proxy of its own: started, killed, stopped, told to leave, watched for their end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.program import Program, faketime_library
from tests.chaos.proxy import Network, Proxy
from tests.chaos.server import Server

LEAVES_WITHIN = 15.0
"""Seconds from SIGTERM to the process's end."""
_TAIL = 1_500
_STACKS = 12_000


@dataclass
class Ended:
    """How a process ended."""

    worker: str
    code: int
    why: str
    """``killed`` or ``told`` (to leave) by us, ``poison`` for a SIGKILL that was not ours, ``not started`` when it
    could not reach the database at its start, ``slow`` to leave, else ``unexpected``.
    """
    tail: str
    seconds: float
    """From the signal that ended it; 0 where there was none."""


@dataclass
class Worker:
    """A place for one worker process after another."""

    name: str
    proxy: Proxy
    stderr: Path
    process: subprocess.Popen[bytes] | None = None
    clock: int = 0
    """Hours by which its clock is off."""
    stopped: bool = False
    ending: str | None = None
    ended_at: float = 0.0
    free_since: float = 0.0
    """When its last process ended."""
    said_before: int = 0
    """Bytes on stderr of the processes before this one."""

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def able(self) -> bool:
        """It runs, and nothing keeps it from working."""
        return self.process is not None and not self.stopped and self.ending is None and self.proxy.state == "open"

    def kill(self) -> None:
        self._signal(signal.SIGKILL, "killed")

    def tell_to_leave(self) -> None:
        self._signal(signal.SIGTERM, "told")

    def stop(self) -> None:
        self.stopped = True
        os.killpg(self.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        self.stopped = False
        if self.process is not None:
            os.killpg(self.pid, signal.SIGCONT)

    def _signal(self, number: signal.Signals, why: str) -> None:
        self.ending = why
        self.ended_at = time.monotonic()
        os.killpg(self.pid, number)

    def said(self) -> str:
        """What this process has said."""
        return self.stderr.read_bytes()[self.said_before :].decode(errors="replace")

    def why(self, code: int) -> str:
        """Says how its process has ended; see ``Ended``."""
        was_ready = "is ready" in self.said()
        # Until it has taken over the signal, SIGTERM ends it as it ends any program.
        told = (0,) if was_ready else (0, 128 + signal.SIGTERM, -signal.SIGTERM)
        expected = {"killed": (-signal.SIGKILL,), "told": told, "slow": (-signal.SIGABRT,)}
        if self.ending is not None and code in expected[self.ending]:
            return self.ending
        if code == -signal.SIGKILL:
            return "poison"
        return "unexpected" if was_ready or code != 1 else "not started"


@dataclass
class Fleet:
    """All workers of a run."""

    program: Program
    server: Server
    network: Network
    directory: Path
    lease: float
    faults: str
    workers: list[Worker] = field(default_factory=list)
    faketime: str | None = field(default_factory=faketime_library)

    def add(self) -> Worker:
        name = f"worker-{len(self.workers) + 1}"
        worker = Worker(name, Proxy(self.network, self.server.port), self.directory / f"{name}.log")
        self.workers.append(worker)
        return worker

    def start(self, worker: Worker, *, clock: int = 0) -> None:
        extra = {"PGVEC_HASHING_FAULTS": self.faults, "PYTHONFAULTHANDLER": "1"}
        worker.clock = clock if self.faketime else 0
        if worker.clock and self.faketime:
            # Timers of the process must go on as they are: only what it takes for the time of day is wrong.
            extra |= {
                "LD_PRELOAD": self.faketime,
                "FAKETIME": f"{worker.clock:+}h",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        worker.said_before = worker.stderr.stat().st_size if worker.stderr.exists() else 0
        worker.process = self.program.start(
            *("work", "--lease", str(self.lease)),
            dsn=self.server.dsn_at(worker.proxy.port),
            stderr=worker.stderr,
            extra=extra,
        )
        worker.ending, worker.stopped = None, False

    def ended(self) -> Iterator[Ended]:
        """Yields each process that has ended since the last call; its place is free then."""
        for worker in self.workers:
            if worker.process is None:
                continue
            now = time.monotonic()
            if worker.ending == "told" and not worker.stopped and now - worker.ended_at > LEAVES_WITHIN:
                # Its threads' stacks are then among what it says.
                worker.ending = "slow"
                os.killpg(worker.pid, signal.SIGABRT)
            code = worker.process.poll()
            if code is None:
                continue
            why = worker.why(code)
            tail = {"unexpected": worker.said()[-_TAIL:], "slow": worker.said()[-_STACKS:]}.get(why, "")
            yield Ended(worker.name, code, why, tail, now - worker.ended_at if worker.ending else 0.0)
            worker.process, worker.stopped, worker.free_since = None, False, now

    def able(self) -> set[int]:
        """Process ids of those that nothing keeps from working."""
        return {process.pid for worker in self.workers if (process := worker.process) is not None and worker.able}

    def close(self) -> None:
        """Ends them all at once."""
        for worker in self.workers:
            if worker.process is not None:
                if worker.process.poll() is None:
                    os.killpg(worker.pid, signal.SIGKILL)
                worker.process.wait()
                worker.process = None
            worker.proxy.close()

    def said(self) -> str:
        """All that they wrote on stderr."""
        return "".join(w.stderr.read_text(errors="replace") for w in self.workers if w.stderr.exists())
