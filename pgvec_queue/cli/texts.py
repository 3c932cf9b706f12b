"""Numbers and times as people read them."""

from __future__ import annotations


def duration(seconds: float | None) -> str:
    """Returns the time left, such as ``2 h 5 min left``; empty when it is not known."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h left"
    if hours:
        return f"{hours} h {minutes} min left"
    if minutes:
        return f"{minutes} min {rest} s left"
    return f"{rest} s left"


def rate(rows: float, chunks: float) -> str:
    """Returns rows and chunks per second; empty when nothing moves."""
    if not rows and not chunks:
        return ""
    both = abs(chunks - rows) > 0.05 * rows
    return f"{_rounded(rows)} rows/s" + (f", {_rounded(chunks)} chunks/s" if both else "")


def _rounded(number: float) -> str:
    return f"{number:,.1f}" if number < 10 else f"{number:,.0f}"
