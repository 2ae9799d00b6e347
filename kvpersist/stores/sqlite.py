"""The SQLite engine: one file, one owner, write-ahead log, one hop to a thread for each commit."""

from __future__ import annotations

import asyncio
import logging
import os
import sqlite3
import time
import warnings
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from typing import Any, Final
from weakref import WeakSet

from kvpersist.errors import (
    BackupError,
    ConfigurationError,
    OpenError,
    ReadError,
    UnavailableError,
    WriteError,
)
from kvpersist.stores import rescue
from kvpersist.stores.daemon import begin_in_daemon, until_done
from kvpersist.stores.key_range import after
from kvpersist.stores.sqlite_backup import Progress, back_up
from kvpersist.stores.sqlite_damage import advice, is_damage, survey
from kvpersist.stores.sqlite_file import (
    FileConnection,
    leave_beside,
    open_file,
    open_reader,
    real_path,
)
from kvpersist.stores.sqlite_place import LockRemovedError, MovedError, Place, is_unavailable
from kvpersist.stores.sqlite_rescue import write_rescued
from kvpersist.stores.sqlite_statements import (
    ABOVE_ALL,
    READ,
    SCAN,
    SET_ASIDE,
    WAS_SET_ASIDE,
    as_stored,
    transaction,
)
from kvpersist.stores.sqlite_thread import Opening, SqliteThread, closed
from kvpersist.stores.store import BadRow, Row

_LOGGER = logging.getLogger("kvpersist")

_PAGE_ROWS: Final = 500
_READ_KEYS: Final = 500
"""Below SQLITE_MAX_VARIABLE_NUMBER of every SQLite, 999 (https://sqlite.org/limits.html#9)."""


