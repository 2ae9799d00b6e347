"""Who owns the rows of a schema: a lock that ends with the process, and a fence for its writes."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final, TypeAlias

import asyncpg

from kvpersist.errors import StoreInUseError

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

_SETTINGS: Final = {
    # The transaction is idle for as long as the bot runs, which servers may forbid.
    "idle_in_transaction_session_timeout": "0",
    "transaction_timeout": "0",
    # When the bot's machine is gone the server notices after half a minute, not after two hours.
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
}
_SET: Final = """
    SELECT set_config(setting.name, wanted.value, true)
    FROM unnest($1::text[], $2::text[]) AS wanted (name, value)
    JOIN pg_settings AS setting USING (name)
"""
"""Those that the server knows, for this transaction."""


class OwnerLock:
    """An advisory lock, held by a transaction that stays open on a connection of its own.

    One bot has it for itself, or any number of workers have it together.

    The server ends the transaction, and so the lock, when the connection ends, however the process
    does. A lock of the session would do the same but behind a pooler in transaction mode, where
    the session is not the bot's. The transaction has written nothing and keeps no snapshot
    (READ COMMITTED), so that it does not hold up VACUUM.

    Args:
        connect: Makes a connection.
        schema: What is locked; every database has locks of its own.
        wait: Seconds to wait for an owner that is about to end.
        is_shared: Whether others may have it too that share it.
    """

    def __init__(
        self,
        connect: Callable[[], Awaitable[Connection]],
        schema: str,
        wait: float,
        *,
        is_shared: bool,
    ) -> None:
        self._connect = connect
        self._schema = schema
        self._is_shared = is_shared
        self._settings = {**_SETTINGS, "lock_timeout": f"{max(1, round(wait * 1000))}ms"}
        self._connection: Connection | None = None

    @property
    def is_held(self) -> bool:
        """Whether the connection was not lost, as far as this process knows."""
        return self._connection is not None and not self._connection.is_closed()

    async def take(self) -> None:
        """Wait for the lock.

        Raises:
            StoreInUseError: Another bot has it.
            Exception: Those of asyncpg.
        """
        connection = await self._connect()
        try:
            await connection.transaction(isolation="read_committed").start()
            await connection.fetch(_SET, list(self._settings), list(self._settings.values()))
            # Without parameters, so that it is a simple query: what asyncpg prepares keeps its
            # portal, and so a snapshot, until the next statement.
            lock = "pg_advisory_xact_lock_shared" if self._is_shared else "pg_advisory_xact_lock"
            await connection.execute(f"SELECT {lock}({lock_key('owner', self._schema)})")
        except BaseException as error:
            connection.terminate()
            if isinstance(error, asyncpg.LockNotAvailableError):
                raise StoreInUseError(in_use(self._schema)) from None
            raise
        self._connection = connection

    async def release(self, timeout: float) -> None:
        """Let others have it, at once if the server can be reached within `timeout` seconds."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):  # whatever it is, the server lets go by itself
                await asyncio.wait_for(connection.execute("ROLLBACK"), timeout)
            connection.terminate()


def in_use(schema: str) -> str:
    """Return what is said of a schema that others have open, who do not share it."""
    return (
        f"another bot has the schema {schema!r} open; stop that one first, or start all of them "
        "with shared=True"
    )


def lock_key(purpose: str, schema: str) -> int:
    """Return the 64 bits that PostgreSQL knows an advisory lock by."""
    name = f"kvpersist {purpose} {schema}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "big", signed=True)
