"""The connections of one event loop to a PostgreSQL server: a pool, and the one of the lock."""

from __future__ import annotations

import asyncio
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import asyncpg

from kvpersist.stores.postgres_begun import BegunConnections
from kvpersist.stores.postgres_owner import OwnerLock
from kvpersist.stores.postgres_schema import prepare, quoted

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]
    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]


_FOR_ALL_ELSE: Final = 2
"""Connections of a worker that are not for transactions."""


class Connections:
    """What a store has open. It connects when that is needed, for the lock in `OwnerLock.take`.

    Args:
        url: Where.
        schema: What ``{schema}`` stands for in statements.
        pool_size: The most connections of the pool.
        lock_timeout: Seconds to wait for the lock.
        options: Those of ``asyncpg.connect``, ``timeout`` and ``statement_cache_size`` among them.
        patience: Seconds to wait for one of `transactions`.
        is_shared: Whether workers share the schema; then there is `transactions`.

    Attributes:
        pool: What statements run on that are a transaction of their own.
        transactions: What the transactions of workers run on.
        lock: What keeps other bots out.
        loop: Where all of it can be used.
        epoch: That of the next write; None after one whose end is not known.
        writing: Held by who writes.
    """

    def __init__(
        self,
        url: str,
        schema: str,
        pool_size: int,
        lock_timeout: float,
        options: dict[str, Any],
        *,
        patience: float,
        is_shared: bool,
    ) -> None:
        self._url = url
        self._schema = schema
        self._options = options
        self._timeout: float = options["timeout"]
        self._all: weakref.WeakSet[Connection] = weakref.WeakSet()
        # No floor: asyncpg would connect again in the background while the server is away.
        self.pool: Pool = asyncpg.create_pool(
            min_size=0,
            max_size=_FOR_ALL_ELSE if is_shared else pool_size,
            connect=self._connect,
            reset=_keep,
        )
        self.transactions = (
            BegunConnections(self._connect, pool_size, patience) if is_shared else None
        )
        self.lock = OwnerLock(self._connect, schema, lock_timeout, is_shared=is_shared)
        self.loop = asyncio.get_running_loop()
        self.epoch: int | None = None
        self.writing = asyncio.Lock()

    async def prepare(self) -> None:
        """Make the pool, and the tables where they are missing: see `postgres_schema.prepare`."""
        await self.pool
        async with self.pool.acquire(timeout=self._timeout) as connection:
            await prepare(connection, self._schema, is_shared=self.transactions is not None)

    async def run(self, sql: str, *parameters: object) -> list[asyncpg.Record]:
        """Return the rows of a statement, which is a transaction of its own.

        Raises:
            Exception: Those of asyncpg.
        """
        sql = sql.replace("{schema}", quoted(self._schema))
        async with self.pool.acquire(timeout=self._timeout) as connection:
            if self._options["statement_cache_size"]:
                return await connection.fetch(sql, *parameters)
            # Without a name a statement is prepared in one round trip and run in the next, which
            # a pooler in transaction mode would send to two servers.
            async with connection.transaction(isolation="read_committed"):
                return await connection.fetch(sql, *parameters)

    async def value(self, sql: str, *parameters: object) -> int | None:
        """Return the number in the only row of a statement; None if it has no row."""
        rows = await self.run(sql, *parameters)
        return int(rows[0][0]) if rows else None

    async def close(self) -> None:
        """Disconnect; what does not end in time is cut."""
        with suppress(Exception):  # asyncpg terminates what it cannot close
            await asyncio.wait_for(self.pool.close(), self._timeout)
        if self.transactions is not None:
            await self.transactions.close(self._timeout)
        await self.lock.release(self._timeout)

    def abandon(self) -> None:
        """Tell the server that the connections end. Nothing of a dead loop can be awaited.

        Their sockets are closed when they are collected as garbage.
        """
        for connection in self._all:
            with suppress(RuntimeError):  # of a closed loop, after the server was told
                connection.terminate()

    async def _connect(self, *_: object, **options: Any) -> Connection:
        connection: Connection = await asyncpg.connect(self._url, **{**options, **self._options})
        self._all.add(connection)
        return connection


async def _keep(_: object) -> None:
    """Leave a connection as it is: by itself asyncpg asks the server to, a round trip each time."""
