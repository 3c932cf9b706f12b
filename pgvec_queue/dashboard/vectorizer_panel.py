"""The vectorizers as lines, and what there is to say of the chosen one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.cells import cell_len
from rich.text import Text

from pgvec_queue.cli.texts import documents, duration
from pgvec_queue.dashboard.cells import (
    Glyphs,
    about,
    bar,
    between,
    clean,
    count,
    fitted,
    share,
    sparkline,
    speed,
    wrapped,
)
from pgvec_queue.dashboard.snapshot import MINUTES, FailureLine, Snapshot
from pgvec_queue.dashboard.state import State
from pgvec_queue.dashboard.table import Cell, Column, Line, Placed, header, place, row
from pgvec_queue.progress import Progress

_WIDE = 110
_STYLES = {"blocked": "bold red", "paused": "yellow", "cancelled": "yellow", "complete": "green"}
_MOVING = ("rate", "left", "spread", "minutes")
"""Columns that are empty where nothing moves; the reason for that stands there."""


def listed(state: State, width: int, height: int) -> list[Text]:
    """Returns at most ``height`` lines: titles, vectorizers around the chosen one, and how many more there are."""
    assert state.snapshot is not None
    rows, glyphs, picked = state.snapshot.vectorizers, state.glyphs, state.picked
    if height <= 0 or picked is None:
        return []
    titled = height >= min(4, len(rows) + 1)
    room = height - titled
    if len(rows) > room > 1:
        # The last line says how many more there are.
        room -= 1
    first = min(max(rows.index(picked) - room // 2, 0), max(len(rows) - room, 0))
    shown = rows[first : first + room]
    placed = _placed(state.snapshot, shown, picked, width, glyphs)
    lines = [header(placed, glyphs)] if titled else []
    moving = [item.start for item in placed if item.column.name in _MOVING]
    for index, one in enumerate(shown):
        line = row(placed, index, glyphs, "bold" if one is picked else "")
        if one.reason and not _moves(one) and moving:
            line.truncate(moving[0])
            line.append(fitted(clean(one.reason), width - moving[0], glyphs.more), _STYLES.get(one.state, "yellow"))
        lines.append(line)
    if len(rows) > len(shown) and len(lines) < height:
        lines.append(Text(fitted(f"  {glyphs.more} and {len(rows) - len(shown):,} more", width, glyphs.more), "dim"))
    return lines


def _placed(snapshot: Snapshot, rows: Sequence[Progress], picked: Progress, width: int, glyphs: Glyphs) -> list[Placed]:
    wide = width >= _WIDE
    # A short bar leaves room for a reason.
    longest = 8 if not wide and any(one.reason and not _moves(one) for one in rows) else 40

    def filled(index: int, width: int) -> str:
        one = rows[index]
        return bar(one.rows_done, one.rows_failed, one.rows_total, width, glyphs)

    columns = [
        Column("  vectorizer", [Cell(f"{_mark(one, picked)} {clean(one.name)}") for one in rows], least=12, most=42),
        Column("state", [Cell(_state(one), _STYLES.get(one.state, "")) for one in rows]),
        Column("", rank=1, least=8, most=longest, draw=filled),
        Column("done", [Cell(share(one.rows_done + one.rows_failed, one.rows_total)) for one in rows], right=True),
        Column("rows", [Cell(f"{count(one.rows_done)}/{count(one.rows_total)}") for one in rows], rank=3, right=True),
        Column("failed", [Cell(*_failed(one)) for one in rows], rank=5, right=True),
        Column("rows/s", [Cell(speed(one.rows_per_second)) for one in rows], right=True, name="rate"),
        Column("left", [Cell(_left(one)) for one in rows], rank=2, right=True, name="left"),
        Column("between", [Cell(_spread(one)) for one in rows], rank=7, name="spread"),
        Column(
            f"last {MINUTES} min",
            [Cell(sparkline(snapshot.minutes.get(one.name, ()), glyphs)) for one in rows],
            rank=6,
            name="minutes",
        ),
    ]
    return place(columns, width, 2 if wide else 1)


def _mark(one: Progress, picked: Progress) -> str:
    return ">" if one is picked else "!" if one.state == "blocked" else " "


def _moves(one: Progress) -> bool:
    return one.state == "active" and one.rows_per_second > 0


def _state(one: Progress) -> str:
    return one.state.upper() if one.state == "blocked" else one.state


def _failed(one: Progress) -> tuple[str, str]:
    return (count(one.rows_failed), "bold red") if one.rows_failed else ("", "")


def _left(one: Progress) -> str:
    return about(one.eta_seconds) if _moves(one) and one.eta_seconds is not None else ""


def _spread(one: Progress) -> str:
    if not _moves(one) or one.eta_low_seconds is None or one.eta_high_seconds is None:
        return ""
    return between(one.eta_low_seconds, one.eta_high_seconds)


def chosen(state: State, width: int, height: int) -> list[Line]:
    """Returns what there is to say of the chosen vectorizer in a window of ``height`` lines."""
    one = state.picked
    if one is None or state.snapshot is None:
        return []
    more = state.glyphs.more
    name = fitted(clean(one.name), width // 3, more)
    said = ((f"{name}: {_amounts(one)}", 1), (_pace(one, state, width), 0), (_definition(one), 4))
    lines = [Line(Text(fitted(text, width, more)), rank) for text, rank in said if text]
    lines[0].text.stylize("bold", 0, len(name) + 1)
    if one.reason:
        style = _STYLES.get(one.state, "yellow")
        reason = wrapped(clean(one.reason), width, 1 if height < 20 else 3, more)
        lines[1:1] = [Line(Text(text, style), 3 if index else 0) for index, text in enumerate(reason)]
    return [*lines, *_failures(state, one, width)]


def _amounts(one: Progress) -> str:
    failed = f", {one.rows_failed:,} failed" if one.rows_failed else ""
    jobs = one.jobs["cancelled"] or one.jobs["queued"]
    waiting = f"{jobs:,} {'cancelled' if one.jobs['cancelled'] else 'queued'}"
    return (
        f"{one.rows_done:,} of {one.rows_total:,} rows{failed}; {one.chunks:,} chunks; "
        f"jobs: {one.jobs['running']:,} running, {waiting}, {one.jobs['done']:,} done"
    )


def _pace(one: Progress, state: State, width: int) -> str:
    """How fast it is and when it ends, with the last minutes where there is room."""
    said = []
    if _moves(one):
        tokens = f", {count(round(one.tokens_per_second))} tokens/s" if one.tokens_per_second else ""
        longer = f" ({MINUTES} min: {speed(one.rows_per_second_15m)})" if one.rows_per_second_15m else ""
        said.append(f"{speed(one.rows_per_second)} rows/s{longer}{tokens}")
        if one.eta_seconds is not None:
            spread = _spread(one)
            around = f" ({spread})" if spread not in ("", about(one.eta_seconds)) else ""
            said.append(f"{duration(one.eta_seconds)} left{around}")
    elif one.rows_per_second_15m:
        said.append(f"{speed(one.rows_per_second_15m)} rows/s in the last {MINUTES} min")
    line = "; ".join(said)
    assert state.snapshot is not None
    minutes = sparkline(state.snapshot.minutes.get(one.name, ()), state.glyphs)
    if not minutes.strip() or cell_len(line) + 2 + len(minutes) > width:
        return line
    return f"{line}  {minutes}" if line else minutes


def _definition(one: Progress) -> str:
    limit = f"; at most {one.rows_per_second_limit:,.0f} rows/s" if one.rows_per_second_limit else ""
    lag = "" if one.lag_seconds is None else f"; live changes, {about(one.lag_seconds)} behind"
    priority = f"; priority {one.priority}" if one.priority else ""
    return f"{clean(one.source)} into {clean(one.destination)}; {clean(one.model)}{priority}{limit}{lag}"


def _failures(state: State, one: Progress, width: int) -> Iterator[Line]:
    assert state.snapshot is not None
    if not one.rows_failed:
        return
    if state.snapshot.failures_of != one.name:
        yield Line(Text(fitted(f"{documents(one.rows_failed)} in quarantine", width, state.glyphs.more)), 2)
        return
    for index, failure in enumerate(state.snapshot.failures):
        yield Line(_failure(failure, width, state.glyphs), 2 if index == 0 else 5 + index)


def _failure(failure: FailureLine, width: int, glyphs: Glyphs) -> Text:
    many = f"{count(failure.documents)} {glyphs.times} {clean(failure.error_class)}"
    text = f"{many}, {about(failure.ago)} ago: {clean(failure.message)}"
    line = Text(fitted(text, width, glyphs.more))
    line.stylize("red", 0, len(many))
    return line
