"""The dashboard's loop: draws what there is, waits for a key, a signal or news, and does what the key means."""

from __future__ import annotations

import io
import math
import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import replace

from rich.console import Console

from pgvec_queue.cli.texts import documents, duration
from pgvec_queue.dashboard.cells import ASCII, Glyphs
from pgvec_queue.dashboard.keys import Keys
from pgvec_queue.dashboard.screen import Frame, frame
from pgvec_queue.dashboard.state import State, chosen_after, offset_after
from pgvec_queue.dashboard.terminal import Ended, Terminal
from pgvec_queue.dashboard.watcher import SILENCE, Action, Outage, Watcher
from pgvec_queue.database import Connection, Database

_TICK = 1.0
_DUMB_TICK = 10.0
"""Seconds after which a terminal that cannot be drawn upon is given the next picture, where no key asks for it."""
_ESCAPE = 0.05
"""Seconds in which the rest of a key's sequence comes, or it was Escape."""
_SHOWN = 8.0
"""Seconds for which a message stays."""
_DOING = {"pause": "pausing", "resume": "resuming", "retry": "retrying"}
_STEPS = {"up": -1, "k": -1, "back-tab": -1, "down": 1, "j": 1, "tab": 1}


def run(database: Database, connection: Connection, *, source: int, target: int, encoding: str) -> int:
    """Shows the dashboard until somebody ends it; returns the exit code: 0, or 128 and the signal that ended it.

    Takes over ``connection``. ``source`` and ``target`` are the terminal's file descriptors.
    """
    ours, theirs = os.pipe()
    for end in (ours, theirs):
        os.set_blocking(end, False)
    dumb = os.environ.get("TERM", "dumb") in ("dumb", "unknown", "")
    try:
        with Terminal(source, target, dumb=dumb, wake=theirs) as terminal:
            dashboard = Dashboard(database, connection, terminal, ours, theirs, encoding, dumb=dumb)
            try:
                dashboard.run()
            finally:
                dashboard.close()
    except Ended as ended:
        # Ctrl-C is a way to quit.
        return 0 if ended.number == signal.SIGINT else 128 + ended.number
    finally:
        os.close(ours)
        os.close(theirs)
    return 0


