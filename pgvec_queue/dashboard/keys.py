"""Keys, from the bytes that a terminal sends for them. A sequence may come in pieces; an unknown one is no key."""

from __future__ import annotations

import re

_NAMED = {
    b"\t": "tab",
    b"\r": "enter",
    b"\n": "enter",
    b"\x03": "ctrl-c",
    b"\x04": "ctrl-d",
    b"\x0c": "ctrl-l",
}
_FINAL = {
    b"A": "up",
    b"B": "down",
    b"H": "home",
    b"F": "end",
    b"Z": "back-tab",
    b"1~": "home",
    b"7~": "home",
    b"4~": "end",
    b"8~": "end",
    b"5~": "page-up",
    b"6~": "page-down",
}
_ESCAPE = b"\x1b"
# ECMA-48: parameters, intermediates, and one final byte. SS3 is what arrows are in application mode.
_CSI = re.compile(rb"\x1b\[([\x30-\x3f]*)[\x20-\x2f]*([\x40-\x7e])")
_BEGUN = re.compile(rb"\x1b(\[[\x30-\x3f]*[\x20-\x2f]*|O)?\Z")


class Keys:
    """Turns bytes into names of keys: a character is its own, others are called ``up``, ``page-down``, ``escape``."""

    def __init__(self) -> None:
        self._pending = b""

    def waiting(self) -> bool:
        """A sequence has begun; if nothing follows at once, it was the Escape key."""
        return bool(self._pending)

    def feed(self, data: bytes) -> list[str]:
        """Returns the keys that are complete with these bytes."""
        data, self._pending = self._pending + data, b""
        found: list[str] = []
        while data:
            if _BEGUN.match(data):
                self._pending = data
                break
            key, size = _first(data)
            if key is not None:
                found.append(key)
            data = data[size:]
        return found

    def flush(self) -> list[str]:
        """Gives up waiting: what has begun is Escape, and whatever came behind it."""
        data, self._pending = self._pending, b""
        return ["escape", *self.feed(data[1:])] if data else []


def _first(data: bytes) -> tuple[str | None, int]:
    """Returns the key that ``data`` begins with, None for one without a name, and how many bytes it took."""
    if found := _CSI.match(data):
        parameters, final = found.groups()
        # Of "1;2A" (with Shift) and "5;5~" the modifiers are of no interest.
        first = parameters.partition(b";")[0]
        return _FINAL.get(first + final if final == b"~" else final), found.end()
    if data.startswith(b"\x1bO") and len(data) > 2:
        return _FINAL.get(data[2:3]), 3
    if data.startswith(_ESCAPE):
        # Alt and a key, which means nothing here; two Escapes are two.
        return ("escape", 1) if data[1:2] == _ESCAPE else (None, 2)
    if data[:1] in _NAMED:
        return _NAMED[data[:1]], 1
    return (chr(data[0]) if 0x20 <= data[0] < 0x7F else None), 1
