"""A visit to a SQLite file of kvpersist's. See `visitor`."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from kvpersist.errors import NotAStoreError, OpenError, ReadError, StoreInUseError, WriteError
from kvpersist.stores import rescue
from kvpersist.stores.file_lock import FileLock
from kvpersist.stores.key_range import after
from kvpersist.stores.new_file import new_file
from kvpersist.stores.sqlite_backup import Progress, back_up
from kvpersist.stores.sqlite_damage import advice, is_damage
from kvpersist.stores.sqlite_file import defend, real_path
from kvpersist.stores.sqlite_schema import SCHEMA, SCHEMA_VERSION, check_schema
from kvpersist.stores.sqlite_statements import ABOVE_ALL, as_stored
from kvpersist.stores.visitor import PAGE_ROWS, Change, Digest, Existing, StoredRow

_ANY_TEXT: Final = partial(str, encoding="utf-8", errors="surrogateescape")
_COLUMNS: Final = "key, CAST(value AS BLOB), CAST(version AS INTEGER), CAST(updated_at AS INTEGER)"
_SCAN: Final = f"""
    SELECT {_COLUMNS} FROM documents WHERE key >= CAST(? AS TEXT) AND key < ? ORDER BY key LIMIT ?
"""
_VERSIONS: Final = """
    SELECT key, CAST(version AS INTEGER), CAST(updated_at AS INTEGER) FROM documents
    WHERE key >= CAST(? AS TEXT) AND key < ?
"""
_ALL: Final = f"SELECT {_COLUMNS} FROM documents ORDER BY rowid"
_ANY: Final = "SELECT 1 FROM documents LIMIT 1"
_READ: Final = f"SELECT {_COLUMNS} FROM documents WHERE key = CAST(? AS TEXT)"
_ASIDE: Final = f"SELECT {_COLUMNS} FROM set_aside ORDER BY rowid"
_HAS_ASIDE: Final = "SELECT 1 FROM sqlite_master WHERE name = 'set_aside'"
_IS_ODD: Final = """
    SELECT key FROM documents WHERE typeof(key) != 'text' OR typeof(value) != 'text'
    OR typeof(version) != 'integer' OR typeof(updated_at) != 'integer'
"""
_ADD: Final = "INSERT INTO documents VALUES (CAST(? AS TEXT), CAST(? AS TEXT), ?, ?)"
_PUT: Final = f"""
    {_ADD} ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, version = version + 1, updated_at = excluded.updated_at
"""
_REMOVE: Final = "DELETE FROM documents WHERE key = CAST(? AS TEXT)"
_REMOVE_ASIDE: Final = """
    DELETE FROM set_aside WHERE key = CAST(? AS TEXT) AND CAST(value AS BLOB) = ?
