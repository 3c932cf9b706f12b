"""What differs between a CPU, an NVIDIA card and Apple's GPU: batch sizes, shapes, copies, and giving memory back.

- CPU: batches that its caches like; nothing is copied.
- CUDA: large batches of any shape, rows a multiple of 8 for its matrix units; copies from and to pinned memory run
  beside the computation, and a result is waited for one batch late.
- MPS: synchronous copies, since asynchronous ones may read a source that is gone already (PyTorch issues 189690 and
  139550); a handful of fixed shapes, since something is kept for each; its cache is cleared by what the driver says it
  holds, and a process whose memory does not come back asks to be replaced. Nothing of it has run on a Mac yet: its
  decisions are tested without one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pgvec_queue import process
from pgvec_queue.embedders.batching import AnyShape, FixedShapes, Shapes
from pgvec_queue.log import get_logger

log = get_logger("pgvec.embedders")

Vectors = NDArray[np.float32]
Fetch = Callable[[], Vectors]
"""Waits for a result and returns it, ``(n, d) float32``."""


class Device(Protocol):
    """Where a model runs. Used by one thread."""

    @property
    def name(self) -> str:
        """As torch calls it: ``cpu``, ``cuda:0``, ``mps``."""

    @property
    def hardware(self) -> str:
        """What it is, by which measurements are remembered."""

    @property
    def shapes(self) -> Shapes: ...

    @property
    def batch_tokens(self) -> int:
        """Tokens per batch, padding included, until something better was measured."""

    @property
    def candidates(self) -> tuple[int, ...]:
        """Tokens per batch that are worth measuring."""

    def upload(self, array: NDArray[Any]) -> Any:
        """Returns the array as a tensor on the device."""

    def fetch(self, tensor: Any) -> Fetch:
        """Begins to copy ``(n, d)`` of the tensor's type back from the device."""

    def tidy(self) -> None:
        """Looks after memory; called after each batch."""

    def release(self) -> None:
        """Gives back what the device keeps for later."""

    @property
    def worn_out(self) -> bool:
        """True when only a new process will give memory back."""

    @property
    def held_bytes(self) -> int | None:
        """Memory of the device that this process holds; None where that is the machine's own."""


class Cpu:
    """The processor itself."""

    name = "cpu"
    shapes = AnyShape()
    # With MiniLM 512 to 2,048 are alike, and 4,096 is 15 % slower.
    batch_tokens = 1024
    candidates = (512, 1024, 2048)
    worn_out = False
    held_bytes = None

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.hardware = f"cpu {torch.backends.cpu.get_cpu_capability()} {process.cores()} cores"

    def upload(self, array: NDArray[Any]) -> Any:
        return self._torch.from_numpy(array)

    def fetch(self, tensor: Any) -> Fetch:
        vectors: Vectors = tensor.float().numpy()
        return lambda: vectors

    def tidy(self) -> None:
        """Nothing is kept."""

    def release(self) -> None:
        """Nothing is kept."""


class Cuda:
    """One NVIDIA card."""

    shapes = AnyShape(multiple=8, overhead=2048)
    batch_tokens = 32_768
    candidates = (8_192, 16_384, 32_768, 65_536, 131_072)
    worn_out = False

    def __init__(self, torch: Any, name: str) -> None:
        self._torch = torch
        self.name = name
        self.hardware = torch.cuda.get_device_name(name)

    def upload(self, array: NDArray[Any]) -> Any:
        return self._torch.from_numpy(array).pin_memory().to(self.name, non_blocking=True)

    def fetch(self, tensor: Any) -> Fetch:
        host = self._torch.empty(tensor.shape, dtype=self._torch.float32, pin_memory=True)
        host.copy_(tensor.float(), non_blocking=True)
        copied = self._torch.cuda.Event()
        copied.record(self._torch.cuda.current_stream(tensor.device))

        def wait() -> Vectors:
            copied.synchronize()
            vectors: Vectors = host.numpy()
            return vectors

        return wait

    def tidy(self) -> None:
        """The allocator looks after itself."""

    def release(self) -> None:
        self._torch.cuda.empty_cache()

    @property
    def held_bytes(self) -> int | None:
        return int(self._torch.cuda.memory_reserved(self.name))


class Mps:
    """Apple's GPU, whose memory is the machine's own."""

    name = "mps"
    shapes = FixedShapes()
    batch_tokens = 8192
    candidates = (4096, 8192, 16_384)

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.hardware = "mps"
        self._memory = MemoryWatch(
            used=torch.mps.driver_allocated_memory,
            clear=torch.mps.empty_cache,
            limit=int(torch.mps.recommended_max_memory() * 0.8),
        )

    def upload(self, array: NDArray[Any]) -> Any:
        return self._torch.from_numpy(array).to(self.name)

    def fetch(self, tensor: Any) -> Fetch:
        vectors: Vectors = tensor.float().cpu().numpy()
        return lambda: vectors

    def tidy(self) -> None:
        self._memory.look()

    def release(self) -> None:
        self._torch.mps.empty_cache()

    @property
    def worn_out(self) -> bool:
        return self._memory.exhausted

    @property
    def held_bytes(self) -> int | None:
        return self._memory.used()


@dataclass(slots=True)
class MemoryWatch:
    """Clears a device's cache when the driver holds too much, and notices when that does not help."""

    used: Callable[[], int]
    """Bytes that the driver holds now."""
    clear: Callable[[], None]
    limit: int
    """Bytes over which the cache is cleared."""
    exhausted: bool = False
    """Clearing has left the driver over the limit several times running."""
    _vain: int = 0

    _TRIES = 3

    def look(self) -> None:
        """Clears the cache where needed."""
        if self.used() <= self.limit:
            self._vain = 0
            return
        self.clear()
        held = self.used()
        self._vain = self._vain + 1 if held > self.limit else 0
        if self._vain >= self._TRIES and not self.exhausted:
            self.exhausted = True
            log.warning("device gives no memory back", bytes=held)


def open_device(torch: Any, name: str) -> Device:
    """Returns the device that torch calls ``name``, which is there."""
    if name == "cpu":
        return Cpu(torch)
    return Mps(torch) if name == "mps" else Cuda(torch, name)