class Dashboard:
    """What is shown on a terminal that was taken over, and what its keys do."""

    def __init__(
        self,
        database: Database,
        connection: Connection,
        terminal: Terminal,
        woken: int,
        wake: int,
        encoding: str,
        *,
        dumb: bool,
    ) -> None:
        """``woken`` and ``wake`` are the two ends of the pipe that ends a wait."""
        self._terminal = terminal
        self._woken = woken
        self._wake = wake
        self._encoding = encoding
        self._dumb = dumb
        self._keys = Keys()
        self._frame = Frame(())
        self._message_until = 0.0
        self._asked: str | None = None
        """The vectorizer whose failures somebody may want to try again: the question is open."""
        self._quit = False
        glyphs = Glyphs() if encoding.lower().replace("-", "").startswith("utf") else ASCII
        self._state = State(database.address, glyphs=glyphs)
        self._watcher = Watcher(database, connection, self._notify)

    def run(self) -> None:
        """Runs until a key ends it. Raises what ended the thread that asks the database."""
        self._watcher.start()
        while not self._quit:
            self._terminal.obey()
            self._collect()
            self._draw()
            self._wait()

    def close(self) -> None:
        self._watcher.stop()

    def _notify(self) -> None:
        # A full pipe wakes as well as one byte more would; a closed one belongs to nobody any more.
        with suppress(OSError):
            os.write(self._wake, b"\0")

    def _collect(self) -> None:
        """Takes over what is new."""
        watcher, now = self._watcher, time.monotonic()
        if watcher.failed is not None:
            raise watcher.failed
        while not watcher.answers.empty():
            answer = watcher.answers.get()
            self._say(answer.text, wrong=answer.wrong)
        if self._state.message is not None and now > self._message_until:
            self._state = replace(self._state, message=None)
        watcher.look_after()
        picture = watcher.picture
        trouble = None
        if picture.outage is not None:
            trouble = describe(picture.outage, now)
        elif (silent := watcher.silent_for()) > SILENCE:
            trouble = f"the database has not answered for {silent:.0f} s"
        self._state = replace(self._state, snapshot=picture.snapshot, clock=picture.clock, trouble=trouble)
        self._state = replace(self._state, offset=offset_after(self._state, 0, self._frame.room))

    def _draw(self) -> None:
        size = self._terminal.size
        self._frame = frame(self._state, *size)
        self._terminal.draw(painted(self._frame, *size, dumb=self._dumb), size, self._encoding)

    def _wait(self) -> None:
        """Waits for a key, a signal, something new or the next second, and does what keys there are mean."""
        until = time.monotonic() + (_DUMB_TICK if self._dumb else _TICK)
        while True:
            left = _ESCAPE if self._keys.waiting() else max(until - time.monotonic(), 0)
            ready, _, _ = select.select([self._terminal.source, self._woken], [], [], left)
            if self._woken in ready:
                with suppress(BlockingIOError):
                    os.read(self._woken, 4096)
            keys = self._read() if self._terminal.source in ready else [] if ready else self._keys.flush()
            for key in keys:
                self._on_key(key)
            # On a dumb terminal pictures pile up: what is merely new waits for its turn.
            told = self._terminal.told or not self._watcher.answers.empty() or self._state.snapshot is None
            if keys or not ready or (self._woken in ready and (told or not self._dumb)):
                return

    def _read(self) -> list[str]:
        """Raises ``Ended`` at the end of input: the terminal is gone."""
        try:
            data = os.read(self._terminal.source, 1024)
        except OSError as error:
            raise Ended(signal.SIGHUP) from error
        if not data:
            raise Ended(signal.SIGHUP)
        return self._keys.feed(data)

    def _on_key(self, key: str) -> None:
        if key == "ctrl-l":
            self._terminal.forget()
        elif self._asked is not None:
            self._on_answer(key)
        elif key in ("q", "ctrl-c"):
            self._quit = True
        elif self._state.help:
            self._state = replace(self._state, help=False)
        elif key == "?":
            self._state = replace(self._state, help=True)
        elif key == "w" or (key == "escape" and self._state.scrolling):
            self._state = replace(self._state, scrolling=not self._state.scrolling)
        elif key in ("page-up", "page-down", "home", "end"):
            self._scroll(key)
        elif key in _STEPS:
            self._step(key)
        elif self._state.picked is not None:
            self._steer(key, self._state.picked.name)

    def _step(self, key: str) -> None:
        step = _STEPS[key]
        tab = key.endswith("tab")
        if self._state.scrolling and not tab:
            self._state = replace(self._state, offset=offset_after(self._state, step, self._frame.room))
            return
        name = chosen_after(self._state, step, around=tab)
        if name != self._state.chosen:
            self._state = replace(self._state, chosen=name)
            self._watcher.choose(name)

    def _scroll(self, key: str) -> None:
        page = max(self._frame.room, 1)
        everything = len(self._state.snapshot.workers) if self._state.snapshot else 0
        step = {"page-up": -page, "page-down": page, "home": -everything, "end": everything}[key]
        self._state = replace(self._state, offset=offset_after(self._state, step, self._frame.room))

    def _steer(self, key: str, name: str) -> None:
        if key == "p":
            self._ask("pause", name)
        elif key == "r":
            self._ask("resume", name)
        elif key == "t":
            failed = self._state.picked.rows_failed if self._state.picked else 0
            if not failed:
                self._say(f"{name} has no document in quarantine")
                return
            self._asked = name
            self._state = replace(
                self._state, question=f"{documents(failed)} in quarantine; try those of {name} again?"
            )

    def _on_answer(self, key: str) -> None:
        name, self._asked = self._asked, None
        self._state = replace(self._state, question=None)
        assert name is not None
        if key in ("y", "Y"):
            self._ask("retry", name)
        else:
            self._say("nothing was changed")

    def _ask(self, action: Action, name: str) -> None:
        self._say(f"{_DOING[action]} {name} {self._state.glyphs.more}")
        self._watcher.ask(action, name)

    def _say(self, text: str, *, wrong: bool = False) -> None:
        self._message_until = time.monotonic() + _SHOWN
        self._state = replace(self._state, message=text, wrong=wrong)


def describe(outage: Outage, now: float) -> str:
    """Returns what is wrong, since when and what happens about it; ``now`` is by ``time.monotonic()``."""
    what = "the database is lost" if outage.lost else "the database refuses"
    wait = math.ceil(outage.again_at - now)
    again = f"trying again in {wait} s" if wait > 0 else "trying again"
    return f"{what} since {outage.clock} ({duration(now - outage.since)}), {again}: {outage.reason}"


def painted(picture: Frame, width: int, height: int, *, dumb: bool) -> list[tuple[str, bool]]:
    """Returns the lines of a picture, in the colours that the environment allows, and whether each fills the width."""
    console = Console(
        file=io.StringIO(),
        force_terminal=True,
        color_system=None if dumb else "auto",
        width=max(width, 1),
        height=max(height, 1),
        markup=False,
        emoji=False,
        highlight=False,
        legacy_windows=False,
    )
    with console.capture() as captured:
        console.print(picture.renderable, soft_wrap=True)
    texts = captured.get().split("\n")
    return [(text, line.cell_len >= width) for text, line in zip(texts, picture.lines, strict=False)]
