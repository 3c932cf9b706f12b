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
    """What a channel asks of work: its size."""

    size: int


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
