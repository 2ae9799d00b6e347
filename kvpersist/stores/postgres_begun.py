"""Connections on which a transaction has begun already, so that beginning one costs no round trip.

A pool of asyncpg's would end each transaction before it lends a connection again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from kvpersist.stores.postgres_statements import BEGIN

if TYPE_CHECKING:
    import asyncpg

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]


class BegunConnections:
    """A limited number of connections, each in a transaction in which nothing was done.

    Such a transaction has no snapshot and no id: it holds up neither ``VACUUM`` nor replication.

    Args:
        connect: Makes a connection.
        size: How many can be used at the same time.
    """

    def __init__(self, connect: Callable[[], Awaitable[Connection]], size: int) -> None:
        self._connect = connect
        self._free = asyncio.Semaphore(size)
        self._idle: list[Connection] = []

    async def acquire(self) -> Connection:
        """Return a connection that nobody else uses; wait for one if that is needed.

        Raises:
            Exception: Those of asyncpg.
        """
        await self._free.acquire()
        try:
            while self._idle:  # the one that was used last, so that others are left to time out
                if not (connection := self._idle.pop()).is_closed():
                    return connection
            return await self._new()
        except BaseException:
            self._free.release()
            raise

    async def _new(self) -> Connection:
        connection = await self._connect()
        try:
            await connection.execute(BEGIN)
        except BaseException:
            connection.terminate()
            raise
        return connection

    def release(self, connection: Connection, *, is_begun: bool) -> None:
        """Give a connection back; one on which no new transaction has begun is closed."""
        if is_begun and not connection.is_closed():
            self._idle.append(connection)
        else:
            connection.terminate()
        self._free.release()

    async def close(self, timeout: float) -> None:
        """Disconnect those that nobody uses, within `timeout` seconds."""
        while self._idle:
            with suppress(Exception):  # asyncpg terminates what it cannot close
                await self._idle.pop().close(timeout=timeout)
