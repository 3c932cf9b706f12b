"""The whole screen: a state and a size become lines, none wider than the window, and no more than it has.

Pure: nothing here looks at a clock, a database or a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Group
from rich.text import Text

from pgvec_queue.dashboard import vectorizer_panel, worker_panel
from pgvec_queue.dashboard.cells import clean, fitted, padded, wrapped
from pgvec_queue.dashboard.state import State
from pgvec_queue.dashboard.table import Line

LEAST = (40, 10)
"""Columns and lines below which there is only a line that says so."""
_ROOMY = 20
"""Lines from which on there is an empty one between the parts."""
_ROOM_FOR_ADDRESS = 45
_KEYS = ("q quit", "? help", "p pause", "r resume", "t retry", "w workers")
_HELP = (
    ("{arrows} j k Tab", "choose a vectorizer"),
    ("p  r", "pause it; let it go on"),
    ("t", "try its failures again"),
    ("w", "{arrows} scroll workers; w: back"),
    ("PgUp PgDn", "scroll the workers"),
    ("?", "this page; any key: back"),
    ("q Ctrl-C", "quit; Ctrl-Z stops it"),
    ("Ctrl-L", "draw anew"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture."""

    lines: tuple[Text, ...]
    room: int = 0
    """Workers that it has room for: by so many PgDn scrolls."""

    @property
    def renderable(self) -> Group:
        return Group(*self.lines)


def frame(state: State, width: int, height: int) -> Frame:
    """Returns what a window of ``width`` columns and ``height`` lines shows."""
    if width < LEAST[0] or height < LEAST[1]:
        text = f"the window is too small: {width}x{height}, at least {LEAST[0]}x{LEAST[1]} are needed"
        return Frame((Text(fitted(text, width, state.glyphs.more)),) if width > 0 and height > 0 else ())
    top = [_title(state, width)]
    if state.trouble is not None:
        lines = wrapped(clean(state.trouble), width, 2 if height >= _ROOMY else 1, state.glyphs.more)
        top += [Text(padded(line, width), "reverse bold") for line in lines]
    body, room = _body(state, width, height - len(top) - 1)
    if state.trouble is not None:
        for line in body:
            line.stylize("dim")
    body += [Text()] * (height - len(top) - 1 - len(body))
    return Frame((*top, *body, _status(state, width)), room)


def _body(state: State, width: int, height: int) -> tuple[list[Text], int]:
    if state.help:
        return _help(state, width, height), 0
    if state.snapshot is None:
        return [Text(), *_said(state, f"asking {state.address} {state.glyphs.more}", width)], 0
    if state.snapshot.hint is not None:
        return [Text(), *_said(state, state.snapshot.hint, width)], 0
    return _parts(state, width, height)


def _parts(state: State, width: int, height: int) -> tuple[list[Text], int]:
    """Returns vectorizers, the chosen one, workers and events, as much of each as there is room for."""
    assert state.snapshot is not None
    rows, workers = len(state.snapshot.vectorizers), len(state.snapshot.workers)
    about = vectorizer_panel.chosen(state, width, height)
    empty = (
        []
        if rows
        else _said(state, "there is no vectorizer yet; make one with: pgvec enqueue TABLE --text COLUMN", width)
    )
    gaps = 3 if height >= _ROOMY else 0
    most_events = min(len(state.snapshot.events), 6)
    heights = share_out(
        height - gaps,
        [
            (min(rows, 2) or len(empty), rows + 1 if rows else len(empty), 1.0),
            (min(len(about), 2), len(about), 1.0),
            (2, max(workers + 1, 1), 1.5),
            (min(most_events, 1), most_events, 0.25),
        ],
    )
    listed, room = worker_panel.listed(state, width, heights[2])
    parts = [
        empty or vectorizer_panel.listed(state, width, heights[0]),
        _worth(about, heights[1]),
        listed,
        worker_panel.events(state, width, heights[3]),
    ]
    lines: list[Text] = []
    for part in filter(None, parts):
        if lines and gaps:
            lines.append(Text())
        lines += part
    return lines[:height], room


def share_out(lines: int, wanted: Sequence[tuple[int, int, float]]) -> list[int]:
    """Shares lines out among parts that want (least, most, weight).

    First each gets its least, the first one first; then the one that has the least for its weight gets the next.
    """
    given = []
    for least, most, _ in wanted:
        given.append(max(min(least, most, lines), 0))
        lines -= given[-1]
    while lines > 0:
        open_ = [index for index, (_, most, _) in enumerate(wanted) if given[index] < most]
        if not open_:
            break
        given[min(open_, key=lambda index: given[index] / wanted[index][2])] += 1
        lines -= 1
    return given


def _worth(lines: Sequence[Line], height: int) -> list[Text]:
    """Returns the lines that are worth most, in their order."""
    kept = sorted(sorted(range(len(lines)), key=lambda index: lines[index].rank)[:height])
    return [lines[index].text for index in kept]


def _said(state: State, text: str, width: int) -> list[Text]:
    return [Text(line, "yellow") for line in wrapped(clean(text), width, 4, state.glyphs.more)]


def _title(state: State, width: int) -> Text:
    name = "pgvec dashboard"
    clock = f"as of {state.clock}" if state.trouble is not None and state.clock else state.clock
    right = "  ".join(filter(None, (_counts(state), clock)))
    if width - cell_len(right) < _ROOM_FOR_ADDRESS:
        right = clock
    room = width - cell_len(right) - 1
    line = Text(padded(f"{name}  {clean(state.address)}", room, more=state.glyphs.more) + " " + right)
    line.stylize("bold", 0, len(name))
    return line


def _counts(state: State) -> str:
    if state.snapshot is None or state.snapshot.hint is not None:
        return ""
    gone = sum(one.state == "gone" for one in state.snapshot.workers)
    workers = len(state.snapshot.workers) - gone
    said = f"{workers:,} worker{'' if workers == 1 else 's'}"
    return f"{said}, {gone:,} gone" if gone else said


def _status(state: State, width: int) -> Text:
    more = state.glyphs.more
    if state.question is not None:
        return Text(fitted(f"{fitted(clean(state.question), width - 4, more)} y/n", width, more), "bold reverse")
    if not state.message:
        return Text(_keys(width), "dim")
    said = fitted(clean(state.message), width, more)
    line = Text(said, "bold red" if state.wrong else "bold")
    room = width - cell_len(said)
    line.append(_keys(room - 2).rjust(room), "not bold dim")
    return line


def _keys(room: int) -> str:
    """Returns as many of the keys as there is room for."""
    found = ""
    for key in _KEYS:
        longer = f"{found}  {key}" if found else key
        if len(longer) > room:
            break
        found = longer
    return found


def _help(state: State, width: int, height: int) -> list[Text]:
    arrows = " ".join(state.glyphs.arrows)
    lines = [
        Text(fitted(f"{keys.format(arrows=arrows):<13}{what.format(arrows=arrows)}", width)) for keys, what in _HELP
    ]
    return [Text(), *lines][:height] if height > len(lines) else lines[:height]
