"""Whoever is woken up finds what to do: each alert has its entry, and each message that is explained is one of ours."""

from __future__ import annotations

import ast
import functools
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
ALERTS = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
MESSAGES = re.findall(r"^### `(.+)`$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)


@functools.cache
def said() -> tuple[str, ...]:
    """Every text of the program, with … where something is filled in, and every file of SQL."""
    found = [path.read_text().replace("''", "'") for path in (ROOT / "sql").glob("*.sql")]
    for path in (ROOT / "pgvec_queue").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append(
                    "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return tuple(found)


def is_said(message: str) -> bool:
    """Whether the program has a text with the message's parts, in their order."""
    parts = message.split("…")
    return any(_in_order(parts, text) for text in said())


def _in_order(parts: list[str], text: str) -> bool:
    at = 0
    for part in parts:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_is_explained_is_one_that_the_program_has(message: str) -> None:
    assert is_said(message)


def test_a_message_that_the_program_has_not_would_be_found() -> None:
    assert len(MESSAGES) > 50
    assert len(set(MESSAGES)) == len(MESSAGES)
    assert not is_said("the server has no pgvector; install it there (0.9 or later)")
    assert not is_said("cannot disconnect from the database …: …")


@pytest.mark.parametrize("alert", re.findall(r"- alert: (\w+)", ALERTS))
def test_an_alert_names_its_entry_in_the_runbook(alert: str) -> None:
    rule = ALERTS.partition(f"- alert: {alert}\n")[2].partition("- alert: ")[0]
    assert f"\n          runbook: docs/runbook.md#{alert.lower()}\n" in rule
    entry = (DOCS / "runbook.md").read_text().partition(f"\n### {alert}\n")[2].partition("\n#")[0]
    for part in ("**Shows:**", "**Confirm:**", "**Do:**", "**Not:**"):
        assert part in entry, f"{alert}: {part}"
