"""A terminal for tests: a pseudo-terminal with a program in it, and what the program's output makes of the screen.

The screen knows the sequences that the dashboard sends and refuses every other one, so that none can slip in unseen.
"""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Sequence
from typing import Any

from rich.cells import cell_len

from tests.waiting import wait_until

_SEQUENCE = re.compile(r"\x1b\[(\??)([0-9;]*)([A-Za-z])")

# The program's terminal has to be the one that its session is controlled by, or no key makes a signal.
_BEGIN = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp(sys.argv[1], sys.argv[1:])"


class Screen:
    """Cells of a terminal; those of the ordinary screen and of the alternate one."""

    def __init__(self, width: int, height: int) -> None:
        self.alternate = False
        self.cursor = True
        self.pictures = 0
        """Pictures that were drawn to their end."""
        self.styled = False
        """Something had an attribute or a colour."""
        self.coloured = False
        self._rest = ""
        self.resize(width, height)

    def resize(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        # What is on its way was drawn for the size before; the first picture for this one begins on an empty screen.
        self._strict = False
        self._column, self._row = 0, 0
        self._saved = (0, 0)
        self._cells = {name: [[" "] * width for _ in range(height)] for name in ("main", "alternate")}

    @property
    def lines(self) -> list[str]:
        return ["".join(row).rstrip() for row in self._cells["alternate" if self.alternate else "main"]]

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    def feed(self, text: str) -> None:
        text, self._rest = self._rest + text, ""
        while text:
            if text[0] != "\x1b":
                self._put(text[0])
                text = text[1:]
            elif found := _SEQUENCE.match(text):
                self._obey(*found.groups())
                text = text[found.end() :]
            else:
                assert len(text) < 30, f"not a sequence that the dashboard sends: {text[:30]!r}"
                self._rest = text
                return

    def _obey(self, private: str, parameters: str, final: str) -> None:
        rows = self._cells["alternate" if self.alternate else "main"]
        numbers = [int(number) for number in parameters.split(";") if number]
        match (private, final, parameters):
            case ("", "m", _):
                self.styled |= any(numbers)
                self.coloured |= any(30 <= number <= 49 or number >= 90 for number in numbers)
            case ("", "H", _):
                self._row, self._column = numbers[0] - 1, numbers[1] - 1
            case ("", "K", ""):
                if self._row < self.height:
                    rows[self._row][self._column :] = [" "] * (self.width - self._column)
            case ("", "J", "" | "2"):
                self._strict |= parameters == "2"
                for row in rows[self._row if not parameters else 0 :]:
                    row[:] = [" "] * self.width
            case ("?", "h" | "l", "1049"):
                self.alternate = final == "h"
                if self.alternate:
                    self._saved = self._row, self._column
                    self._cells["alternate"] = [[" "] * self.width for _ in range(self.height)]
                else:
                    self._row, self._column = self._saved
            case ("?", "h" | "l", "25"):
                self.cursor = final == "h"
            case ("?", "h" | "l", "7"):
                pass
            case ("?", "h" | "l", "2026"):
                self.pictures += final == "l"
            case _:
                raise AssertionError(f"not a sequence that the dashboard sends: {private}{parameters}{final}")

    def _put(self, character: str) -> None:
        rows = self._cells["alternate" if self.alternate else "main"]
        if character == "\r":
            self._column = 0
        elif character == "\n":
            self._row += 1
            if self._row == self.height:
                self._row -= 1
                rows[:] = [*rows[1:], [" "] * self.width]
        elif size := cell_len(character):
            assert character.isprintable(), repr(character)
            if self.alternate and self._strict:
                assert self._row < self.height
                assert self._column + size <= self.width, f"line {self._row} is too wide: {self.lines[self._row]!r}"
            if self._row < self.height and self._column + size <= self.width:
                rows[self._row][self._column : self._column + size] = [character, *[""] * (size - 1)]
            self._column += size


class Session:
    """A program in a terminal of its own; closed at the end of the block, whatever it does."""

    def __init__(
        self, *command: str, dsn: str, size: tuple[int, int] = (80, 24), env: dict[str, str] | None = None
    ) -> None:
        self.screen = Screen(*size)
        self._lock = threading.Lock()
        self._failed: BaseException | None = None
        self._stop = threading.Event()
        self._ours, self._theirs = pty.openpty()
        self.resize(*size)
        self.modes_before = self.modes
        self.process = subprocess.Popen(
            [sys.executable, "-c", _BEGIN, *(command or (sys.executable, "-m", "pgvec_queue", "dashboard"))],
            stdin=self._theirs,
            stdout=self._theirs,
            stderr=self._theirs,
            start_new_session=True,
            env={**_clean_environment(), "PGVEC_DSN": dsn, "TERM": "xterm-256color", **(env or {})},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.hang_up()
        os.close(self._theirs)
        if self._failed is not None:
            raise self._failed

    @property
    def modes(self) -> list[Any]:
        return termios.tcgetattr(self._theirs)

    def set_modes(self, modes: list[Any]) -> None:
        """Sets the terminal's modes, as a shell does when it gets the terminal back."""
        termios.tcsetattr(self._theirs, termios.TCSANOW, modes)

    @property
    def text(self) -> str:
        with self._lock:
            return self.screen.text

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    def resize(self, width: int, height: int) -> None:
        with self._lock:
            self.screen.resize(width, height)
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def hang_up(self) -> None:
        """Closes the terminal as a window or a connection is closed."""
        self._stop.set()
        self._reader.join()
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def wait_for(self, *texts: str, timeout: float = 30.0) -> None:
        """Waits until the screen shows all of these at once."""
        try:
            wait_until(lambda: all(text in self.text for text in texts), timeout)
        except AssertionError:
            raise AssertionError(f"{texts} did not appear; the screen shows\n{self.text}") from self._failed

    def ended(self, timeout: float = 15.0) -> int:
        """Waits for the end of the program; returns its exit code."""
        return self.process.wait(timeout)

    def is_as_before(self) -> bool:
        """Whether the terminal is as it was before the program."""
        with self._lock:
            return self.modes == self.modes_before and not self.screen.alternate and self.screen.cursor

    def _read(self) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            while not self._stop.is_set():
                if select.select([self._ours], [], [], 0.02)[0]:
                    data = os.read(self._ours, 65_536)
                    with self._lock:
                        self.screen.feed(decoder.decode(data))
        except (OSError, AssertionError, UnicodeError) as error:
            self._failed = error


def _clean_environment() -> dict[str, str]:
    colours = ("NO_COLOR", "FORCE_COLOR", "COLORTERM", "COLUMNS", "LINES", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
    return {name: value for name, value in os.environ.items() if name not in colours}


def shell(script: str) -> Sequence[str]:
    """Returns the command of a shell with job control."""
    return ("bash", "--norc", "-c", f"set -m; {script}")
