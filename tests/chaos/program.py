"""The program under test: a copy of it as it was at the harness's start, run as a user would run it.

A soak takes half an hour, in which somebody may edit the source; the workers that it starts all run the same code.
"""

from __future__ import annotations

import glob
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pgvec_queue
from pgvec_queue import resources


class Program:
    """``pgvec`` in a directory of the harness."""

    def __init__(self, directory: Path, checkout: Path | None = None) -> None:
        """``checkout`` is that of another version; None: the program as it is here."""
        self.directory = directory
        package = checkout / "pgvec_queue" if checkout else Path(pgvec_queue.__file__).parent
        left_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(package, directory / "pgvec_queue", dirs_exist_ok=True, ignore=left_out)
        for name in ("sql", "alembic"):
            source = checkout / name if checkout else resources.directory(name)
            shutil.copytree(source, directory / "pgvec_queue" / name, dirs_exist_ok=True, ignore=left_out)

    def environment(self, dsn: str, extra: Mapping[str, str]) -> dict[str, str]:
        return {
            "PATH": os.environ.get("PATH", ""),
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(self.directory),
            "PGVEC_DSN": dsn,
            **extra,
        }

    def start(
        self, *arguments: str, dsn: str, stderr: Path, extra: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts it in a process group of its own; what it says on stderr is appended to a file."""
        with stderr.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-m", "pgvec_queue", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=file,
                cwd=self.directory,
                env=self.environment(dsn, extra or {}),
                start_new_session=True,
            )

    def run(self, *arguments: str, dsn: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Runs it to its end, whatever its exit code."""
        return subprocess.run(
            [sys.executable, "-m", "pgvec_queue", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.directory,
            env=self.environment(dsn, {}),
            timeout=timeout,
            check=False,
        )

    def must(self, *arguments: str, dsn: str) -> str:
        ran = self.run(*arguments, dsn=dsn)
        if ran.returncode:
            raise RuntimeError(f"pgvec {' '.join(arguments)} ended with {ran.returncode}: {ran.stderr.strip()}")
        return ran.stdout


def faketime_library() -> str | None:
    """Returns the library of Debian's package ``faketime``, which gives a process another clock; None without it."""
    named = os.environ.get("PGVEC_TEST_FAKETIME")
    found = [named] if named else sorted(glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1"))
    return found[0] if found else None