"""


class SqliteVisitor:
    """Looks at a SQLite file, and may change rows of it.

    Args:
        path: The file.
        busy_timeout: Seconds to wait for the transaction of another program.
    """

    def __init__(self, path: str, *, busy_timeout: float = 5.0) -> None:
        self.shown = path
        self._path = Path(real_path(path))
        self._busy_timeout = busy_timeout
        self._reader: sqlite3.Connection | None = None
        self._is_immutable = False

    async def open(self) -> None:
        """Connect for reading.

        Where nobody has the file open, the write-ahead log that SQLite needs for it is made, and
        removed by `close`. If that is not allowed, the file is read as one that nobody writes.
        """
        if self._path.is_dir():
            raise OpenError(f"{self.shown} is a directory; name a file in it")
        if not self._path.exists():
            raise OpenError(
                f"there is no file {self.shown}. Is the path right? A bot makes its file when it "
                "starts for the first time"
            )
        if (journal := Path(f"{self._path}-journal")).exists():
            raise OpenError(
                f"{journal} is in the way: a transaction was cut off there; start the bot, which "
                "settles that if the file is its own"
            )
        has_log = Path(f"{self._path}-wal").exists()
        if not has_log and not self._is_writable():
            self._is_immutable = True
            self._reader = self._connect("immutable=1")
        else:
            # Who may write removes the log again when it is the last to leave.
            self._reader = self._connect("mode=ro" if has_log else "mode=rw")
        try:
            self._reader.execute("PRAGMA query_only = ON")
            if self._reader.execute("PRAGMA page_count").fetchone() == (0,):
                raise OpenError(f"{self.shown} is empty: no bot has written to it yet")
            check_schema(self._path, self._reader)
        except sqlite3.Error as error:
            await self.close()
            if "not a database" in str(error):
                raise NotAStoreError(
                    f"{self.shown} is not a file of kvpersist's, nor any of SQLite's; a file of "
                    "PicklePersistence is moved by `kvpersist migrate`"
                ) from error
            raise OpenError(f"{self.shown} cannot be opened: {self._said(error)}") from error
        except BaseException:
            await self.close()
            raise

    def _is_writable(self) -> bool:
        return os.access(self._path, os.W_OK) and os.access(self._path.parent, os.W_OK)

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = f"{self._path.as_uri()}?{mode}"
        try:
            connection = sqlite3.connect(
                uri, uri=True, timeout=self._busy_timeout, isolation_level=None
            )
        except sqlite3.Error as error:
            raise OpenError(f"{self.shown} cannot be opened: {error}; see whose it is") from error
        # A key that is no UTF-8 is to be named, and can be written again as it was.
        connection.text_factory = _ANY_TEXT
        defend(connection)
        return connection

    async def close(self) -> None:
        """Disconnect, and say if what was read may be a mixture."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
            if self._is_immutable and Path(f"{self._path}-wal").exists():
                raise ReadError(
                    f"{self.shown}: a bot began to write while it was read as a file that nobody "
                    "writes, since its folder may not be written; what was read may be a mixture. "
                    "Do it again"
                )

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """Hold one read transaction, for which no writer waits; the log grows meanwhile."""
        self._fetch("BEGIN")
        try:
            yield
        finally:
            self._fetch("ROLLBACK")

    async def read(self, keys: Collection[str]) -> dict[str, StoredRow]:
        """Return those of `keys` that exist."""
        found = (row for key in keys for row in self._fetch(_READ, as_stored(key)))
        return {row[0]: StoredRow(*row) for row in found}

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[StoredRow]]:
        """Yield all rows whose key begins with `prefix`, ordered by key, 500 at a time."""
        start: str | bytes = prefix
        end = after(prefix) or ABOVE_ALL
        while rows := self._fetch(_SCAN, start, end, PAGE_ROWS):
            yield [StoredRow(*row) for row in rows]
            start = as_stored(rows[-1][0]) + b"\0"

    async def changes(self) -> object:
        """Return what differs after another connection has committed."""
        return self._fetch("PRAGMA data_version")

    async def versions(self, prefix: str) -> dict[str, tuple[int, int]]:
        """Return `version` and `updated_at` of all rows whose key begins with `prefix`."""
        found = self._fetch(_VERSIONS, prefix, after(prefix) or ABOVE_ALL)
        return {key: (version, at) for key, version, at in found}

    async def aside(self) -> Sequence[StoredRow]:
        """Return the rows that were set aside because they could not be read."""
        if not self._fetch(_HAS_ASIDE):
            return []
        return [StoredRow(*row) for row in self._fetch(_ASIDE)]

    async def faults(self) -> Sequence[str]:
        """Return what ``PRAGMA integrity_check`` finds, and columns that hold what they must not.

        Raises:
            ReadError: Not even that could be looked at.
        """
        found = [words for (words,) in self._fetch("PRAGMA integrity_check") if words != "ok"]
        odd = [f"{key}: a column is of a type that no kvpersist writes" for (key,) in self._odd()]
        left = rescue.place_of(str(self._path))
        if os.path.lexists(left):
            odd.append(f"{left} holds rows that a bot could not write; its next start does")
        return found + odd

    def _odd(self) -> list[Any]:
        return self._fetch(_IS_ODD)

    async def schema_version(self) -> int:
        """Return the number of the stored schema."""
        return SCHEMA_VERSION  # `open` refuses all others

    def _fetch(self, sql: str, *parameters: object) -> list[Any]:
        assert self._reader is not None  # noqa: S101  `open` was called
        try:
            return self._reader.execute(sql, parameters).fetchall()
        except sqlite3.Error as error:
            raise ReadError(f"{self.shown}: {self._said(error)}") from error

    async def back_up(self, path: str, progress: Progress) -> None:
        """Copy all of the file as it is at one moment, as `SqliteStore.backup` does."""
        mode = "immutable=1" if self._is_immutable else "mode=ro"
        await back_up(partial(self._connect, mode), path, progress)

    async def change(
        self, changes: Mapping[str, Change], *, alone: bool, aside: Collection[StoredRow] = ()
    ) -> Sequence[str]:
        """Make all changes or none. What is removed is overwritten in the file, not just freed."""
        with self._alone(alone), self._transaction() as connection:
            found = {
                row[0]: StoredRow(*row)
                for key in changes
                for row in connection.execute(_READ, (as_stored(key),))
            }
            other = [key for key, change in changes.items() if found.get(key) != change.before]
            if not other:
                now = time.time_ns() // 1_000_000
                for key, change in changes.items():
                    if change.value is None:
                        connection.execute(_REMOVE, (as_stored(key),))
                    else:
                        connection.execute(_PUT, (as_stored(key), change.value, 1, now))
                for row in aside:
                    connection.execute(_REMOVE_ASIDE, (as_stored(row.key), row.value))
        return other

    async def fill(self, pages: AsyncIterable[Sequence[StoredRow]], existing: Existing) -> int:
        """Write rows as they are, in one transaction, while no bot has the file."""
        with self._alone(is_wanted=True), self._transaction() as connection:
            if existing == "clear":
                connection.execute("DELETE FROM documents")
            elif existing == "none" and connection.execute(_ANY).fetchone():
                raise WriteError(f"{self.shown} has rows already; name a new file")
            sql = _PUT if existing == "replace" else _ADD
            return await _add(connection, self.shown, pages, sql)

    @contextmanager
    def _alone(self, is_wanted: bool) -> Iterator[None]:
        if os.path.lexists(left := rescue.place_of(str(self._path))):
            raise WriteError(
                f"{left} holds rows that a bot could not write, and its next start would write "
                "over what is changed now; start the bot first, and stop it again"
            )
        if not is_wanted:
            yield
            return
        try:
            lock = FileLock(Path(f"{self._path}-lock"))
        except BlockingIOError as error:
            raise StoreInUseError(f"a bot has {self.shown} open; stop it first") from error
        except OSError as error:
            raise WriteError(f"{self.shown}-lock: {error}; see whose it is") from error
        try:
            yield
        finally:
            lock.release()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connect("mode=rw")
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise WriteError(f"{self.shown}: {self._said(error)}; nothing was changed") from error
        finally:
            connection.close()  # which rolls back what was not committed

    def _said(self, error: sqlite3.Error) -> str:
        return f"{error}; {advice(self.shown)}" if is_damage(error) else str(error)


