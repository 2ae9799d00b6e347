"""Whose turn it is: updates of one process that want the same documents, in the order they came."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from kvpersist.errors import LockError


class Turns:
    """Lets one at a time have a key, first come, first served.

    Whoever waits here keeps nobody else waiting, and needs no connection to the store.

    Args:
        timeout: Seconds to wait for a key.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    @asynccontextmanager
    async def take(self, keys: Iterable[str]) -> AsyncIterator[None]:
        """Have keys while the body runs.

        Raises:
            LockError: Another has had one for too long.
        """
        taken: list[asyncio.Lock] = []
        try:
            for key in sorted(set(keys)):  # in one order, so that no two wait for each other
                lock = self._locks.setdefault(key, asyncio.Lock())
                if not await acquired(lock, self._timeout):
                    raise LockError(
                        f"another update of this worker has not given it back for "
                        f"{self._timeout:g} seconds: see what its handlers wait for, or give "
                        "PostgresStore another hold_timeout",
                        keys=[key],
                    )
                taken.append(lock)
            yield
        finally:
            for lock in reversed(taken):
                lock.release()


async def acquired(lock: asyncio.Lock | asyncio.Semaphore, timeout: float) -> bool:
    """Wait for a lock for at most `timeout` seconds; return whether it came in time."""
    if not lock.locked():
        return await lock.acquire()
    acquiring = asyncio.ensure_future(lock.acquire())
    try:
        # Not `wait_for`, which may lose a lock that it has got when it is cancelled.
        await asyncio.wait([acquiring], timeout=timeout)
    except BaseException:
        if not acquiring.cancel() and not acquiring.cancelled():
            lock.release()
        raise
    return acquiring.done() or not acquiring.cancel()
