"""What a process may have of its machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from pgvec_queue import process


@pytest.mark.parametrize(
    ("bound", "cores"),
    [
        (None, 6),
        ("max 100000", 6),
        ("400000 100000", 4),
        ("250000 100000", 3),
        ("50000 100000", 1),
        ("1600000 100000", 6),
    ],
)
def test_a_container_has_the_cores_that_it_may_use(
    bound: str | None, cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _pid: set(range(6)), raising=False)
    monkeypatch.setattr(process, "_CGROUP", tmp_path)
    if bound is not None:
        (tmp_path / "cpu.max").write_text(f"{bound}\n")
    assert process.cores() == cores
