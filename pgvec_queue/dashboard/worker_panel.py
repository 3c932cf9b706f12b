"""The workers as lines, those in trouble first, and what happened last."""

from __future__ import annotations

from rich.text import Text

from pgvec_queue.dashboard.cells import (
    Glyphs,
    about,
    clean,
    count,
    fitted,
    speed,
)
from pgvec_queue.dashboard.snapshot import EventLine, WorkerLine
from pgvec_queue.dashboard.state import State
from pgvec_queue.dashboard.table import Cell, Column, header, place, row

_WIDE = 110
_RARE = 600.0
"""Seconds for which what is rare is shown before claims, of which there are many."""
_ALARMS = ("gone", "blocked", "quarantined", "reclaimed")


def listed(state: State, width: int, height: int) -> tuple[list[Text], int]:
    """Returns at most ``height`` lines: titles, workers, how many more there are; and for how many there is room."""
    assert state.snapshot is not None
    workers, glyphs = state.snapshot.workers, state.glyphs
    if height <= 0:
        return [], 0
    if not workers:
        return [Text(fitted("no worker is running; start one with `pgvec work`", width, glyphs.more), "yellow")], 0
    titled = height >= min(4, len(workers) + 1)
    room = height - titled
    if len(workers) > room:
        # The last line says how many more there are.
        room = max(room - 1, 1)
    first = min(state.offset, max(len(workers) - room, 0))
    shown = workers[first : first + room]
    placed = place(_columns(shown, state), width, 2 if width >= _WIDE else 1)
    lines = [header(placed, glyphs)] if titled else []
    lines += [row(placed, index, glyphs, _style(one)) for index, one in enumerate(shown)]
    after = len(workers) - first - len(shown)
    if (first or after) and len(lines) < height:
        lines.append(Text(fitted(_more(first, after, glyphs), width, glyphs.more), "dim"))
    return lines, room


def _more(before: int, after: int, glyphs: Glyphs) -> str:
    if not before:
        return f"{glyphs.more} and {after:,} more"
    return f"{glyphs.more} {before:,} before these" + (f", and {after:,} more" if after else "")


def _columns(workers: tuple[WorkerLine, ...], state: State) -> list[Column]:
    title = ("> " if state.scrolling else "  ") + "worker"
    return [
        Column(title, [Cell(_name(one)) for one in workers], least=14, most=42),
        Column("state", [Cell(_state(one), "bold red" if one.state == "gone" else "") for one in workers]),
        Column("device", [Cell(clean(one.device or "")) for one in workers], rank=3),
        Column("busy", [Cell(_busy(one)) for one in workers], rank=4, right=True),
        Column("rows/s", [Cell(_speed(one)) for one in workers], rank=1, right=True),
        Column("beat", [Cell(f"{about(one.since_beat)} ago") for one in workers], rank=2, right=True),
        Column("jobs", [Cell(count(one.jobs) if one.jobs else "") for one in workers], rank=6, right=True),
        Column("doing", [Cell(_doing(one)) for one in workers], rank=5, least=12),
    ]


def _name(one: WorkerLine) -> str:
    return f"{'!' if one.troubled else ' '} {clean(one.host)}:{one.pid}"


def _state(one: WorkerLine) -> str:
    return one.state.upper() if one.state == "gone" else one.state


def _style(one: WorkerLine) -> str:
    if one.long_gone:
        return "dim"
    return "yellow" if one.troubled and one.state != "gone" else ""


def _busy(one: WorkerLine) -> str:
    return "" if one.busy is None or one.state == "gone" else f"{100 * one.busy:.0f} %"


def _speed(one: WorkerLine) -> str:
    # What the dead have done in the last minute would look as if they did it now.
    return "" if one.state == "gone" else speed(one.rows_per_second)


def _doing(one: WorkerLine) -> str:
    """What it waits for, or what it has in hand and how far that is."""
    if one.waiting_for is not None:
        return clean(one.waiting_for)
    if one.job_id is None:
        return ""
    after = f" after {clean(one.checkpoint)}" if one.checkpoint else ""
    return f"{clean(one.vectorizer or '?')} job {one.job_id}{after}"


def events(state: State, width: int, height: int) -> list[Text]:
    """Returns the last events, the newest first, a line each."""
    if state.snapshot is None or height <= 0:
        return []
    known = state.snapshot.events
    rare = [one for one in known if one.kind != "claimed" and one.ago < _RARE][: max(height - 1, 1)]
    others = [one for one in known if one not in rare]
    shown = sorted((*rare, *others[: height - len(rare)]), key=lambda one: one.ago)
    return [_event(one, width, state.glyphs) for one in shown]


def _event(one: EventLine, width: int, glyphs: Glyphs) -> Text:
    parts = [
        clean(one.vectorizer) if one.vectorizer else "",
        f"job {one.job_id}" if one.job_id is not None else "",
        f"by {clean(one.host)}" if one.host and one.vectorizer else clean(one.host or ""),
    ]
    message = clean(one.message) if one.message and one.kind != "claimed" else ""
    # What concerns a vectorizer that has been dropped has no name to stand before the colon.
    what = ": ".join(filter(None, (" ".join(filter(None, parts)), message)))
    text = f"{about(one.ago):>6} ago  {clean(one.kind)} {what}"
    return Text(fitted(text, width, glyphs.more), "red" if one.kind in _ALARMS else "")
