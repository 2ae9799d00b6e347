"""A network between a bot and a server, which can be cut at any moment."""

from __future__ import annotations

import asyncio
from asyncio import StreamReader, StreamWriter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class TcpProxy:
    """Passes on what comes, until it is told otherwise.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        requests: How often clients sent something, a statement of few rows each time.
        swallow: Whether the next answer is swallowed, and its connection cut.
        is_down: Whether new connections are cut at once.
        swallow_to: The answer to a request that has this in it is swallowed, once.
        lose: A request that has this in it is not passed on, but its connection cut, once.
    """

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._writers: set[StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last: StreamWriter | None = None
        self.port = 0
        self.requests = 0
        self.swallow = False
        self.is_down = False
        self.swallow_to = b""
        self.lose = b""

    def cut(self) -> None:
        """Cut all connections there are."""
        for writer in self._writers:
            writer.transport.abort()

    def cut_last(self) -> None:
        """Cut the connection by which a client has sent something last."""
        assert self._last is not None
        self._last.transport.abort()

    async def _connect(self, reader: StreamReader, writer: StreamWriter) -> None:
        if self.is_down:
            writer.transport.abort()
            return
        above, below = await asyncio.open_connection("127.0.0.1", self._to_port)
        self._writers |= {writer, below}

        def cut(_: object) -> None:
            writer.transport.abort()
            below.transport.abort()

        for pump in (self._send(reader, below), self._answer(above, writer)):
            task = asyncio.create_task(pump)
            self._tasks.add(task)
            task.add_done_callback(cut)

    async def _send(self, reader: StreamReader, writer: StreamWriter) -> None:
        while data := await _read(reader):
            self.requests += 1
            self._last = writer
            if self.lose and self.lose in data:
                self.lose = b""
                return
            if self.swallow_to and self.swallow_to in data:
                self.swallow_to = b""
                self.swallow = True
            writer.write(data)

    async def _answer(self, reader: StreamReader, writer: StreamWriter) -> None:
        while (data := await _read(reader)) and not self.swallow:
            writer.write(data)
        self.swallow = False

    async def end(self) -> None:
        """Cut all, and wait until that is done."""
        self.cut()
        await asyncio.gather(*self._tasks)


async def _read(reader: StreamReader) -> bytes:
    try:
        return await reader.read(1 << 20)
    except ConnectionError:
        return b""


@asynccontextmanager
async def proxied(port: int) -> AsyncIterator[TcpProxy]:
    """Run a proxy to a port of this machine."""
    proxy = TcpProxy(port)
    server = await asyncio.start_server(proxy._connect, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        await proxy.end()
