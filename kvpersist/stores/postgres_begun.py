"""Connections on which a transaction has begun already, so that beginning one costs no round trip.

A pool of asyncpg's would end each transaction before it lends a connection again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

from kvpersist.errors import UnavailableError
from kvpersist.stores.postgres_statements import BEGIN
from kvpersist.turns import acquired

if TYPE_CHECKING:
    import asyncpg

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]


class BegunConnections:
    """A limited number of connections, each in a transaction in which nothing was done.

    Such a transaction has no snapshot and no id: it holds up neither ``VACUUM`` nor replication.

    Args:
        connect: Makes a connection.
        size: How many can be used at the same time.
        patience: Seconds to wait for one that others use.
    """

    def __init__(
        self, connect: Callable[[], Awaitable[Connection]], size: int, patience: float
    ) -> None:
        self._connect = connect
        self._size = size
        self._patience = patience
        self._free = asyncio.Semaphore(size)
        self._idle: list[Connection] = []
        self._is_closed = False

    async def acquire(self) -> Connection:
        """Return a connection that nobody else uses; wait for one if that is needed.

        Raises:
            UnavailableError: None has become free in time.
            Exception: Those of asyncpg.
        """
        if not await acquired(self._free, self._patience):
            raise UnavailableError(
                f"as many updates and edits as pool_size={self._size} allows have gone on for "
                f"{self._patience:g} seconds: see what their handlers wait for (an edit in another "
                "task needs a connection of its own), or give PostgresStore another pool_size"
            )
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
        """Give a connection back.

        One on which no new transaction has begun is closed, and so is any after `close`.
        """
        if is_begun and not self._is_closed and not connection.is_closed():
            self._idle.append(connection)
        else:
            connection.terminate()
        self._free.release()

    async def close(self, timeout: float) -> None:
        """Disconnect those that nobody uses, within `timeout` seconds; others when they end."""
        self._is_closed = True
        while self._idle:
            with suppress(Exception):  # asyncpg terminates what it cannot close
                await self._idle.pop().close(timeout=timeout)
