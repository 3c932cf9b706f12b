"""Tables that leave out columns where there is no room; and lines with what each is worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.text import Text

from pgvec_queue.dashboard.cells import Glyphs, padded


@dataclass(frozen=True, slots=True)
class Line:
    """A line, and how soon it is left out where there is no room: 0 last."""

    text: Text
    rank: int = 0


@dataclass(frozen=True, slots=True)
class Cell:
    """A piece of clean text, and how it looks where there is colour."""

    text: str
    style: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: those of the highest ``rank`` are left out first, those of rank 0 never."""

    title: str
    cells: Sequence[Cell] = ()
    rank: int = 0
    right: bool = False
    least: int | None = None
    """Cells that it can be cut down to; None: it is shown whole, or not at all."""
    most: int | None = None
    """Cells that it may take; None: what its longest text does."""
    name: str = ""
    draw: Callable[[int, int], str] | None = None
    """Returns what stands in a row, whose index it is given, for the width that the column has got."""

    @property
    def widths(self) -> tuple[int, int]:
        """The least and the most cells that it takes."""
        whole = max((cell_len(text) for text in (self.title, *(cell.text for cell in self.cells))), default=0)
        if self.draw is not None:
            return self.least or 0, self.most or 0
        most = whole if self.most is None else min(whole, self.most)
        return most if self.least is None else min(self.least, most), most


@dataclass(frozen=True, slots=True)
class Placed:
    """A column in its place."""

    column: Column
    start: int
    width: int


def place(columns: Sequence[Column], width: int, gap: int) -> list[Placed]:
    """Returns the columns that fit into ``width`` cells, each with its place; those of rank 0 are cut where need be.

    What is left over goes to those that can use it, the first one first.
    """
    kept = [(one, *one.widths) for one in columns]

    def needed() -> int:
        return sum(least for _, least, _ in kept) + gap * (len(kept) - 1)

    while needed() > width and (last := max(one.rank for one, _, _ in kept)):
        kept = [item for item in kept if item[0].rank != last]
    room = max(width - needed(), 0)
    placed: list[Placed] = []
    start = 0
    for one, least, most in kept:
        more = min(room, most - least)
        room -= more
        if start < width:
            placed.append(Placed(one, start, min(least + more, width - start)))
        start += least + more + gap
    return placed


def header(placed: Sequence[Placed], glyphs: Glyphs) -> Text:
    """Returns the line of titles."""
    return _line([(one, Cell(one.column.title)) for one in placed], glyphs, "bold")


def row(placed: Sequence[Placed], index: int, glyphs: Glyphs, style: str = "") -> Text:
    """Returns one row of the table."""
    return _line([(one, _cell(one, index)) for one in placed], glyphs, style)


def _cell(placed: Placed, index: int) -> Cell:
    column = placed.column
    return column.cells[index] if column.draw is None else Cell(column.draw(index, placed.width))


def _line(cells: Sequence[tuple[Placed, Cell]], glyphs: Glyphs, style: str) -> Text:
    line = Text(style=style)
    at = 0
    for one, cell in cells:
        line.append(" " * (one.start - at))
        line.append(padded(cell.text, one.width, right=one.column.right, more=glyphs.more), cell.style or None)
        at = one.start + one.width
    return line
