"""The supervisor over real processes of a line or two: what follows each kind of end, and how all leave together."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pgvec_queue.worker.supervisor import EXIT_AGAIN, EXIT_DIED, LONG_LIFE, LONGEST_PAUSE, Pauses, Place, Supervisor
from tests.waiting import wait_until

# Ends as the supervisor's processes do, when their standard input does.
STAYS = "open(f'{here}.up', 'w').close(); sys.stdin.read(); sys.exit(0)"
DEAF = "open(f'{here}.up', 'w').close(); threading.Event().wait()"


def place(name: str, body: str, here: Path) -> Place:
    """A process that runs ``body``, which knows its place's file as ``here`` and how often it was started as ``n``."""
    program = f"""
import os, signal, sys, threading
here = {str(here / name)!r}
with open(here, 'a') as file:
    file.write(f'{{os.getpid()}}\\n')
n = len(open(here).readlines())
{body}
"""
    return Place(name, [sys.executable, "-S", "-E", "-c", program], dict(os.environ))


def starts(name: str, here: Path) -> list[int]:
    """The process ids that a place has had."""
    path = here / name
    return [int(line) for line in path.read_text().splitlines()] if path.exists() else []


def when(condition: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    """Acts from another thread as soon as a condition is true; the main thread supervises meanwhile."""

    def run() -> None:
        wait_until(condition, 30)
        act()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.fixture(autouse=True)
def spoken(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "pgvec")


@pytest.mark.parametrize(
    ("codes", "worst"), [([0, 0], 0), ([0, 3], 3), ([3, 1, 0], 1), ([2, 0], 2), ([1, 2], 1)], ids=str
)
def test_the_worst_exit_code_is_the_answer_and_an_end_of_its_own_is_final(
    tmp_path: Path, codes: list[int], worst: int
) -> None:
    places = [place(f"p{i}", f"sys.exit({code})", tmp_path) for i, code in enumerate(codes)]
    assert Supervisor(places).run() == worst
    assert [len(starts(one.name, tmp_path)) for one in places] == [1] * len(codes)


@pytest.mark.parametrize(
    ("end", "why"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "was killed by SIGKILL"),
        (f"sys.exit({EXIT_DIED})", "died with exit code 70"),
        ("sys.exit(130)", "died with exit code 130"),
    ],
    ids=["killed", "failed", "interrupted"],
)
def test_a_process_that_died_is_started_again_and_the_log_says_so_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, end: str, why: str
) -> None:
    body = f"if n < 3:\n    {end}\nsys.exit(3)"
    assert Supervisor([place("cuda:1", body, tmp_path)], first_pause=0.01).run() == 3
    assert len(set(starts("cuda:1", tmp_path))) == 3
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [
        f"process is to be started again process=cuda:1 seconds={pause}: {why}" for pause in (0.01, 0.02)
    ]


def test_a_process_that_wants_to_begin_afresh_does_so_at_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    body = f"sys.exit({EXIT_AGAIN} if n < 4 else 0)"
    # A pause would outlast the test.
    assert Supervisor([place("1", body, tmp_path)], first_pause=3_600).run() == 0
    assert len(starts("1", tmp_path)) == 4
    assert caplog.messages.count("process begins afresh process=1") == 3


def test_others_go_on_where_one_has_ended_with_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    supervisor = Supervisor([place("bad", "sys.exit(1)", tmp_path), place("good", STAYS, tmp_path)])
    over = when(lambda: "process has ended process=bad code=1" in caplog.messages, supervisor.stop)
    assert supervisor.run() == 1
    over.join()
    assert len(starts("good", tmp_path)) == 1


def test_pauses_double_up_to_a_minute_and_begin_anew_after_a_long_life() -> None:
    pauses = Pauses()
    assert [pauses.after(2.0) for _ in range(8)] == [1, 2, 4, 8, 16, 32, LONGEST_PAUSE, LONGEST_PAUSE]
    assert pauses.after(LONG_LIFE) == 1
    assert pauses.after(LONG_LIFE - 1) == 2


def test_told_to_stop_all_leave_and_nothing_is_started_any_more(tmp_path: Path) -> None:
    dies = "os.kill(os.getpid(), signal.SIGKILL)"
    places = [place("a", STAYS, tmp_path), place("b", STAYS, tmp_path), place("dead", dies, tmp_path)]
    supervisor = Supervisor(places, first_pause=3_600)
    over = when(
        lambda: all((tmp_path / f"{n}.up").exists() for n in "ab") and starts("dead", tmp_path), supervisor.stop
    )
    assert supervisor.run() == 0
    over.join()
    assert [len(starts(one.name, tmp_path)) for one in places] == [1, 1, 1]


def test_one_that_dies_or_wants_to_begin_afresh_while_it_leaves_is_not_started_again(tmp_path: Path) -> None:
    leaves = "open(f'{here}.up', 'w').close(); sys.stdin.read(); "
    places = [
        place("dies", f"{leaves}os.kill(os.getpid(), signal.SIGKILL)", tmp_path),
        place("again", f"{leaves}sys.exit({EXIT_AGAIN})", tmp_path),
    ]
    supervisor = Supervisor(places, first_pause=0.0)
    over = when(lambda: all((tmp_path / f"{one.name}.up").exists() for one in places), supervisor.stop)
    assert supervisor.run() == 0
    over.join()
    assert [len(starts(one.name, tmp_path)) for one in places] == [1, 1]


def test_one_that_does_not_leave_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgvec_queue.worker.supervisor.LEAVE_PATIENCE", 0.05)
    supervisor = Supervisor([place("deaf", DEAF, tmp_path), place("b", STAYS, tmp_path)])
    over = when(lambda: all((tmp_path / f"{n}.up").exists() for n in ("deaf", "b")), supervisor.stop)
    assert supervisor.run() == 0
    over.join()


def test_kill_ends_all_at_once(tmp_path: Path) -> None:
    supervisor = Supervisor([place("a", DEAF, tmp_path), place("b", DEAF, tmp_path)], first_pause=3_600)

    def end() -> None:
        supervisor.kill()
        supervisor.stop()

    over = when(lambda: all((tmp_path / f"{n}.up").exists() for n in "ab"), end)
    assert supervisor.run() == 0
    over.join()


def test_a_process_that_cannot_be_started_is_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    program = tmp_path / "program"
    supervisor = Supervisor([Place("1", [str(program)], dict(os.environ))], first_pause=0.01)

    def appear() -> None:
        made = tmp_path / "made"
        made.write_text("#!/bin/sh\nexit 3\n")
        made.chmod(0o700)
        made.rename(program)

    over = when(lambda: any("could not be started: No such file" in text for text in caplog.messages), appear)
    assert supervisor.run() == 3
    over.join()


def test_each_process_has_a_session_of_its_own_and_no_way_to_our_input(tmp_path: Path) -> None:
    body = "open(f'{here}.sid', 'w').write(str(os.getsid(0)))"
    Supervisor([place("1", body, tmp_path)]).run()
    assert starts("1", tmp_path) == [int((tmp_path / "1.sid").read_text())]


def test_the_handler_for_ended_children_is_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    Supervisor([place("1", "", tmp_path)]).run()
    assert signal.getsignal(signal.SIGCHLD) is before


def test_a_supervised_process_leaves_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    body = """
from pgvec_queue.worker.supervisor import leave_with_parent
import threading
told = threading.Event()
leave_with_parent(told.set)
print("up", flush=True)
told.wait()
print("told", flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", body], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.stdin.close()
        assert process.stdout.readline() == "told\n"
        assert process.wait(10) == 0
