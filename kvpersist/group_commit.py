"""Group commit: all writes that are waiting at one moment share one transaction.

While one commit is on its way to the disk, the writes that arrive form the next one: DeWitt et al.,
"Implementation Techniques for Main Memory Database Systems" (SIGMOD 1984), section 5.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Mapping
from typing import Final, TypeAlias

from kvpersist.errors import WriteError
from kvpersist.stores.store import Store

_LOGGER = logging.getLogger("kvpersist")

FIRST_RETRY_DELAY: Final = 1.0
"""Seconds between a refused write and the first time it is tried again by itself."""
LAST_RETRY_DELAY: Final = 60.0
"""Seconds that the growing delay between two tries does not exceed."""

_NOTHING: Final = b""
"""No row is empty."""

Waiter: TypeAlias = "asyncio.Future[Exception | None]"

# Python seeds its hash with a random number, unless it is told one that others may know.
_SEED: Final = os.urandom(16) if "PYTHONHASHSEED" in os.environ else b""


class GroupCommit:
    """Writes rows to a store, many writes a transaction, and keeps those that the store refused.

    It remembers a fingerprint of each row that it knows the store to hold, so that a row which has
    not changed costs nothing.

    Notes:
        All calls must come from the thread of a running event loop. When the loop changes (an
        `Application` that is initialised again), what the old one left behind is written by the
        new one.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._pending: dict[str, bytes | None] = {}
        self._in_flight: dict[str, bytes | None] = {}
        self._known: dict[str, int | tuple[int, ...]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiters: list[Waiter] = []
        self._in_flight_waiters: list[Waiter] = []
        self._committer: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._retry_delay = FIRST_RETRY_DELAY

    def is_pending(self, key: str) -> bool:
        """Whether a value of this row is waiting or on its way, so that the store is behind."""
        return key in self._pending or key in self._in_flight

    def remember(self, key: str, *texts: bytes) -> None:
        """Note that the store holds this row, as one of `texts`, which mean the same value."""
        self._known[key] = tuple([_fingerprint(text) for text in texts])

    def remember_as_read(self, key: str, text: bytes) -> None:
        """Note that the store holds this row, which somebody may have laid out in another way."""
        self._known[key] = _fingerprint(text)

    def is_as_read(self, key: str) -> bool:
        """Whether nobody has looked yet if the row is laid out as kvpersist would do it."""
        return type(self._known.get(key)) is int

    def forget(self, key: str) -> None:
        """Note that the store does not hold this row, as far as is known."""
        self._known.pop(key, None)

    def forget_all(self, prefix: str) -> None:
        """Note that nothing is known of the rows whose keys begin with `prefix`."""
        self._known = {
            key: known for key, known in self._known.items() if not key.startswith(prefix)
        }

    def known(self, key: str) -> object:
        """Return a token for what the store is known to hold; it differs after every change."""
        return self._known.get(key)

    def holds(self, key: str, text: bytes) -> bool:
        """Whether the store is known to hold this row with this value, last this class heard."""
        known = self._known.get(key)
        if type(known) is tuple:
            return _fingerprint(text) in known
        return _fingerprint(text) == known

    async def write(self, changes: Mapping[str, bytes | None]) -> None:
        """Write rows; None removes one. When this returns they are durable.

        Rows that the store is known to hold already are left out. Any number of calls may wait at
        the same time; of two values for one row the later call's is the one that lasts. A caller
        that is cancelled gives up waiting, not the write.

        Raises:
            WriteError: The store refused. The rows are kept and will be tried again.
        """
        changed = {key: text for key, text in changes.items() if self._is_news(key, text)}
        if changed and (error := await self._put(changed)) is not None:
            raise WriteError(_kept(error), keys=changed) from error

    async def write_row(self, key: str, text: bytes) -> None:
        """Write one row. As `write`."""
        if self._is_news(key, text) and (error := await self._put({key: text})) is not None:
            raise WriteError(_kept(error), keys=[key]) from error

    def put(self, changes: Mapping[str, bytes | None]) -> bool:
        """Write rows, as `write`, without waiting for it; return whether there is something to do.

        `settled` waits for it, and raises what `write` would.
        """
        changed: dict[str, bytes | None] = {}
        for key, text in changes.items():
            waiting = self._pending.get(key, self._in_flight.get(key, _NOTHING))
            if text != waiting and (waiting is not _NOTHING or self._is_news(key, text)):
                changed[key] = text
        if changed:
            self._put(changed)
        return bool(changed)

    async def settled(self) -> None:
        """Wait until all that is waiting now is durable.

        Raises:
            WriteError: The store refused. The rows are kept and will be tried again.
        """
        if self._pending:
            error = await self._join_next_commit()
        elif self._in_flight:
            error = await self._join(self._in_flight_waiters)
        else:
            return
        if error is not None:
            raise WriteError(_kept(error), keys=self._pending) from error

    def _is_news(self, key: str, text: bytes | None) -> bool:
        return text is None or self.is_pending(key) or not self.holds(key, text)

    def _put(self, changed: Mapping[str, bytes | None]) -> Waiter:
        if self._loop is not asyncio.get_running_loop():
            self._move_to_running_loop()
        self._pending.update(changed)
        return self._join_next_commit()

    async def flush(self) -> None:
        """Write everything that is waiting.

        Raises:
            WriteError: With all rows that could not be written. They are kept.
        """
        self._move_to_running_loop()
        while self._pending or self._in_flight:
            if (error := await self._join_next_commit()) is not None:
                raise WriteError(_kept(error), keys=self._pending) from error

    async def close(self) -> None:
        """Write everything that is waiting, then close the store, even if that write failed.

        Raises:
            WriteError: As `flush` does. The rows are kept; a later `write` or `flush` opens the
                store again.
        """
        try:
            await self.flush()
        finally:
            self._cancel_retry()
            await self._store.close()

    def _move_to_running_loop(self) -> None:
        """Take over what an event loop left that ended without `close`.

        Whether its last commit reached the store is unknown; writing it again is harmless.
        """
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop = loop
        self._committer = self._retry = None
        self._waiters = []
        self._in_flight_waiters = []
        self._keep_in_flight()

    def _join_next_commit(self) -> Waiter:
        """Return what becomes of the commit that begins next, with all that is waiting then."""
        if self._committer is None:
            loop = asyncio.get_running_loop()
            self._committer = loop.create_task(self._commit_all(), name="kvpersist:commit")
        return self._join(self._waiters)

    def _join(self, waiters: list[Waiter]) -> Waiter:
        # A future for each who waits: one that is cancelled leaves the others as they are.
        waiter: Waiter = asyncio.get_running_loop().create_future()
        waiters.append(waiter)
        return waiter

    async def _commit_all(self) -> None:
        try:
            while self._waiters:
                self._in_flight_waiters, self._waiters = self._waiters, []
                error = await self._commit_pending()
                for waiter in self._in_flight_waiters:
                    if not waiter.done():
                        waiter.set_result(error)
        finally:
            for waiter in (*self._in_flight_waiters, *self._waiters):
                waiter.cancel()
            self._waiters = []
            self._in_flight_waiters = []
            self._committer = None

    async def _commit_pending(self) -> Exception | None:
        """Write what is pending; return why it was refused, or None."""
        self._in_flight, self._pending = self._pending, {}
        try:
            if self._in_flight:
                await self._store.open()
                await self._store.apply(self._in_flight)
        except Exception as error:  # noqa: BLE001  whatever an engine raises, nothing may be lost
            self._keep_in_flight()
            self._retry_later(error)
            return error
        except BaseException:
            self._keep_in_flight()
            raise
        self._note_committed()
        return None

    def _keep_in_flight(self) -> None:
        """Put back what was not committed; what came in since is newer and stays."""
        self._pending = {**self._in_flight, **self._pending}
        self._in_flight = {}

    def _note_committed(self) -> None:
        for key, text in self._in_flight.items():
            if text is None:
                self.forget(key)
            else:
                self._known[key] = (_fingerprint(text),)
        self._in_flight = {}
        if self._retry_delay > FIRST_RETRY_DELAY:
            _LOGGER.info("writing works again")
            self._cancel_retry()
            self._retry_delay = FIRST_RETRY_DELAY

    def _retry_later(self, error: Exception) -> None:
        if self._retry is not None:
            return
        _LOGGER.warning(
            "could not write, next try in %g s, rows that are kept: %d: %s",
            self._retry_delay,
            len(self._pending),
            error,
        )
        loop = asyncio.get_running_loop()
        self._retry = loop.call_later(self._retry_delay, self._try_again)
        self._retry_delay = min(2 * self._retry_delay, LAST_RETRY_DELAY)

    def _cancel_retry(self) -> None:
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None

    def _try_again(self) -> None:
        self._retry = None
        self._join_next_commit()


def _kept(error: Exception) -> str:
    return f"not written, but kept and tried again: {error}"


def _fingerprint(text: bytes) -> int:
    """Return what tells two texts of one row apart: 64 bits of SipHash, by a key of this process.

    It decides only whether a row is written again, so it must be fast, and is never stored.
    """
    return hash(_SEED + text)
