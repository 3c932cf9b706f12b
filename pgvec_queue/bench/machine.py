"""Which machine, which versions and which settings of the server a measurement holds for; no torch is loaded for it."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from pgvec_queue import __version__, process
from pgvec_queue.bench.database import Arena
from pgvec_queue.database import statement


def machine() -> dict[str, Any]:
    """Returns this machine: ``memory`` is in bytes, ``cores`` are those that this process may use."""
    return {
        "cpu": _cpu(),
        "cores": process.cores(),
        "memory": process.machine_memory(),
        "os": platform.platform(),
        "accelerator": _accelerator(),
    }


def versions(arena: Arena) -> dict[str, str | None]:
    """Returns the versions of all that takes part; None for what is not installed."""
    row = arena.connection.execute(statement("bench", "version")).fetchone()
    return {
        "pgvec-queue": __version__,
        "python": platform.python_version(),
        "torch": _installed("torch"),
        "sentence-transformers": _installed("sentence-transformers"),
        "postgresql": row[0] if row else None,
        "pgvector": arena.versions.pgvector,
    }


def server(arena: Arena) -> dict[str, str]:
    """Returns the server's settings on which its speed depends most."""
    return dict(arena.connection.execute(statement("bench", "settings")).fetchall())


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        found = re.search(r"^(?:model name|Model)\s*:\s*(.+)$", listed.read_text(), re.MULTILINE)
        if found:
            return found[1].strip()
    if sys.platform == "darwin":
        return _first_line("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _accelerator() -> str | None:
    if shutil.which("nvidia-smi"):
        return _first_line("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or None
    return f"{_cpu()} (MPS)" if (sys.platform, platform.machine()) == ("darwin", "arm64") else None


def _first_line(*command: str) -> str:
    """Returns the first line that a program prints; empty where it fails."""
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = ran.stdout.strip().splitlines()
    return lines[0] if ran.returncode == 0 and lines else ""
