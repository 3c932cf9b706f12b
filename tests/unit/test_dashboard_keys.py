"""Keys of the dashboard: what a terminal sends for them, in one piece or in several."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgvec_queue.dashboard.keys import Keys


@pytest.mark.parametrize(
    ("data", "keys"),
    [
        (b"p", ["p"]),
        (b"jk?q", ["j", "k", "?", "q"]),
        (b"\x1b[A\x1b[B", ["up", "down"]),
        (b"\x1bOA\x1bOB", ["up", "down"]),
        (b"\x1b[5~\x1b[6~", ["page-up", "page-down"]),
        (b"\x1b[H\x1b[1~\x1b[F\x1b[4~", ["home", "home", "end", "end"]),
        (b"\t\x1b[Z\r", ["tab", "back-tab", "enter"]),
        (b"\x1b[1;2A\x1b[6;5~", ["up", "page-down"]),
        (b"\x0c\x03", ["ctrl-l", "ctrl-c"]),
        # What is no key of ours is swallowed whole: no letter in it pauses anything.
        (b"\x1b[15~\x1b[?1;2c\x1b[200~\x1bOPp", ["p"]),
        (b"\x1bp", []),
        ("äあ".encode(), []),
        (b"\x00\x01", []),
    ],
)
def test_bytes_become_keys(data: bytes, keys: list[str]) -> None:
    found = Keys()
    assert found.feed(data) == keys
    assert not found.waiting()


def test_escape_is_a_key_once_nothing_follows() -> None:
    keys = Keys()
    assert keys.feed(b"\x1b") == []
    assert keys.waiting()
    assert keys.flush() == ["escape"]
    assert not keys.waiting()
    assert keys.flush() == []
    assert keys.feed(b"\x1b\x1b") == ["escape"]
    assert keys.flush() == ["escape"]


@given(st.lists(st.sampled_from([b"\x1b[A", b"\x1bOB", b"\x1b[5~", b"p", b"\t", b"\x1b[1;2B"])), st.data())
def test_a_sequence_may_come_in_pieces(sent: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(sent)
    expected = Keys().feed(whole)
    keys = Keys()
    found: list[str] = []
    while whole:
        size = data.draw(st.integers(1, len(whole)))
        found += keys.feed(whole[:size])
        whole = whole[size:]
    assert found == expected
    assert len(found) == len(sent)


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_to_its_end(data: bytes) -> None:
    keys = Keys()
    found = keys.feed(data) + keys.flush()
    assert not keys.waiting() or keys.flush()
    assert all(key.isascii() and key for key in found)
