"""launchd: the agent of a service on a Mac, and how launchctl is asked for it.

An agent runs while its person is logged in. The worker is the agent's own process, so that launchd's SIGTERM has it
finish the slice in hand; `caffeinate` stands beside it and keeps the Mac awake for as long as the worker is there. The
environment file is the one that systemd reads on other machines: the shell takes its lines as they are here.

`launchctl bootout` comes back before the worker has left, which takes it seconds, and for some seconds more launchd
takes no agent of that name: so it is waited for, and `bootstrap` tried again.

Nothing of this has run on a Mac: the file is checked as a property list, and its command line run on Linux.
"""

from __future__ import annotations

import os
import plistlib
import time
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from pgvec_queue.errors import PgvecError
from pgvec_queue.service import (
    MARK,
    STOP_SECONDS,
    Installed,
    Layout,
    Run,
    Service,
    State,
    arguments_of,
    kind_of,
)
from pgvec_queue.service.asking import PAUSE, asked

PREFIX = "pgvec-queue"
START = """\
if [ -r "$0" ]; then
  while IFS= read -r line || [ -n "$line" ]; do
    case $line in [A-Za-z_]*=*) export "$line" ;; esac
  done <"$0"
fi
/usr/bin/caffeinate -is -w $$ &
exec "$@"
"""
"""What the agent's shell does with its environment file and the command line that follow: each line is a variable and
its value as it stands, without any meaning to the shell. Without the file it goes on."""

# Of what the system recommends at most, so that torch runs out of memory (and the worker halves its batch) before the
# whole Mac swaps. The worker itself clears its cache at 0.8.
_WATERMARKS = {"PYTORCH_MPS_HIGH_WATERMARK_RATIO": "1.0", "PYTORCH_MPS_LOW_WATERMARK_RATIO": "0.9"}


_LEAVING = (3, 36)
"""launchctl's exit codes for an agent that is gone already ("No such process"), and for one that takes its time
("Operation now in progress")."""
_NOT_YET = (5, 36, 37)
"""What it ends with where the agent of that name is not quite gone ("Input/output error", or in progress)."""
_BOOTSTRAP_SECONDS = 15.0


def label(name: str) -> str:
    """Returns what launchd calls the agent."""
    return f"{PREFIX}.{name}"


def layout(name: str, home: Path, root: Path = Path("/")) -> Layout:
    """Returns where an agent's files lie, below ``root``."""
    library = root / home.relative_to(home.anchor) / "Library"
    settings = library / "Application Support" / "pgvec-queue"
    return Layout(
        library / "LaunchAgents" / f"{label(name)}.plist",
        settings / f"{name}.env",
        settings / f"{name}.dsn",
        library / "Logs" / "pgvec-queue" / f"{name}.log",
    )


def agent(service: Service, files: Layout) -> str:
    """Returns the text of the agent's property list."""
    log = str(files.log)
    content: dict[str, Any] = {
        "Label": label(service.name),
        "ProgramArguments": ["/bin/sh", "-c", START, str(files.environment), *service.command_line],
        "EnvironmentVariables": {
            "PGVEC_DSN_FILE": str(files.dsn),
            **({} if service.kind == "exporter" else _WATERMARKS),
        },
        "RunAtLoad": True,
        # One that was told to leave (0) stays away; one that died is started again.
        "KeepAlive": {"SuccessfulExit": False},
        "ThrottleInterval": 10,
        "ExitTimeOut": STOP_SECONDS,
        # Else macOS would slow it down, and put it on the efficiency cores.
        "ProcessType": "Interactive",
        "Umask": 0o077,
        "StandardOutPath": log,
        "StandardErrorPath": log,
    }
    head, body = plistlib.dumps(content, sort_keys=False).decode().split("<plist", 1)
    comment = (
        f"<!-- pgvec-queue, the {service.kind}: ~/Library/LaunchAgents/{files.unit.name}, {MARK}. docs/deploy.md -->"
    )
    return f"{head}{comment}\n<plist{body}"


class Launchd:
    """launchd, for the agents of the person with this ``home``."""

    def __init__(self, home: Path, *, root: Path = Path("/")) -> None:
        self._home = home
        self._root = root
        self._domain = f"gui/{os.getuid()}"

    def layout(self, name: str) -> Layout:
        return layout(name, self._home, self._root)

    def text(self, service: Service) -> str:
        # The agent speaks of the machine that it will run on.
        return agent(service, layout(service.name, self._home))

    def installed(self, name: str) -> Installed | None:
        path = self.layout(name).unit
        try:
            content = path.read_bytes()
            kind = kind_of(content.decode("utf-8", "replace"))
            words = plistlib.loads(content)["ProgramArguments"] if kind else []
        except (OSError, plistlib.InvalidFileException, ExpatError, KeyError):
            return None
        # The shell, its two words and the environment file come first.
        return Installed(kind, arguments_of(kind, words[4:])) if kind else None

    def absent(self) -> str | None:
        """There may be no launchd, or nobody logged in for whom an agent could run."""
        try:
            shown = asked(["launchctl", "print", self._domain])
        except PgvecError as error:
            return str(error)
        return "nobody is logged in at this Mac's screen for whom an agent could run" if shown.returncode else None

    def unfit(self) -> str | None:
        return None

    def start(self, name: str, run: Run, *, anew: bool) -> None:
        if self._shown(name) is not None:
            if not anew:
                run(["launchctl", "kickstart", self._target(name)])
                return
            self.stop(name, run)
        # Somebody may have disabled it, which outlives its file.
        run(["launchctl", "enable", self._target(name)])
        run(self.by_hand(name), again=_NOT_YET, seconds=_BOOTSTRAP_SECONDS)

    def by_hand(self, name: str) -> list[str]:
        return ["launchctl", "bootstrap", self._domain, str(self.layout(name).unit)]

    def stop(self, name: str, run: Run) -> None:
        if self._shown(name) is None:
            return
        run(["launchctl", "bootout", self._target(name)], fine=_LEAVING)
        ends = time.monotonic() + STOP_SECONDS + 5
        while self._shown(name) is not None:
            if time.monotonic() > ends:
                raise PgvecError(f"{label(name)} has not left within {STOP_SECONDS + 5} s")
            time.sleep(PAUSE)

    def forget(self, run: Run) -> None:
        """launchd looks into the directory when the person logs in."""

    def state(self, name: str) -> State:
        shown = self._shown(name)
        if shown is None:
            return State(False, "not loaded")
        details = [f"process {shown['pid']}"] if "pid" in shown else []
        if "last exit code" in shown:
            details.append(f"last exit code: {shown['last exit code']}")
        return State(shown.get("state") == "running", ", ".join([shown.get("state", "unknown"), *details]))

    def log(self, name: str, lines: int) -> list[str]:
        path = self.layout(name).log
        assert path is not None
        try:
            return path.read_text("utf-8", "replace").splitlines()[-lines:]
        except OSError:
            return []

    def advice(self, name: str) -> str | None:
        return f"it runs while you are logged in, and logs to {self.layout(name).log}"

    def _target(self, name: str) -> str:
        return f"{self._domain}/{label(name)}"

    def _shown(self, name: str) -> dict[str, str] | None:
        """Returns what launchd knows of the agent, such as ``state`` and ``pid``; None where it does not know it."""
        ran = asked(["launchctl", "print", self._target(name)])
        found: dict[str, str] = {}
        for line in ran.stdout.splitlines():
            key, separator, value = line.strip().partition(" = ")
            if separator:
                # The agent's own lines come first; those of its parts repeat some names.
                found.setdefault(key, value)
        return None if ran.returncode else found
