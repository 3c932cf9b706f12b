"""The list of guards: each one's text stands in the program still, and the test that has to notice is there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.guards import GUARDS

ROOT = Path(__file__).parents[2]


def test_each_guard_stands_where_the_list_says() -> None:
    lost = [guard.name for guard in GUARDS if guard.text not in (ROOT / guard.file).read_text("utf-8")]
    assert lost == []


def test_each_guard_has_a_test_that_is_there() -> None:
    lost = []
    for guard in GUARDS:
        file, _, name = guard.test.partition("::")
        text = (ROOT / file).read_text("utf-8")
        found = re.search(rf"^ *(?:async )?def {re.escape(name.partition('[')[0].rpartition('::')[2])}\(", text, re.M)
        if name and not found:
            lost.append(f"{guard.name}: {guard.test}")
    assert lost == []


def test_each_guard_has_a_name_of_its_own() -> None:
    names = [guard.name for guard in GUARDS]
    assert sorted(set(names)) == sorted(names)
