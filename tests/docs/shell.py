"""One bash per page: its commands run in it one after the other, so that variables and directories last."""

from __future__ import annotations

import os
import re
import select
import shlex
import signal
import subprocess
import termios
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_STATUS = 9
"""The file descriptor on which the shell tells how a command ended."""
_SERVES = re.compile(r"^(?:\w+=\S* +)*pgvec (?P<what>serve|exporter|work|status|dashboard)\b(?P<rest>.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended, and all that it printed."""

    status: int
    output: str


@dataclass(frozen=True, slots=True)
class Background:
    """A process that a page has started, and that runs until its end."""

    pid: int
    what: str
    """serve, exporter, work, or status; empty for what is none of ours."""
    output: Path


class Shell:
    """A bash in a process group of its own, without anybody's start-up files."""

    def __init__(self, directory: Path, scratch: Path, environment: Mapping[str, str]) -> None:
        """``directory`` is where it begins; ``scratch`` holds what commands print."""
        self._scratch = scratch
        self._count = 0
        self._background: list[Background] = []
        # What asks whether it may gets a yes, as it would from whoever reads the page.
        self._keyboard, terminal = os.openpty()
        status, writer = os.pipe()
        self._status = os.fdopen(status, "rb", buffering=0)
        self._terminal = terminal
        self._process = subprocess.Popen(
            ["bash", "--noprofile", "--norc", "-c", f'exec {_STATUS}>&{writer}; while IFS= read -r f; do . "$f"; done'],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=directory,
            env=dict(environment),
            pass_fds=(writer, terminal),
            process_group=0,
        )
        os.close(writer)

    def __enter__(self) -> Shell:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._status.close()
        os.close(self._keyboard)
        os.close(self._terminal)

    @property
    def background(self) -> list[Background]:
        """What runs beside the shell, and was not looked at when it was started."""
        return list(self._background)

    def run(self, text: str, timeout: float) -> tuple[Ended, Background | None]:
        """Runs a command; what serves until it is told to leave goes on beside, and is returned as well.

        Raises ``TimeoutError`` when it takes longer than ``timeout`` seconds.
        """
        before, serving, what = split(text)
        if not serving:
            return self._run(text, timeout), None
        if before:
            ended = self._run(before, timeout)
            if ended.status:
                return ended, None
        ended = self._run(f"{serving} {_STATUS}>&- &\necho $! >&{_STATUS}", timeout, tells_pid=True)
        started = Background(ended.status, what, self._scratch / f"{self._count}.out")
        self._background.append(started)
        return Ended(0, ""), started

    def wait(self, one: Background) -> Ended:
        """Tells one to leave, and returns how it did."""
        sign = "INT" if one.what in ("status", "dashboard") else "TERM"
        # A worker that some command of the page has told to leave is on its way out: a signal would only cut it off.
        tell = (
            ""
            if "worker has left" in one.output.read_text("utf-8", "replace")
            else f"kill -{sign} {one.pid} 2>/dev/null; "
        )
        ended = self._run(f"{tell}wait {one.pid}", 30)
        self._background.remove(one)
        return Ended(ended.status, one.output.read_text("utf-8", "replace"))

    def _run(self, text: str, timeout: float, *, tells_pid: bool = False) -> Ended:
        self._count += 1
        script, output = self._scratch / f"{self._count}.sh", self._scratch / f"{self._count}.out"
        group = f"{{ {text}\n}} <&{self._terminal} >{shlex.quote(str(output))} 2>&1"
        tell = "" if tells_pid else f" {_STATUS}>&-\necho $? >&{_STATUS}"
        script.write_text(group + tell + "\n")
        os.write(self._keyboard, b"y\n")
        assert self._process.stdin is not None
        self._process.stdin.write(f"{script}\n".encode())
        self._process.stdin.flush()
        status = self._next_line(time.monotonic() + timeout, text, output)
        termios.tcflush(self._terminal, termios.TCIFLUSH)
        return Ended(status, output.read_text("utf-8", "replace"))

    def _next_line(self, deadline: float, text: str, output: Path) -> int:
        line = b""
        while not line.endswith(b"\n"):
            ready, _, _ = select.select([self._status], [], [], max(deadline - time.monotonic(), 0))
            if not ready:
                raise TimeoutError(output.read_text("utf-8", "replace"))
            part = self._status.read(64)
            if not part:
                raise AssertionError(f"the shell has ended: {text}\n{output.read_text('utf-8', 'replace')}")
            line += part
        return int(line)


def split(text: str) -> tuple[str, str, str]:
    """Splits a command line before what serves until it is told to leave.

    Returns what comes before, that command, and which it is; the latter two are empty where there is none.
    """
    bare = re.sub(r"(?:^|(?<=\s))#.*$", "", text, flags=re.MULTILINE).strip()
    before, joint, last = bare.rpartition("&&") if "&&" in bare.rstrip("& ") else ("", "", bare)
    found = _SERVES.match(last.strip().removesuffix("&").strip())
    if found is None:
        return "", "", ""
    what, rest = found["what"], found["rest"]
    ends = {"work": "--drain" in rest, "status": "--watch" not in rest, "dashboard": True}.get(what, False)
    if ends or re.search(r"--help\b|\s-h\b|\||;|\n", rest):
        return "", "", ""
    return before.strip() if joint else "", found[0], what
