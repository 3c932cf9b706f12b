"""The queues between a worker's stages: bounded, in order, and ended by an abort."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import cast

import pytest

from pgvec_queue.worker.stages import Channel, Fan
from pgvec_queue.worker.state import State, StoppedError
from pgvec_queue.worker.work import Work


@dataclass
class _Piece:
    """What a channel asks of work."""

    size: int
    urgent: bool = False


def _piece(size: int) -> Work:
    return cast(Work, _Piece(size))


@pytest.mark.parametrize(("sizes", "room"), [([1, 1, 1, 1], 2), ([60, 60, 60], 1), ([60, 30, 60], 2), ([500, 1, 1], 1)])
def test_a_channel_holds_so_many_slices_and_so_many_bytes_and_a_large_one_alone(sizes: list[int], room: int) -> None:
    state = State()
    # After an abort nobody waits for room: what does not fit is refused at once.
    state.aborted.set()
    channel = Channel(state, 2, 100)
    for size in sizes[:room]:
        channel.put(_piece(size))
    with pytest.raises(StoppedError):
        channel.put(_piece(sizes[room]))


def test_work_comes_out_in_the_order_in_which_it_went_in_and_then_the_end() -> None:
    channel = Channel(State(), 2, 100)
    pieces = [_piece(size) for size in range(0, 200, 7)]

    def put() -> None:
        for piece in pieces:
            channel.put(piece)
        channel.end()

    thread = threading.Thread(target=put, daemon=True)
    thread.start()
    assert list(channel) == pieces
    thread.join()


def test_what_is_urgent_goes_first_has_room_of_its_own_and_stays_in_order() -> None:
    channel = Channel(State(), 2, 1_000)
    pieces = [_piece(1), _piece(2)]
    urgent = [cast(Work, _Piece(size, urgent=True)) for size in (3, 4)]
    for one in (*pieces, *urgent):
        channel.put(one)
    channel.end()
    assert (len(channel), channel.has_room()) == (4, False)
    assert channel.take_if(lambda work: not work.urgent) is None
    assert list(channel) == [*urgent, *pieces]
    assert channel.has_room()


def test_only_what_is_urgent_is_taken_towards_a_channel_without_room() -> None:
    state = State()
    source, out = Channel(state, 3), Channel(state, 1)
    out.put(_piece(1))
    usual, urgent = _piece(2), cast(Work, _Piece(3, urgent=True))
    source.put(usual)
    source.put(urgent)
    source.end()
    taking = source.towards(out)
    assert next(taking) is urgent
    taken: list[Work] = []
    thread = threading.Thread(target=lambda: taken.extend(taking), daemon=True)
    thread.start()
    assert len(source) == 1
    assert next(iter(out)).size == 1
    thread.join(10)
    assert taken == [usual]


def test_after_an_abort_nothing_comes_out() -> None:
    state = State()
    channel = Channel(state, 1)
    channel.put(_piece(1))
    state.aborted.set()
    assert list(channel) == []


@dataclass
class _Run:
    taker: int | None = None


@dataclass
class _PieceOf:
    run: _Run
    size: int = 1
    urgent: bool = False


def test_a_second_channel_is_used_only_when_the_first_has_a_backlog_and_a_run_keeps_its_channel() -> None:
    state = State()
    channels = [Channel(state, 10), Channel(state, 10)]
    fan = Fan(channels)
    runs = [_Run() for _ in range(5)]
    for run in (*runs[:4], runs[0], runs[3], runs[4]):
        fan.put(cast(Work, _PieceOf(run)))
    assert [run.taker for run in runs] == [0, 0, 1, 1, 0]
    fan.end()
    taken = [[cast(_PieceOf, work).run for work in channel] for channel in channels]
    assert taken[0] == [runs[0], runs[1], runs[0], runs[4]]
    assert taken[1] == [runs[2], runs[3], runs[3]]
