"""Worker processes of several versions on one database, and what each has said."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.chaos.program import Program
from tests.waiting import wait_until


@dataclass
class Member:
    """One process."""

    name: str
    process: subprocess.Popen[bytes]
    stderr: Path

    @property
    def said(self) -> str:
        return self.stderr.read_text(errors="replace")

    @property
    def runs(self) -> bool:
        return self.process.poll() is None

    def leave(self, seconds: float = 20.0) -> int:
        """Tells it to leave; returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@dataclass
class Fleet:
    """All processes of a test; whatever still runs is killed by ``close``."""

    dsn: str
    directory: Path
    environment: dict[str, str] = field(default_factory=dict)
    members: list[Member] = field(default_factory=list)

    def start(self, program: Program, *arguments: str, dsn: str | None = None) -> Member:
        name = f"{program.directory.name}-{len(self.members) + 1}"
        stderr = self.directory / f"{name}.log"
        process = program.start(*(arguments or ("work",)), dsn=dsn or self.dsn, stderr=stderr, extra=self.environment)
        self.members.append(Member(name, process, stderr))
        return self.members[-1]

    def close(self) -> None:
        for member in self.members:
            if member.runs:
                member.process.kill()
            member.process.wait()


def wait_for(member: Member, words: str, seconds: float = 30.0) -> None:
    """Waits until a process has said something; fails with all that it said where it ends before."""

    def told() -> bool:
        if words in member.said:
            return True
        assert member.runs, f"{member.name} has ended with {member.process.returncode}: {member.said[-2_000:]}"
        return False

    try:
        wait_until(told, seconds, what=f"{words!r} of {member.name}")
    except AssertionError as error:
        raise AssertionError(f"{error}: {member.said[-2_000:]}") from None


Row = tuple[Any, ...]
