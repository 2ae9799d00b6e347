"""Group commit: all writes that are waiting at one moment share one transaction.

While one commit is on its way to the disk, the writes that arrive form the next one: DeWitt et al.,
"Implementation Techniques for Main Memory Database Systems" (SIGMOD 1984), section 5.
"""

from __future__ import annotations

import asyncio
import logging
import os
from asyncio import CancelledError
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Final, TypeAlias

from kvpersist.errors import OpenError, UnavailableError, WriteError
from kvpersist.stats import Meter, Stats
from kvpersist.stores.store import Rescues, Row, Store

_LOGGER = logging.getLogger("kvpersist")

FIRST_RETRY_DELAY: Final = 1.0
"""Seconds between a refused write and the first time it is tried again by itself."""
LAST_RETRY_DELAY: Final = 60.0
"""Seconds that the growing delay between two tries does not exceed."""
_MOST_REFUSED: Final = 10
"""Rows that are tried one by one and refused before the rest is left for the next time."""

# Python seeds its hash with a random number, unless it is told one that others may know.
_SEED: Final = os.urandom(16) if "PYTHONHASHSEED" in os.environ else b""

Changes: TypeAlias = dict[str, bytes | None]
Refused: TypeAlias = dict[str, BaseException]
"""Why each row that a commit did not write was not written."""
Waiter: TypeAlias = "asyncio.Future[Refused]"


