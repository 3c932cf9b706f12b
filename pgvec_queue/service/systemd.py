"""systemd: the unit of a service, of the machine (as root) or of a person, and how systemctl is asked for it.

A unit of the machine runs as a user that systemd makes up (`pgvec`, one for all units) unless an account is named, sees
the file system read-only, and of all devices the graphics cards alone. Its one place to write is its cache, for models.
The address of the database is a credential: only this unit can read it. A unit of a person has no sandbox that needs
root.

Whoever stops it gets the clean leave: SIGTERM goes to the main process, which tells its own. A worker that was told to
leave (`pgvec workers stop`) ends with 0 and stays away; one that dies or cannot reach the database is started again,
for as long as it takes; what is misused (2) is not.
"""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from pgvec_queue.errors import PgvecError
from pgvec_queue.service import MARK, STOP_SECONDS, Installed, Layout, Run, Service, State, arguments_of, kind_of
from pgvec_queue.service.asking import asked

OLDEST = 250
"""The first version that says where a unit's credentials are (``%d``)."""
RUNNING = Path("/run/systemd/system")
"""There while systemd runs the machine."""
ACCOUNT = "pgvec"

_ABOUT = {
    "worker": "claims jobs, embeds and writes",
    "gateway": "texts in, answers out, over HTTP",
    "exporter": "metrics of the queue",
}
_HARDENED = """\
AmbientCapabilities=
CapabilityBoundingSet=
KeyringMode=private
LockPersonality=yes
NoNewPrivileges=yes
PrivateTmp=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome={home}
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
"""
_HARDENED_FOR_A_PERSON = """\
LockPersonality=yes
NoNewPrivileges=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
"""
# MemoryDenyWriteExecute is not here: torch and its libraries compile for the processor as they go.
_DEVICES = """\
# Of devices, graphics cards alone. Their nodes have to be there: enable nvidia-persistenced.
DevicePolicy=closed
DeviceAllow=char-nvidia* rw
DeviceAllow=char-drm rw
"""


def layout(name: str, *, person: Path | None, configuration: Path | None = None, root: Path = Path("/")) -> Layout:
    """Returns where a unit's files lie: of the machine, or of the ``person`` with this home, below ``root``.

    ``configuration`` is the person's directory of settings.
    """
    file = f"pgvec-{name}.service"
    if person is None:
        below = root / "etc/pgvec"
        return Layout(root / "etc/systemd/system" / file, below / f"{name}.env", below / f"{name}.dsn")
    base = configuration or person / ".config"
    below = _below(root, base / "pgvec-queue")
    return Layout(_below(root, base / "systemd/user" / file), below / f"{name}.env", below / f"{name}.dsn")


def _below(root: Path, path: Path) -> Path:
    return root / path.relative_to(path.anchor)


def unit(
    service: Service, files: Layout, *, of_a_person: bool, account: str | None = None, home: Path | None = None
) -> str:
    """Returns the text of the unit; ``account`` is whom a unit of the machine runs as, if not as a user made up, and
    ``home`` is where that account has its caches, if anywhere."""
    where = "~/.config/systemd/user" if of_a_person else "/etc/systemd/system"
    return "".join(
        (
            f"# pgvec-queue, the {service.kind}: {where}/{files.unit.name}, {MARK}. docs/deploy.md\n",
            "[Unit]\n",
            f"Description=pgvec-queue {service.kind}: {_ABOUT[service.kind]}\n",
            *(() if of_a_person else _order(service)),
            "# Never gives up: a database may be away for long.\n",
            "StartLimitIntervalSec=0\n",
            "\n[Service]\n",
            "Type=exec\n",
            f"ExecStart={_words(service.command_line)}\n",
            f"EnvironmentFile=-{_escaped(str(files.environment))}\n",
            *(_of_a_person(files) if of_a_person else _of_the_machine(service, files, account, home)),
            "Restart=on-failure\n",
            "RestartSec=5\n",
            "# Misuse: a fresh start would not mend it.\n",
            "RestartPreventExitStatus=2\n",
            "# The first signal has it finish the slice in hand; a second would cut it short, so only one is sent.\n",
            "KillSignal=SIGTERM\n",
            "KillMode=mixed\n",
            f"TimeoutStopSec={STOP_SECONDS}\n",
            "# Where memory runs out, it is not the database that is killed, nor the workers beside the one that is.\n",
            "OOMPolicy=continue\n",
            "OOMScoreAdjust=500\n",
            "MemoryHigh=80%\n",
            *(_HARDENED_FOR_A_PERSON if of_a_person else _sandbox(service, account, home)),
            "\n[Install]\n",
            f"WantedBy={'default.target' if of_a_person else 'multi-user.target'}\n",
        )
    )


