"""Numbers as people read them."""

from __future__ import annotations

import pytest

from pgvec_queue.cli.texts import size


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "0.98 kB"),
        (1024, "1.00 kB"),
        (65_536, "64.0 kB"),
        (70_549_504, "67.3 MB"),
        (217_000_000, "207 MB"),
        (1.5 * 2**30, "1.50 GB"),
        (2.0**60, "1,024 PB"),
    ],
)
def test_bytes_have_three_places_and_a_unit(count: float, shown: str) -> None:
    assert size(count) == shown
