"""A TCP proxy between one worker and the server, whose network can be cut.

- ``cut``: connections are reset and new ones refused, as when a host or a link goes down.
- ``swallow``: connections stay open, new ones seem to open, and nothing comes through either way: a black hole.
- ``heal``: all is well again. What was in the black hole arrives late, as TCP sends it again, or is reset.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

from tests.chaos.server import free_port

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Network:
    """The thread in which all proxies of the harness run."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine in the network's thread to its end."""
        asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    def close(self) -> None:
        """Ends the thread; every proxy has been closed before."""

        async def all_ended() -> None:
            others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            if others:
                await asyncio.wait(others, timeout=10)

        self.run(all_ended())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


class Proxy:
    """Listens on a port of its own and forwards to the server's; its methods may be called from any thread."""

    def __init__(self, network: Network, target_port: int) -> None:
        self.port = free_port()
        self.state = "open"
        """``open``, ``cut`` or ``swallowing``."""
        self._network = network
        self._target_port = target_port
        self._flows = asyncio.Event()
        self._flows.set()
        self._listener: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        network.run(self._listen())

    def retarget(self, port: int) -> None:
        """Connections that are made from now on go to another server."""
        self._target_port = port

    def cut(self) -> None:
        self.state = "cut"
        self._network.run(self._cut())

    def swallow(self) -> None:
        self.state = "swallowing"
        self._network.run(self._swallow())

    def heal(self, *, reset: bool = False) -> None:
        """``reset``: connections that were open in the black hole end instead of going on."""
        self._network.run(self._heal(reset))
        self.state = "open"

    def close(self) -> None:
        self.cut()
        # Whoever waits in the black hole finds its connection gone.
        self._network.run(self._let_flow())

    async def _cut(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        self._reset_all()

    async def _swallow(self) -> None:
        self._flows.clear()

    async def _let_flow(self) -> None:
        self._flows.set()

    async def _heal(self, reset: bool) -> None:
        if reset:
            self._reset_all()
        self._flows.set()
        if self._listener is None:
            await self._listen()

    async def _listen(self) -> None:
        self._listener = await asyncio.start_server(self._forward, "127.0.0.1", self.port, backlog=200)

    def _reset_all(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        try:
            await self._flows.wait()
            there_reader, there = await asyncio.open_connection("127.0.0.1", self._target_port)
            self._open.add(there)
            try:
                await asyncio.gather(self._pump(reader, there), self._pump(there_reader, writer))
            finally:
                self._open.discard(there)
                _reset(there)
        except OSError:
            pass  # The server is down or has gone: the worker sees its connection end as well.
        finally:
            self._open.discard(writer)
            _reset(writer)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._flows.wait()
            writer.write(data)
            await writer.drain()
        await self._flows.wait()
        if writer.can_write_eof():
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection at once, with a reset rather than an orderly end."""
    connected = writer.get_extra_info("socket")
    if connected is not None and not writer.transport.is_closing():
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        writer.transport.abort()
