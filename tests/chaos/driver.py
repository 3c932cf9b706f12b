"""Draws faults at random and brings them about, one after another and several at a time.

What happens when is drawn before anything happens: the same seed gives the same sequence. Who it happens to is drawn
among those to whom it can happen then. A fault that cannot happen now (its recovery could not be measured, since no
other worker is fit to take over) waits for its turn.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import psycopg

from tests.chaos.observer import Observer
from tests.chaos.server import Server
from tests.chaos.strangers import Stranger, end_a_backend
from tests.chaos.users import Users
from tests.chaos.workers import Ended, Fleet, Worker

DECK = {
    "kill": 21,
    "kill all": 1,
    "zombie": 5,
    "terminate": 4,
    "server restart": 2,
    "network cut": 2,
    "black hole": 1,
    "backend ended": 12,
    "idle connections": 1,
    "open snapshot": 2,
    "locked rows": 4,
}
"""Faults in every two minutes."""
DECK_SECONDS = 120.0
_ZOMBIE_WAKES_AFTER = 30.0
_RESTARTED_AFTER = 0.5
_WAITS_FOR_A_BUSY_ONE = 3.0


@dataclass(frozen=True)
class Draw:
    """One fault to come."""

    at: float
    """Seconds after the start."""
    kind: str
    seed: int
    """Of its own choices."""


def draw(seed: int, seconds: float) -> list[Draw]:
    """Returns the faults of a run: a shuffled deck for every two minutes, spread evenly at random."""
    random = Random(f"{seed}/faults")
    drawn: list[Draw] = []
    begin = 0.0
    while begin < seconds:
        for kind, count in DECK.items():
            drawn += [Draw(begin + random.uniform(0, DECK_SECONDS), kind, random.getrandbits(32)) for _ in range(count)]
        begin += DECK_SECONDS
    return sorted((one for one in drawn if one.at < seconds), key=lambda one: one.at)


@dataclass(frozen=True)
class _Undo:
    """What ends a fault: done at a time, or earlier where a condition comes true."""

    at: float
    action: Callable[[], None]
    when: Callable[[], bool] = lambda: False


class Driver:
    """Brings faults about from its own thread, the harness's main one."""

    def __init__(self, fleet: Fleet, server: Server, observer: Observer, users: Users | None, seed: int) -> None:
        self.faults: Counter[str] = Counter()
        """Faults that happened, by kind."""
        self.ended: list[Ended] = []
        """Processes that ended otherwise than they were made to."""
        self.poisoned = 0
        """Processes killed by a poisonous row."""
        self.not_started = 0
        """Processes that ended at their start, since the database could not be reached."""
        self.downtimes: list[float] = []
        """Seconds for which the server was down."""
        self._fleet = fleet
        self._server = server
        self._observer = observer
        self._users = users
        self._random = Random(f"{seed}/workers")
        self._undo: list[_Undo] = []
        self._patient = False

    def run(self, faults: Sequence[Draw], seconds: float) -> None:
        """Works through the faults for so long; less long where a vectorizer is blocked, since that is wrong anyway."""
        start = time.monotonic()
        waiting = list(faults)
        while (now := time.monotonic() - start) < seconds and not self._observer.blocked:
            for one in [one for one in waiting if one.at <= now]:
                self._patient = now - one.at < _WAITS_FOR_A_BUSY_ONE
                if self.perform(one.kind, Random(one.seed)):
                    waiting.remove(one)
            self.tend()
            time.sleep(0.05)

    def tend(self) -> None:
        """Ends faults whose time is up, and starts workers anew where one has ended."""
        now = time.monotonic()
        for undo in list(self._undo):
            if now >= undo.at or undo.when():
                self._undo.remove(undo)
                undo.action()
        for ended in self._fleet.ended():
            if ended.why == "poison":
                self.poisoned += 1
            elif ended.why == "not started":
                self.not_started += 1
            elif ended.why not in ("killed", "told"):
                self.ended.append(ended)
        for worker in self._fleet.workers:
            if worker.process is None and now - worker.free_since > _RESTARTED_AFTER:
                clock = self._random.choice((0, 0, 0, -7, 9))
                self._fleet.start(worker, clock=clock)
                self.faults["clock off"] += bool(worker.clock)
        if self._users is not None:
            self._users.check()

    def calm(self) -> None:
        """Ends every fault that is under way."""
        for undo in self._undo:
            undo.action()
        self._undo.clear()

    def perform(self, kind: str, random: Random) -> bool:
        """Brings a fault about; False where it is not possible now."""
        if not self._server.up:
            return False
        try:
            performed = _FAULTS[kind](self, random)
        except psycopg.Error:
            return False  # A stranger's connection met another fault.
        # Whether it was a zombie is known when it wakes up.
        self.faults[kind] += performed and kind != "zombie"
        return performed

    def kill(self, random: Random) -> bool:
        worker = self._victim(random)
        if worker is None:
            return False
        worker.kill()
        self._observer.killed(worker.pid, worker.ended_at)
        return True

    def kill_all(self, random: Random) -> bool:
        for worker in self._fleet.workers:
            if worker.process is not None and worker.ending is None:
                worker.kill()
                self._observer.killed(worker.pid, worker.ended_at)
        return True

    def terminate(self, random: Random) -> bool:
        worker = self._victim(random)
        if worker is None:
            return False
        worker.tell_to_leave()
        return True

    def zombie(self, random: Random) -> bool:
        """Stops a worker until somebody has taken its jobs, and then lets it go on."""
        worker = self._victim(random)
        sample = self._observer.latest
        if worker is None or sample is None:
            return False
        ids = sample.ids(worker.pid)
        worker.stop()

        def is_replaced() -> bool:
            now = self._observer.latest
            if now is None or now.jobs(ids):
                return False
            return all(id_ not in now.workers or now.workers[id_][1] for id_ in ids)

        def wake() -> None:
            self.faults["zombie" if is_replaced() else "stopped for a while"] += 1
            worker.go_on()

        self._undo.append(_Undo(time.monotonic() + _ZOMBIE_WAKES_AFTER, wake, is_replaced))
        return True

    def restart_server(self, random: Random) -> bool:
        """An immediate shutdown; mostly up again at once, sometimes only after the leases have run out."""
        if self._observer.latest is None:
            return False
        went = time.monotonic()
        self._observer.crashed()
        self._server.crash()
        time.sleep(random.choice((0.0, 0.0, 0.5, 2.0, self._fleet.lease + 1.0)))
        self._server.start()
        assert self._server.accepts_since is not None
        self.downtimes.append(self._server.accepts_since - went)
        self._observer.restarted(self._server.accepts_since)
        return True

    def cut(self, random: Random) -> bool:
        victims = self._cut_off(random)
        for worker in victims:
            worker.proxy.cut()
        self._heal_later(victims, random.uniform(0.3, 1.5 * self._fleet.lease), reset=False)
        return bool(victims)

    def swallow(self, random: Random) -> bool:
        victims = self._cut_off(random)
        for worker in victims:
            worker.proxy.swallow()
        self._heal_later(victims, random.uniform(0.5, 2.5 * self._fleet.lease), reset=random.random() < 0.3)
        return bool(victims)

    def end_backend(self, random: Random) -> bool:
        return end_a_backend(self._server, random) is not None

    def idle(self, random: Random) -> bool:
        return self._visit(random.uniform(10, 30), Stranger.idle)

    def hold_snapshot(self, random: Random) -> bool:
        return self._visit(random.uniform(5, 30), Stranger.hold_snapshot)

    def hold_rows(self, random: Random) -> bool:
        return self._visit(random.uniform(1, 6), lambda stranger: stranger.hold_rows(random))

    def _visit(self, seconds: float, act: Callable[[Stranger], None]) -> bool:
        stranger = Stranger(self._server)
        try:
            act(stranger)
        except psycopg.Error:
            stranger.leave()
            raise
        self._undo.append(_Undo(time.monotonic() + seconds, stranger.leave))
        return True

    def _victim(self, random: Random) -> Worker | None:
        """Picks a worker, rather one with jobs; None unless another one could take over from it."""
        sample = self._observer.latest
        judges = self._observer.judges()
        able = [worker for worker in self._fleet.workers if worker.able and judges - {worker.pid}]
        if sample is None or not able:
            return None
        busy = [worker for worker in able if sample.jobs(sample.ids(worker.pid))]
        if not busy and self._patient:
            return None
        return random.choice(busy or able)

    def _cut_off(self, random: Random) -> list[Worker]:
        """Picks those on the far side of a cut: some, with one left that could take over; now and then, all."""
        able = [worker for worker in self._fleet.workers if worker.able]
        if random.random() < 0.2:
            return able
        victims: list[Worker] = []
        judges = self._observer.judges()
        for worker in random.sample(able, len(able)):
            if judges - {victim.pid for victim in victims} - {worker.pid}:
                victims.append(worker)
        return victims[: random.choice((1, 1, 2, 3))]

    def _heal_later(self, workers: Sequence[Worker], seconds: float, *, reset: bool) -> None:
        def heal() -> None:
            for worker in workers:
                worker.proxy.heal(reset=reset)

        self._undo.append(_Undo(time.monotonic() + seconds, heal))


_FAULTS: dict[str, Callable[[Driver, Random], bool]] = {
    "kill": Driver.kill,
    "kill all": Driver.kill_all,
    "zombie": Driver.zombie,
    "terminate": Driver.terminate,
    "server restart": Driver.restart_server,
    "network cut": Driver.cut,
    "black hole": Driver.swallow,
    "backend ended": Driver.end_backend,
    "idle connections": Driver.idle,
    "open snapshot": Driver.hold_snapshot,
    "locked rows": Driver.hold_rows,
}