class SqliteStore:
    """Keeps documents in a SQLite file, durably: write-ahead log, ``synchronous=FULL``.

    The file is created readable by its owner alone. Other programs may read it at any time, and
    write short transactions; a second `SqliteStore` is refused (see `StoreInUseError`) for as long
    as this one is open, by a lock on ``<file>-lock`` that ends with the process, however it ends.
    A connection of its own for reading never waits for what is being written.

    A write-ahead log of more than 16 MiB is emptied at the end of a write, which waits for those
    who read just then: 0.1 seconds, and twice as long, up to `busy_timeout`, each time that the log
    has become twice as large because they read for longer.

    Args:
        path: The file. Its folder must exist; the file need not.
        busy_timeout: Seconds to wait for another program's transaction before a write is refused.
            The writes after that wait for 0.1 seconds at most, until one succeeds: so all that is
            waiting at the end of a bot whose file stays locked takes about this long once.

    Raises:
        ConfigurationError: `path` is no path of a file.

    Notes:
        A file of several names (hard links) is refused by `open`; one that gets them later, or is
        reached through two mounts, is not told to be the same. Do not open and close the file in
        the bot's own process other than through SQLite, as to copy it: POSIX takes SQLite's locks
        away then (https://sqlite.org/howtocorrupt.html, section 2.2). A file that is removed,
        renamed or replaced is noticed at the next write, as is the removal of what lies beside it;
        one that is written over in its place, as ``cp`` does it, is not.
    """

    def __init__(self, path: str | PathLike[str], *, busy_timeout: float = 5.0) -> None:
        self.path = _name(path)
        self._busy_timeout = busy_timeout
        self._opened: _Opened | None = None
        self._others = 0
        self._last_state: str | None = None
        """In which state the file must be to be opened, since it was left unwillingly."""
        self._left: list[Opening] = []
        """What was being opened when that was cancelled."""
        self._is_coming_back = False
        """Whether it is closed only until this has opened it anew, for whoever comes first."""
        self._lock: asyncio.Lock | None = None
        self._lock_loop: asyncio.AbstractEventLoop | None = None
        _STORES.add(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def __del__(self) -> None:
        if getattr(self, "_opened", None) is not None:
            warnings.warn(
                f"{self!r} was not closed: await Application.shutdown(), or the persistence's "
                "flush(), before the program ends",
                ResourceWarning,
                source=self,
                stacklevel=1,
            )

    async def open(self) -> None:
        """Open the file, and create it when it does not exist or has 0 bytes.

        On another event loop than before, what was left open there is closed first.

        Raises:
            StoreInUseError: Another `SqliteStore` has the file open.
            NotAStoreError: The file belongs to another program. It was left as it is.
            NewerSchemaError: A newer kvpersist has written the file. It was left as it is.
            OpenError: No such folder, no permission, a directory, a damaged file. Or this had to
                leave the file (it was moved, its log or lock was removed, or `rescue` failed), and
                what is there is not as it was then: only a new `SqliteStore` takes that.
        """
        if self._is_stale(self._opened):
            # Shielded: a caller that gives up must not leave a connection that nobody knows.
            await asyncio.shield(asyncio.create_task(self._open(), name="kvpersist:open"))

    async def close(self) -> None:
        """Move the write-ahead log into the file, close it and let others have it.

        The log stays when another program is still reading; the next start takes it up.

        Raises:
            UnavailableError: The file or its log is not where it was, and what was written last
                cannot be moved into the file now. It stays open, so that this can be tried again.
        """
        await asyncio.shield(asyncio.create_task(self._close(), name="kvpersist:close"))

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return the values of those of `keys` that exist. One statement for each 500 keys.

        Raises:
            ReadError: SQLite could not read the file. If it is damaged the error says how many rows
                can be read, and names the first of those that cannot.
        """
        wanted = list(keys)
        found: dict[str, bytes] = {}
        for start in range(0, len(wanted), _READ_KEYS):
            some = wanted[start : start + _READ_KEYS]
            found.update(await self._fetch(READ.format(",".join("?" * len(some))), some))
        return found

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        """Yield all rows whose key begins with `prefix`, ordered by key, 500 at a time.

        In a key that is no UTF-8 lone surrogates stand for its bytes (``surrogateescape``).

        Raises:
            ReadError: SQLite could not read the file.
        """
        start: str | bytes = prefix
        end = after(prefix) or ABOVE_ALL
        while rows := await self._fetch(SCAN, (start, end, _PAGE_ROWS)):
            yield rows
            start = as_stored(rows[-1][0]) + b"\0"

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        """Write all of `changes` or none, in one transaction; None removes the row.

        When this returns the transaction is on the disk. Another program's transaction is waited
        for, off the event loop, for `busy_timeout` seconds; for 0.1 at most after that was not
        enough, until one succeeds. If somebody has removed the log, all that was in it is moved
        into the file, which is opened anew.

        Raises:
            UnavailableError: Another program's transaction did not end, or the store is not open.
                Or the file is not where it was opened any more: somebody has removed, renamed or
                replaced it. When that file is back, writing works again. Or its lock was removed,
                and another bot has taken the file meanwhile, or has written to it.
            WriteError: Nothing was written: the disk is full, the file is read-only, ….
        """
        await self._write(changes, *transaction(changes))

    async def _write(
        self, keys: Collection[str], sql: str, parameters: Iterable[Iterable[Any]]
    ) -> None:
        """Make one transaction in one hop to the thread: see FileConnection.executemany."""
        try:
            opened = await self._still_open()
        except ReadError as error:
            raise UnavailableError(str(error)) from error
        if opened.is_ending:
            raise UnavailableError(str(self._not_open()))
        try:
            await opened.writer.execute_many(sql, parameters)
            self._last_state = None
        except MovedError as error:
            if not error.is_beside:
                self._last_state = opened.file.last_state
                raise UnavailableError(str(error)) from error
            _LOGGER.warning("%s. All that was in the log is saved", error)
            with suppress(OpenError):  # this was written; whoever comes next hears it
                await self._open_anew(opened)
        except LockRemovedError as error:
            _LOGGER.warning("%s", error)
            try:
                await self._open_anew(opened)
            except OpenError as refused:
                raise UnavailableError(str(refused)) from refused
            await self._write(keys, sql, parameters)  # of which nothing was used
        except (sqlite3.Error, ValueError, OverflowError) as error:
            if is_unavailable(error):
                reason = f"{self.path}: {error}; end the other program's transaction"
                raise UnavailableError(reason) from error
            what_to_do = "see that the disk has room and the file may be written"
            if is_damage(error):
                what_to_do = advice(self.path)
            raise WriteError(f"{self.path}: {error}; {what_to_do}", keys=keys) from error

    async def _open_anew(self, opened: _Opened) -> None:
        """Close a file that cannot be used any more as it is open, and open the same one."""
        await asyncio.shield(self._close_to_come_back(opened))
        await self.open()

    async def _close_to_come_back(self, opened: _Opened) -> None:
        async with self._lifecycle():
            if self._opened is opened:  # or another write has done it
                await self._leave(opened)

    async def _leave(self, opened: _Opened) -> None:
        """Close what is open, and have `open` take that file alone.

        Those who still have rows of it must not write them into another one: that would have these
        rows alone, or be a mixture.
        """
        await self._save_log(opened)
        opened.file.is_coming_back = self._is_coming_back = True
        self._opened = None
        await opened.leave_behind()
        self._last_state = opened.file.last_state

    async def set_aside(self, rows: Collection[BadRow]) -> Collection[str]:
        """Move rows, as they are, from the table ``documents`` to the table ``set_aside``.

        A row that is not what was read any more stays. Each can be set aside any number of times.

        Returns:
            The keys of the rows that were moved, and perhaps of some that were in that millisecond.

        Raises:
            WriteError: Nothing was moved. As `apply`.
            OpenError, ReadError: It cannot be told which were.
        """
        now = time.time_ns() // 1_000_000
        copied = ((reason, now, as_stored(key), text) for key, text, reason in rows)
        removed = ((as_stored(key), text) for key, text, _ in rows)
        await self._write([key for key, *_ in rows], SET_ASIDE, [copied, removed])
        await self.open()  # which that has closed if the log was removed
        return [key for (key,) in await self._fetch(WAS_SET_ASIDE, (now,))]

    async def rescue(self, changes: Mapping[str, bytes | None]) -> str:
        """Leave rows in ``<file>-rescue``, readable by its owner alone, durably, and close.

        The next `open` writes them before all else, and says so in the log. If the file is not
        where it was, only one that is in the same state gets them. If they cannot be left, this
        store opens only a file to which nobody has written since.

        Raises:
            WriteError: There is no room for that either; another bot has the file; or this never
                had it.
        """
        async with self._surely_alone():
            opened = self._opened
            if opened is not None:
                opened.is_ending = True  # nobody writes what is newer than what is being left
                try:
                    await self._save_log(opened)
                except UnavailableError:
                    opened.is_ending = False
                    raise
                leave = partial(opened.file.rescue, self.path, changes)
            elif self._others:
                leave = partial(leave_beside, self.path, changes, self._last_state)
            else:
                raise UnavailableError(str(self._not_open()))
            leaving = begin_in_daemon(leave, lambda _: None)
            with suppress(OSError, ValueError, OpenError):
                await until_done(leaving)
            if opened is not None:
                # Who keeps them must not write them over what others have written since.
                opened.file.is_coming_back = leaving.exception() is not None
                self._opened = None
                await opened.leave_behind()
            self._is_coming_back = False
            self._last_state = opened.file.last_state if opened else self._last_state
        try:
            return str(leaving.result())
        except (OSError, ValueError, OpenError) as error:
            raise WriteError(f"{rescue.place_of(self.path)}: {error}", keys=changes) from error

    async def backup(self, path: str | PathLike[str], progress: Progress | None = None) -> None:
        """Copy all rows, as they are at one moment, into a new file, while they are being written.

        The copy has every write that returned before this was called. It is a file that a bot can
        open, readable by its owner alone, and it gets its name when SQLite has found nothing wrong
        with it, and all of it is on the disk. (Of tables of others that need functions which SQLite
        has not, nothing is asked.) Until then it is a file
        ``.kvpersist-…`` of the same folder, which a killed process may leave.

        Writes go on meanwhile. The write-ahead log grows by what they write until the copy ends.

        Args:
            path: The new file. Nothing is overwritten.
            progress: Called after each megabyte or so, with the number of pages that were copied,
                and of pages in all; not in the thread of the event loop. What it raises ends the
                copying, and is raised here.

        Raises:
            ConfigurationError: `path` is no path of a file, or `progress` no function.
            BackupError: There is no copy, and nothing was left behind.
        """
        name = _name(path)
        try:
            file = (await self._still_open()).file
        except ReadError as error:
            raise BackupError(str(error)) from error
        file.copies += 1
        try:
            await back_up(partial(self._connect_reader, file.place), name, progress)
        finally:
            file.copies -= 1

    def others_seen(self) -> int | None:
        """Return what `see_others` would return; None if SQLite has to be asked."""
        if (opened := self._opened) is None:
            return None
        header, version = opened.file.seen
        if version != opened.data_version:
            self._others += 1
            opened.data_version = version
        return self._others if header is not None and header == opened.file.header() else None

    async def see_others(self) -> int:
        """Return a number that differs after other programs have written to the file.

        It asks SQLite only after somebody has written.

        Raises:
            ReadError: SQLite could not read the file.
        """
        while (others := self.others_seen()) is None:
            opened = await self._still_open()
            async with opened.looking:
                if (others := self.others_seen()) is not None:  # others may have just asked
                    return others
                try:
                    await begin_in_daemon(opened.file.look_from_outside, lambda _: None)
                except sqlite3.Error as error:
                    if opened is not self._opened:  # it was closed meanwhile
                        continue
                    raise ReadError(f"{self.path}: {error}") from error
            self.others_seen()
            return self._others
        return others

    async def _open(self) -> None:
        async with self._lifecycle():
            if (opened := self._opened) is not None and self._is_stale(opened):
                try:
                    await self._leave(opened)
                except UnavailableError as error:
                    raise OpenError(str(error)) from error
            self._opened = self._opened or await self._connect()
            self._is_coming_back = False

    def _is_stale(self, opened: _Opened | None) -> bool:
        """Whether there is no connection that can be used here."""
        return opened is None or opened.is_ending or opened.loop is not asyncio.get_running_loop()

    async def _connect(self) -> _Opened:
        files: list[FileConnection] = []
        await self._finish_openings()  # or a file of our own would be somebody else's
        writer = await SqliteThread.open(partial(self._open_file, files), self._left)
        try:
            connect = partial(self._connect_reader, files[0].place)
            reader = await SqliteThread.open(connect, self._left)
        except GeneratorExit:  # that of a loop that has ended, on which nothing can be awaited
            writer.abandon()
            raise
        except BaseException:
            await writer.leave_behind()  # also if this is cancelled: the file is free then
            raise
        self._others += 1  # nobody knows what was written before
        return _Opened(writer, reader, asyncio.get_running_loop(), files[0], files[0].seen[1])

    async def _finish_openings(self) -> None:
        """Wait until what was being opened when that was cancelled is closed."""
        left, self._left = self._left, []
        for opening in left:
            if opening.get_loop() is asyncio.get_running_loop():
                await closed(opening)

    def _open_file(self, files: list[FileConnection]) -> sqlite3.Connection:
        path = real_path(self.path)
        connection = open_file(path, self._busy_timeout, self._last_state)
        self.path = path  # for good, since the program may change its working directory
        try:
            write_rescued(connection, path)
        except BaseException:
            if self._last_state is not None:  # some may have been written
                self._last_state = connection.state()
            connection.close()
            raise
        self._last_state = None
        files.append(connection)
        return connection

    def _connect_reader(self, place: Place) -> sqlite3.Connection:
        connection = open_reader(self.path, self._busy_timeout)
        try:
            place.check()  # or another file would be read, or copied
        except MovedError as error:
            connection.close()
            raise OpenError(str(error)) from error
        return connection

    async def _close(self) -> None:
        async with self._surely_alone():
            await self._finish_openings()
            if (opened := self._opened) is not None:
                await self._save_log(opened)
                self._opened = None
                await opened.leave_behind()
            self._is_coming_back = False

    async def _save_log(self, opened: _Opened) -> None:
        """Move a log that no start would find into the file; a start takes up all others."""
        try:
            await until_done(begin_in_daemon(opened.file.save_log, lambda _: None))
        except MovedError as error:
            raise UnavailableError(str(error)) from error

    async def _fetch(self, sql: str, parameters: Iterable[object]) -> list[Any]:
        opened = await self._still_open()
        try:
            return await opened.reader.fetch(sql, parameters)
        except (sqlite3.Error, ValueError) as error:
            if not is_damage(error):
                raise ReadError(f"{self.path}: {error}") from error
            found = await self._survey(opened)
            reason = f"{self.path}: {error}; {advice(self.path)}. {found}"
            raise ReadError(reason) from error

    async def _survey(self, opened: _Opened) -> str:
        """Say what can still be read; look for it once, since each handler may fail now."""
        if opened.survey is None:
            connect = partial(open_reader, self.path, self._busy_timeout)
            opened.survey = begin_in_daemon(partial(survey, connect), lambda _: None)
        return await asyncio.shield(opened.survey)

    async def _still_open(self) -> _Opened:
        """Return what is open, after opening what this store has closed only to open it anew.

        Raises:
            ReadError: It is not open, or could not be opened anew.
        """
        if self._opened is None and self._is_coming_back:
            try:
                await self.open()
            except OpenError as error:
                raise ReadError(str(error)) from error
        if self._opened is None:
            raise self._not_open()
        return self._opened

    def _not_open(self) -> ReadError:
        return ReadError(f"{self.path}: the store is not open; await open() first")

    @asynccontextmanager
    async def _surely_alone(self) -> AsyncIterator[None]:
        """Have `_lifecycle`, however often the waiting for it is cancelled."""
        lock, is_alone = self._lifecycle(), False
        while not is_alone:
            with suppress(asyncio.CancelledError):
                is_alone = await lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _lifecycle(self) -> asyncio.Lock:
        """Return what keeps `open` and `close` apart; an asyncio.Lock belongs to one loop."""
        if self._lock is None or self._lock_loop is not asyncio.get_running_loop():
            self._lock, self._lock_loop = asyncio.Lock(), asyncio.get_running_loop()
        return self._lock


@dataclass
class _Opened:
    """The connections of one event loop. Reading never waits for what is being written."""

    writer: SqliteThread
    reader: SqliteThread
    loop: asyncio.AbstractEventLoop
    file: FileConnection
    data_version: int
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Whoever looks for commits of others does it alone, so that one thread is enough."""
    is_ending: bool = False
    """Whether it may be read at most, since it is about to be closed."""
    survey: asyncio.Future[str] | None = None
    """What can still be read, once the file was found to be damaged."""

    async def leave_behind(self) -> None:
        """Close them without their event loop, and without being cancelled."""
        await self.reader.leave_behind()
        await self.writer.leave_behind()  # last, since the last connection removes the log


_STORES: Final[WeakSet[SqliteStore]] = WeakSet()
_INHERITED: Final[list[_Opened]] = []
"""What a forked child must not use, and not close either: so it is never let go of."""


def _leave_to_parent() -> None:  # pragma: no cover  a forked child is not measured
    """Have no store of a forked child be open: what it has inherited is the parent's.

    SQLite forbids to use a connection there, or to close it (https://sqlite.org/howtocorrupt.html,
    2.6). Nor are its threads there, one of which may have held a lock that nobody lets go of now.
    """
    for store in list(_STORES):
        if (opened := store._opened) is not None:  # noqa: SLF001  its own class
            _INHERITED.append(opened)
            store._opened = None  # noqa: SLF001  its own class


os.register_at_fork(after_in_child=_leave_to_parent)


def _name(path: str | PathLike[str]) -> str:
    if not isinstance(path, str | PathLike) or not isinstance(name := os.fspath(path), str):
        raise ConfigurationError(
            f"a store is the path of a file, a str or a Path, or an object with the methods of "
            f"kvpersist.Store; this is {path!r}"
        )
    if not name:
        raise ConfigurationError("the path of the file is empty; is a variable not set?")
    if name.startswith("~"):
        raise ConfigurationError(f"nobody replaces the ~ of {name}; use Path(…).expanduser()")
    if name == ":memory:":
        raise ConfigurationError("a database in memory keeps nothing; give MemoryStore() for tests")
    if "://" in name or name.startswith("file:"):
        raise ConfigurationError(f"{name.partition(':')[0]} URLs are not known; give a file's path")
    return name
