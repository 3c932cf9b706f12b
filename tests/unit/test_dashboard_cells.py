"""Text, numbers, bars and tables in cells of a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from pgvec_queue.dashboard.cells import (
    ASCII,
    Glyphs,
    about,
    bar,
    between,
    clean,
    count,
    fitted,
    padded,
    share,
    sparkline,
    speed,
    wrapped,
)
from pgvec_queue.dashboard.table import Cell, Column, place


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("名前 é", "名前 é"),
        ("right\u202eleft", r"right\u202eleft"),
        ("zero\u200bwidth\u200djoined", r"zero\u200bwidth\u200djoined"),
        ("e\u0301" + "\u0301" * 50, "e\u0301\u0301"),
        ("heart\u2764\ufe0f", "heart\u2764"),
        ("\ud800", r"\ud800"),
    ],
)
def test_foreign_text_is_made_harmless(text: str, shown: str) -> None:
    assert clean(text) == shown


@given(st.text(), st.integers(0, 60))
def test_text_fits_whatever_it_is(text: str, width: int) -> None:
    text = clean(text)
    assert cell_len(text) == sum(map(cell_len, text))
    assert cell_len(fitted(text, width)) <= width
    assert cell_len(padded(text, width)) == width
    assert cell_len(padded(text, width, right=True)) == width
    if cell_len(text) <= width:
        assert fitted(text, width) == text


@given(st.text(), st.integers(2, 60), st.integers(1, 5))
def test_wrapped_text_fits_too_and_loses_nothing_where_there_is_room(text: str, width: int, lines: int) -> None:
    text = clean(text)
    found = wrapped(text, width, lines)
    assert len(found) <= lines
    assert all(cell_len(line) <= width for line in found)
    enough = "".join(wrapped(text, width, 10_000))
    assert enough.replace(" ", "") == text.replace(" ", "")


def test_text_is_broken_between_words() -> None:
    assert wrapped("no such column: body, in public.docs", 16, 3) == ["no such column:", "body, in", "public.docs"]
    assert wrapped("no such column: body, in public.docs", 16, 2) == ["no such column:", "body, in public…"]


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0, "0"),
        (99_999, "99,999"),
        (100_000, "100k"),
        (999_999, "999k"),
        (1_000_000, "1.00M"),
        (61_299_999, "61.2M"),
        (100_000_000, "100M"),
        (9_999_999_999, "9.99G"),
        (2**63, "9,223,372T"),
    ],
)
def test_large_numbers_take_few_cells_and_are_never_rounded_up(number: int, shown: str) -> None:
    assert count(number) == shown


def test_times_speeds_and_shares_are_short() -> None:
    assert [about(s) for s in (0, 0.4, 89, 90, 5_399, 5_400, 129_599, 129_600)] == [
        *("0 s", "0 s", "89 s", "2 min", "90 min", "2 h", "36 h", "2 d"),
    ]
    assert between(600, 900) == "10 to 15 min"
    assert between(80, 300) == "80 s to 5 min"
    assert between(60, 60) == "60 s"
    assert [speed(s) for s in (0, 0.25, 9.94, 10, 123_456)] == ["", "0.2", "9.9", "10", "123k"]
    assert [share(*p) for p in ((0, 0), (0, 3), (9_999, 10_000), (3, 3))] == ["100 %", "0.0 %", "99.9 %", "100 %"]


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 10**9), st.integers(0, 60))
def test_a_bar_is_full_only_when_all_is_done(done: int, failed: int, total: int, width: int) -> None:
    shown = bar(done, failed, total, width, ASCII)
    assert len(shown) == width
    if total > done + failed and width > 1:
        assert "." in shown
    if failed and total and done < total and width:
        assert "x" in shown or done * width // total == width


def test_bars_and_sparklines_tell_without_colour() -> None:
    assert bar(50, 1, 100, 10, Glyphs()) == "█████▒░░░░"
    assert bar(50, 1, 100, 10, ASCII) == "#####x...."
    assert sparkline([0, 1, 50, 100], Glyphs()) == " ▁▅█"
    assert sparkline([0, 1, 50, 100], ASCII) == " .+@"
    assert sparkline([], Glyphs()) == ""


def test_columns_of_high_rank_are_left_out_first_and_the_rest_takes_what_is_left() -> None:
    columns = [
        Column("name", [Cell("a rather long name")], least=6),
        Column("state", [Cell("active")]),
        Column("extra", [Cell("12345")], rank=2),
        Column("more", [Cell("12345678")], rank=1),
    ]

    def placed(width: int) -> list[tuple[str, int, int]]:
        return [(one.column.title, one.start, one.width) for one in place(columns, width, 1)]

    assert placed(60) == [("name", 0, 18), ("state", 19, 6), ("extra", 26, 5), ("more", 32, 8)]
    assert placed(30) == [("name", 0, 8), ("state", 9, 6), ("extra", 16, 5), ("more", 22, 8)]
    assert placed(26) == [("name", 0, 10), ("state", 11, 6), ("more", 18, 8)]
    assert placed(14) == [("name", 0, 7), ("state", 8, 6)]
    assert placed(9) == [("name", 0, 6), ("state", 7, 2)]
