"""A transaction in which one worker of many has some documents for itself, until it commits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple, NoReturn, TypeAlias, TypeVar

import asyncpg

from kvpersist.errors import (
    ConflictError,
    LockError,
    StoreError,
    UnavailableError,
    WriteError,
    some_of,
)
from kvpersist.stores.postgres_errors import FAILURES, LOST, is_fault_of_rows, words
from kvpersist.stores.postgres_owner import in_use, lock_key
from kvpersist.stores.postgres_schema import quoted
from kvpersist.stores.postgres_statements import (
    COMMIT,
    CONFIRM,
    HOLDERS,
    LOCK,
    ROLLBACK,
    SETTLE,
    WRITE,
    now,
)
from kvpersist.stores.store import Changed, LockMore, Versioned

if TYPE_CHECKING:
    from kvpersist.stores.postgres_begun import BegunConnections

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

T = TypeVar("T")

_RETRY_DELAY: Final = 0.2
"""Seconds between two tries to reach a server that is gone."""
_MOMENT: Final = 1.0
"""Seconds for a server to end a connection that has a statement under way."""
_OVERTAKEN: Final = "written by somebody else meanwhile; nothing was written here: try it again"
_DOUBT: Final = "; the answer to a commit was lost, and nobody can say yet whether it was made"


class _Sent(NamedTuple):
    """What was written before a commit: by which transaction, when, and what."""

    transaction: str
    at: int
    changes: Changed


class PostgresTransaction:
    """What `PostgresStore.transaction` gives; see `kvpersist.stores.store.Transaction`.

    The locks are advisory ones, so that rows which do not exist yet can be locked. They end with
    the transaction, and that with the connection, however the process ends.

    If the connection is lost the documents are locked again on another, and the transaction goes on
    as if nothing had been if their versions are the same: it has written nothing before its commit.

    Args:
        begun: Where connections come from.
        schema: Of the tables.
        shown: The server, as errors name it.
        timeout: Seconds for which a server that is gone is tried to reach, and to wait for answers.
        hold_timeout: Seconds after which the server ends the transaction of a worker that says
            nothing.
        patience: Seconds for which each lock of another's is waited for.
    """

    def __init__(
        self,
        begun: BegunConnections,
        schema: str,
        shown: str,
        timeout: float,
        *,
        hold_timeout: float,
        patience: float,
    ) -> None:
        self._begun = begun
        self._schema = schema
        self._shown = shown
        self._timeout = timeout
        self._patience = patience
        self._times = [f"{max(1, round(seconds * 1000))}ms" for seconds in (patience, hold_timeout)]
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()  # tasks of one update may use it at the same time
        self._locked: dict[str, int] = {}
        self._read: dict[str, int] = {}
        self._wanted: Collection[str] = ()
        self._sent: _Sent | None = None  # that whose end nobody has seen
        self._was_committed = False  # by a connection that was lost
        self._is_committed = False
        self._is_over = False
        self._failure: StoreError | None = None

    async def lock(
        self,
        keys: Collection[str],
        reads: Collection[str] = (),
        *,
        known: Mapping[str, int] | None = None,
    ) -> dict[str, Versioned]:
        """Lock documents, read them and others; see `Transaction.lock`."""
        async with self._turn:
            try:
                return await self._do(lambda: self._lock(keys, reads, known or {}))
            except asyncio.CancelledError:
                # The server cancels the statement and takes back all locks, or it was too late to.
                # Whichever it was, all of them are taken again with what comes next.
                await self._leave(at_once=True)
                raise

    async def commit(self, prepare: Callable[[LockMore], Awaitable[Changed]]) -> int:
        """Write, and let others have the documents; see `Transaction.commit`."""
        async with self._turn:
            await self._do(lambda: self._commit(prepare))
        return _state(self._sent) if self._sent is not None else 0

    async def end(self, *, at_once: bool) -> None:
        """Let others have the documents, if that was not done; nothing that is left is written.

        Args:
            at_once: Whether not to wait for the server for more than a moment, because whoever
                calls was cancelled, or it is gone.
        """
        self._is_over = True  # for tasks that still wait for documents
        await self._leave(at_once=at_once)

    async def _leave(self, *, at_once: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        is_begun = self._is_committed
        try:
            if not is_begun and not at_once:
                with suppress(*FAILURES):
                    await connection.execute(ROLLBACK, timeout=self._timeout)
                    is_begun = True
            if not is_begun:
                # Not just cut: a statement that waits for a lock would go on waiting, and keep the
                # locks that it has. This cancels it.
                with suppress(*FAILURES):
                    await asyncio.wait_for(connection.close(), _MOMENT)
        finally:
            self._begun.release(connection, is_begun=is_begun)

    async def _do(self, action: Callable[[], Awaitable[T]]) -> T:
        """Do something in the transaction; if the server is gone, begin it again, for a while."""
        end = time.monotonic() + self._timeout
        while True:
            if self._failure is not None:
                raise self._failure
            if self._is_over:
                raise UnavailableError(self._over)
            try:
                if self._connection is None:
                    await self._begin()
                return await action()
            except LOST as error:
                await self._leave(at_once=True)
                if time.monotonic() > end:
                    self._fail(UnavailableError(f"{self._shown}: {words(error)}"), error)
            except FAILURES as error:
                self._fail(await self._meaning(error), error)
            except StoreError as error:
                self._fail(error, error.__cause__)
            await asyncio.sleep(_RETRY_DELAY)

    def _fail(self, failure: StoreError, cause: BaseException | None) -> NoReturn:
        if self._sent is not None:  # whatever it was that kept it from being settled
            failure = UnavailableError(f"{failure}{_DOUBT}")
        self._failure = failure
        raise failure from cause

    @property
    def _over(self) -> str:
        return f"{self._shown}: the update, or the edit, that this is a part of is over"

    async def _meaning(self, error: BaseException) -> StoreError:
        """Return what an error says that another connection would not mend."""
        if isinstance(error, asyncpg.LockNotAvailableError):
            return await self._why_waiting()
        if isinstance(error, asyncpg.DeadlockDetectedError):
            reason = "two updates wait for each other's documents; this one gives way: try it again"
            return LockError(reason, keys=self._wanted)
        kind = WriteError if is_fault_of_rows(error) else UnavailableError
        return kind(f"{self._shown}: {words(error)}")

    async def _begin(self) -> None:
        """Begin, and have the same documents as before, if there was a before."""
        connection = await self._begun.acquire()
        if self._is_over:
            self._begun.release(connection, is_begun=True)
            raise UnavailableError(self._over)
        self._connection = connection
        if not self._locked and self._sent is None:
            return
        found = await self._fetch_locked(self._locked, self._locked, self._locked)
        versions = {key: version for key, (_, version) in found.items()}
        changed = [key for key, version in self._locked.items() if versions.get(key, 0) != version]
        # Whoever has the locks knows that the transaction before has ended.
        if self._sent is not None and await self._has_committed(self._sent, changed):
            self._was_committed = True
            return
        self._sent = None
        if changed:
            raise ConflictError(_OVERTAKEN, keys=changed)

    async def _has_committed(self, sent: _Sent, changed: Collection[str]) -> bool:
        """Whether it was committed.

        A server that has crashed knows nothing of transactions that had not committed, and gives
        their numbers to others. So there must be a row that only this one can have written.
        """
        try:
            ((status, traces),) = await self._fetch(
                SETTLE, sent.transaction, [*sent.changes], _state(sent)
            )
        except asyncpg.InvalidParameterValueError:  # of a future that this server never had
            await self._leave(at_once=True)
            self._sent = None
            raise ConnectionError("it was lost with the server that it was sent to") from None
        if status != "committed" or traces:
            return bool(traces)
        if changed and any(sent.changes.values()):
            raise UnavailableError(
                f"{self._shown}: somebody else has written {some_of([*changed])} since"
            )
        return bool(changed)  # what was to be removed is gone

    async def _lock(
        self, keys: Collection[str], reads: Collection[str], known: Mapping[str, int]
    ) -> dict[str, Versioned]:
        found = await self._fetch_locked(keys, [*keys, *reads], known)
        versions = {key: version for key, (_, version) in found.items()}
        self._locked |= {key: versions.get(key, 0) for key in keys}
        self._read |= versions
        return found

    async def _fetch_locked(
        self, keys: Collection[str], reads: Collection[str], known: Mapping[str, int]
    ) -> dict[str, Versioned]:
        # Everybody takes them in this order, so that no two can wait for each other.
        self._wanted = keys
        locks = sorted({_lock_of(self._schema, key) for key in keys})
        owner = lock_key("owner", self._schema)
        versions = [known.get(key, 0) for key in reads]
        rows = await self._fetch(
            LOCK, owner, locks, [*reads], versions, *self._times,
            timeout=self._timeout + len(locks) * self._patience,
        )  # fmt: skip
        return {key: (None if text is None else text.encode(), at) for key, text, at in rows}

    async def _commit(self, prepare: Callable[[LockMore], Awaitable[Changed]]) -> None:
        if self._was_committed:
            await self._fetch(CONFIRM)
        elif changes := await prepare(self._lock):
            self._sent = await self._write(changes)
        connection = self._connection
        assert connection is not None  # noqa: S101  `_begin` has set it
        try:
            await connection.execute(COMMIT)
        except LOST:
            if self._sent is not None:
                raise
            await self._leave(at_once=True)
        except FAILURES:  # the server refuses it, so that there is no doubt
            self._sent = self._sent if self._was_committed else None
            raise
        self._is_committed = True

    async def _write(self, changes: Changed) -> _Sent:
        versions = {**self._read, **self._locked}
        at = now()
        rows = await self._fetch(
            WRITE,
            [*changes],
            [None if text is None else text.decode() for text in changes.values()],
            [versions.get(key, 0) for key in changes],
            at,
        )
        (transaction, written) = rows[0]
        # What is gone need not be removed, if it was not locked.
        missing = [
            key
            for key in changes.keys() - {*written}
            if changes[key] is not None or self._locked.get(key)
        ]
        if missing:
            raise ConflictError(_OVERTAKEN, keys=missing)
        return _Sent(transaction, at, changes)

    async def _fetch(
        self, sql: str, *parameters: object, timeout: float | None = None
    ) -> list[asyncpg.Record]:
        assert self._connection is not None  # noqa: S101  `_begin` has set it
        sql = sql.replace("{schema}", quoted(self._schema))
        return await self._connection.fetch(sql, *parameters, timeout=timeout)

    async def _why_waiting(self) -> LockError:
        """Return which documents were waited for in vain, as far as the server tells."""
        names = {_lock_of(self._schema, key): key for key in self._wanted}
        held: list[asyncpg.Record] = []
        with suppress(*FAILURES):
            connection = self._connection
            assert connection is not None  # noqa: S101  it has just answered
            await connection.execute(ROLLBACK)
            held = await self._fetch(HOLDERS, [*names, lock_key("owner", self._schema)])
        processes = {names.get(lock, ""): process for lock, process in held}
        if "" in processes:
            return LockError(in_use(self._schema), keys=self._wanted)
        keys = [*processes] or self._wanted
        told = "".join(f"; {key} has process {process}" for key, process in processes.items())
        return LockError(
            f"another worker has not given it back for {self._patience:g} seconds (in the "
            f"server's pg_stat_activity{told}): see what its handlers wait for, or give "
            "PostgresStore another hold_timeout",
            keys=keys,
        )


def _lock_of(schema: str, key: str) -> int:
    return lock_key("document", f"{schema} {key}")


def _state(sent: _Sent) -> int:
    """Return what `STATE` is of the rows that were written."""
    return sent.at % 2**31 * 2**32 + int(sent.transaction) % 2**32