class GroupCommit:
    """Writes rows to a store, many writes a transaction, and keeps those that the store refused.

    It opens the store when it is needed, and remembers a fingerprint of each row that it knows
    the store to hold, so that a row which has not changed costs nothing.

    Notes:
        All calls must come from the thread of a running event loop. When the loop changes (an
        `Application` that is initialised again), what the old one left behind is written by the
        new one.
    """

    def __init__(self, store: Store, meter: Meter | None = None) -> None:
        self._store = store
        self._meter = meter or Meter()
        self._pending: Changes = {}
        self._in_flight: Changes = {}
        self._refused: Refused = {}  # with the first error of each, those refused last at the end
        self._moved: dict[str, str] = {}  # rows that may change when another was written
        self._known: dict[str, tuple[int, ...]] = {}
        self._rescued: tuple[str, ...] = ()
        self._noted: dict[object, Changes] = {}  # for each who is reading
        self._in_use = False
        self._is_recalled = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._this_commit: list[Waiter] = []
        self._next_commit: list[Waiter] = []
        self._committer: asyncio.Task[None] | None = None
        self._leader: asyncio.Future[None] | None = None
        self._ending: asyncio.Task[WriteError | None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._retry_delay = FIRST_RETRY_DELAY

    def stats(self) -> Stats:
        """Return what was counted, and is waiting."""
        return self._meter.stats(
            rows=len(self._known),
            pending=len(self._in_flight | self._pending),
            is_waiting=bool(self._refused),
        )

    def is_pending(self, key: str) -> bool:
        """Whether a value of this row is waiting or on its way, so that the store is behind."""
        return key in self._pending or key in self._in_flight

    def waiting(self) -> Sequence[str]:
        """Return all rows that are pending, by `is_pending`."""
        return [*(self._in_flight | self._pending)]

    def is_removed(self, key: str) -> bool:
        """Whether a row is pending and to be removed."""
        return self._pending.get(key, self._in_flight.get(key, b"")) is None

    def remember(self, key: str, *texts: bytes) -> None:
        """Note that the store holds this row, as one of `texts`, which mean the same value."""
        self._known[key] = tuple([_fingerprint(text) for text in texts])

    def forget(self, key: str) -> None:
        """Note that the store does not hold this row, as far as is known."""
        self._known.pop(key, None)

    def known(self, key: str) -> object:
        """Return what the store is known to hold: None, or an object that is new after a change."""
        return self._known.get(key)

    def all_known(self) -> Mapping[str, object]:
        """Return what the store is known to hold, by key: another object once it was closed."""
        return self._known

    def holds(self, key: str, text: bytes) -> bool:
        """Whether the store is known to hold this row with this value, last this class heard."""
        return _fingerprint(text) in self._known.get(key, ())

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return what the store has in these rows, which may be behind what is waiting.

        It is never behind what `holds` says, whichever of the two was faster.

        Raises:
            OpenError, ReadError: The store's.
        """
        self._in_use = True
        await self._store.open()
        with self._noting_commits() as noted:
            found = await self._store.read(keys)
        if not noted:
            return found
        newest = {key: noted.get(key, found.get(key)) for key in keys}
        return {key: text for key, text in newest.items() if text is not None}

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        """Write what is waiting, then yield all rows whose key begins with `prefix`, in pages.

        Raises:
            OpenError, ReadError: The store's.
            WriteError: What is waiting could not be written, so that the rows are not the newest.
        """
        await self._store.open()
        await self.flush()
        # Or nothing is known yet, or what other scans have found.
        if self._in_use or self._is_recalled:
            for key in [key for key in self._known if key.startswith(prefix)]:
                self.forget(key)
        with self._noting_commits() as noted:
            async for page in self._store.scan(prefix):
                yield _newest(page, noted) if noted else page

    async def write(self, changes: Mapping[str, bytes | None]) -> None:
        """Write rows; None removes one. When this returns they are durable.

        Rows that the store is known to hold already are left out. Any number of calls may wait at
        the same time; of two values for one row the later call's is the one that lasts. A caller
        that is cancelled gives up waiting, not the write.

        Raises:
            WriteError: The store refused. The rows are kept and will be tried again.
        """
        changed = {key: text for key, text in changes.items() if self._is_news(key, text)}
        if changed:
            refused = await self._put(changed)
            if keys := refused.keys() & changed.keys():
                raise _write_error(keys, refused)

    async def write_row(self, key: str, text: bytes) -> None:
        """Write one row. As `write`."""
        if self._is_news(key, text):
            refused = await self._put({key: text})
            if key in refused:
                raise _write_error([key], refused)

    async def write_all(
        self,
        changes: Mapping[str, bytes | None],
        *,
        moved: Mapping[str, str] = MappingProxyType({}),
        others: bool = False,
    ) -> None:
        """Write rows as `write` does, and wait for what is on its way to them already.

        Nobody else is given time to join: a commit that can begin at once is made here, without the
        way through the event loop that a task of its own would take. What the store refused before,
        and is given again, is left to the next try.

        Args:
            changes: The rows.
            moved: Which of them held what another of them is to hold now, and which. None of them
                changes before that other is written: until then it has what would be lost.
            others: Whether to wait for all that was handed in before, by whomever.

        Raises:
            WriteError: The store refused some of `changes`. They are kept and will be tried again.
        """
        self._move_to_running_loop()
        left = {key for key in self._refused if self._is_left(key, changes)}
        changed = {
            key: text
            for key, text in changes.items()
            if key not in left and not self._is_in_flight(key, text) and self._is_news(key, text)
        }
        self._pending.update(changed)
        for key, moved_to in moved.items():
            self._move(key, moved_to)
        refused: Refused = {}
        if changed or (others and not self._pending.keys() <= self._refused.keys()):
            self._in_use = True
            refused = await self._commit_here()
        elif self._next_commit and (others or _share_a_key(self._pending, changes)):
            refused = await self._join(self._next_commit)
        elif self._in_flight and (others or _share_a_key(self._in_flight, changes)):
            refused = await self._join(self._this_commit)
        while others and refused and _is_interrupted(refused):
            refused = await self._commit_here()
        refused = {key: self._refused[key] for key in left if key in self._refused} | refused
        if keys := refused.keys() & changes.keys():
            raise _write_error(keys, refused)

    def _move(self, key: str, moved_to: str) -> None:
        """Note that a row must not change before another is written, if that is waiting."""
        error = self._refused.get(moved_to)
        # A row that waits already has nothing of what moves now, only of what has moved before.
        first = [] if key in self._moved else [key]
        for each in [*first, *(each for each, to in self._moved.items() if to == key)]:
            if each == moved_to or not self.is_pending(moved_to):
                self._moved.pop(each, None)
                continue
            self._moved[each] = moved_to
            if error is not None:  # they are tried together
                self._refused.setdefault(each, error)

    def refusal(self, key: str) -> object:
        """Return why the store refused a row that is kept: the first error; None if it did not."""
        return self._refused.get(key)

    def _is_news(self, key: str, text: bytes | None) -> bool:
        return (
            text is None
            or key in self._pending
            or key in self._in_flight
            or _fingerprint(text) not in self._known.get(key, ())
        )

    def _is_in_flight(self, key: str, text: bytes | None) -> bool:
        """Whether a row is being written as it is to be."""
        return key not in self._pending and self._in_flight.get(key, b"") == text

    def _is_left(self, key: str, changes: Mapping[str, bytes | None]) -> bool:
        """Whether a row that was refused is given again as it was."""
        return key in changes and self._pending.get(key, b"") == changes[key]

    def _put(self, changed: Changes) -> Waiter:
        self._in_use = True
        self._move_to_running_loop()
        self._pending.update(changed)
        return self._join_next_commit()

    async def flush(self) -> None:
        """Write everything that is waiting now; what others write meanwhile is not waited for.

        Raises:
            WriteError: With all rows that could not be written. They are kept.
        """
        self._move_to_running_loop()
        waiting = self.waiting()
        while self._rescued or waiting:
            if self._rescued:
                await self._write_rescued()
                continue
            refused = await self._join_next_commit()
            # A commit that was cancelled, with all tasks of a program that ends, is made again.
            if refused and _is_interrupted(refused):
                continue
            left = [key for key in waiting if key in refused]
            if left and len(left) == len(waiting):
                raise _write_error(left, refused)
            waiting = left

    async def _write_rescued(self) -> None:
        rescued = self._rescued
        try:
            await self._store.open()  # which writes them
        except OpenError as error:
            raise WriteError(str(error), keys=rescued) from error
        self._rescued = ()

    async def close(self) -> None:
        """Write everything that is waiting, then close the store, even if that write failed.

        What cannot be written is left where the store rescues rows, if it can, also if this is
        cancelled: then it is the next `Store.open`, of whomever, that writes it. What is written
        from now on waits for the end of this, and opens the store again.

        Raises:
            WriteError: With all rows that could not be written; it says whether they were left for
                the next start, or are kept here alone. Or the store could not be closed. If this is
                cancelled the log says that.
        """
        try:
            await self.flush()
        except GeneratorExit:  # that of a dead loop: see _commit_all
            raise
        except WriteError as error:
            failure = await self._end(error)
        except BaseException as given_up:  # noqa: BLE001  it is raised when that has ended
            failure = await self._end(self._why_pending(), given_up)
        else:
            failure = await self._end(None)
        if failure is not None:
            raise failure

    async def _end(
        self, error: WriteError | None, given_up: BaseException | None = None
    ) -> WriteError | None:
        """Close the store, and have it keep what was not written; return what is to be said of it.

        Nobody commits meanwhile: what is rescued would undo a newer value, and whoever goes on
        writing would put off the end. Being cancelled does not end it sooner; then, or if the
        caller was given up before, the log says it, and `given_up` is raised.
        """
        while True:
            if is_own := self._ending is None or self._ending.done():
                # A task, since what becomes of the rows must be noted, even if nobody waits for it.
                closing = self._rescue_and_close(error)
                self._ending = asyncio.create_task(closing, name="kvpersist:end")
                self._ending.add_done_callback(self._forget_ending)
            ending = self._ending
            while not ending.done():
                try:
                    await asyncio.wait([ending])
                except CancelledError as cancelled:  # noqa: PERF203  it may come more than once
                    given_up = cancelled
            # It may have been cancelled before it began; or that of another, who had no such rows.
            if not ending.cancelled() and (is_own or _outcome(ending) or not self._has_left(error)):
                break
        if given_up is not None:
            if (outcome := _outcome(ending)) is not None:
                _LOGGER.error("%s", outcome)
            raise given_up
        return ending.result()

    def _has_left(self, error: WriteError | None) -> bool:
        """Whether rows are still waiting of which nobody will hear any more."""
        return error is not None and any(self.is_pending(key) for key in error.keys)

    async def _rescue_and_close(self, error: WriteError | None) -> WriteError | None:
        while commits := [each for each in (self._committer, self._leader) if each]:
            with suppress(CancelledError):  # nothing would be rescued, or closed in a commit
                await asyncio.wait(commits)
        if error is None and not self._next_commit:  # or they are about to be written
            error = self._why_pending()
        failure = error if self._pending or self._rescued else None
        if error is not None and self._pending and isinstance(self._store, Rescues):
            failure = await self._rescue(self._store, error)
        try:
            with suppress(CancelledError):  # which does not keep a store open
                await self._close_store()
        except Exception as refused:
            if failure is None:
                raise
            raise _also(failure, refused) from refused
        return failure

    def _why_pending(self) -> WriteError | None:
        """Return what is to be said of all that was not written; None if there is nothing."""
        interrupted = CancelledError("cancelled before it was written")
        left = self._in_flight | self._pending
        why = {key: self._refused.get(key, interrupted) for key in left}
        return _write_error(why, why) if why else None

    async def _rescue(self, store: Rescues, error: WriteError) -> WriteError:
        rescued = self._pending.copy()
        try:
            place = await store.rescue(rescued)
        except WriteError as refused:
            failure = WriteError(f"{error.reason}; nor rescued: {refused.reason}", keys=rescued)
        else:
            self._note_rescued(rescued)
            reason = _reason(error.__cause__ or error)
            failure = WriteError(f"left in {place} for the next start: {reason}", keys=rescued)
        failure.__cause__ = error.__cause__
        return failure

    def _note_rescued(self, rescued: Changes) -> None:
        # Now they are the next owner's, whose newer values must not be overwritten by these. What
        # came in meanwhile is newer, and stays.
        self._known = {}  # see _close_store
        self._rescued += tuple(rescued)
        for noted in self._noted.values():
            noted.update(rescued)
        for key, text in rescued.items():
            if self._pending.get(key, b"") is text:
                del self._pending[key]
                self._refused.pop(key, None)

    def _forget_ending(self, ending: asyncio.Task[WriteError | None]) -> None:
        # No part of the task, which may be that of a dead loop: see _commit_all.
        if ending is self._ending:
            self._ending = None
            self._go_on()

    async def close_if_unused(self) -> None:
        """Close the store if nothing but `scan` was called since it was opened.

        Raises:
            WriteError: As `close` does.
        """
        if not self._in_use:
            await self.close()

    @contextmanager
    def recalling(self) -> Iterator[None]:
        """After an error keep in mind what the store held when it was closed.

        Nobody may load it again, and what memory holds then tells what has changed since.
        """
        known = self._known
        with self._noting_commits() as noted:
            try:
                yield
            except BaseException:
                if self._known is not known:
                    self._is_recalled = True
                    self._known.update(known)
                    for key, text in noted.items():
                        self._note_stored(key, text)
                raise

    def keep_open(self) -> None:
        """Leave the store to others, when `close_if_unused` is called."""
        self._in_use = True

    async def _close_store(self) -> None:
        self._in_use = False
        self._cancel_retry()
        try:
            await self._store.close()
        finally:
            # From now on the store is anybody's: what it held says nothing any more, nor does what
            # a commit wrote that goes on, or began while the store was being closed.
            self._known = {}

    def _move_to_running_loop(self) -> None:
        """Take over what a committer left that was cancelled, or an event loop that just ended.

        Whether its last commit reached the store is unknown; writing it again is harmless.
        """
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            self._loop = loop
            self._committer = self._leader = self._ending = self._retry = None
            self._this_commit, self._next_commit = [], []
            self._keep_in_flight()
            if self._pending:
                self._retry_later(CancelledError("the event loop ended"))
        elif self._committer is not None and self._committer.done():
            self._end_committer(self._committer)

    def _join_next_commit(self) -> Waiter:
        """Return what becomes of the commit that begins next, with all that is waiting then."""
        self._move_to_running_loop()
        waiter = self._join(self._next_commit)
        self._go_on()
        return waiter

    def _go_on(self) -> None:
        """Have somebody make the next commit, if there is to be one."""
        if self._next_commit and not self._is_busy():
            loop = asyncio.get_running_loop()
            self._committer = loop.create_task(self._commit_all(), name="kvpersist:commit")
            self._committer.add_done_callback(self._end_committer)

    def _is_busy(self) -> bool:
        """Whether somebody is at a commit, or none is to be made now."""
        return (self._committer, self._leader, self._ending) != (None, None, None)

    async def _commit_here(self) -> Refused:
        """Make the next commit, or join it if somebody is at one."""
        if self._is_busy():
            return await self._join_next_commit()
        self._leader = leader = asyncio.get_running_loop().create_future()
        try:
            refused = await self._commit_pending()
        except GeneratorExit:  # that of a dead loop: see _commit_all
            raise
        except BaseException:
            # Whether it reached the store is unknown, so it is made again: now, if others wait.
            self._leader = None
            leader.set_result(None)
            self._keep_in_flight()
            waiting = [*self._this_commit, *self._next_commit]
            self._next_commit = [waiter for waiter in waiting if not waiter.done()]
            self._this_commit = []
            self._retry_later(CancelledError("the commit was cancelled"))
            self._go_on()
            raise
        self._leader = None
        leader.set_result(None)
        told, self._this_commit = self._this_commit, []
        _tell(told, refused)
        self._go_on()
        return refused

    @staticmethod
    def _join(commit: list[Waiter]) -> Waiter:
        # A future for each who waits, because cancelling one must not cancel the others.
        waiter: Waiter = asyncio.get_running_loop().create_future()
        commit.append(waiter)
        return waiter

    async def _commit_all(self) -> None:
        # Nothing here must run when this coroutine ends early: it may be that of a dead loop, which
        # the garbage collector ends. _end_committer runs even if it never began.
        while self._next_commit and self._ending is None:
            self._this_commit, self._next_commit = self._next_commit, []
            _tell(self._this_commit, await self._commit_pending())
            self._this_commit = []

    def _end_committer(self, committer: asyncio.Task[None]) -> None:
        """Clean up after the committer, which has nothing left to do or was cancelled."""
        if committer is not self._committer:
            return
        self._committer = None
        if not committer.cancelled() and committer.exception() is None:
            self._go_on()  # with what came in since
            return
        waiting = [*self._this_commit, *self._next_commit]
        self._this_commit, self._next_commit = [], []
        self._keep_in_flight()
        interrupted = CancelledError("the commit was cancelled")
        _tell(waiting, dict.fromkeys(self._pending, interrupted))
        self._retry_later(interrupted)

    async def _commit_pending(self) -> Refused:
        """Write what is pending; return the rows that were refused, and why.

        A row that the store cannot take must not hold up the others. So those that were refused
        before have a transaction of their own, and if that does not help, each row has one.
        """
        before = [key for key in self._refused if key in self._pending]
        refused = await self._commit([key for key in self._pending if key not in self._refused])
        if _is_unavailable(refused):
            refused |= dict.fromkeys(before, next(iter(refused.values())))
        elif before:
            refused |= await self._commit(before)
        if len(refused) > 1 and not _is_unavailable(refused):
            again = [key for key in self._refused if key in refused]
            refused = await self._commit_each(sorted(again, key=self._moved.__contains__))
        if refused:
            self._retry_later(next(iter(refused.values())))
        elif self._retry_delay > FIRST_RETRY_DELAY:
            _LOGGER.info("writing works again")
            self._cancel_retry()
            self._retry_delay = FIRST_RETRY_DELAY
        return refused

    async def _commit_each(self, keys: Sequence[str]) -> Refused:
        """Write rows one by one; the rest counts as refused when the store takes none."""
        refused: Refused = {}
        for at, key in enumerate(keys):
            refused |= await self._commit([key])
            if _is_unavailable(refused) or len(refused) == _MOST_REFUSED:
                return refused | dict.fromkeys(keys[at:], refused[key])
        return refused

    async def _commit(self, keys: Sequence[str]) -> Refused:
        """Write pending rows in one transaction, but those that must wait for others."""
        held: Refused = {}
        while self._moved and (waiting := {key for key in keys if self._must_wait(key, keys)}):
            for key in waiting:
                error = self._refused.get(key) or self._refused[self._moved[key]]
                held[key] = self._refused[key] = error
            keys = [key for key in keys if key not in waiting]
        if not keys:
            return held
        self._in_flight = {key: self._pending.pop(key) for key in keys}
        known = self._known
        try:
            await self._store.open()
            with self._meter.transaction(self._in_flight):
                await self._store.apply(self._in_flight)
        except Exception as error:  # noqa: BLE001  whatever an engine raises, nothing may be lost
            if not self._refused:
                self._meter.begin_to_wait()
            for key in keys:  # those refused last are tried last
                self._refused[key] = self._refused.pop(key, error)
            self._keep_in_flight()
            return held | dict.fromkeys(keys, error)
        self._note_committed(was_closed=known is not self._known)
        return held

    def _must_wait(self, key: str, keys: Collection[str]) -> bool:
        """Whether a row has moved to one that is waiting, and that `keys` are without."""
        return (moved_to := self._moved.get(key)) in self._pending and moved_to not in keys

    def _keep_in_flight(self) -> None:
        """Put back what was not committed; what came in since is newer and stays."""
        self._pending = {**self._in_flight, **self._pending}
        self._in_flight = {}

    @contextmanager
    def _noting_commits(self) -> Iterator[Changes]:
        """Give what is committed from now on: it may overtake what is being read."""
        reader, noted = object(), Changes()
        self._noted[reader] = noted
        try:
            yield noted
        finally:
            del self._noted[reader]

    def _note_committed(self, *, was_closed: bool) -> None:
        for noted in self._noted.values():
            noted.update(self._in_flight)
        for key, text in self._in_flight.items():
            self._refused.pop(key, None)
            self._note_stored(key, None if was_closed else text)
        self._in_flight = {}
        self._moved = {key: to for key, to in self._moved.items() if to in self._pending}

    def _note_stored(self, key: str, text: bytes | None) -> None:
        if text is None:
            self.forget(key)
        else:
            self.remember(key, text)

    def _retry_later(self, error: BaseException) -> None:
        if self._retry is not None:
            return
        _LOGGER.warning(
            "could not write, next try in %g s, rows that are kept: %d: %s",
            self._retry_delay,
            len(self._pending),
            _reason(error),
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
        self._meter.retries += 1
        self._join_next_commit()


def _is_unavailable(refused: Refused) -> bool:
    return any(isinstance(error, UnavailableError | OpenError) for error in refused.values())


def _is_interrupted(refused: Refused) -> bool:
    return all(isinstance(error, CancelledError) for error in refused.values())


def _write_error(keys: Collection[str], refused: Refused) -> WriteError:
    cause = next(iter(refused.values()))
    error = WriteError(f"not written, but kept and tried again: {_reason(cause)}", keys=keys)
    error.__cause__ = cause
    return error


def _also(failure: WriteError, refused: Exception) -> WriteError:
    """Say of the rows of a failure that the store could not be closed either."""
    why = _reason(refused)
    reason = failure.reason if why in failure.reason else f"{failure.reason}; nor closed: {why}"
    return WriteError(reason, keys=failure.keys)


def _outcome(ending: asyncio.Task[WriteError | None]) -> BaseException | None:
    return ending.exception() or ending.result()


def _reason(error: BaseException) -> str:
    return error.reason if isinstance(error, WriteError) else str(error)


def _tell(waiters: Iterable[Waiter], refused: Refused) -> None:
    for waiter in waiters:
        if not waiter.done():
            waiter.set_result(refused)


def _newest(page: Sequence[Row], noted: Changes) -> Sequence[Row]:
    newest = ((key, noted.get(key, text)) for key, text in page)
    return [(key, text) for key, text in newest if text is not None]


def _share_a_key(some: Changes, others: Mapping[str, bytes | None]) -> bool:
    return not some.keys().isdisjoint(others)


def _fingerprint(text: bytes) -> int:
    """Return what tells two texts of one row apart: 64 bits of SipHash, by a key of this process.

    It decides only whether a row is written again, so it must be fast, and is never stored.
    """
    return hash(_SEED + text)
