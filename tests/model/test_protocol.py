"""The protocol as a model that spin explores exhaustively: it holds, and without any one of its guards it does not.

Needs ``spin`` and ``gcc`` (Debian packages of these names).
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

MODEL = Path(__file__).with_name("protocol.pml")

FENCED = "jobs[job[me]].epoch==epoch"
ONE_SET = "destination[at]==0"
RIGHT = "destination[0]==("
DONE = "jobs[0].state==0"
"""Parts of the four assertions, by which pan names the one that fails."""

SOON_FOUND = "-O0 -DSAFETY"
"""For searches that end after a few thousand states: compiling takes longer than they do."""


@pytest.fixture(autouse=True, scope="module")
def _tools() -> None:
    missing = [tool for tool in ("spin", "gcc") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"the model needs {' and '.join(missing)}: apt-get install {' '.join(missing)}")


class Report(str):
    """What pan printed at the end of a search."""

    @property
    def errors(self) -> int:
        return int(self._find(r"errors: (\d+)"))

    @property
    def violated(self) -> str:
        return self._find(r"assertion violated (.+) \(at depth")

    @property
    def is_exhaustive(self) -> bool:
        return "Full statespace search for:" in self and "max search depth too small" not in self

    @property
    def unreached(self) -> list[str]:
        """Statements of the model that no run came to; a process that never ends has no end to come to."""
        return [line for line in re.findall(r'state \d+, "(.+)"', self) if line != "-end-"]

    def _find(self, pattern: str) -> str:
        found = re.search(pattern, self)
        assert found, self
        return found[1]


def _search(directory: Path, *definitions: str, compile_: str = "-O2 -DSAFETY", run: str = "-w22") -> Report:
    shutil.copy(MODEL, directory)
    _run(directory, "spin", "-a", *(f"-D{one}" for one in definitions), MODEL.name)
    _run(directory, "gcc", *compile_.split(), "-o", "pan", "pan.c")
    return Report(_run(directory, "./pan", "-m1000000", *run.split()))


def _run(directory: Path, *command: str) -> str:
    done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_protocol_holds_in_every_order_of_its_steps(tmp_path: Path) -> None:
    report = _search(tmp_path, "CHANGES=2", "FAULTS=1", run="-w25")
    assert report.errors == 0, report
    assert report.is_exhaustive
    # An atomic sequence cannot be left half-way, so what spin compiles for that is never reached.
    assert [line for line in report.unreached if "dead&&" not in line] == []


def test_the_protocol_holds_when_two_things_break(tmp_path: Path) -> None:
    report = _search(tmp_path, "CHANGES=1", "FAULTS=2")
    assert report.errors == 0, report
    assert report.is_exhaustive


def test_the_protocol_holds_when_lists_of_keys_are_claimed_one_by_one(tmp_path: Path) -> None:
    report = _search(tmp_path, "CHANGES=2", "FAULTS=0", "SINGLY")
    assert report.errors == 0, report
    assert report.is_exhaustive


@pytest.mark.parametrize(("changes", "faults"), [(2, 0), (1, 1)])
def test_the_protocol_holds_when_the_end_of_a_running_range_is_stolen(
    changes: int, faults: int, tmp_path: Path
) -> None:
    report = _search(tmp_path, f"CHANGES={changes}", f"FAULTS={faults}", "THEFTS=1")
    assert report.errors == 0, report
    assert report.is_exhaustive


def test_no_order_of_steps_goes_on_for_ever(tmp_path: Path) -> None:
    """Nothing in the model is marked as progress, so any cycle at all would be one without progress."""
    report = _search(tmp_path, "CHANGES=1", "FAULTS=1", compile_="-O2 -DNP", run="-w22 -l")
    assert report.errors == 0, report
    assert report.is_exhaustive


@pytest.mark.parametrize(
    ("left_out", "changes", "faults", "violated"),
    [
        pytest.param("NO_FENCE", 0, 1, FENCED, id="the fence"),
        pytest.param("NO_EPOCH", 0, 1, FENCED, id="the fence's epoch"),
        pytest.param("NO_RECHECK", 1, 0, RIGHT, id="the second look"),
        pytest.param("NO_LOOK_AT_CURRENT", 1, 0, RIGHT, id="the second look at rows that were not read"),
        pytest.param("NO_LOCK", 1, 0, ONE_SET, id="the lock"),
        pytest.param("NO_ATOMIC_DEATH", 0, 2, DONE, id="a beat only where the worker is not gone"),
        pytest.param("NO_SESSION_TIMEOUT", 0, 1, DONE, id="the end of a silent client's transaction"),
    ],
)
def test_the_protocol_does_not_hold_without(
    left_out: str, changes: int, faults: int, violated: str, tmp_path: Path
) -> None:
    report = _search(tmp_path, f"CHANGES={changes}", f"FAULTS={faults}", left_out, compile_=SOON_FOUND)
    assert report.errors == 1, report
    assert violated in report.violated


def test_without_the_bound_in_the_fence_a_stolen_row_gets_two_sets_of_vectors(tmp_path: Path) -> None:
    report = _search(tmp_path, "CHANGES=1", "FAULTS=0", "THEFTS=1", "NO_BOUND", compile_=SOON_FOUND)
    assert report.errors == 1, report
    assert ONE_SET in report.violated


def test_without_the_fence_a_row_gets_two_sets_of_vectors(tmp_path: Path) -> None:
    """The damage itself, where nothing watches who writes."""
    report = _search(tmp_path, "CHANGES=0", "FAULTS=1", "NO_FENCE", "DAMAGE_ONLY", compile_=SOON_FOUND)
    assert report.errors == 1, report
    assert ONE_SET in report.violated
