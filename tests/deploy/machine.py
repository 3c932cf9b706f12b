"""A machine that is run by systemd: this file system, copied when written to, booted in namespaces of its own.

systemd-nspawn starts systemd as process 1 there; commands enter the namespaces. Nothing of it reaches this machine:
what is written lies in memory, and goes with the machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import Ran
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
TREE, POSTGRES, PYTHON, PACKAGES = "/srv/tree", "/srv/postgres", "/srv/python", "/srv/packages"
PROGRAM = "/opt/pgvec/bin/pgvec"

# A mount namespace of its own, where the copy lies; it goes with the last process in it.
_BOOT = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
rm -rf etc/systemd/system/*.wants var/log/journal
shift
exec systemd-nspawn --directory="$PWD" --register=no --keep-unit --link-journal=no --console=pipe --private-network "$@"
"""


def _may_mount() -> bool:
    return os.geteuid() == 0 and subprocess.run(["unshare", "--mount", "true"], check=False).returncode == 0


needs_machine = pytest.mark.skipif(
    shutil.which("systemd-nspawn") is None or not _may_mount(),
    reason="needs root and systemd-nspawn (Debian: apt install systemd-container)",
)


@dataclass(frozen=True)
class Machine:
    """A running one."""

    leader: int
    """Its process 1, as this machine counts."""

    def __call__(self, *words: str, environment: dict[str, str] | None = None) -> Ran:
        """Runs a command there, as root."""
        ran = subprocess.run(
            ["nsenter", f"--target={self.leader}", "--all", *words],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            stdin=subprocess.DEVNULL,
            env={"PATH": os.environ["PATH"], "HOME": "/root", "LC_ALL": "C.UTF-8", **(environment or {})},
        )
        return Ran(ran.returncode, ran.stdout, ran.stderr)

    def state(self, unit: str) -> dict[str, str]:
        said = self("systemctl", "show", unit).out
        return dict(line.split("=", 1) for line in said.splitlines() if "=" in line)


@contextmanager
def machine(directory: Path, postgres: Path, port: int) -> Iterator[Machine]:
    """Boots a machine with this program in /opt/pgvec; at 127.0.0.1 is the server whose socket is in ``postgres``."""
    mounted = directory / "machine"
    mounted.mkdir()
    bound = [
        f"--bind-ro={ROOT}:{TREE}",
        f"--bind={postgres}:{POSTGRES}",
        f"--bind-ro={sys.base_prefix}:{PYTHON}",
        f"--bind-ro={sysconfig.get_path('purelib')}:{PACKAGES}",
    ]
    with (directory / "console").open("wb") as console:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", _BOOT, "sh", mounted, *bound, "--boot"],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            start_new_session=True,
        )
    try:
        there = _booted(process, directory / "console")
        _install(there)
        _open_port(there, port)
        yield there
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for one in _below(process.pid):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        process.wait(20)


def _booted(process: subprocess.Popen[bytes], console: Path) -> Machine:
    """Waits until it has started; skips the test where no machine can, which is not for us to mend."""
    try:
        wait_until(lambda: process.poll() is not None or _leader(process.pid), 30, what="process 1 of the machine")
        there = Machine(_leader(process.pid) or 0)
        assert there.leader, "it has ended"
        wait_until(
            lambda: there("systemctl", "is-active", "basic.target").out == "active\n", 60, what="the machine's start"
        )
    except AssertionError as error:
        last = console.read_text(errors="replace").strip().splitlines()[-1:]
        pytest.skip(f"no machine boots here: {error} {' '.join(last)}")
    return there


def _install(there: Machine) -> None:
    """Makes an environment as a person would, with this one's packages and the tree's own code."""
    script = f"""
        set -e
        {PYTHON}/bin/python3 -m venv --without-pip /opt/pgvec
        printf '%s\\n' {TREE} {PACKAGES} >$(echo /opt/pgvec/lib/python*/site-packages)/pgvec.pth
        # Where its library is, for an interpreter that was moved.
        cat >{PROGRAM} <<'END'
#!/bin/sh
LD_LIBRARY_PATH={PYTHON}/lib exec /opt/pgvec/bin/python -m pgvec_queue "$@"
END
        chmod 755 {PROGRAM}
    """
    made = there("sh", "-c", script)
    assert made.code == 0, made


def _open_port(there: Machine, port: int) -> None:
    """Has the server answer at a port of the machine: its socket is for its own account alone."""
    proxy = ("/lib/systemd/systemd-socket-proxyd", f"{POSTGRES}/.s.PGSQL.{port}")
    made = there("systemd-run", "--unit=postgres", f"--socket-property=ListenStream=127.0.0.1:{port}", *proxy)
    assert made.code == 0, made


def _below(process: int) -> list[int]:
    with suppress(OSError):
        children = [int(one) for one in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
        return [one for child in children for one in (child, *_below(child))]
    return []


def _leader(process: int) -> int | None:
    """The process that is number 1 in its own namespace."""
    for one in _below(process):
        with suppress(OSError):
            status = Path(f"/proc/{one}/status").read_text()
            numbers = next(line for line in status.splitlines() if line.startswith("NSpid:")).split()[1:]
            if len(numbers) > 1 and numbers[-1] == "1" and "systemd" in Path(f"/proc/{one}/comm").read_text():
                return one
    return None
