"""How many requests a client may make: a steady rate, and ten seconds' worth of it at once.

The generic cell rate algorithm (ITU-T I.371): one number per client, the time at which it would have used up what it
had. Clients beyond the most that are remembered push out those that were silent longest.
"""

from __future__ import annotations

import ipaddress
import time
from collections import OrderedDict
from collections.abc import Callable

MOST = 10_000
_BURST_SECONDS = 10.0


class Rates:
    """The rates of all clients of one gateway; used by its event loop alone."""

    def __init__(self, per_minute: int, *, most: int = MOST, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval = 60.0 / per_minute
        self._tolerance = max(_BURST_SECONDS - self._interval, 0.0)
        self._most = most
        self._clock = clock
        self._used_up: OrderedDict[str, float] = OrderedDict()

    def take(self, client: str) -> float:
        """Counts a request; returns 0 where it may be done, else the seconds after which the next one may."""
        now = self._clock()
        used_up = max(self._used_up.get(client, now), now)
        wait = used_up - now - self._tolerance
        if wait > 0:
            return wait
        self._used_up[client] = used_up + self._interval
        self._used_up.move_to_end(client)
        if len(self._used_up) > self._most:
            self._used_up.popitem(last=False)
        return 0.0


def network(address: str) -> str:
    """Returns what an address is counted as: itself, or of IPv6 the /64 that one client has as a rule."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    return str(ipaddress.ip_network(f"{found}/64", strict=False).network_address)
