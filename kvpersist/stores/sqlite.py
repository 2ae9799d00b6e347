"""The SQLite engine: one file, one owner, write-ahead log, one hop to a thread for each commit."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from os import PathLike, fspath
from typing import Final, cast

import aiosqlite

from kvpersist.errors import ReadError, WriteError
from kvpersist.stores.sqlite_file import FileConnection, open_file
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

    Args:
        path: The file. Its folder must exist; the file need not.
        busy_timeout: Seconds to wait for another program's transaction before a write is refused.

    Notes:
        Only names of one file that end at the same real path are told to be the same: not hard
        links, and not a file reached through two mounts.
    """

    def __init__(self, path: str | PathLike[str], *, busy_timeout: float = 5.0) -> None:
        self.path = fspath(path)
        self._busy_timeout = busy_timeout
        self._connection: aiosqlite.Connection | None = None
        self._file: FileConnection | None = None
        self._seen: tuple[bytes | None, int] = (None, 0)
        self._others = 0
        self._is_applying = False
        self._lock: asyncio.Lock | None = None
        self._lock_loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.path!r})"

    def __del__(self) -> None:
        if getattr(self, "_connection", None) is not None:
            warnings.warn(
                f"{self!r} was not closed: await Application.shutdown(), or the persistence's "
                "flush(), before the program ends",
                ResourceWarning,
                source=self,
                stacklevel=1,
            )

    async def open(self) -> None:
        """Open the file, and create it when it does not exist or has 0 bytes.

        Raises:
            StoreInUseError: Another `SqliteStore` has the file open.
            NotAStoreError: The file belongs to another program. It was left as it is.
            NewerSchemaError: A newer kvpersist has written the file. It was left as it is.
            OpenError: No such folder, no permission, a directory, a damaged file.
        """
        if self._connection is None:
            # Shielded: a caller that gives up must not leave a connection that nobody knows.
            await asyncio.shield(self._open())

    async def close(self) -> None:
        """Move the write-ahead log into the file, close it and let others have it.

        The log stays when another program is still reading; the next start takes it up.
        """
        async with self._lifecycle():
            connection, self._connection, self._file = self._connection, None, None
            if connection is not None:
                await connection.close()

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
            WriteError: Nothing was written: the disk is full, the file is locked or read-only, ….
        """
        now = time.time_ns() // 1_000_000
        rows = tuple(changes.items())
        # Made in the thread, row by row.
        removes = ((key,) for key, text in rows if text is None)
        puts = ((key, text.decode(), now) for key, text in rows if text is not None)
        self._is_applying = True
        try:
            await self._opened().executemany(_APPLY, [removes, puts])
        except (sqlite3.Error, ValueError) as error:
            raise WriteError(f"{self.path}: {error}", keys=changes) from _bare(error)
        finally:
            self._is_applying = False
        self._note()

    async def writes_of_others(self) -> int:
        """Return a number that differs after other programs have written to the file.

        It asks SQLite only after somebody has written. What others wrote while an `apply` is under
        way shows when that returns.

        Raises:
            ReadError: SQLite could not read the file.
        """
        file = self._file
        if file is not None and not self._is_applying:
            header = file.header()
            if header is None or header != self._seen[0]:
                ((version,),) = await self._fetch("PRAGMA data_version", ())
                self._note((header, cast("int", version)))
        return self._others

    def _note(self, seen: tuple[bytes | None, int] | None = None) -> None:
        """Compare SQLite's data_version with what it was; it is of one connection alone."""
        if self._file is not None:
            seen = seen or self._file.seen
            if seen[1] != self._seen[1]:
                self._others += 1
            self._seen = seen

    async def _open(self) -> None:
        async with self._lifecycle():
            if self._connection is None:
                self._connection, self._file = await _connect(self.path, self._busy_timeout)
                self._seen = self._file.seen
                self._others += 1

    async def _fetch(self, sql: str, parameters: Iterable[object]) -> list[Row]:
        try:
            return list(await self._opened().execute_fetchall(sql, parameters))  # type: ignore[arg-type]
        except (sqlite3.Error, ValueError) as error:
            raise ReadError(f"{self.path}: {error}") from _bare(error)

    def _opened(self) -> aiosqlite.Connection:
        if self._connection is None:
            raise ValueError("the store is not open")
        return self._connection

    def _lifecycle(self) -> asyncio.Lock:
        """Return what keeps `open` and `close` apart; an asyncio.Lock belongs to one loop."""
        loop = asyncio.get_running_loop()
        if self._lock is None or self._lock_loop is not loop:
            self._lock, self._lock_loop = asyncio.Lock(), loop
        return self._lock


async def _connect(path: str, busy_timeout: float) -> tuple[aiosqlite.Connection, FileConnection]:
    """Open the file in a thread, and return a connection that does not keep the process alive.

    aiosqlite's own thread is no daemon, and Python waits for such threads before it exits, so a bot
    that dies before `flush` would hang. But a thread is a daemon when the one that creates it is:
    https://docs.python.org/3/library/threading.html#threading.Thread.daemon
    """
    loop = asyncio.get_running_loop()
    opening: asyncio.Future[tuple[aiosqlite.Connection, FileConnection]] = loop.create_future()

    def tell(outcome: Callable[[], None]) -> bool:
        """Call `outcome` on the loop, unless that has ended, so that nobody waits any more."""
        try:
            loop.call_soon_threadsafe(lambda: None if opening.done() else outcome())
        except RuntimeError:
            return False
        return True

    def run() -> None:
        try:
            opened = open_file(path, busy_timeout)
        except Exception as error:  # noqa: BLE001  whatever it is, somebody is waiting for it
            tell(partial(opening.set_exception, error))
            return
        connection = aiosqlite.Connection(lambda: opened, iter_chunk_size=_PAGE_ROWS)
        if not tell(partial(opening.set_result, (connection, opened))):
            opened.close()

    threading.Thread(target=run, name="kvpersist:open", daemon=True).start()
    connection, opened = await opening
    return await connection, opened


def _bare(error: Exception) -> Exception:
    """Take the traceback from `error`: its frames hold cursors, which would keep the file open."""
    return error.with_traceback(None)


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
