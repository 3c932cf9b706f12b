"""What devices and cores this machine has, found without loading torch into this process.

A process that only starts others should neither wait for torch nor hold a device: where the answer needs torch, a short
process of its own gives it.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys

from pgvec_queue import process
from pgvec_queue.errors import SettingsError
from pgvec_queue.worker import chunking

_SECONDS = 120.0
_COUNT = "import torch; print(torch.cuda.device_count())"
_CHECK = """
import sys
from pgvec_queue.embedders import DeviceOptions, check_device
from pgvec_queue.errors import PgvecError
try:
    check_device(DeviceOptions(sys.argv[1]))
except PgvecError as error:
    sys.exit(str(error))
"""


def each(asked: str) -> list[str]:
    """Returns the devices that ``--device`` means here: every CUDA device where there are several, else ``asked``.

    ``CUDA_VISIBLE_DEVICES`` is heeded, since torch counts.
    """
    if asked not in ("auto", "cuda") or not _may_have_cuda():
        return [asked]
    counted = _python(_COUNT)
    count = int(counted.stdout) if counted.returncode == 0 and counted.stdout.strip().isdecimal() else 0
    return [f"cuda:{number}" for number in range(count)] if count > 1 else [asked]


def check(device: str) -> None:
    """Raises ``SettingsError`` when the device is not on this machine, or when torch is missing."""
    if device in ("auto", "cpu"):
        return
    checked = _python(_CHECK, device)
    if checked.returncode:
        lines = checked.stderr.strip().splitlines()
        raise SettingsError(lines[-1] if lines else f"device '{device}' cannot be looked at")


def threads_each(device: str, processes: int) -> int | None:
    """Returns the CPU threads for each of several processes on one device; None: torch's own choice."""
    if processes == 1 or device not in ("auto", "cpu"):
        return None
    return max(1, process.cores() // processes)


def tokenizers_each(device: str, workers: int) -> int | None:
    """Returns the processes that chunk beside each of several workers on accelerators; None: as each one sees fit."""
    return chunking.processes_beside(workers) if workers > 1 and device.startswith("cuda") else None


def _may_have_cuda() -> bool:
    there = shutil.which("nvidia-smi") is not None or os.path.exists("/dev/nvidia0")
    return there and importlib.util.find_spec("torch") is not None


def _python(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise SettingsError(f"looking for devices took longer than {_SECONDS:.0f} s; name one: --device") from error
