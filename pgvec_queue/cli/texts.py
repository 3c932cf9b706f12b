"""Numbers, times and foreign text as people read them, and where they are printed."""

from __future__ import annotations

import re
import sys

from rich.console import Console

_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Off a terminal nothing is wrapped: a line stays a line.
_UNBOUNDED = 100_000


def console(*, err: bool = False) -> Console:
    """Returns a console for stdout or stderr; plain text where that is no terminal, whatever the environment says."""
    stream = sys.stderr if err else sys.stdout
    terminal = stream.isatty()
    return Console(
        file=stream,
        force_terminal=None if terminal else False,
        width=None if terminal else _UNBOUNDED,
        markup=False,
        emoji=False,
        highlight=False,
    )


def plain(text: str) -> str:
    """Returns ``text`` in one line with control characters written out: it may come from a table, or from a server."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), " ".join(text.split()))


def duration(seconds: float | None) -> str:
    """Returns a time, such as ``2 h 5 min``; empty when it is not known."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {rest} s"
    return f"{rest} s"


def size(count: float) -> str:
    """Returns bytes, such as ``1.23 GB``, in powers of 1,024 as PostgreSQL counts them."""
    units = ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while abs(count) >= 999.5 and len(units) > 1:
        count /= 1024
        units.pop(0)
    places = 0 if units[0] == "bytes" or count >= 99.95 else 1 if count >= 9.995 else 2
    return f"{count:,.{places}f} {units[0]}"


def time_left(seconds: float | None, low: float | None, high: float | None, *, wide: bool) -> str:
    """Returns a time left, where there is room with what it may be: ``2 h 5 min (1 h 50 min to 2 h 30 min)``."""
    around = [duration(low), duration(high)]
    if not wide or low is None or high is None or around[0] == around[1]:
        return duration(seconds)
    return f"{duration(seconds)} ({around[0]} to {around[1]})"


def documents(count: int) -> str:
    """Returns a number of documents with its verb, such as ``1 document is``."""
    return "1 document is" if count == 1 else f"{count:,} documents are"


def rate(rows: float, chunks: float | None = None) -> str:
    """Returns rows per second, and chunks where they are given and differ; empty when nothing moves."""
    if not rows and not chunks:
        return ""
    both = chunks is not None and abs(chunks - rows) > 0.05 * rows
    return f"{_rounded(rows)} rows/s" + (f", {_rounded(chunks or 0)} chunks/s" if both else "")


def _rounded(number: float) -> str:
    return f"{number:,.1f}" if number < 10 else f"{number:,.0f}"