async def create(path: Path, pages: AsyncIterable[Sequence[StoredRow]]) -> Digest:
    """Make a new file of kvpersist's that holds rows, or none. They are read again, and compared.

    Raises:
        FileExistsError: Something has the name, and was left as it is.
        OSError, WriteError: The disk is full, …. There is no file.
    """
    _check_nothing_beside(path)
    wanted = Digest()
    with new_file(path) as temporary:
        try:
            with closing(sqlite3.connect(temporary, isolation_level=None)) as connection:
                # Nobody sees the file before it is whole, so that it needs no journal beside it.
                connection.execute("PRAGMA journal_mode = OFF")
                connection.executescript(SCHEMA)
                connection.execute("BEGIN")
                await _add(connection, str(path), wanted.over(pages), _ADD)
                connection.execute("COMMIT")
            with closing(sqlite3.connect(temporary)) as connection:
                found = Digest()
                connection.text_factory = _ANY_TEXT
                for row in connection.execute(_ALL):
                    found.add([StoredRow(*row)])
        except sqlite3.Error as error:
            raise WriteError(f"{path} was not written: {error}") from error
        if found != wanted:
            raise WriteError(f"{path} was not written: what was read again differs")
    return wanted


async def _add(
    connection: sqlite3.Connection,
    shown: str,
    pages: AsyncIterable[Sequence[StoredRow]],
    sql: str,
) -> int:
    number = 0
    async for page in pages:
        for row in page:
            columns = (as_stored(row.key), row.value, row.version, row.updated_at)
            try:
                connection.execute(sql, columns)
            except sqlite3.IntegrityError as error:
                raise WriteError(
                    f"{shown}: {row.key} is there already; remove it first, or say --replace"
                ) from error
            (written,) = connection.execute(_READ, (as_stored(row.key),))
            if written[:2] != (row.key, row.value):
                raise WriteError(f"{shown}: {row.key} is not what was written; nothing was changed")
        number += len(page)
    return number


def _check_nothing_beside(path: Path) -> None:
    """Raise FileExistsError if something would be taken for a part of the new file."""
    for end in ("wal", "shm", "journal", "rescue"):
        if os.path.lexists(beside := f"{path}-{end}"):
            raise FileExistsError(f"{beside} would be taken for a part of {path}; move it away")
