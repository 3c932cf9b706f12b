"""The page's colours: texts stand out by 4.5 to 1 from what they are on, light and dark (WCAG 2.2 AA)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

CSS = (Path(__file__).parents[2] / "pgvec_queue/gateway/static/dashboard.css").read_text("utf-8")

TEXTS = [
    *((ink, ground) for ink in ("ink", "muted", "accent", "warn", "bad") for ground in ("ground", "panel", "sunken")),
    ("on-accent", "accent"),
    ("on-mark", "mark"),
    ("good", "good-wash"),
    ("warn", "warn-wash"),
    ("bad", "bad-wash"),
    ("accent", "calm-wash"),
    ("panel", "ink"),
]
SHAPES = [("edge", "panel"), ("accent", "panel"), ("accent", "sunken"), ("bad", "panel"), ("good", "panel")]


def palettes() -> dict[str, dict[str, str]]:
    light, dark = re.findall(r":root \{(.*?)\n\s*\}", CSS, re.DOTALL)
    colours = {
        name: dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6});", text))
        for name, text in (("light", light), ("dark", dark))
    }
    assert colours["light"].keys() == colours["dark"].keys()
    return colours


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("least", "pairs"), [(4.5, TEXTS), (3.0, SHAPES)], ids=["texts", "shapes"])
def test_contrast(theme: str, least: float, pairs: list[tuple[str, str]]) -> None:
    colours = palettes()[theme]
    low = {pair: round(contrast(colours[pair[0]], colours[pair[1]]), 2) for pair in pairs}
    assert {pair: found for pair, found in low.items() if found < least} == {}


def test_there_are_no_other_colours() -> None:
    rest = re.sub(r":root \{.*?\n\s*\}", "", CSS, flags=re.DOTALL)
    assert re.findall(r"#[0-9a-fA-F]{3,8}\b(?=[;,\s)])", re.sub(r"^.*\{", "", rest, flags=re.MULTILINE)) == []
