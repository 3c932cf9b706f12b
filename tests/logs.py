"""Holds lines of the log to docs/logs.md, which says what events there are and what keys each has."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PAGE = Path(__file__).parents[1] / "docs" / "logs.md"
COMMON = {"time", "level", "logger", "event"}
ANYWHERE = {"worker", "process", "request_id", "traceback"}
"""Keys that depend on who says something, not on what happened."""


@dataclass(frozen=True)
class Documented:
    """What the page says of an event."""

    levels: frozenset[str]
    keys: frozenset[str]
    optional: frozenset[str]


def documented() -> dict[str, Documented]:
    """Returns the events of the page by their words."""
    table = _PAGE.read_text().partition("## Events")[2].partition("\n## ")[0]
    events = {}
    for event, levels, keys in re.findall(r"^\| `([^`]+)` \| ([a-z, ]+) \|([^|]*)\|", table, re.MULTILINE):
        found = re.findall(r"`(\w+)`(\??)", keys)
        events[event] = Documented(
            frozenset(levels.split(", ")),
            frozenset(key for key, mark in found if not mark),
            frozenset(key for key, mark in found if mark),
        )
    return events


def parsed(said: str) -> list[dict[str, Any]]:
    """Returns the lines of a log in JSON; each has to be as documented, and nothing may stand between them."""
    events = documented()
    lines: list[dict[str, Any]] = [json.loads(line) for line in said.splitlines()]
    for line in lines:
        assert line.keys() >= COMMON, line
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", line["time"]), line
        if not line["logger"].startswith("pgvec"):
            assert line.keys() <= COMMON | ANYWHERE, line
            continue
        known = events[line["event"]]
        assert line["level"] in known.levels, line
        own = line.keys() - COMMON - (ANYWHERE - known.keys - known.optional)
        assert known.keys <= own <= known.keys | known.optional, line
    return lines


def of(lines: list[dict[str, Any]], event: str) -> list[dict[str, Any]]:
    """The lines of one event, which has to be on the page."""
    assert event in documented(), event
    return [line for line in lines if line["event"] == event]
