"""`python -m tests.hosts.delay PORT HOST PORT SECONDS`: a TCP proxy through which every byte takes longer."""

from __future__ import annotations

import asyncio
import contextlib
import sys

BLOCK_BYTES = 65536


async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter, *, seconds: float) -> None:
    """Hand on what comes, each block so long after it came. What is under way is not held up by itself."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(maxsize=1000)

    async def deliver() -> None:
        while True:
            due, block = await under_way.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not block:
                return
            target.write(block)
            await target.drain()

    delivering = asyncio.create_task(deliver())
    with contextlib.suppress(OSError):
        while block := await source.read(BLOCK_BYTES):
            await under_way.put((loop.time() + seconds, block))
    await under_way.put((loop.time() + seconds, b""))
    with contextlib.suppress(OSError):
        await delivering
    target.close()


async def main(port: int, *, host: str, to: int, seconds: float) -> None:
    """Serve until killed."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there_reader, there_writer = await asyncio.open_connection(host, to)
        except OSError:
            writer.close()
            return
        await asyncio.gather(
            pump(reader, there_writer, seconds=seconds), pump(there_reader, writer, seconds=seconds)
        )

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    own_port, other_host, other_port, delay_seconds = sys.argv[1:]
    asyncio.run(main(int(own_port), host=other_host, to=int(other_port), seconds=float(delay_seconds)))
