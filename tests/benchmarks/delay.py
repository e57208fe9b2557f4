"""A way to a server that takes longer: what is sent arrives after a while, in order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_BLOCK = 1 << 16


@contextmanager
def delayed(host: str, port: int, seconds: float) -> Iterator[int]:
    """Return a local port whose connections lead to a server; requests take longer to arrive."""
    loop = asyncio.new_event_loop()
    ports: list[int] = []
    ready = threading.Event()

    async def serve() -> None:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            from_server, to_server = await asyncio.open_connection(host, port)
            await asyncio.gather(
                _pass_on(reader, to_server, seconds),
                _pass_on(from_server, writer, 0.0),
                return_exceptions=True,
            )

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        async with server:
            await server.serve_forever()

    def run() -> None:
        with suppress(asyncio.CancelledError):
            loop.run_until_complete(serve())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    ready.wait()
    try:
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(lambda: [task.cancel() for task in asyncio.all_tasks(loop)])
        thread.join(5)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
) -> None:
    """Send what is read, each block so many seconds after it came."""
    loop = asyncio.get_running_loop()
    blocks: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(64)

    async def send() -> None:
        while True:
            due, block = await blocks.get()
            if (wait := due - loop.time()) > 0:
                await asyncio.sleep(wait)
            if not block:
                break
            writer.write(block)
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()

    sending = asyncio.ensure_future(send())
    try:
        while block := await reader.read(_BLOCK):
            await blocks.put((loop.time() + seconds, block))
        await blocks.put((loop.time() + seconds, b""))
        await sending
    except ConnectionError:
        sending.cancel()
        writer.close()
