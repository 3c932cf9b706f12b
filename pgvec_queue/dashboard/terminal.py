"""The terminal: taken over for the dashboard, drawn on, and left as it was, however the dashboard ends.

Canonical input, echo and flow control are off and the alternate screen is on while inside; the keys of signals (Ctrl-C,
Ctrl-Z) stay on. SIGINT, SIGTERM, SIGHUP and SIGQUIT end what is inside by ``Ended``; on SIGTSTP the terminal is given
back before the process stops, and taken again when it goes on.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import termios
import threading
from contextlib import suppress
from types import FrameType
from typing import Any

_ENTER = b"\x1b[?1049h\x1b[?25l"
# The first ends a picture that was cut off in the middle.
_LEAVE = b"\x1b[?2026l\x1b[0m\x1b[?7h\x1b[?25h\x1b[?1049l"
_PATIENCE = 1.0
"""Seconds in which a terminal has to take what gives it back; one that is stuck is left."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
_TOLD = (signal.SIGWINCH, signal.SIGCONT, signal.SIGTSTP)


class Ended(BaseException):
    """A signal ended the dashboard, or its terminal is gone (as by SIGHUP)."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Terminal:
    """One terminal, taken over while inside the context. Used by the main thread, which signals reach."""

    def __init__(self, source: int, target: int, *, dumb: bool, wake: int) -> None:
        """``source`` and ``target`` are its descriptors; a dumb one understands no sequences: it is only written to.

        ``wake`` is the end of a pipe that a byte is written to with each signal.
        """
        self.source = source
        self._target = target
        self._dumb = dumb
        self._wake = wake
        self._saved: list[Any] = []
        self._handlers: dict[signal.Signals, Any] = {}
        self._woken: int = -1
        self._told: set[int] = set()
        self._inside = False
        self._size = (0, 0)

    def __enter__(self) -> Terminal:
        self._saved = termios.tcgetattr(self.source)
        for number in _ENDING:
            self._handlers[number] = signal.signal(number, self._end)
        for number in _TOLD:
            self._handlers[number] = signal.signal(number, self._tell)
        self._woken = signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        try:
            self._take()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # Once more, so that a second signal does not end this in the middle.
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        self._give_back()
        signal.set_wakeup_fd(self._woken)
        for number, handler in self._handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines; 80 and 24 where the terminal does not know."""
        with suppress(OSError):
            width, height = os.get_terminal_size(self._target)
            return width or 80, height or 24
        return 80, 24

    def draw(self, lines: list[tuple[str, bool]], size: tuple[int, int], encoding: str) -> None:
        """Shows a picture made for ``size``, in one write: lines, and whether each fills the whole width.

        Raises ``Ended`` where the terminal is gone.
        """
        if self._dumb:
            text = "\n".join(line for line, _ in lines).rstrip("\n") + "\n\n"
            self._write(text.encode(encoding, "replace"))
            return
        # What a resized window still shows of the old picture may lie anywhere.
        parts = ["\x1b[?2026h\x1b[?7l", "\x1b[2J" if size != self._size else ""]
        self._size = size
        for number, (line, full) in enumerate(lines, 1):
            # Erasing after the last column would take that column's character.
            parts.append(f"\x1b[{number};1H{line}\x1b[0m{'' if full else chr(27) + '[K'}")
        below = f"\x1b[{len(lines) + 1};1H\x1b[J" if len(lines) < size[1] else ""
        parts.append(f"{below}\x1b[?7h\x1b[?2026l")
        self._write("".join(parts).encode(encoding, "replace"))

    @property
    def told(self) -> bool:
        """A signal has come that ``obey`` is to act on."""
        return bool(self._told)

    def forget(self) -> None:
        """Has the next picture drawn on an empty screen."""
        self._size = (0, 0)

    def obey(self) -> None:
        """Does what signals asked for since the last call: stops, or takes the terminal again after a stop."""
        told, self._told = self._told, set()
        if signal.SIGTSTP in told:
            self._stop()
        elif signal.SIGCONT in told:
            # Stopped by SIGSTOP, which nobody hears: whoever had the terminal meanwhile may have changed its modes.
            self._set_modes()
            self.forget()

    def _stop(self) -> None:
        self._give_back()
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        # To this thread, so that it goes no further before it is stopped.
        signal.pthread_kill(threading.get_ident(), signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, self._tell)
        self._told.discard(signal.SIGCONT)
        with suppress(termios.error):
            self._saved = termios.tcgetattr(self.source)
        self._take()

    def _take(self) -> None:
        self._inside = True
        self._set_modes()
        self.forget()
        if not self._dumb:
            self._write(_ENTER)

    def _set_modes(self) -> None:
        modes = [*self._saved[:6], list(self._saved[6])]
        # A stopped output would stop the dashboard with it.
        modes[0] &= ~(termios.IXON | termios.IXOFF)
        modes[3] &= ~(termios.ICANON | termios.ECHO | termios.IEXTEN)
        modes[6][termios.VMIN] = 1
        modes[6][termios.VTIME] = 0
        self._set(modes)

    def _give_back(self) -> None:
        if not self._inside:
            return
        self._inside = False
        # The terminal may be closed, which may be why it is given back.
        with suppress(termios.error):
            self._set(self._saved)
        if not self._dumb:
            with suppress(OSError, ValueError):
                if select.select([], [self._target], [], _PATIENCE)[1]:
                    os.write(self._target, _LEAVE)

    def _set(self, modes: list[Any]) -> None:
        while True:
            try:
                termios.tcsetattr(self.source, termios.TCSANOW, modes)
            except termios.error as error:
                # In the background this stops the process, and is interrupted when it goes on.
                if error.args[0] != errno.EINTR:
                    raise
            else:
                return

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[os.write(self._target, data) :]
        except OSError as error:
            raise Ended(signal.SIGHUP) from error

    def _end(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        for each in _ENDING:
            signal.signal(each, signal.SIG_IGN)
        raise Ended(number)

    def _tell(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._told.add(number)