def _order(service: Service) -> Iterator[str]:
    yield "Wants=network-online.target\n"
    if service.kind == "exporter":
        yield "After=network-online.target postgresql.service\n"
        return
    yield "# CUDA would load this module by itself, which the sandbox prevents; without a card nothing happens.\n"
    yield "Wants=modprobe@nvidia_uvm.service\n"
    yield ("After=network-online.target postgresql.service nvidia-persistenced.service modprobe@nvidia_uvm.service\n")


def _of_a_person(files: Layout) -> Iterator[str]:
    yield f"Environment={_quoted(f'PGVEC_DSN_FILE={files.dsn}', dollars=False)}\n"


def _of_the_machine(service: Service, files: Layout, account: str | None, home: Path | None) -> Iterator[str]:
    yield f"LoadCredential=dsn:{_escaped(str(files.dsn))}\n"
    yield "Environment=PGVEC_DSN_FILE=%d/dsn\n"
    if service.kind != "exporter" and home is None:
        # systemd gives the directory to whom the unit runs as: two of them cannot share one.
        cache = f"pgvec-{account}" if account else "pgvec"
        yield "# Models, and what was measured of this machine.\n"
        yield f"Environment=HF_HOME=%C/{cache}/huggingface XDG_CACHE_HOME=%C/{cache}\n"
        yield f"CacheDirectory={cache}\n"
    yield f"User={account or ACCOUNT}\n"
    if account is None:
        yield "DynamicUser=yes\n"


def _sandbox(service: Service, account: str | None, home: Path | None) -> Iterator[str]:
    # An account may have its program and its models at home.
    yield _HARDENED.format(home="yes" if account is None else "read-only")
    if home is not None:
        yield f"ReadWritePaths=-{_escaped(str(home))}\n"
    yield "PrivateDevices=yes\n" if service.kind == "exporter" else _DEVICES


def _words(words: Sequence[str]) -> str:
    """Returns a command line as systemd reads it: the program's path stands for itself, and no variable in it."""
    return " ".join(_quoted(word, dollars=place > 0) for place, word in enumerate(words))


def _unquoted(line: str) -> list[str]:
    """Reads a command line that ``_words`` has written."""
    words = []
    for quoted, bare in re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', line):
        word = bare or re.sub(r"\\(.)", r"\1", quoted)
        words.append(word.replace("$$", "$").replace("%%", "%"))
    return words


def _quoted(word: str, *, dollars: bool = True) -> str:
    escaped = _escaped(word)
    if dollars:
        escaped = escaped.replace("$", "$$")
    if re.fullmatch(r"[\w@%+=:,./$-]+", escaped, re.ASCII):
        return escaped
    return '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escaped(text: str) -> str:
    return text.replace("%", "%%")


