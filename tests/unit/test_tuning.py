"""What suits a device is chosen by measurement, kept where nothing is clearly better, and remembered for a while."""

from __future__ import annotations

import json
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pgvec_queue.embedders.devices import MemoryWatch
from pgvec_queue.embedders.tuning import BETTER, DAYS, Memory, choose

rates = st.dictionaries(st.integers(1, 9), st.floats(1.0, 1e6), min_size=1)


@given(rates=rates, data=st.data())
def test_the_fastest_is_chosen_unless_it_is_hardly_faster_than_what_is_in_use(
    rates: dict[int, float], data: st.DataObject
) -> None:
    present = data.draw(st.sampled_from(sorted(rates)))
    chosen = choose([*rates], present, rates.__getitem__)
    if max(rates.values()) >= BETTER * rates[present]:
        assert rates[chosen] == max(rates.values())
    else:
        assert chosen == present


def test_the_first_measurement_of_each_is_a_warm_up() -> None:
    seen: list[int] = []

    def measure(candidate: int) -> float:
        seen.append(candidate)
        return 1e9 if seen == [1] else float(candidate)

    assert choose([1, 2], 1, measure) == 2
    assert seen[:4] == [1, 2, 1, 2]


def test_what_there_is_no_time_for_is_not_measured() -> None:
    seen: list[int] = []

    def measure(candidate: int) -> float:
        seen.append(candidate)
        return float(candidate)

    assert choose([4, 8], 4, measure, seconds=0.0) == 4
    assert seen == []


def test_numbers_are_remembered_beside_others(tmp_path: Path) -> None:
    file = tmp_path / "cache" / "devices.json"
    Memory(file).put("a", 3)
    Memory(file).put("b", 4)
    Memory(file).put("a", 5)
    assert (Memory(file).get("a"), Memory(file).get("b"), Memory(file).get("c")) == (5, 4, None)
    assert [path.name for path in file.parent.iterdir()] == ["devices.json"]


def test_old_and_damaged_entries_are_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "devices.json"
    now = int(time.time())
    entries = {
        "good": {"value": 7, "at": now},
        "old": {"value": 7, "at": now - (DAYS + 1) * 86_400},
        "none": {"value": 0, "at": now},
        "text": {"value": "7", "at": now},
        "bare": 7,
    }
    file.write_text(json.dumps(entries))
    assert [Memory(file).get(name) for name in entries] == [7, None, None, None, None]
    for damage in ("", "[1]", "{", "null"):
        file.write_text(damage)
        assert Memory(file).get("good") is None
        Memory(file).put("good", 8)
        assert Memory(file).get("good") == 8


def test_where_nothing_can_be_written_nothing_is_remembered(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    memory = Memory(tmp_path / "file" / "devices.json")
    memory.put("a", 1)
    assert memory.get("a") is None


def test_a_cache_is_cleared_only_over_the_limit() -> None:
    held = [10]
    cleared: list[int] = []

    def clear() -> None:
        cleared.append(held[0])
        held[0] = 10

    watch = MemoryWatch(used=lambda: held[0], clear=clear, limit=50)
    for now in (20, 50, 60, 30):
        held[0] = now
        watch.look()
    assert cleared == [60]
    assert not watch.exhausted


def test_memory_that_does_not_come_back_wears_the_process_out() -> None:
    held = [90]
    watch = MemoryWatch(used=lambda: held[0], clear=lambda: None, limit=50)
    watch.look()
    watch.look()
    held[0] = 40
    watch.look()
    assert not watch.exhausted
    held[0] = 90
    watch.look()
    assert not watch.exhausted
    held[0] = 91
    watch.clear = lambda: held.__setitem__(0, 40)
    watch.look()
    held[0], watch.clear = 90, lambda: None
    watch.look()
    watch.look()
    assert not watch.exhausted
    watch.look()
    assert watch.exhausted
