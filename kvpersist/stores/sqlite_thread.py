"""A SQLite connection in a thread of its own, which neither blocks nor outlives what it should."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

import aiosqlite

from kvpersist.stores.daemon import begin_in_daemon, until_done

T = TypeVar("T")
_ANY_TEXT: Final = partial(str, encoding="utf-8", errors="surrogateescape")


class SqliteThread:
    """A connection of aiosqlite's, and what aiosqlite does not take care of.

    Its thread is a daemon. By itself it is none, and Python waits for such threads before it exits,
    so that a bot which dies before `flush` would hang. But a thread is a daemon when the one that
    creates it is: https://docs.python.org/3/library/threading.html#threading.Thread.daemon

    And it can be left behind with the event loop that it was opened on: a statement that ends after
    the loop was closed ends the thread, and what is asked of it then is never answered.

    Make one with `open`.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._sync = connection
        self._workers: list[threading.Thread] = []
        take_up = _connector(connection, self._workers)
        self._async = aiosqlite.Connection(take_up, iter_chunk_size=1)

    @classmethod
    async def open(
        cls, connect: Callable[[], sqlite3.Connection], left: list[Opening]
    ) -> SqliteThread:
        """Call `connect`, which may block, in a thread, and take over what it returns.

        If this is cancelled it ends at once. `connect` goes on, and what it returns is closed; for
        whoever has to wait for that there is one more in `left`: see `closed`.

        Raises:
            Exception: What `connect` raises.
        """
        opening = begin_in_daemon(lambda: cls(connect()), cls.abandon)
        try:
            opened = await asyncio.shield(opening)
            await opened._async  # noqa: SLF001  its own class
        except GeneratorExit:  # that of a loop that has ended, which calls nobody back
            if opening.done():
                _abandon(opening)
            raise
        except BaseException:
            if not (opening.done() and opening.exception()):
                opening.add_done_callback(_abandon)
                left.append(opening)
            raise
        return opened

    async def fetch(self, sql: str, parameters: Iterable[object] = ()) -> list[Any]:
        """Return all rows of a query.

        Another program may have stored a text that is no UTF-8: from the first of them on all are
        read so that they can be written again as they were, which takes longer.

        Raises:
            sqlite3.Error: SQLite's.
        """
        try:
            return list(await self._async.execute_fetchall(sql, parameters))
        except sqlite3.Error as error:
            # Without a name for it here: it would keep this frame, and with it the connection.
            if "decode to UTF-8" not in str(error) or self._sync.text_factory is _ANY_TEXT:
                raise _without_frames(error)  # noqa: B904  it is the same error
            _without_frames(error)  # or its cursor would go on reading
        self._sync.text_factory = _ANY_TEXT
        return await self.fetch(sql, parameters)

    async def execute_many(self, sql: str, parameters: Iterable[Iterable[Any]]) -> None:
        """Call the connection's ``executemany``.

        Raises:
            sqlite3.Error: SQLite's.
        """
        try:
            await self._async.executemany(sql, parameters)
        except sqlite3.Error as error:
            raise _without_frames(error)  # noqa: B904  it is the same error

    async def leave_behind(self) -> None:
        """End the thread after what it was asked to do, and close the connection.

        Its event loop may be another one, that has ended. Being cancelled does not end this.
        """
        await until_done(begin_in_daemon(self._end, lambda _: None))

    def abandon(self) -> None:
        """Begin to close a connection that nobody waits for."""
        threading.Thread(target=self._end, name="kvpersist:close", daemon=True).start()

    def _end(self) -> None:
        # The thread is told to end, and waited for, since it may be in the middle of a statement;
        # it may also have died before it closed the connection.
        self._async.stop()
        for worker in self._workers:
            worker.join()
        self._sync.close()


Opening: TypeAlias = "asyncio.Future[SqliteThread]"


def _abandon(opening: Opening) -> None:
    if not opening.exception():
        opening.result().abandon()


async def closed(opening: Opening) -> None:
    """Wait until what nobody waited for is closed. Being cancelled does not end this."""
    with suppress(Exception):  # that of `connect`: nothing was opened
        opened = await until_done(opening)
        await opened.leave_behind()


def _connector(
    connection: sqlite3.Connection, workers: list[threading.Thread]
) -> Callable[[], sqlite3.Connection]:
    """Return what aiosqlite's thread calls first.

    It is no method: the thread keeps what it called last, and would keep a lost object alive.
    """

    def take_up() -> sqlite3.Connection:
        workers.append(threading.current_thread())
        return connection

    return take_up


def _without_frames(error: sqlite3.Error) -> sqlite3.Error:
    """Take the traceback from `error`: its frames hold cursors, which would keep the file open."""
    return error.with_traceback(None)