class Systemd:
    """systemd of the machine, or of a person; ``root`` is where the file system of the machine begins that is meant."""

    def __init__(
        self,
        *,
        person: Path | None = None,
        configuration: Path | None = None,
        account: str | None = None,
        home: Path | None = None,
        root: Path = Path("/"),
    ) -> None:
        """``person`` is the home of the person whose unit it is; None: the machine's, which runs as ``account`` with
        this ``home``, if it has one."""
        self._person = person
        self._configuration = configuration
        self._account = account
        self._home = home
        self._root = root
        self._systemctl = ["systemctl", *(["--user"] if person else [])]

    def layout(self, name: str) -> Layout:
        return layout(name, person=self._person, configuration=self._configuration, root=self._root)

    def text(self, service: Service) -> str:
        # The unit speaks of the machine that it will run on.
        files = layout(service.name, person=self._person, configuration=self._configuration)
        return unit(service, files, of_a_person=self._person is not None, account=self._account, home=self._home)

    def installed(self, name: str) -> Installed | None:
        try:
            text = self.layout(name).unit.read_text("utf-8")
        except (OSError, UnicodeDecodeError):
            return None
        kind = kind_of(text)
        if kind is None or MARK not in text:
            return None
        said = dict(line.split("=", 1) for line in text.split("\n") if "=" in line and not line.startswith("#"))
        account = None if said.get("DynamicUser") == "yes" else said.get("User")
        return Installed(kind, arguments_of(kind, _unquoted(said.get("ExecStart", ""))), account)

    def absent(self) -> str | None:
        """There may be no systemd, or none for a person who has not logged in, as under su or cron."""
        if not RUNNING.exists():
            return f"systemd does not run here (there is no {RUNNING})"
        try:
            shown = self._show("Version")
        except PgvecError as error:
            return str(error)
        if shown.returncode:
            whose = "systemd of a person who has not logged in" if self._person else "systemd"
            return f"{whose} cannot be asked: {' '.join(shown.stderr.split())}"
        return None

    def unfit(self) -> str | None:
        found = re.match(r"Version=(\d+)", self._show("Version").stdout)
        if found and int(found[1]) < OLDEST:
            return f"systemd {found[1]} is too old for the unit, which needs {OLDEST} or later"
        return None

    def start(self, name: str, run: Run, *, anew: bool) -> None:
        unit_name = self.layout(name).unit.name
        anew = anew or self._is_behind(name)
        run([*self._systemctl, "daemon-reload"])
        run([*self._systemctl, "enable", "--quiet", unit_name])
        run([*self._systemctl, "restart" if anew else "start", unit_name])

    def by_hand(self, name: str) -> list[str]:
        return [*self._systemctl, "enable", "--now", self.layout(name).unit.name]

    def stop(self, name: str, run: Run) -> None:
        run([*self._systemctl, "disable", "--quiet", "--now", self.layout(name).unit.name])

    def forget(self, run: Run) -> None:
        run([*self._systemctl, "daemon-reload"])

    def _is_behind(self, name: str) -> bool:
        """True where what runs is older than a file of it, as after an installation that was cut short."""
        files = self.layout(name)
        said = self._show("NeedDaemonReload", "ExecMainStartTimestampMonotonic", unit=files.unit.name).stdout
        microseconds = re.search(r"^ExecMainStartTimestampMonotonic=([1-9]\d*)$", said, re.MULTILINE)
        if "NeedDaemonReload=yes" in said or microseconds is None:
            return "NeedDaemonReload=yes" in said
        started = time.time() - time.monotonic() + int(microseconds[1]) / 1e6
        ours = (files.unit, files.environment, files.dsn)
        return any(path.stat().st_mtime > started for path in ours if path.exists())

    def _show(self, *properties: str, unit: str | None = None) -> subprocess.CompletedProcess[str]:
        asks = [f"--property={one}" for one in properties]
        return asked([*self._systemctl, "show", *asks, *([unit] if unit else [])])

    def state(self, name: str) -> State:
        names = ("ActiveState", "SubState", "MainPID", "NRestarts", "Result", "UnitFileState")
        said = self._show(*names, unit=self.layout(name).unit.name).stdout
        found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
        state = f"{found.get('ActiveState', 'unknown')} ({found.get('SubState', '')})"
        details = [f"process {found['MainPID']}"] if found.get("MainPID", "0") != "0" else []
        if found.get("NRestarts", "0") != "0":
            details.append(f"started again {found['NRestarts']} times")
        if found.get("Result", "success") != "success":
            details.append(f"last result: {found['Result']}")
        if found.get("UnitFileState") != "enabled":
            details.append("does not start with the machine")
        return State(found.get("ActiveState") == "active", ", ".join([state, *details]))

    def log(self, name: str, lines: int) -> list[str]:
        whose = "--user-unit" if self._person else "--unit"
        options = [whose, self.layout(name).unit.name, f"--lines={lines}", "--no-pager", "--quiet", "--output=cat"]
        return asked(["journalctl", *options]).stdout.splitlines()

    def advice(self, name: str) -> str | None:
        """What a person should know: a unit of theirs ends with their session."""
        if self._person is None:
            return None
        return f"so that {self.layout(name).unit.name} runs while you are not logged in: loginctl enable-linger"
