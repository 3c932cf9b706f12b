"""``python -m tests.hosts.relay PORT HOST PORT SECONDS``: a long way to a server.

Listens at 127.0.0.1 and forwards; whatever is sent arrives so many seconds later, either way. Nothing is lost, and what
was sent within that time is under way together, as on a long line.
"""

from __future__ import annotations

import asyncio
import sys


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def arrive() -> None:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - loop.time())
            if not data:
                return
            writer.write(data)
            await writer.drain()

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(arrive())
        while True:
            data = await reader.read(1 << 16)
            under_way.put_nowait((loop.time() + seconds, data))
            if not data:
                break
    if writer.can_write_eof():
        writer.write_eof()


async def _serve(port: int, host: str, there: int, seconds: float) -> None:
    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, there)
            try:
                await asyncio.gather(_carry(reader, far_writer, seconds), _carry(far_reader, writer, seconds))
            finally:
                far_writer.close()
        except (OSError, ExceptionGroup):
            pass  # Either end has gone, and so goes the other.
        finally:
            writer.close()

    listener = await asyncio.start_server(forward, "127.0.0.1", port)
    async with listener:
        await listener.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])))
