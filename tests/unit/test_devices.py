"""What devices a worker process each is started for; the torch that is asked is one of a few lines."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from pgvec_queue.errors import SettingsError
from pgvec_queue.worker import devices


@pytest.fixture
def torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that has an NVIDIA driver, and a torch whose source the test writes."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.touch(0o700)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    path = tmp_path / "torch.py"
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def sees(devices: int) -> str:
    return f"class cuda:\n    device_count = staticmethod(lambda: {devices})\n"


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_several_cuda_devices_are_meant_each_for_itself(torch: Path, asked: str) -> None:
    torch.write_text(sees(3))
    assert devices.each(asked) == ["cuda:0", "cuda:1", "cuda:2"]


@pytest.mark.parametrize("asked", ["cpu", "mps", "cuda:1"])
def test_a_device_that_is_named_is_the_only_one(torch: Path, asked: str) -> None:
    torch.write_text(sees(3))
    assert devices.each(asked) == [asked]


@pytest.mark.parametrize("source", [sees(0), sees(1), "raise ImportError('broken')"], ids=["none", "one", "broken"])
def test_where_torch_sees_no_more_than_one_the_worker_itself_decides(torch: Path, source: str) -> None:
    torch.write_text(source)
    assert devices.each("auto") == ["auto"]


def test_torch_is_loaded_into_another_process(torch: Path) -> None:
    torch.write_text(f"import os\nopen({str(torch)!r} + '.pid', 'w').write(str(os.getpid()))\n{sees(2)}")
    assert len(devices.each("auto")) == 2
    assert int(Path(f"{torch}.pid").read_text()) != os.getpid()


def test_without_an_nvidia_driver_torch_is_not_asked(torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.write_text(sees(2))
    monkeypatch.setenv("PATH", str(torch.parent))
    monkeypatch.setattr(os.path, "exists", lambda path: False)
    assert devices.each("auto") == ["auto"]


def test_a_device_that_is_not_there_is_refused_by_name() -> None:
    devices.check("auto")
    devices.check("cpu")
    with pytest.raises(SettingsError, match="cuda:99"):
        devices.check("cuda:99")


def test_several_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(10)), raising=False)
    assert devices.threads_each("cpu", 4) == devices.threads_each("auto", 4) == 2
    assert devices.threads_each("cpu", 64) == 1
    assert devices.threads_each("cpu", 1) is None
    assert devices.threads_each("cuda:0", 4) is None
