"""The screen: any state fits any window, and what matters most is there when there is little room."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from pgvec_queue.dashboard.app import describe, painted
from pgvec_queue.dashboard.cells import ASCII, Glyphs
from pgvec_queue.dashboard.screen import LEAST, frame, share_out
from pgvec_queue.dashboard.snapshot import EventLine, FailureLine, Snapshot, WorkerLine
from pgvec_queue.dashboard.state import State, chosen_after, offset_after
from pgvec_queue.dashboard.watcher import Outage
from pgvec_queue.progress import Progress

NAMES = st.text(max_size=60) | st.sampled_from(
    ["docs", "名前" * 40, "\x1b[2J\n\t", "e\u0301" * 50, "👩‍👩‍👧", "\u202eabc"]
)
NUMBERS = st.integers(0, 2**63 - 1) | st.integers(0, 1_000)
SECONDS = st.floats(0, 1e12)
MAYBE_SECONDS = st.none() | SECONDS
STATES = ("active", "paused", "blocked", "cancelled", "complete")

PROGRESS = st.builds(
    Progress,
    name=NAMES,
    state=st.sampled_from(STATES),
    reason=st.none() | NAMES,
    rows_total=NUMBERS,
    rows_done=NUMBERS,
    rows_failed=NUMBERS,
    chunks=NUMBERS,
    tokens=NUMBERS,
    jobs=st.fixed_dictionaries(dict.fromkeys(("queued", "running", "done", "cancelled"), NUMBERS)),
    rows_per_second=SECONDS,
    chunks_per_second=SECONDS,
    eta_seconds=MAYBE_SECONDS,
    plan_complete=st.booleans(),
    rows_embedded=NUMBERS,
    rows_truncated=NUMBERS,
    sync=st.booleans(),
    lag_seconds=MAYBE_SECONDS,
    rows_wasted=NUMBERS,
    chunks_reused=NUMBERS,
    rows_unchanged=NUMBERS,
    chunks_kept=NUMBERS,
    chunks_cached=NUMBERS,
    eta_low_seconds=MAYBE_SECONDS,
    eta_high_seconds=MAYBE_SECONDS,
    tokens_per_second=SECONDS,
    rows_per_second_15m=SECONDS,
    bytes_written=NUMBERS,
    jobs_reclaimed=NUMBERS,
    priority=st.integers(-(2**31), 2**31),
    rows_per_second_limit=MAYBE_SECONDS,
    source=NAMES,
    destination=NAMES,
    model=NAMES,
    index=st.none() | st.fixed_dictionaries({"state": st.sampled_from(["wanted", "building", "built"])}),
)
WORKER = st.builds(
    WorkerLine,
    host=NAMES,
    pid=st.integers(1, 2**31),
    device=st.none() | NAMES,
    state=st.sampled_from(["starting", "idle", "loading", "working", "stopping", "gone"]),
    jobs=NUMBERS,
    waiting_for=st.none() | NAMES,
    busy=st.none() | st.floats(0, 1),
    rows_per_second=SECONDS,
    vectorizer=st.none() | NAMES,
    job_id=st.none() | NUMBERS,
    job_kind=st.none() | NAMES,
    checkpoint=st.none() | NAMES,
    since_beat=SECONDS,
)
FAILURE = st.builds(FailureLine, error_class=NAMES, documents=NUMBERS, ago=SECONDS, message=NAMES)
EVENT = st.builds(
    EventLine,
    ago=SECONDS,
    kind=st.sampled_from(["claimed", "gone", "paused"]),
    vectorizer=st.none() | NAMES,
    host=st.none() | NAMES,
    job_id=st.none() | NUMBERS,
    message=st.none() | NAMES,
)


@st.composite
def states(draw: st.DrawFn) -> State:
    vectorizers = tuple(draw(st.lists(PROGRESS, max_size=12, unique_by=lambda one: one.name)))
    rates = st.lists(SECONDS, min_size=15, max_size=15).map(tuple)
    seen = Snapshot(
        vectorizers=vectorizers,
        minutes={one.name: draw(rates) for one in vectorizers},
        workers=tuple(draw(st.lists(WORKER, max_size=6))) * draw(st.sampled_from([1, 1, 40])),
        failures=tuple(draw(st.lists(FAILURE, max_size=5))),
        failures_of=draw(st.sampled_from([one.name for one in vectorizers])) if vectorizers else None,
        events=tuple(draw(st.lists(EVENT, max_size=20))),
        hint=draw(st.none() | st.none() | NAMES),
    )
    return State(
        address=draw(NAMES),
        snapshot=draw(st.sampled_from([seen, seen, None])),
        clock=draw(st.sampled_from(["", "18:04:05"])),
        trouble=draw(st.none() | NAMES),
        chosen=draw(st.none() | NAMES | st.sampled_from([one.name for one in vectorizers] or [""])),
        scrolling=draw(st.booleans()),
        offset=draw(st.integers(0, 300)),
        message=draw(st.none() | NAMES),
        wrong=draw(st.booleans()),
        question=draw(st.none() | NAMES),
        help=draw(st.booleans()),
        glyphs=draw(st.sampled_from([Glyphs(), ASCII])),
    )


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(states(), st.integers(0, 220) | st.integers(38, 90), st.integers(0, 70) | st.integers(8, 26))
def test_any_state_fits_any_window(state: State, width: int, height: int) -> None:
    picture = frame(state, width, height)
    assert len(picture.lines) <= height
    for line in picture.lines:
        assert cell_len(line.plain) <= width
        assert not re.search("[\x00-\x1f\x7f-\x9f]", line.plain)
    if width >= LEAST[0] and height >= LEAST[1]:
        assert len(picture.lines) == height
    drawn = painted(picture, width, height, dumb=True)
    assert [text for text, _ in drawn] == [line.plain for line in picture.lines]
    coloured = painted(picture, width, height, dumb=False)
    assert [re.sub(r"\x1b\[[0-9;]*m", "", text) for text, _ in coloured] == [line.plain for line in picture.lines]


def vectorizer(name: str, **changes: Any) -> Progress:
    known: dict[str, Any] = {
        **dict.fromkeys(Progress.__slots__, 0),
        "state": "active",
        "reason": None,
        "lag_seconds": None,
        "rows_per_second_limit": None,
        "sync": False,
        "jobs": dict.fromkeys(("queued", "running", "done", "cancelled"), 0),
        "rows_total": 100,
        "plan_complete": True,
        "source": "public.docs",
        "destination": "public.docs_vectors",
        "model": "m",
    }
    return Progress(**{**known, "name": name, **changes})


def worker(host: str, **changes: Any) -> WorkerLine:
    known: dict[str, Any] = {
        **dict.fromkeys(WorkerLine.__slots__),
        "jobs": 0,
        "since_beat": 0.0,
        "rows_per_second": 0.0,
    }
    return WorkerLine(**{**known, "host": host, "pid": 1, "state": "idle", **changes})


def text(state: State, width: int, height: int) -> str:
    return "\n".join(line.plain for line in frame(state, width, height).lines)


@pytest.mark.parametrize("size", [(40, 10), (80, 24), (200, 60)])
def test_the_smallest_window_has_all_that_matters(size: tuple[int, int]) -> None:
    seen = Snapshot(
        vectorizers=(vectorizer("docs", state="blocked", reason="no table"), vectorizer("notes", rows_per_second=5.0)),
        workers=(worker("mac", state="gone"), worker("linux", state="working", rows_per_second=5.0)),
        events=(EventLine(1.0, "gone", None, "mac", None, "pid 1"),),
    )
    found = text(State("db", seen, clock="18:04:05", trouble="the database is lost since 18:04:06"), *size)
    for part in (
        "docs",
        "BLOCKED",
        "no table",
        "notes",
        "active",
        "mac:1",
        "GONE",
        "the database is lost since 18:04:06",
    ):
        assert part in found, part


def test_an_event_of_a_vectorizer_that_has_gone_has_no_colon_before_what_there_is_to_say() -> None:
    said = ("model 'x' is unknown", None)
    events = (
        EventLine(1.0, "dropped", None, None, None, "k3"),
        *(EventLine(2.0, "blocked", name, None, None, text) for name in (None, "docs") for text in said),
    )
    found = [line.rstrip() for line in text(State("db", Snapshot(events=events)), 80, 40).splitlines()]
    shown = [line.partition(" ago  ")[2] for line in found if " ago  " in line]
    assert shown == [
        "dropped k3",
        "blocked model 'x' is unknown",
        "blocked",
        "blocked docs: model 'x' is unknown",
        "blocked docs",
    ]


def test_a_vectorizer_far_down_is_seen_when_it_is_chosen() -> None:
    seen = Snapshot(vectorizers=tuple(vectorizer(f"v{i:03}") for i in range(100)))
    state = State("db", seen)
    for name in ("v000", "v050", "v099"):
        found = text(replace(state, chosen=name), 80, 24)
        assert f"> {name}" in found
        assert " more" in found


def test_choosing_goes_down_and_up_and_with_tab_around() -> None:
    state = State("db", Snapshot(vectorizers=(vectorizer("a"), vectorizer("b"))))
    assert chosen_after(state, 1) == "b"
    assert chosen_after(replace(state, chosen="b"), 1) == "b"
    assert chosen_after(replace(state, chosen="b"), 1, around=True) == "a"
    assert chosen_after(state, -1) == "a"
    assert chosen_after(state, -1, around=True) == "b"
    assert chosen_after(replace(state, chosen="gone"), 1) == "b"
    assert chosen_after(State("db"), 1) is None


def test_scrolling_ends_with_the_last_worker() -> None:
    state = State("db", Snapshot(workers=tuple(worker(f"h{i}") for i in range(30))))
    assert offset_after(state, -5, 10) == 0
    assert offset_after(state, 5, 10) == 5
    assert offset_after(replace(state, offset=15), 10, 10) == 20
    assert offset_after(replace(state, offset=5), 10, 40) == 0
    picture = frame(replace(state, offset=10_000), 80, 24)
    assert "h29:1" in "\n".join(line.plain for line in picture.lines)
    assert 0 < picture.room < 30


def test_failures_of_another_one_are_not_shown_for_the_chosen_one() -> None:
    seen = Snapshot(
        vectorizers=(vectorizer("a", rows_failed=3), vectorizer("b", rows_failed=2)),
        failures=(FailureLine("EmbedderError", 3, 5.0, "of a"),),
        failures_of="a",
    )
    assert "3 × EmbedderError, 5 s ago: of a" in text(State("db", seen), 80, 24)
    other = text(State("db", seen, chosen="b"), 80, 24)
    assert "of a" not in other
    assert "2 documents are in quarantine" in other


def test_claims_give_way_to_what_is_rare() -> None:
    claims = tuple(EventLine(float(i), "claimed", "docs", "mac", i, "range") for i in range(10))
    seen = Snapshot(
        vectorizers=(vectorizer("docs"),), events=(*claims, EventLine(60.0, "gone", None, "linux", None, None))
    )
    found = text(State("db", seen), 80, 24)
    assert "60 s ago  gone linux" in found
    assert "0 s ago  claimed docs job 0 by mac" in found
    late = replace(seen, events=(*claims, EventLine(6_000.0, "gone", None, "linux", None, None)))
    assert "gone linux" not in text(State("db", late), 80, 24)


@given(st.integers(0, 60), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 60), st.floats(0.1, 3)), min_size=1))
def test_lines_are_shared_out_to_the_last_one(lines: int, wanted: list[tuple[int, int, float]]) -> None:
    given_ = share_out(lines, wanted)
    assert sum(given_) == min(lines, sum(most for _, most, _ in wanted))
    assert all(0 <= got <= most for got, (_, most, _) in zip(given_, wanted, strict=True))


def test_an_outage_says_since_when_and_when_it_is_tried_again() -> None:
    outage = Outage(since=100.0, clock="18:04:07", lost=True, reason="no route", again_at=139.0)
    assert describe(outage, 135.0) == "the database is lost since 18:04:07 (35 s), trying again in 4 s: no route"
    refused = replace(outage, lost=False)
    assert describe(refused, 139.0) == "the database refuses since 18:04:07 (39 s), trying again: no route"
