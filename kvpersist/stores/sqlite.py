"""The SQLite engine: one file, one owner, write-ahead log, one hop to a thread for each commit."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
import warnings
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, Final

from kvpersist.errors import ConfigurationError, ReadError, UnavailableError, WriteError
from kvpersist.stores.sqlite_file import FileConnection, open_file, open_reader
from kvpersist.stores.sqlite_thread import SqliteThread
from kvpersist.stores.store import Row

_PAGE_ROWS: Final = 500
_READ_KEYS: Final = 500
"""Below SQLITE_MAX_VARIABLE_NUMBER of every SQLite, 999 (https://sqlite.org/limits.html#9)."""

_PUT: Final = """
    INSERT INTO documents (key, value, version, updated_at) VALUES (?, ?, 1, ?)
    ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, version = version + 1, updated_at = excluded.updated_at
"""
_REMOVE: Final = "DELETE FROM documents WHERE key = ?"
_APPLY: Final = f"{_REMOVE};{_PUT}"
# CAST, because a value that another program wrote may have any type, and bytes need no decoding.
_READ: Final = "SELECT key, CAST(value AS BLOB) FROM documents WHERE key IN ({})"
_SCAN: Final = """
    SELECT key, CAST(value AS BLOB) FROM documents WHERE key >= ? AND key < ? ORDER BY key LIMIT ?
"""


class SqliteStore:
    """Keeps documents in a SQLite file, durably: write-ahead log, ``synchronous=FULL``.

    The file is created readable by its owner alone. Other programs may read it at any time, and
    write short transactions; a second `SqliteStore` is refused (see `StoreInUseError`) for as long
    as this one is open, by a lock on ``<file>-lock`` that ends with the process, however it ends.
    A connection of its own for reading never waits for what is being written.

    Args:
        path: The file. Its folder must exist; the file need not.
        busy_timeout: Seconds to wait for another program's transaction before a write is refused.

    Raises:
        ConfigurationError: `path` is no path of a file.

    Notes:
        Only names of one file that end at the same real path are told to be the same: not hard
        links, and not a file reached through two mounts. Do not open and close the file in the
        bot's own process other than through SQLite, as to copy it: POSIX takes SQLite's locks away
        then (https://sqlite.org/howtocorrupt.html, section 2.2).
    """

    def __init__(self, path: str | PathLike[str], *, busy_timeout: float = 5.0) -> None:
        self.path = _name(path)
        self._busy_timeout = busy_timeout
        self._opened: _Opened | None = None
        self._others = 0
        self._lifecycle: asyncio.Lock | None = None
        self._lifecycle_loop: asyncio.AbstractEventLoop | None = None

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
            OpenError: No such folder, no permission, a directory, a damaged file.
        """
        if self._opened is None or self._opened.loop is not asyncio.get_running_loop():
            # Shielded: a caller that gives up must not leave a connection that nobody knows.
            await asyncio.shield(self._open())

    async def close(self) -> None:
        """Move the write-ahead log into the file, close it and let others have it.

        The log stays when another program is still reading; the next start takes it up.
        """
        await asyncio.shield(self._close())

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return the values of those of `keys` that exist. One statement for each 500 keys.

        Raises:
            ReadError: SQLite could not read the file.
        """
        wanted = list(keys)
        found: dict[str, bytes] = {}
        for start in range(0, len(wanted), _READ_KEYS):
            some = wanted[start : start + _READ_KEYS]
            found.update(await self._fetch(_READ.format(",".join("?" * len(some))), some))
        return found

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        """Yield all rows whose key begins with `prefix`, ordered by key, 500 at a time.

        Raises:
            ReadError: SQLite could not read the file.
        """
        start, end = prefix, _after(prefix)
        while rows := await self._fetch(_SCAN, (start, end, _PAGE_ROWS)):
            yield rows
            start = rows[-1][0] + "\0"

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        """Write all of `changes` or none, in one transaction; None removes the row.

        When this returns the transaction is on the disk. Another program's transaction is waited
        for, off the event loop, for `busy_timeout` seconds.

        Raises:
            UnavailableError: Another program's transaction did not end, or the store is not open.
            WriteError: Nothing was written: the disk is full, the file is read-only, ….
        """
        if self._opened is None:
            raise UnavailableError(f"{self.path}: the store is not open; await open() first")
        now = time.time_ns() // 1_000_000
        rows = tuple(changes.items())
        # The thread makes them, one by one.
        removes = ((key,) for key, text in rows if text is None)
        puts = ((key, text.decode(), now) for key, text in rows if text is not None)
        try:
            # One call, and so one hop to the thread: see FileConnection.executemany.
            if None in changes.values():
                await self._opened.writer.execute_many(_APPLY, [removes, puts])
            else:
                await self._opened.writer.execute_many(_PUT, [puts])
        except (sqlite3.Error, ValueError) as error:
            if "locked" in str(error):
                reason = f"{self.path}: {error}; end the other program's transaction"
                raise UnavailableError(reason) from error
            reason = f"{self.path}: {error}; see that the disk has room and the file may be written"
            raise WriteError(reason, keys=changes) from error

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
        if (others := self.others_seen()) is not None:
            return others
        if (opened := self._opened) is None:
            raise self._not_open()
        header = opened.file.header()  # before SQLite is asked, so that no commit is in neither
        # By the connection that writes, because it tells the commits of others from its own.
        ((version,),) = await self._fetch("PRAGMA data_version", (), opened.writer)
        opened.file.seen = header, version
        self.others_seen()
        return self._others

    async def _open(self) -> None:
        async with self._alone():
            loop = asyncio.get_running_loop()
            if self._opened is not None and self._opened.loop is not loop:
                opened, self._opened = self._opened, None
                await opened.leave_behind()
            self._opened = self._opened or await self._connect()

    async def _connect(self) -> _Opened:
        files: list[FileConnection] = []
        writer = await SqliteThread.open(partial(self._open_file, files))
        try:
            reader = await SqliteThread.open(partial(open_reader, self.path, self._busy_timeout))
        except BaseException:
            await writer.close()
            raise
        self._others += 1  # nobody knows what was written before
        return _Opened(writer, reader, asyncio.get_running_loop(), files[0], files[0].seen[1])

    def _open_file(self, files: list[FileConnection]) -> sqlite3.Connection:
        connection = open_file(self.path, self._busy_timeout)
        # For good, since the program may change its working directory.
        self.path = os.path.realpath(self.path)
        files.append(connection)
        return connection

    async def _close(self) -> None:
        async with self._alone():
            opened, self._opened = self._opened, None
            if opened is not None and opened.loop is asyncio.get_running_loop():
                await opened.close()
            elif opened is not None:
                await opened.leave_behind()

    async def _fetch(
        self, sql: str, parameters: Iterable[object], by: SqliteThread | None = None
    ) -> list[Any]:
        if self._opened is None:
            raise self._not_open()
        try:
            return await (by or self._opened.reader).fetch(sql, parameters)
        except (sqlite3.Error, ValueError) as error:
            raise ReadError(f"{self.path}: {error}") from error

    def _not_open(self) -> ReadError:
        return ReadError(f"{self.path}: the store is not open; await open() first")

    def _alone(self) -> asyncio.Lock:
        """Return what keeps `open` and `close` apart; an asyncio.Lock belongs to one loop."""
        if self._lifecycle is None or self._lifecycle_loop is not asyncio.get_running_loop():
            self._lifecycle, self._lifecycle_loop = asyncio.Lock(), asyncio.get_running_loop()
        return self._lifecycle


@dataclass
class _Opened:
    """The connections of one event loop. Reading never waits for what is being written."""

    writer: SqliteThread
    reader: SqliteThread
    loop: asyncio.AbstractEventLoop
    file: FileConnection
    data_version: int

    async def close(self) -> None:
        try:
            await self.reader.close()
        finally:
            await self.writer.close()  # last, since the last connection removes the log

    async def leave_behind(self) -> None:
        await self.reader.leave_behind()
        await self.writer.leave_behind()


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


def _after(prefix: str) -> str | bytes:
    """Return the least value above every key that begins with `prefix`.

    Keys compare by code point, of which the surrogates are left out; any BLOB is above any TEXT
    (https://sqlite.org/datatype3.html#sort_order).
    """
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return b""
    last = kept[-1]
    return kept[:-1] + ("\ue000" if last == "\ud7ff" else chr(ord(last) + 1))
