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
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import Ran
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
TREE, POSTGRES, PROGRAM = "/srv/tree", "/srv/postgres", "/opt/pgvec/bin/pgvec"

# A mount namespace of its own, where the copy lies; it goes with the last process in it.
_BOOT = """
set -e
mount -t tmpfs tmpfs "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" "$1/root"
cd "$1/root"
tr -d - </proc/sys/kernel/random/uuid >etc/machine-id
mkdir -p opt/pgvec/bin
cp "$2" opt/pgvec/bin/pgvec
chmod 755 opt/pgvec/bin/pgvec
rm -rf etc/systemd/system/*.wants var/log/journal
shift 2
exec systemd-nspawn --directory="$PWD" --register=no --keep-unit --link-journal=no --console=pipe "$@"
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
def machine(directory: Path, postgres: Path) -> Iterator[Machine]:
    """Boots a machine that has this program in /opt/pgvec, and the sockets of the server in ``postgres``."""
    program = directory / "pgvec"
    program.write_text(
        f'#!/bin/sh\nPYTHONDONTWRITEBYTECODE=1 PYTHONPATH={TREE} exec {sys.executable} -m pgvec_queue "$@"\n'
    )
    mounted = directory / "machine"
    mounted.mkdir()
    bound = [f"--bind-ro={ROOT}:{TREE}", f"--bind={postgres}:{POSTGRES}"]
    if not os.path.samefile(sys.prefix, sys.base_prefix):
        bound.append(f"--bind-ro={sys.prefix}")
    with (directory / "console").open("wb") as console:
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", _BOOT, "sh", mounted, program, *bound, "--boot"],
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            start_new_session=True,
        )
    try:
        wait_until(
            lambda: process.poll() is not None or _leader(process.pid) is not None, 20, what="process 1 of the machine"
        )
        leader = _leader(process.pid)
        said = (directory / "console").read_text(errors="replace")
        assert leader is not None, said
        there = Machine(leader)
        wait_until(
            lambda: there("systemctl", "is-active", "basic.target").out == "active\n", 30, what="the machine's start"
        )
        yield there
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for one in _below(process.pid):
            with suppress(ProcessLookupError):
                os.kill(one, signal.SIGKILL)
        process.wait(20)


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
